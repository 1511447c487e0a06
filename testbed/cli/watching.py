"""How long verbs show progress and end early: bars or lines on standard error, and what Ctrl-C means."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from testbed.run.progress import Step


class Interrupt:
    """The first Ctrl-C asks for an early end with what there is, the second one breaks off."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nending early with what there is; once more breaks off\n")

    def __call__(self) -> bool:
        """Whether an early end was asked for."""
        return self._asked


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, fraction: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=fraction)


class Shown:
    """Steps as bars on a terminal, or as one line each where output is not a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Show a bar until the step ends."""
        task = self._progress.add_task(name, total=1.0)
        if not self._progress.console.is_terminal:
            self._progress.console.print(f"{name} ...", highlight=False)
        yield _Bar(self._progress, task)
        self._progress.update(task, completed=1.0)


@contextmanager
def shown() -> Iterator[Shown]:
    """Progress on standard error for as long as the context lasts."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Shown(progress)
