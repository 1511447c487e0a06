"""What a domain may sign about its own excess, given the samples it has: limits, never point estimates.

From the lingering excess of every packet under conforming load to an exponential that lies above the upper confidence
limits of the exceedance probabilities, all of them together, with dependence paid for by the design effect. The
opposite question, whether a signed tail is contradicted by samples it was not fitted on, is answered with lower limits.
The excess itself is measured elsewhere (`testbed.telemetry`); what it means for a delay is `testbed.calculus`'s.

A tail is only as long as its evidence: beyond the largest excess seen it stays level at the limit that no further
exceedance supports (the rule of three, on effective samples). Whoever extrapolates the exponential further assumes a
light tail, and the evidence then says so.

Sources: Clopper and Pearson (1934) for the limits, Bonferroni for holding together, `testbed.audit.clusters` for the
design effect.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.audit.clusters import MIN_EXCEEDANCES, decluster, measure_dependence
from testbed.audit.compliance import upper_limit
from testbed.envelope.descriptor import Evidence
from testbed.envelope.errors import CalibrationError
from testbed.envelope.tail import ExcessTail, Stochastic
from testbed.envelope.units import micro_down, ns_up, ppb_up, ppm_down

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.99
"""Default confidence with which all limits of one calibration hold together."""

LEVELS = 12
"""Excesses at which the exceedance probability is limited; more follow the tail closer and cost confidence each."""

TARGET = 1e-4
"""Default probability at which the fitted exponential is made as tight as the limits allow."""

_SLOWEST_DECAY = 1
"""Of a level tail, so that whoever overlooks its end still reads it as level."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the samples support.

    Attributes:
        stochastic: The stochastic part to sign; None where the domain declares that it has no impairment.
        evidence: The samples behind it.
    """

    stochastic: Stochastic | None
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One series, sorted, with what its clustering costs."""

    ascending: FloatArray
    design_effect: float

    @property
    def n(self) -> int:
        return self.ascending.size

    def exceeding(self, x_s: float) -> int:
        return self.n - int(np.searchsorted(self.ascending, x_s, side="right"))

    def upper(self, x_s: float, confidence: float) -> float:
        """Upper confidence limit of P(Y > x_s), on effective counts."""
        effect = self.design_effect
        return upper_limit(math.ceil(self.exceeding(x_s) / effect), self.n / effect, confidence)


def calibrate(
    excess_s: FloatArray | Sequence[FloatArray],
    *,
    rate_bps: int,
    lag_s: FloatArray | Sequence[FloatArray] | None = None,
    lost: int = 0,
    errors: int = 0,
    confidence: float = CONFIDENCE,
    target: float = TARGET,
    extrapolate_to_s: float | None = None,
) -> Calibration:
    """Fit the stochastic part of an envelope.

    Args:
        excess_s: Lingering excess Y of each delivered packet, seconds, in order of arrival; one array, or one for each
            arrival pattern, of which the worst then counts at every level.
        rate_bps: Rate of the ideal FIFO against which Y was measured.
        lag_s: Lag behind that FIFO before the latency T is taken off, same shapes. It shows how packets cling together
            when too few exceed T to tell.
        lost: Conforming packets that entered and never left, over all patterns.
        errors: Conforming requests answered by an error, over all patterns.
        confidence: With which the tail, the loss and the error probability hold together.
        target: Probability at which the tail is made as tight as the limits allow.
        extrapolate_to_s: Largest excess up to which the exponential is assumed to continue beyond the evidence; None
            keeps it level beyond the largest excess seen.

    Raises:
        CalibrationError: Not series of excesses, or too few exceedances to know how they cling together and no `lag_s`
            that tells.
    """
    series = _series(excess_s, "excess")
    patterns = _patterns(series, None if lag_s is None else _series(lag_s, "lag"))
    if not 0.5 <= confidence < 1 or not 0 < target < 1:
        raise CalibrationError(
            f"confidence {confidence}, target {target}: expected 0.5 <= confidence < 1, 0 < target < 1"
        )
    levels = _levels(np.concatenate(series))
    each = 1 - (1 - confidence) / (len(levels) * len(patterns) + 2)
    limits = [max(pattern.upper(x, each) for pattern in patterns) for x in levels]
    n = sum(pattern.n for pattern in patterns)
    effect = max(pattern.design_effect for pattern in patterns)
    tail = _tightest(levels, limits, target, rate_bps, extrapolate_to_s)
    stochastic = Stochastic(
        tail,
        loss_ppb=ppb_up(upper_limit(math.ceil(lost / effect), (n + lost) / effect, each)),
        error_ppb=ppb_up(upper_limit(math.ceil(errors / effect), (n + lost) / effect, each)),
    )
    reach = "level beyond the evidence" if extrapolate_to_s is None else f"extrapolated to {extrapolate_to_s:g} s"
    how = f"exponential above {len(levels)} binomial limits on effective counts, {len(patterns)} patterns, {reach}"
    return Calibration(stochastic, _evidence(series, effect, how, confidence))


def no_impairment(
    excess_s: FloatArray | Sequence[FloatArray],
    *,
    lag_s: FloatArray | Sequence[FloatArray] | None = None,
    confidence: float = CONFIDENCE,
) -> Calibration:
    """Support a promise without stochastic part: the domain declares no impairment, and T covered every packet.

    Args:
        excess_s: As in `calibrate`.
        lag_s: As in `calibrate`.
        confidence: Stated in the evidence with the limit of P(Y > 0) that the samples alone support.

    Raises:
        CalibrationError: A packet exceeded T, so the declaration is false or the host's allowance too small.
    """
    series = _series(excess_s, "excess")
    largest = max(float(values.max()) for values in series)
    if largest > 0:
        raise CalibrationError(
            f"excess: found {largest:.6g} s beyond T, expected none of a domain without impairment; raise the host "
            "allowance if the host is to blame, else sign a stochastic part"
        )
    patterns = _patterns(series, None if lag_s is None else _series(lag_s, "lag"))
    limit = max(pattern.upper(0.0, confidence) for pattern in patterns)
    how = f"nothing beyond T; the samples alone limit that to {limit:.3g}; declared without impairment"
    return Calibration(None, _evidence(series, max(pattern.design_effect for pattern in patterns), how, confidence))


