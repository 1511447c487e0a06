"""The error tree of the whole project.

Every message names the object, what was found, what was expected and the remedy; `TestbedError.problems` carries
several of them when one reading of a file or one preflight finds more than one. Nothing here formats for a terminal:
`testbed.cli` does.
"""

from __future__ import annotations

from collections.abc import Iterable


class TestbedError(Exception):
    """Base of everything this project raises on purpose.

    Attributes:
        problems: One complete sentence for each thing that is wrong, in the order found.
    """

    __test__ = False

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ScenarioError(TestbedError):
    """A scenario that cannot be run as written."""


class PreflightError(TestbedError):
    """A host that cannot run what was asked, found before anything was changed."""


class EnvelopeError(TestbedError):
    """An envelope that is malformed, unsigned, expired or not applicable."""


class ReservationError(TestbedError):
    """A reservation that a domain refused, could not install or could not verify."""


class FidelityError(TestbedError):
    """A measurement that cannot be taken or trusted because of the host."""


class CleanupError(TestbedError):
    """Something a run made that could not be undone."""


class InterruptedRunError(TestbedError):
    """A run that the user ended before it had measured anything."""
