"""Flows modulated by any finite Markov chain: a fluid whose rate follows the state, or packets whose intensity does.

Two-state fluids have closed forms in `onoff`; everything here works by eigenvalues and serves any number of states,
reversible or not.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from testbed.calculus.amounts import Amount, as_amount
from testbed.calculus.arrivals.base import LIGHT_TAIL, STATIONARY, Arrival, QueueMethod
from testbed.calculus.arrivals.chain import Chain, perron
from testbed.calculus.arrivals.onoff import log_phase_mgf, phase_burst
from testbed.calculus.errors import CalculusError, require_not_negative, require_positive, require_stable
from testbed.calculus.martingale import MarkovFactor, log_prefactor_packet, log_prefactor_time
from testbed.calculus.numeric import FloatArray
from testbed.calculus.tails import ExponentialTail, Per, QueueBound

MARKOV = "the modulating chain is Markov with the given rates and stationary"


class MarkovModulated(Arrival):
    """What both kinds share: a chain, a tilt of its generator, and the martingale."""

    @property
    @abstractmethod
    def chain(self) -> Chain:
        """The modulating chain."""

    @abstractmethod
    def tilt(self, theta: FloatArray) -> FloatArray:
        """Growth of exp(theta A) in each state, 1/s: shape (..., states)."""

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        theta = np.asarray(theta, dtype=np.float64)
        return self.chain.growth(self.tilt(theta)) / theta

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        return self.chain.log_start_cost(self.tilt(np.asarray(theta, dtype=np.float64))) / theta

    def log_h(self, theta: float) -> FloatArray:
        """Ln of the positive eigenvector of the time-reversed tilted generator, shape (states,)."""
        tilted = self.chain.reversed_matrix + np.diag(self.tilt(np.asarray(theta)))
        return np.asarray(np.log(perron(tilted)))

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        return {"martingale": self.martingale, "chernoff": self.chernoff}

    def martingale(self, rate_bps: float, per: Per) -> QueueBound:
        """The bound of the exponential martingale at theta* with rho(theta*) = R.

        Raises:
            UnstableError: The mean rate reaches rate_bps.
        """
        require_stable(self.mean_bps, rate_bps)
        theta = self.theta_at_rate(rate_bps)
        if math.isinf(theta):
            return self.no_queue(rate_bps, per)
        factors = [self.factor(theta)]
        packets = per == "packet"
        log_k = log_prefactor_packet(factors, rate_bps, 0) if packets else log_prefactor_time(factors, rate_bps)
        return QueueBound(ExponentialTail(log_k, theta * rate_bps), (STATIONARY, LIGHT_TAIL, MARKOV))


@dataclass(frozen=True)
class MarkovFluid(MarkovModulated):
    """A fluid whose rate is a function of a Markov chain's state.

    Attributes:
        rates_bps: Rate in each state.
        generator: Transition rates in 1/s, a row per state; the diagonal is filled in.
        packet_bits: Size of the packets into which the cumulative fluid is cut; None leaves it fluid.
    """

    rates_bps: tuple[float, ...]
    generator: tuple[tuple[float, ...], ...]
    packet_bits: float | None = None

    def __post_init__(self) -> None:
        if len(self.rates_bps) != len(self.generator):
            raise CalculusError(f"{len(self.rates_bps)} rates for a chain of {len(self.generator)} states")
        for rate in self.rates_bps:
            require_not_negative("rate of a state", rate)
        require_positive("largest rate of a Markov fluid", max(self.rates_bps))
        if self.packet_bits is not None:
            require_positive("packet size", self.packet_bits)
        _ = self.chain

    @cached_property
    def chain(self) -> Chain:
        return Chain(self.generator)

    @cached_property
    def _rates(self) -> FloatArray:
        return np.array(self.rates_bps)

    @property
    def mean_bps(self) -> float:
        return float(self.chain.stationary @ self._rates)

    @property
    def peak_rate_bps(self) -> float:
        return max(self.rates_bps) if self.packet_bits is None else math.inf

    @property
    def largest_packet_bits(self) -> float:
        return self.packet_bits or 0.0

    @property
    def theta_scale(self) -> float:
        return float(np.abs(np.diag(self.chain.matrix)).max()) / max(self.rates_bps)

    def tilt(self, theta: FloatArray) -> FloatArray:
        return np.asarray(theta)[..., None] * self._rates

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        burst = super().envelope_burst(theta)
        return burst if self.packet_bits is None else burst + phase_burst(theta, self.packet_bits)

    def theta_at_rate(self, rate_bps: float) -> float:
        return math.inf if max(self.rates_bps) <= rate_bps else super().theta_at_rate(rate_bps)

    def log_seen_factor(self) -> float:
        return math.log(max(self.rates_bps) / self.mean_bps)

    def sure_burst_bits(self, per: Per) -> float:
        return 0.0 if per == "packet" else self.largest_packet_bits

    def factor(self, theta: float) -> MarkovFactor:
        none = np.zeros(len(self.rates_bps))
        return MarkovFactor(
            stationary=self.chain.stationary,
            fluid_bps=self._rates,
            packets_per_s=none,
            packet_bits=none,
            log_h=self.log_h(theta),
            log_overshoot=none,
            phase_log_mgf=0.0 if self.packet_bits is None else float(log_phase_mgf(theta * self.packet_bits)),
        )


@dataclass(frozen=True)
class MarkovPoisson(MarkovModulated):
    """Packets of a Poisson process whose intensity, and size, depend on a Markov chain's state (MMPP).

    Attributes:
        packets_per_s: Intensity in each state.
        packet_bits: Size in each state, or one for all: a number or a distribution.
        generator: Transition rates in 1/s, a row per state; the diagonal is filled in.
    """

    packets_per_s: tuple[float, ...]
    packet_bits: float | Amount | tuple[float | Amount, ...]
    generator: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        states = len(self.generator)
        if len(self.packets_per_s) != states:
            raise CalculusError(f"{len(self.packets_per_s)} packet rates for a chain of {states} states")
        if isinstance(self.packet_bits, tuple) and len(self.packet_bits) != states:
            raise CalculusError(f"{len(self.packet_bits)} packet sizes for a chain of {states} states")
        for rate in self.packets_per_s:
            require_not_negative("packet rate of a state", rate)
        require_positive("largest packet rate", max(self.packets_per_s))
        _ = self.chain, self.amounts

    @cached_property
    def chain(self) -> Chain:
        return Chain(self.generator)

    @cached_property
    def amounts(self) -> tuple[Amount, ...]:
        """The size in each state."""
        sizes: Sequence[float | Amount]
        sizes = self.packet_bits if isinstance(self.packet_bits, tuple) else (self.packet_bits,) * len(self.generator)
        return tuple(as_amount(size) for size in sizes)

    @cached_property
    def _intensity(self) -> FloatArray:
        return np.array(self.packets_per_s)

    @cached_property
    def _mean_bits(self) -> FloatArray:
        return np.array([amount.mean for amount in self.amounts])

    @property
    def _sending(self) -> list[Amount]:
        return [amount for amount, rate in zip(self.amounts, self.packets_per_s, strict=True) if rate > 0.0]

    @property
    def mean_bps(self) -> float:
        return float(self.chain.stationary @ (self._intensity * self._mean_bits))

    @property
    def largest_packet_bits(self) -> float:
        return max(amount.largest for amount in self._sending)

    @property
    def theta_pole(self) -> float:
        return min(amount.pole for amount in self._sending)

    @property
    def theta_scale(self) -> float:
        return 1.0 / max(amount.mean for amount in self._sending)

    def tilt(self, theta: FloatArray) -> FloatArray:
        logs = np.stack([amount.log_mgf(theta) for amount in self.amounts], axis=-1)
        with np.errstate(over="ignore", invalid="ignore"):
            growth = self._intensity * np.expm1(logs)
        # Beyond a pole, or where exp overflows, the envelope is infinite: a huge finite tilt keeps eigenvalues defined.
        return np.where(self._intensity > 0.0, np.nan_to_num(growth, nan=1e200, posinf=1e200), 0.0)

    def log_packet_factor(self, rate_bps: float) -> float:
        if all(size == self._sending[0] for size in self._sending):
            return min(super().log_packet_factor(rate_bps), self.log_seen_factor())
        # Sizes depend on the state, hence on the backlog: rate conservation weights packets by size and says nothing.
        return self.log_seen_factor()

    def log_seen_factor(self) -> float:
        return math.log(max(self.packets_per_s) / float(self.chain.stationary @ self._intensity))

    def factor(self, theta: float) -> MarkovFactor:
        overshoot = [-math.log(amount.excess_factor(theta)) for amount in self.amounts]
        return MarkovFactor(
            stationary=self.chain.stationary,
            fluid_bps=np.zeros(len(self.generator)),
            packets_per_s=self._intensity,
            packet_bits=self._mean_bits,
            log_h=self.log_h(theta),
            log_overshoot=np.array(overshoot),
        )
