"""What a benchmark says: a measured value beside its target and beside a peer measured in the same run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Goal(StrEnum):
    """How a value is compared with its target."""

    AT_MOST = "at most"
    AT_LEAST = "at least"
    SHOWN = "shown"


@dataclass(frozen=True)
class Figure:
    """One row: what was measured, what it should be, and what a peer does in the same run.

    Attributes:
        name: What was measured, as a reader would say it.
        value: The measured value, in `unit`.
        unit: Unit of value, target and peer; empty for a ratio or a count.
        goal: How `value` is compared with `target`; a figure that is only shown is always reached.
        target: The value to reach.
        peer: Who or what was measured beside it.
        peer_value: The peer's value, in `unit`.
        note: What a reader must know to trust the row (repetitions, size, seed).
        limits: Lower and upper confidence limit of `value`, where too few repetitions are behind it to stand for
            itself: the target is then reached only if both limits are on its side.
        valid: Whether the run behind it was VALID; one that was not shows nothing, on whichever side of its target.
    """

    name: str
    value: float
    unit: str = ""
    goal: Goal = Goal.SHOWN
    target: float | None = None
    peer: str = ""
    peer_value: float | None = None
    note: str = ""
    limits: tuple[float, float] | None = None
    valid: bool = True

    @property
    def reached(self) -> bool:
        """Whether the target is shown to hold; a value that is not a number reaches nothing."""
        return (self.valid or self.goal is Goal.SHOWN) and self._on_the_side(*self._limits)

    @property
    def undecided(self) -> bool:
        """Whether the target is neither reached nor missed: both are within the limits, or the run was not VALID."""
        lower, upper = self._limits
        return not self.reached and (not self.valid or self._on_the_side(upper, lower))

    @property
    def said(self) -> str:
        """The answer in a word; none for a figure that is only shown."""
        if self.goal is Goal.SHOWN:
            return ""
        return "yes" if self.reached else "not shown" if self.undecided else "NO"

    @property
    def _limits(self) -> tuple[float, float]:
        return self.limits or (self.value, self.value)

    def _on_the_side(self, least: float, most: float) -> bool:
        match self.goal:
            case Goal.SHOWN:
                return True
            case Goal.AT_MOST:
                return self.target is not None and bool(most <= self.target)
            case Goal.AT_LEAST:
                return self.target is not None and bool(least >= self.target)

    def to_dict(self) -> dict[str, object]:
        """The row as `--json` writes it, which knows no infinity and nothing that is not a number: null for both."""
        return {
            "figure": self.name,
            "value": _finite(self.value),
            "unit": self.unit,
            "goal": self.goal.value,
            "target": self.target,
            "peer": self.peer or None,
            "peer_value": None if self.peer_value is None else _finite(self.peer_value),
            "limits": self.limits and tuple(map(_finite, self.limits)),
            "reached": self.reached,
            "undecided": self.undecided,
            "valid": self.valid,
            "note": self.note,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def at_most(name: str, value: float, target: float, unit: str = "", **more: object) -> Figure:
    """A figure that must not exceed its target."""
    return Figure(name, value, unit, Goal.AT_MOST, target, **more)  # type: ignore[arg-type]


def at_least(name: str, value: float, target: float, unit: str = "", **more: object) -> Figure:
    """A figure that must reach its target."""
    return Figure(name, value, unit, Goal.AT_LEAST, target, **more)  # type: ignore[arg-type]


def seconds_per_call(call: Callable[[], object], *, repeat: int = 7, least_s: float = 0.05) -> float:
    """The smallest mean time of one call over `repeat` batches, each long enough to be timed; the first is a warm-up.

    The minimum is the time that the code needs; everything above it is the host's doing.
    """
    call()
    number = 1
    while (spent := _timed(call, number)) < least_s:
        number = max(number * 2, int(number * least_s / max(spent, 1e-9)))
    return min(_timed(call, number) for _ in range(repeat)) / number


def _timed(call: Callable[[], object], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return time.perf_counter() - start
