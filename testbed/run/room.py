"""A run folder on a disk that fills up while something is measured: what is finished by then is not to be lost.

Room for the results is held from the beginning, and captures, which take most, are given up for it. What was measured
before is judged and written; what was being measured is not, and the run says why.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from testbed.errors import FidelityError, PreflightError
from testbed.run.keepsakes import discard_captures

HELD_BYTES = 8 * 2**20
"""Of record, report and test results; samples are smaller than the captures they come from."""

_HELD_NAME = ".held"
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
    return f"{folder}: the disk is full; free space, or choose another folder with --out"
