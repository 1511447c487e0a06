"""What the calculus refuses to answer, and why.

A system without a finite bound is an answer of its own: the message names the inequality that fails, with both sides.
"""

from __future__ import annotations

import math

from testbed.errors import TestbedError


class CalculusError(TestbedError, ValueError):
    """Parameters that describe no system, or a question that the theory does not answer."""


class UnstableError(CalculusError):
    """A queue that grows without limit: the mean rate reaches the service rate."""


class NotApplicableError(CalculusError):
    """A method whose hypotheses the given system does not meet."""


def require_positive(what: str, value: float) -> None:
    """Raise `CalculusError` unless `value` is a finite number above zero."""
    if not (math.isfinite(value) and value > 0.0):
        raise CalculusError(f"{what} is {value!r}; expected a finite number above 0")


def require_not_negative(what: str, value: float) -> None:
    """Raise `CalculusError` unless `value` is a finite number of at least zero."""
    if not (math.isfinite(value) and value >= 0.0):
        raise CalculusError(f"{what} is {value!r}; expected a finite number of at least 0")


def require_probability(what: str, value: float) -> None:
    """Raise `CalculusError` unless `value` lies strictly between zero and one."""
    if not 0.0 < value < 1.0:
        raise CalculusError(f"{what} is {value!r}; expected a probability strictly between 0 and 1")


def require_per(per: str) -> None:
    """Raise `CalculusError` unless what is counted is packets or time."""
    if per not in {"packet", "time"}:
        raise CalculusError(f"per is {per!r}; expected packet or time")


def require_stable(mean_bps: float, rate_bps: float) -> None:
    """Raise `UnstableError` unless the mean rate lies below the service rate."""
    if not mean_bps < rate_bps:
        raise UnstableError(
            f"mean arrival rate < service rate fails: {mean_bps:g} bit/s against {rate_bps:g} bit/s; "
            "reserve more rate or admit less traffic"
        )
