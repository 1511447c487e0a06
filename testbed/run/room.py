"""A run folder on a disk that fills up while something is measured: what is finished by then is not to be lost.

Room for the results is held from the beginning, and captures, which take most, are given up for it. What was measured
before is judged and written; what was being measured is not, and the run says why.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from testbed.errors import FidelityError, PreflightError
from testbed.report.record import RECORD_NAME
from testbed.run.keepsakes import discard_captures

HELD_BYTES = 8 * 2**20
"""Of record, report and test results; samples are smaller than the captures they come from."""

MOST_FILLED_BYTES = 2**30
"""Largest file system that is ever filled on purpose."""

SAID = "the disk is full"

_HELD_NAME = ".held"
_CHUNK_BYTES, _LEAST_BYTES = 2**24, 2**9
_FORMATTED = "lost+found"
_MOUNTS, _ROOT, _POINT = Path("/proc/self/mountinfo"), 3, 4
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_LITTLE_BYTES = 2**20
"""A disk with less room is full: some writer has failed, or is about to."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Take the room for the results before anything else does, until they are due.

    Raises:
        PreflightError: There is not as much.
    """
    path = folder / _HELD_NAME
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, HELD_BYTES)
    except OSError as error:
        path.unlink()
        raise PreflightError(f"{_full(folder)} ({HELD_BYTES / 1e6:.0f} MB are held for the results)") from error
    finally:
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink()


def own_disk_problems(out: Path) -> tuple[str, ...]:
    """What stands in the way of filling the file system of `out` on purpose; nothing if nothing but runs lies on it.

    Args:
        out: Folder that is to receive a run's folder; it need not be there.
    """
    folder = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir()).resolve()
    size = _size_bytes(folder)
    found = f"one of {size / 1e6:,.0f} MB"
    if size <= MOST_FILLED_BYTES:
        stranger = next(_strangers(folder), None)
        if stranger is None:
            return ()
        found = f"one that holds {stranger}"
    said = (
        f"{out}: the file system that this lies on is to be filled: found {found}, expected one of at most "
        f"{MOST_FILLED_BYTES / 1e6:,.0f} MB with nothing but finished runs on it; make one (mount -t tmpfs "
        "-o size=1g none FOLDER) and choose a folder on it with --out"
    )
    return (said,)


def _size_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize


def _strangers(folder: Path) -> Iterator[Path]:
    """What lies on the file system of a folder of runs, or beside the way to it, and is no finished run."""
    yield from (path for path in folder.iterdir() if path.name != _FORMATTED and not (path / RECORD_NAME).is_file())
    while not folder.is_mount():
        yield from (path for path in folder.parent.iterdir() if path.name != _FORMATTED and path != folder)
        folder = folder.parent
    # A folder of a file system may be mounted alone, and the rest of it be elsewhere.
    mounts = (line.split() for line in _MOUNTS.read_text(encoding="utf-8").splitlines())
    root = [fields[_ROOT] for fields in mounts if fields[_POINT] == str(folder)]
    if root[-1:] != ["/"]:
        yield folder


@contextmanager
def filling(folder: Path) -> Iterator[Callable[[], None]]:
    """A way to take all room that is left beside a folder, given back at the end, and when the process is killed.

    The file that takes it has no name, so that nothing is left of it whatever becomes of the run. Where more than
    `MOST_FILLED_BYTES` could be taken nothing is, and `FidelityError` raised.
    """
    with ExitStack() as stack:

        def fill() -> None:
            if _size_bytes(folder) > MOST_FILLED_BYTES:
                raise FidelityError(own_disk_problems(folder))
            descriptor = stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0)).fileno()
            taken, chunk = 0, _CHUNK_BYTES
            while chunk >= _LEAST_BYTES and taken < MOST_FILLED_BYTES:
                try:
                    os.posix_fallocate(descriptor, taken, chunk)
                    taken += chunk
                except OSError as error:
                    if not is_full(error):
                        raise
                    chunk //= 2

        yield fill


def why(folder: Path, failure: Sequence[str]) -> tuple[str, ...]:
    """Why a run could not go on: what was found, or, where the disk is full, that, and room is made for the results."""
    if shutil.disk_usage(folder).free >= _LITTLE_BYTES:
        return tuple(failure)
    discard_captures(folder)
    return (f"{_full(folder)}. What was measured before is kept, without its captures",)


def is_full(error: OSError) -> bool:
    """Whether something could not be written for want of room."""
    return error.errno in _FULL


@contextmanager
def written_or_nothing(folder: Path) -> Iterator[None]:
    """Results that cannot be written do not stay as half of them.

    Raises:
        FidelityError: There is no room for them.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        shutil.rmtree(folder)
        raise FidelityError(f"{_full(folder)}. The results could not be written, and nothing is kept") from error


def _full(folder: Path) -> str:
    return f"{folder}: {SAID}; free space, or choose another folder with --out"
