"""Undoes what dead runs left on the host, and nothing else: their journals say what that is.

A run that is alive is left alone, and so is everything no journal names. Used by `testbed clean`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.emulation import journal
from testbed.emulation.entries import State
from testbed.emulation.journal import RUNS, Undone
from testbed.errors import CleanupError, PreflightError


@dataclass(frozen=True)
class Cleaned:
    """What became of one dead run.

    Attributes:
        runid: Its id, the name of its directory.
        undone: Each entry of its journal, latest change first.
        problems: What is still there and why, a sentence each; a journal that cannot be read is one.
    """

    runid: str
    undone: tuple[Undone, ...]
    problems: tuple[str, ...] = ()


def left_behind(root: Path = RUNS) -> tuple[Cleaned, ...]:
    """What cleaning would undo now; changes nothing.

    Raises:
        PreflightError: The journals belong to another user.
    """
    return _each_dead_run(root, dry_run=True)


def clean(root: Path = RUNS) -> tuple[Cleaned, ...]:
    """Undo everything that dead runs left; one that cannot be undone does not keep the others from it.

    Raises:
        PreflightError: The journals belong to another user.
    """
    return _each_dead_run(root, dry_run=False)


def present(run: Cleaned) -> tuple[str, ...]:
    """Only what was really there and could be undone, each once: some changes have an entry before and one after."""
    found = (item.what for item in run.undone if item.state is State.PRESENT and not item.problem)
    return tuple(dict.fromkeys(found))


def _each_dead_run(root: Path, *, dry_run: bool) -> tuple[Cleaned, ...]:
    if not root.is_dir():
        return ()
    try:
        with journal.locked(root):
            folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
            found = [_treat(folder, dry_run=dry_run) for folder in folders]
    except PermissionError as error:
        raise PreflightError(f"{root}: runs of another user may be there ({error.strerror}); run as root") from error
    return tuple(run for run in found if run is not None)


def _treat(folder: Path, *, dry_run: bool) -> Cleaned | None:
    """What became of one run, None if it is still alive."""
    try:
        owner, _ = journal.read(folder)
        if owner is not None and owner.is_alive():
            return None
        outcomes = journal.undo(folder, dry_run=dry_run)
    except CleanupError as error:
        return Cleaned(folder.name, (), error.problems)
    return Cleaned(folder.name, outcomes, journal.problems_of(folder, outcomes))