def digest(excess_s: FloatArray | Sequence[FloatArray]) -> str:
    """SHA-256 of samples: float64, little endian, patterns one after another, each after its length (uint64)."""
    total = hashlib.sha256()
    for values in _series(excess_s, "excess"):
        total.update(np.uint64(values.size).astype("<u8").tobytes())
        total.update(values.astype("<f8").tobytes())
    return total.hexdigest()


def design_effect(series: FloatArray, thresholds: Sequence[float] = ()) -> float | None:
    """The largest design effect over the tail levels of a series and given thresholds.

    Returns:
        None where nothing is exceeded often enough to tell.
    """
    found = []
    dependence = measure_dependence(series)
    if dependence is not None:
        found.append(dependence.design_effect)
    for threshold in thresholds:
        positions = np.flatnonzero(series > threshold).astype(np.int64)
        if positions.size >= MIN_EXCEEDANCES:
            found.append(decluster(positions, series.size).design_effect)
    return max(found, default=None)


def _series(samples: FloatArray | Sequence[FloatArray], what: str) -> list[FloatArray]:
    listed = [samples] if isinstance(samples, np.ndarray) else list(samples)
    series = [np.asarray(values, dtype=np.float64) for values in listed]
    if not series or any(values.ndim != 1 or values.size == 0 for values in series):
        raise CalibrationError(f"{what}: found shapes {[v.shape for v in series]}, expected one or more plain series")
    for values in series:
        if not np.isfinite(values).all() or (what == "excess" and values.min() < 0):
            raise CalibrationError(
                f"{what}: found {values.min()} to {values.max()}, expected finite seconds, excesses from 0 on; count "
                "packets that never left as lost"
            )
    return series


def _patterns(series: list[FloatArray], lags: list[FloatArray] | None) -> list[_Pattern]:
    if lags is not None and [lag.size for lag in lags] != [values.size for values in series]:
        raise CalibrationError("lag: expected one value for each excess, in the same order")
    patterns = []
    for index, values in enumerate(series):
        levels = _levels(values)
        effects = [design_effect(values, levels)]
        if lags is not None:
            effects.append(design_effect(lags[index]))
        known = [effect for effect in effects if effect is not None]
        if not known:
            raise CalibrationError(
                f"excess: only {np.count_nonzero(values)} of {values.size} packets exceed T, too few to know how they "
                "cling together; pass lag_s, the lag before T is taken off, or calibrate for longer"
            )
        patterns.append(_Pattern(np.sort(values), max(known)))
    return patterns


def _levels(values: FloatArray) -> list[float]:
    """Zero, then excesses whose numbers of exceedances fall geometrically, then the largest: at most `LEVELS`."""
    positive = np.sort(values[values > 0])
    if positive.size == 0:
        return [0.0]
    ranks = np.unique(np.round(np.geomspace(positive.size, 1, LEVELS - 1)).astype(np.int64))
    return sorted({0.0, *positive[positive.size - ranks].tolist()})


def _tightest(
    levels: list[float], limits: list[float], target: float, rate_bps: int, extrapolate_to_s: float | None
) -> ExcessTail:
    """The exponential above all limits that reaches the target probability first.

    Between two levels the exceedance probability is limited by that of the lower one, so the exponential must lie above
    the staircase: above each limit at the *next* level. Where no exponential can be drawn, the tail is level from the
    largest excess on.
    """
    largest = levels[-1]
    reach_s = largest if extrapolate_to_s is None else max(largest, extrapolate_to_s)
    corners = [(x, math.log(limit)) for x, limit in zip(levels[1:], limits[:-1], strict=True)]
    height = math.log(max(target, limits[-1]))
    best: tuple[float, float, float] | None = None
    for (x1, y1), (x2, y2) in itertools.combinations(corners, 2):
        decay = (y1 - y2) / (x2 - x1)
        if decay <= 0 or any(y > y1 - decay * (x - x1) + 1e-12 for x, y in corners):
            continue
        at_zero = y1 + decay * x1
        reached = (at_zero - height) / decay
        if best is None or reached < best[0]:
            best = (reached, at_zero, decay)
    if best is None:
        x_ns = ns_up(largest)
        return ExcessTail(rate_bps, max(1, ppb_up(limits[-1])), _SLOWEST_DECAY, x_ns, x_ns)
    _, at_zero, decay = best
    x_min_s = max(levels[0], at_zero / decay)
    x_min_ns = ns_up(x_min_s)
    return ExcessTail(
        rate_bps=rate_bps,
        exceedance_ppb=max(1, min(10**9, ppb_up(math.exp(at_zero - decay * x_min_s)))),
        decay_micro_per_s=max(1, micro_down(decay)),
        x_min_ns=x_min_ns,
        x_max_ns=max(x_min_ns, math.floor(reach_s * 1e9)),
    )


def _evidence(series: list[FloatArray], effect: float, method: str, confidence: float) -> Evidence:
    n = sum(values.size for values in series)
    return Evidence(digest(series), n, max(1, math.floor(n / effect)), method, ppm_down(confidence))
