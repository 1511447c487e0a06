"""A flow known by a trace only: bounds from the first part of it, confirmed by a replay of the rest.

No model is fitted. Packets are taken in blocks long enough that blocks are uncorrelated; then the wait is the largest,
over blocks, of a random walk plus what the last packets of one more block add, and a union bound over blocks needs two
expectations that the trace estimates. Both are replaced by upper confidence limits. What the trace cannot support is
refused: a tail that is not light, correlations that outlast the blocks, and, at the very rate that is asked about, a
bound that a replay of either part contradicts or that the held-out part is too short to confirm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc, ndtri

from testbed.calculus.arrivals.base import Arrival, QueueMethod
from testbed.calculus.arrivals.light_tail import TailTest, generalised_pareto_test
from testbed.calculus.errors import CalculusError, NotApplicableError, require_probability, require_stable
from testbed.calculus.numeric import FloatArray, largest_below
from testbed.calculus.tails import ExponentialTail, Per, QueueBound, SureTail, Tail, TailFamily

_FEWEST_BLOCKS = 200
_CONFIRMED_AT = (0.1, 0.03, 0.01, 0.003, 0.001)
_LEAST_CONFIRMED = 0.01
_CONTRADICTED = 0.1  # chance of so many late packets under the bound: large, because a refusal costs no soundness
_FEWEST_BEYOND = 3.0  # independent packets that a part must be expected to have beyond that level
_FITTED_AT_LOAD = 0.7
_MARGIN = 2  # blocks are this much longer than where correlation can no longer be seen
_THETAS = 24
_TAIL_SIGNIFICANCE = 1e-3


@dataclass(frozen=True, eq=False)
class FittedFlow(Arrival):
    """A flow that repeats the statistics of a trace; made by `fit_trace`.

    Attributes:
        gaps_s: Gap before each packet of the fitting part, shape (packets,).
        bits: Size of each packet, shape (packets,).
        block: Packets in a block.
        confidence: One-sided confidence of all limits together.
        tail: The tail test that the fit passed.
        held_gaps_s: Gap before each packet of the part that was held out, shape (held,).
        held_bits: Size of each of those packets, shape (held,).
    """

    gaps_s: FloatArray
    bits: FloatArray
    block: int
    confidence: float
    tail: TailTest
    held_gaps_s: FloatArray
    held_bits: FloatArray

    @property
    def mean_bps(self) -> float:
        return float(self.bits.sum() / self.gaps_s.sum())

    @property
    def largest_packet_bits(self) -> float:
        return float(self.bits.max())

    @property
    def theta_scale(self) -> float:
        return 1.0 / (self.block * float(self.bits.mean()))

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        del theta
        raise NotApplicableError("a fitted flow has no envelope; its bound is about its own packets at one server")

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        return {"kingman": self.kingman} if self.block == 1 else {"blocks": self.blocks}

    def kingman(self, rate_bps: float, per: Per) -> QueueBound:
        """Kingman's inequality when packets are uncorrelated: `P(W >= w) <= e^{-theta R w}` while E e^{theta X} <= 1.

        X is what a packet and the gap behind it add to the backlog; the expectation is an upper confidence limit.

        Raises:
            NotApplicableError: The bound is asked per time, the trace is too short for the rate, or a replay at this
                rate does not confirm it.
            UnstableError: The mean rate reaches rate_bps.
        """
        steps = self._steps(rate_bps, per)
        if steps.max() <= 0.0:
            return self._confirmed(SureTail(0.0), rate_bps)
        theta = self._theta_limit(steps.sum(axis=1), rate_bps, 1.0 - self.confidence)
        return self._confirmed(ExponentialTail(0.0, theta * rate_bps), rate_bps)

    def blocks(self, rate_bps: float, per: Per) -> QueueBound:
        """`P(W >= w) <= E e^{theta V}/(1 - E e^{theta X}) e^{-theta R w}` for every theta with E e^{theta X} < 1.

        X is what a block adds to the backlog and V the largest sum over its last packets. The wait is the largest sum
        of whole blocks and one V before them: one term a block (docs/calculus.md, "Fitted flows"). Both expectations
        are upper confidence limits over blocks, at a few thetas that share the confidence.

        Raises:
            NotApplicableError: The bound is asked per time, the trace is too short for the rate, or a replay at this
                rate does not confirm it.
            UnstableError: The mean rate reaches rate_bps.
        """
        return self._confirmed(self.unconfirmed_blocks(rate_bps, per), rate_bps)

    def unconfirmed_blocks(self, rate_bps: float, per: Per) -> Tail:
        """The tail that `blocks` puts to the replay."""
        steps = self._steps(rate_bps, per)
        if steps.max() <= 0.0:
            return SureTail(0.0)
        whole = steps.sum(axis=1)
        latest = np.maximum(np.cumsum(steps[:, ::-1], axis=1).max(axis=1), 0.0)
        risk = (1.0 - self.confidence) / (2 * _THETAS)
        limit = self._theta_limit(whole, rate_bps, risk)
        thetas = limit * np.arange(1, _THETAS + 1) / (_THETAS + 1)
        log_k = np.array([_log_limit(x * latest, risk) - _log1mexp(_log_limit(x * whole, risk)) for x in thetas])

        def member(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
            nearest = np.clip(np.rint(theta / thetas[0]).astype(np.int64) - 1, 0, _THETAS - 1)
            return log_k[nearest], thetas[nearest] * rate_bps

        return TailFamily(member, limit)

    def _confirmed(self, tail: Tail, rate_bps: float) -> QueueBound:
        """The bound, if neither part of the trace contradicts it at this rate and the held-out one can confirm it.

        Both parts are replayed through an ideal queue of the rate. A flow whose bursts outlast every block, or that
        changes between the parts, keeps its blocks uncorrelated and its tail light and still waits longer than fitted.
        Those that wait too long are counted twice: in independent packets, as many as their busy periods are worth,
        whose number is binomial; and one by one, of which Markov's inequality allows few without any independence.
        """
        for part, gaps_s, bits in (
            ("fitted", self.gaps_s, self.bits),
            ("held-out", self.held_gaps_s, self.held_bits),
        ):
            wait_s = lindley_backlog(gaps_s, bits, rate_bps) / rate_bps
            quantiles_s = np.quantile(wait_s, 1.0 - np.array(_CONFIRMED_AT))
            bounds_s = np.array([float(tail.delay(epsilon)) for epsilon in _CONFIRMED_AT])
            design = max(_design_effect(wait_s, limit_s) for limit_s in (*quantiles_s, *bounds_s))
            independent = len(wait_s) / design
            said = f"replayed at load {self.mean_bps / rate_bps:.3g}, the {part} part of the trace"
            for epsilon, found_s, bound_s in zip(_CONFIRMED_AT, quantiles_s, bounds_s, strict=True):
                late = int(np.count_nonzero(wait_s > bound_s))
                counted = float(bdtrc(math.ceil(late / design) - 1, max(1, round(independent)), epsilon))
                if min(counted, epsilon * len(wait_s) / max(1, late)) < _CONTRADICTED:
                    raise NotApplicableError(
                        f"{said} contradicts the fit: its p{100 * (1 - epsilon):g} wait is {found_s * 1e3:.4g} ms, the "
                        f"fitted bound {bound_s * 1e3:.4g} ms; the traffic is burstier than its blocks, or changes"
                    )
            if independent * _LEAST_CONFIRMED < _FEWEST_BEYOND:
                raise NotApplicableError(
                    f"{said} waits in so few bursts that it is worth {independent:.0f} independent packets, too few to "
                    f"confirm p{100 * (1 - _LEAST_CONFIRMED):g}; use a longer trace or a higher rate"
                )
        return QueueBound(tail, self._assumptions)

    def _theta_limit(self, whole: FloatArray, rate_bps: float, risk: float) -> float:
        """The largest theta at which the limit of E exp(theta X) is at most 1."""
        if _mean_limit(whole, risk) >= 0.0:
            raise NotApplicableError(
                f"the trace is too short to be sure, at {self.confidence:.3g} confidence, that {rate_bps:g} bit/s "
                f"keep up with a mean of {self.mean_bps:g} bit/s; use a longer trace or a higher rate"
            )
        theta = largest_below(lambda x: _log_limit(x * whole, risk), 0.0, self.theta_scale)
        if math.isinf(theta):
            raise NotApplicableError("no block of the trace adds to the backlog at this rate; the trace is too short")
        return theta

    @property
    def _assumptions(self) -> tuple[str, ...]:
        return (
            "the flow goes on as in the trace (stationary), with the light tail that its test did not refute",
            f"blocks of {self.block} packets are independent",
            "beyond the waits of its held-out part, whose replay at this rate confirms it, the tail goes on as fitted",
            f"expectations are upper limits, all together of {self.confidence:.3g} confidence",
        )

    def _steps(self, rate_bps: float, per: Per) -> FloatArray:
        """What each packet adds to the next one's backlog, shape (blocks, block)."""
        if per != "packet":
            raise NotApplicableError("a fitted flow's bound is about its packets; per time nothing is known")
        require_stable(self.mean_bps, rate_bps)
        steps = self.bits[:-1] - rate_bps * self.gaps_s[1:]
        count = len(steps) // self.block
        return np.asarray(steps[: count * self.block].reshape(count, self.block))


