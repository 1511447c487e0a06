"""What decides a result and stands in no scenario: what is in the files of traces, and the code that simulates."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import testbed
from testbed.scenario.model import Arrivals, TraceArrivals
from testbed.traffic.servegen import dataset_of

_KEPT = 1024


@functools.cache
def code_digest() -> str:
    """Changes with the source of any module of the package; read once in a process."""
    root = Path(testbed.__file__).parent
    told = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        told.update(f"{path.relative_to(root)} {_file_digest(path)}".encode())
    return told.hexdigest()


def traces_digest(arrivals: Iterable[Arrivals]) -> tuple[str, ...]:
    """Changes with what is in the files of traces, wherever they lie; empty where there are none.

    Raises:
        OSError: One cannot be read.
    """
    return tuple(
        _kept_digest(path, path.stat().st_mtime_ns, path.stat().st_size)
        for one in arrivals
        if isinstance(one, TraceArrivals)
        for path in (one.path, *([dataset_of(one.path)] if one.format == "servegen" else []))
    )


@functools.lru_cache(_KEPT)
def _kept_digest(path: Path, changed_ns: int, size: int) -> str:
    """Of a file as it was then: a window among thousands does not read it again."""
    del changed_ns, size
    return _file_digest(path)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
