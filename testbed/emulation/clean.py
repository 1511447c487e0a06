"""Undoes what dead runs left on the host, and nothing else: their journals say what that is.

A run that is alive is left alone, and so is everything no journal names. Used by `testbed clean`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.emulation import journal
from testbed.emulation.entries import State
from testbed.emulation.journal import RUNS, Undone
from testbed.errors import CleanupError


@dataclass(frozen=True)
class Cleaned:
    """What became of one dead run.

    Attributes:
        runid: Its id, the name of its directory.
        undone: Each entry of its journal, latest change first.
    """

    runid: str
    undone: tuple[Undone, ...]


def dead_runs(root: Path = RUNS) -> tuple[Path, ...]:
    """Directories of runs whose process is gone.

    Raises:
        CleanupError: A journal is damaged.
    """
    if not root.is_dir():
        return ()
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return tuple(folder for folder in folders if (owner := journal.read(folder)[0]) is None or not owner.is_alive())


def left_behind(root: Path = RUNS) -> tuple[Cleaned, ...]:
    """What cleaning would undo now; changes nothing."""
    return tuple(
        Cleaned(
            folder.name,
            tuple(Undone(entry.describe(), entry.state()) for entry in reversed(journal.read(folder)[1])),
        )
        for folder in dead_runs(root)
    )


def clean(root: Path = RUNS) -> tuple[Cleaned, ...]:
    """Undo everything that dead runs left.

    Raises:
        CleanupError: Something could not be undone, each named; what could be has been.
    """
    if not root.is_dir():
        return ()
    cleaned: list[Cleaned] = []
    problems: list[str] = []
    with journal.locked(root):
        for folder in dead_runs(root):
            try:
                cleaned.append(Cleaned(folder.name, journal.undo(folder)))
            except CleanupError as error:
                problems += error.problems
    if problems:
        raise CleanupError(problems)
    return tuple(cleaned)


def present(run: Cleaned) -> tuple[str, ...]:
    """Only what was really there."""
    return tuple(item.what for item in run.undone if item.state is State.PRESENT)