def fit_trace(
    times_s: FloatArray, bits: FloatArray, *, fit_fraction: float = 0.5, confidence: float = 0.99
) -> FittedFlow:
    """Fit a flow to the first part of a trace and hold the rest out, to confirm each bound at its own rate.

    Args:
        times_s: Arrival times, increasing, shape (packets,).
        bits: Packet sizes, shape (packets,).
        fit_fraction: Which part of the packets to fit to.
        confidence: One-sided confidence of all limits together.

    Raises:
        CalculusError: The trace is malformed or too short, its tail is not light by `generalised_pareto_test`, or its
            correlations do not end within the blocks it can afford.
    """
    require_probability("fraction to fit to", fit_fraction)
    require_probability("confidence", confidence)
    times_s, bits = np.asarray(times_s, dtype=np.float64), np.asarray(bits, dtype=np.float64)
    if times_s.ndim != 1 or times_s.shape != bits.shape or np.any(np.diff(times_s) < 0.0) or np.any(bits <= 0.0):
        raise CalculusError("a trace needs as many sizes above 0 as times, and times that do not decrease")
    cut = int(len(times_s) * fit_fraction)
    gaps = np.diff(times_s, prepend=times_s[:1])
    block, tail = _blocks(gaps[1:cut], bits[1:cut])
    return FittedFlow(gaps[1:cut], bits[1:cut], block, confidence, tail, gaps[cut:], bits[cut:])


