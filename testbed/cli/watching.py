"""How long verbs show progress and end early: bars or lines on standard error, and what Ctrl-C means."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from testbed.run.progress import Step

_NOTICE = "ending early with what there is; once more breaks off"


class Interrupt:
    """The first Ctrl-C asks for an early end with what there is, the second one breaks off.

    Attributes:
        displayed: Whether somebody else shows that it was asked for; else the handler of the signal says so.
    """

    def __init__(self) -> None:
        self._asked = False
        self.displayed = False
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if not self.displayed:
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\n{_NOTICE}\n".encode())

    def __call__(self) -> bool:
        """Whether an early end was asked for."""
        return self._asked


class _Bars(Progress):
    """Bars below the notice that an early end was asked for: written between them, they would be drawn again below."""

    def __init__(self, stop: Interrupt, console: Console) -> None:
        self._asked_to_stop = stop
        columns = (SpinnerColumn(), TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
        super().__init__(*columns, console=console, disable=not console.is_terminal)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The notice, if there is reason for it, and the bars."""
        if self._asked_to_stop():
            yield Text(_NOTICE)
        yield from super().get_renderables()


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
def shown(stop: Interrupt) -> Iterator[Shown]:
    """Progress on standard error for as long as the context lasts, and that an early end was asked for."""
    console = Console(stderr=True)
    with _Bars(stop, console) as progress:
        stop.displayed = console.is_terminal
        try:
            yield Shown(progress)
        finally:
            stop.displayed = False
