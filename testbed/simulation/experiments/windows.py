"""The simulated windows of an experiment on disk: an interruption loses none that is finished, and none is done twice.

A window's folder is named by everything that decides its result, so that experiments of other lengths, seeds or numbers
of windows can share a folder and take from each other nothing but the very same windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.run.progress import Progress
from testbed.simulation.system import System
from testbed.simulation.tally import Tally
from testbed.simulation.window import Plan
from testbed.simulation.windows import Task, finished, make_folder, perform, tally_of
from testbed.simulation.workers import carry_out

_NAMED_DIGITS = 12


@dataclass(frozen=True)
class Windows:
    """The windows of one point.

    Attributes:
        value: Of what is varied.
        name: Of what is compared.
        tasks: One for each window.
    """

    value: float
    name: str
    tasks: tuple[Task, ...]

    def tallies(self) -> Iterator[Tally]:
        """What was counted in each window, read one at a time: together they may be too large for memory."""
        return (tally_of(task.folder) for task in self.tasks)


def windows(folder: Path, value: float, name: str, systems: Sequence[System], plans: Sequence[Plan]) -> Windows:
    """The windows of a point.

    Args:
        folder: Of the point.
        value: Of what is varied.
        name: Of what is compared.
        systems: What is simulated in each window.
        plans: How long, and from which seed.
    """
    unplaced = [Task(system, plan, (), folder) for system, plan in zip(systems, plans, strict=True)]
    tasks = [
        replace(task, folder=folder / f"window-{task.plan.window}-{task.digest[:_NAMED_DIGITS]}") for task in unplaced
    ]
    return Windows(value, name, tuple(tasks))


def point_folder(out: Path, varied: str, value: float, name: str) -> Path:
    """Where what is found of a point is kept."""
    return out / f"{varied}-{value:g}-{name}"


def complete(
    points: Sequence[Windows],
    out: Path,
    progress: Progress,
    *,
    workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> list[Windows]:
    """Simulate the windows that are missing.

    Args:
        points: All of them.
        out: Folder of the experiment, made if it is not there.
        progress: Told how far it has come.
        workers: Processes.
        stop: Asked now and then whether to end early.

    Returns:
        The points of which every window is there.

    Raises:
        PreflightError: The folder cannot be made.
    """
    make_folder(out)
    tasks = [task for point in points for task in point.tasks]
    missing = [task for task in tasks if finished(task) is None]
    with progress.step(f"{len(missing)} of {len(tasks)} windows") as step:
        for _ in carry_out(perform, missing, workers=workers, advance=step.advance, stop=stop):
            pass
    return [point for point in points if all(finished(task) for task in point.tasks)]
