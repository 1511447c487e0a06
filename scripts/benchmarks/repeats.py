"""Repeats a random experiment until its percentages are known well enough, and goes on where it was interrupted.

The draws of repetition k come from seed k whoever computes it and when, so a file of earlier results continues to the
very figures of a run without a break. Not for timing: repetitions share the processors.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from testbed.audit.compliance import lower_limit, upper_limit
from testbed.errors import TestbedError

Task = Callable[[np.random.Generator], tuple[float, ...]]

_SEED = 20_260_101
_LEAST = 200
_BATCH = 50


@dataclass(frozen=True)
class Repeats:
    """How often to repeat, and where results are kept.

    Attributes:
        most: Repetitions of one experiment at most.
        workers: Processes.
        kept: File of results to go on from and to add to; None keeps nothing.
        code: Folder whose Python files the results depend on; results of other code are refused.
    """

    most: int
    workers: int
    kept: Path | None
    code: Path
    _found: dict[str, list[list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kept is not None:
            digest = _digest(self.code)
            if not self.kept.exists():
                self.kept.write_text(json.dumps({"code": digest}) + "\n")
            for what, rows in _read(self.kept, digest):
                self._found.setdefault(what, []).extend(rows)

    def until_known(
        self, what: str, task: Task, columns: Sequence[int] = (), points: float = 1.0, most: int | None = None
    ) -> np.ndarray:
        """Repeat until each percentage is known to so many points either way (95 %), or as often as allowed.

        Args:
            what: Names the experiment, its parameters included.
            task: One repetition: some numbers.
            columns: Those of the numbers that are true or false and wanted as percentages; none: as often as allowed.
            points: Half width of the exact interval that is enough.
            most: Repetitions at most, if fewer than otherwise.

        Returns:
            What the repetitions said, one row each.
        """
        rows = self._found.setdefault(what, [])
        allowed = self.most if most is None else min(self.most, most)
        while len(rows) < allowed and not _known(rows, columns, points):
            numbers = range(len(rows), min(len(rows) + _BATCH, allowed))
            new = self._compute(task, numbers)
            rows.extend(new)
            if self.kept is not None:
                with self.kept.open("a") as file:
                    file.write(json.dumps({"what": what, "rows": new}) + "\n")
        return np.array(rows, dtype=float)

    def _compute(self, task: Task, numbers: range) -> list[list[float]]:
        if self.workers == 1:
            return [_repetition(task, number) for number in numbers]
        # Forked, so that what was computed once (a simulated truth) is shared.
        with multiprocessing.get_context("fork").Pool(self.workers) as pool:
            return pool.map(partial(_repetition, task), numbers, chunksize=5)


def off_by(truths: np.ndarray) -> float:
    """How far a percentage may be off in points, 95 % of the time: the longer half of its exact interval."""
    count, n = float(truths.sum()), truths.size
    share = count / n
    return 100 * max(upper_limit(count, n, 0.975) - share, share - lower_limit(count, n, 0.975))


def percent(truths: np.ndarray) -> float:
    """How many are true."""
    return 100 * float(truths.mean())


def precision(truths: np.ndarray) -> str:
    """How many repetitions are behind a percentage, its standard error, and how far it may be off."""
    error = 100 * float(truths.std()) / math.sqrt(truths.size)
    return f"{truths.size} series, s.e. {error:.2f}, +- {off_by(truths):.1f} points"


def _known(rows: list[list[float]], columns: Sequence[int], points: float) -> bool:
    if len(rows) < _LEAST or not columns:
        return False
    found = np.array(rows, dtype=float)
    return all(off_by(found[:, column]) <= points for column in columns)


def _repetition(task: Task, number: int) -> list[float]:
    seed = np.random.SeedSequence(_SEED, spawn_key=(number,))
    return [float(value) for value in task(np.random.default_rng(seed))]


def _digest(folder: Path) -> str:
    sources = (path.name.encode() + b"\0" + path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(b"\0".join(sources)).hexdigest()


def _read(path: Path, digest: str) -> Iterator[tuple[str, list[list[float]]]]:
    first, *lines = path.read_text().splitlines(keepends=True)
    if json.loads(first) != {"code": digest}:
        raise TestbedError(f"{path}: results of other code than this; begin a new file, or go back to that code")
    if lines and not lines[-1].endswith("\n"):
        # Cut off while it was written: that batch is drawn again, from the same seeds.
        path.write_text("".join([first, *(lines := lines[:-1])]))
    for line in lines:
        entry = json.loads(line)
        yield entry["what"], entry["rows"]
