"""The exponential martingale of independent Markov-modulated flows at one constant-rate queue.

Each flow contributes its positive eigenvector h of the time-reversed tilted generator. The product of the flows' h,
times exp(theta* (backlog path)), is a martingale; stopping it where the backlog exceeds q gives
`P(Q > q | states z) <= prod h(z) / min h e^{-theta* q}`, the minimum over the joint states in which the level can be
crossed: by the fluid, states whose total rate exceeds R; by a packet, any state that sends packets
(docs/calculus.md, "Martingale"). The chain must be run backwards: with the forward one the result is not a bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.calculus.numeric import FloatArray

_JOINT_STATES = 50_000


@dataclass(frozen=True, slots=True)
class MarkovFactor:
    """What one class of identical independent flows brings to the martingale at theta*.

    Attributes:
        stationary: Probabilities of the states, shape (states,).
        fluid_bps: Fluid rate in each state, shape (states,).
        packets_per_s: Packet rate in each state, shape (states,).
        packet_bits: Mean packet size in each state, shape (states,).
        log_h: ln of the eigenvector, shape (states,).
        log_overshoot: ln of a lower bound on E exp(theta* (packet - x)) given packet > x, at least 0; shape (states,).
        copies: Number of flows of the class.
        phase_log_mgf: ln of what packets cut out of a fluid can be ahead of it, for each flow; 0 for none.
    """

    stationary: FloatArray
    fluid_bps: FloatArray
    packets_per_s: FloatArray
    packet_bits: FloatArray
    log_h: FloatArray
    log_overshoot: FloatArray
    copies: int = 1
    phase_log_mgf: float = 0.0

    @property
    def log_mean_h(self) -> float:
        """Ln of the stationary mean of h, of one flow."""
        return math.log(float(self.stationary @ np.exp(self.log_h)))

    @property
    def mean_bps(self) -> float:
        """Mean rate of one flow."""
        return float(self.stationary @ self._bps)

    @property
    def log_bit_mean_h(self) -> float:
        """Ln of the mean of h as a bit of one flow sees it."""
        return math.log(float((self.stationary * self._bps) @ np.exp(self.log_h)) / self.mean_bps)

    @property
    def log_packet_mean_h(self) -> float:
        """Ln of the mean of h as a packet of one flow sees it; a packet cut out of a fluid is a bit of it."""
        rate = self.stationary * self.packets_per_s
        if not rate.any():
            return self.log_bit_mean_h
        return math.log(float(rate @ np.exp(self.log_h)) / float(rate.sum()))

    @property
    def _bps(self) -> FloatArray:
        return self.fluid_bps + self.packets_per_s * self.packet_bits


def log_prefactor_time(factors: Sequence[MarkovFactor], rate_bps: float) -> float:
    """Ln K of `P_time(Q > q) <= K e^{-theta* q}`."""
    start = math.fsum(factor.copies * (factor.log_mean_h + factor.phase_log_mgf) for factor in factors)
    return start - log_crossing(factors, rate_bps)


def log_prefactor_packet(factors: Sequence[MarkovFactor], rate_bps: float, observer: int) -> float:
    """Ln K of the bound as packets of one flow of class `observer` see it, themselves excluded."""
    return _log_prefactor_seen(factors, rate_bps, observer, factors[observer].log_packet_mean_h)


def log_prefactor_bit(factors: Sequence[MarkovFactor], rate_bps: float, observer: int) -> float:
    """The same as bits of that flow see it: packets counted by their size."""
    return _log_prefactor_seen(factors, rate_bps, observer, factors[observer].log_bit_mean_h)


def _log_prefactor_seen(factors: Sequence[MarkovFactor], rate_bps: float, observer: int, log_seen_h: float) -> float:
    own = factors[observer]
    start = math.fsum(factor.copies * (factor.log_mean_h + factor.phase_log_mgf) for factor in factors)
    return start + log_seen_h - own.log_mean_h - own.phase_log_mgf - log_crossing(factors, rate_bps)


def log_crossing(factors: Sequence[MarkovFactor], rate_bps: float) -> float:
    """A lower bound on ln of the smallest product of h at which a level can be crossed.

    Exact for few joint states; otherwise by Lagrangian duality over the condition that the fluid exceeds the rate.
    """
    lowest = [factor.copies * float(factor.log_h.min()) for factor in factors]
    crossings = []
    for factor in factors:
        sends = factor.packets_per_s > 0.0
        if sends.any():
            rest = math.fsum(lowest) - float(factor.log_h.min())
            crossings.append(rest + float((factor.log_h + factor.log_overshoot)[sends].min()))
    if any(factor.fluid_bps.any() for factor in factors):
        crossings.append(_fluid_crossing(factors, rate_bps))
    return min(crossings)


def _fluid_crossing(factors: Sequence[MarkovFactor], rate_bps: float) -> float:
    sizes = [math.comb(factor.copies + len(factor.log_h) - 1, len(factor.log_h) - 1) for factor in factors]
    if math.prod(sizes) > _JOINT_STATES:
        return _fluid_crossing_dual(factors, rate_bps)
    logs, rates = np.zeros(1), np.zeros(1)
    for factor in factors:
        counts = _occupations(factor.copies, len(factor.log_h))
        logs = np.add.outer(logs, counts @ factor.log_h).ravel()
        rates = np.add.outer(rates, counts @ factor.fluid_bps).ravel()
    # A state in balance with the rate, but for rounding, does not cross.
    return float(logs[rates > rate_bps * (1.0 + 1e-9)].min(initial=math.inf))


def _occupations(copies: int, states: int) -> FloatArray:
    """All ways to place identical flows in states: shape (ways, states)."""
    bars = itertools.combinations(range(copies + states - 1), states - 1)
    edges = np.array([(-1, *bar, copies + states - 1) for bar in bars])
    return np.diff(edges, axis=1).astype(np.float64) - 1.0


def _fluid_crossing_dual(factors: Sequence[MarkovFactor], rate_bps: float) -> float:
    """Max over slope >= 0 of slope R + sum of copies min(log_h - slope r): any slope gives a lower bound."""
    slopes = {0.0}
    for factor in factors:
        for i, j in itertools.combinations(range(len(factor.log_h)), 2):
            run = float(factor.fluid_bps[i] - factor.fluid_bps[j])
            if run != 0.0:
                slopes.add(max(0.0, float(factor.log_h[i] - factor.log_h[j]) / run))

    def dual(slope: float) -> float:
        inner = (factor.copies * float((factor.log_h - slope * factor.fluid_bps).min()) for factor in factors)
        return slope * rate_bps + math.fsum(inner)

    return max(dual(slope) for slope in slopes)
