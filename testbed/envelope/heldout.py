"""Whether a signed promise is contradicted by samples it was not fitted on.

The counterpart of `testbed.envelope.calibration`: lower confidence limits, so that a finding is a broken promise at the
stated confidence and silence is not proof that it was kept. It looks at excess only; whether the tenant kept its part
of the contract, and whether the host could keep up, is settled before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.audit.compliance import lower_limit
from testbed.envelope.calibration import design_effect
from testbed.envelope.descriptor import Envelope
from testbed.envelope.errors import CalibrationError
from testbed.envelope.tail import ExcessTail

FloatArray = NDArray[np.float64]

_LEVELS = 8
_STEP = 4.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One way in which samples contradict a promise.

    Attributes:
        domain: Whose promise.
        what: `excess`, `delay-cap` or `no-impairment`.
        x_s: The excess in question, seconds.
        promised: Promised limit of P(Y > x_s).
        measured: Share of the samples that exceed it.
        at_least: Lower confidence limit of P(Y > x_s), above `promised`; 0 where one packet is enough.
        confidence: With which all findings about this envelope together are not due to chance.
    """

    domain: str
    what: str
    x_s: float
    promised: float
    measured: float
    at_least: float
    confidence: float

    def __str__(self) -> str:
        """The finding in one sentence."""
        return (
            f"{self.domain}: {self.what}: {self.measured:.3g} of the packets exceed {self.x_s * 1e3:.6g} ms beyond T "
            f"(at least {self.at_least:.3g} at {self.confidence:.4g} confidence), promised {self.promised:.3g}"
        )


def holds(
    envelope: Envelope, excess_s: FloatArray, *, lag_s: FloatArray | None = None, confidence: float = 0.95
) -> list[Finding]:
    """Compare held-out excess with a promise.

    Args:
        envelope: The promise.
        excess_s: Lingering excess of each delivered packet at the envelope's named rate, seconds, in order.
        lag_s: Lag before T is taken off, which shows how packets cling together when few exceed T.
        confidence: Family-wise: an envelope that holds draws any finding with probability at most 1 - confidence.

    Returns:
        What is contradicted; empty where nothing is.

    Raises:
        CalibrationError: Not one series of finite, non-negative excesses.
    """
    values = np.asarray(excess_s, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all() or values.min() < 0:
        raise CalibrationError("excess: expected one series of finite, non-negative seconds")
    findings = _beyond_cap(envelope, values, confidence)
    tail = envelope.tail
    if tail is None:
        return findings + _any_excess(envelope, values, confidence)
    levels = _levels(tail, values.size)
    each = 1 - (1 - confidence) / len(levels)
    effect = _effect(values, lag_s, levels)
    for x_s in levels:
        exceeding, promised = int(np.count_nonzero(values > x_s)), tail.exceedance(x_s)
        at_least = lower_limit(math.floor(exceeding / effect), values.size / effect, each)
        if at_least > promised:
            share = exceeding / values.size
            findings.append(Finding(envelope.domain, "excess", x_s, promised, share, at_least, confidence))
    return findings


def _beyond_cap(envelope: Envelope, values: FloatArray, confidence: float) -> list[Finding]:
    cap_s = envelope.guardrails.delay_cap_s
    share = float(np.mean(values > cap_s))
    return [Finding(envelope.domain, "delay-cap", cap_s, 0.0, share, 0.0, confidence)] if share else []


def _any_excess(envelope: Envelope, values: FloatArray, confidence: float) -> list[Finding]:
    share = float(np.mean(values > 0))
    return [Finding(envelope.domain, "no-impairment", 0.0, 0.0, share, 0.0, confidence)] if share else []


def _levels(tail: ExcessTail, n: int) -> list[float]:
    """Excesses at which the promise falls by a factor each, as far as n samples could contradict it, and its end.

    They follow from the promise alone, never from the samples, so that the confidence counts them all.
    """
    levels = [tail.x_min_s]
    while len(levels) < _LEVELS:
        x_s = levels[-1] + math.log(_STEP) / tail.decay_per_s
        if x_s >= tail.x_max_s or tail.exceedance(x_s) * n < 1 / _STEP:
            break
        levels.append(x_s)
    return levels if tail.x_max_s == levels[-1] else [*levels, tail.x_max_s]


def _effect(values: FloatArray, lag_s: FloatArray | None, levels: list[float]) -> float:
    """Design effect, and where nothing tells, every exceedance taken for one event."""
    known = [design_effect(values, levels)]
    if lag_s is not None:
        known.append(design_effect(lag_s))
    measured = [effect for effect in known if effect is not None]
    return max(measured) if measured else max(1.0, float(np.count_nonzero(values > levels[0])))
