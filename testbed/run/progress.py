"""What a long verb tells whoever watches, without knowing how it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    """One step under way."""

    def advance(self, fraction: float) -> None:
        """Tell how much of the step is done, 0 to 1."""


class Progress(Protocol):
    """Where steps are announced."""

    def step(self, name: str) -> AbstractContextManager[Step]:
        """Announce a step; it is done when the context ends."""


class _SilentStep:
    def advance(self, fraction: float) -> None:
        """Nobody watches."""


class Silent:
    """Progress that nobody watches."""

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:  # noqa: ARG002 - nobody is told
        """Show nothing."""
        yield _SilentStep()