def _blocks(gaps: FloatArray, bits: FloatArray) -> tuple[int, TailTest]:
    """How many packets make blocks that are uncorrelated, and the tail test that their sums pass."""
    if len(gaps) < 10 * _FEWEST_BLOCKS or gaps.sum() <= 0.0:
        raise CalculusError(
            f"{len(gaps)} packets are too few to fit a flow to; "
            f"at least {10 * _FEWEST_BLOCKS} in the fitting part are needed"
        )
    rate = float(bits.sum() / gaps.sum()) / _FITTED_AT_LOAD
    steps = bits - rate * gaps
    block = 1
    while len(steps) // block >= _FEWEST_BLOCKS * (_MARGIN if block > 1 else 1):
        count = len(steps) // block
        sums = steps[: count * block].reshape(count, block).sum(axis=1)
        if _uncorrelated(sums):
            tail = generalised_pareto_test(sums, upper_fraction=max(0.1, 21 / count))
            sizes = generalised_pareto_test(bits)
            for what, test in (("bursts", tail), ("packet sizes", sizes)):
                if test.p_value < _TAIL_SIGNIFICANCE:
                    raise CalculusError(
                        f"the tail of the {what} is not light: the generalised Pareto test finds "
                        f"shape {test.shape:.2f} with p = {test.p_value:.1g}; no exponential bound holds"
                    )
            return (_MARGIN * block if block > 1 else 1), tail
        block *= 2
    raise CalculusError(
        f"the trace is correlated over more than {block // 2} packets, too long for its {len(gaps)}; use a longer trace"
    )


def _mean_limit(values: FloatArray, risk: float) -> float:
    """The upper confidence limit of a mean over blocks, corrected for skewness (Johnson 1978)."""
    count, z = len(values), -float(ndtri(risk))
    centred = values - values.mean()
    variance = float(centred @ centred) / (count - 1)
    if variance == 0.0:
        return float(values.mean())
    skew = max(0.0, float((centred**3).mean()) / variance)
    return float(values.mean()) + z * math.sqrt(variance / count) + skew * (1.0 + 2.0 * z * z) / (6.0 * count)


def _log_limit(exponents: FloatArray, risk: float) -> float:
    """Ln of the upper confidence limit of E exp(exponent), from one exponent a block."""
    top = float(exponents.max())
    return top + math.log(_mean_limit(np.exp(exponents - top), risk))


def _log1mexp(log_p: float) -> float:
    """Ln (1 - exp(log_p)), minus infinity from 0 on."""
    return math.log(-math.expm1(log_p)) if log_p < 0.0 else -math.inf


def _uncorrelated(values: FloatArray) -> bool:
    """Whether the first two autocorrelations lie within three standard errors of zero."""
    centred = values - values.mean()
    power = float(centred @ centred)
    if power == 0.0:
        return True
    limit = 3.0 / math.sqrt(len(values))
    return all(float(centred[:-lag] @ centred[lag:]) / power < limit for lag in (1, 2))


def lindley_backlog(gaps_s: FloatArray, bits: FloatArray, rate_bps: float) -> FloatArray:
    """Backlog that each packet finds, itself excluded, at a constant-rate queue that starts empty; shape (packets,)."""
    walk = np.concatenate(([0.0], np.cumsum(bits[:-1] - rate_bps * gaps_s[1:])))
    return np.asarray(walk - np.minimum.accumulate(walk))


def _design_effect(wait_s: FloatArray, limit_s: float) -> float:
    """Sum C^2 / sum C over busy periods, C the packets of each that wait longer than the limit; 1 where none does."""
    counts = np.bincount(np.cumsum(wait_s == 0.0), weights=wait_s > limit_s)
    late = float(counts.sum())
    return float(counts @ counts) / late if late else 1.0
