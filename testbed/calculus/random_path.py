"""Paths of servers whose service is random: what cross traffic leaves over, independent at each server.

Three candidates: the convolution of all servers at once (bursts are paid once), the same for slotted time, and the sum
over hops with a growing burst as the baseline that the convolution must beat. Constant latencies of servers that
promise one are taken out of the convolution and added: they shift time and cost nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from testbed.calculus import waterfill
from testbed.calculus.arrivals.base import Arrival
from testbed.calculus.arrivals.slotted import Slotted
from testbed.calculus.convolution import IntArray, Tandem
from testbed.calculus.errors import CalculusError, UnstableError
from testbed.calculus.numeric import FloatArray, largest_below, minimum
from testbed.calculus.service.left_over import LeftOver
from testbed.calculus.service.promised import EnvelopeService, RateLatency
from testbed.calculus.tails import Per

AnyService: TypeAlias = RateLatency | EnvelopeService | LeftOver

_THETAS = 24
"""Steps of a search for theta: a bound over several servers is flat around its best theta and costs a matrix a step."""

INDEPENDENT_SERVERS = "the cross traffic of each server is independent of the tenant and of the other servers"


@dataclass(frozen=True)
class RandomPath:
    """A flow on a path of random servers, and everything that depends on theta.

    Attributes:
        arrival: The tenant's flow.
        servers: The servers in path order.
    """

    arrival: Arrival
    servers: tuple[RateLatency | LeftOver, ...]

    @classmethod
    def of(cls, arrival: Arrival, servers: Sequence[AnyService]) -> RandomPath:
        """Check that the parts fit together.

        Raises:
            CalculusError: Slotted and continuous models are mixed, or a server promises a stochastic excess, for which
                no theorem joins it to random servers.
            UnstableError: The mean rates reach a server's capacity.
        """
        plain: list[RateLatency | LeftOver] = []
        for server in servers:
            if isinstance(server, EnvelopeService):
                if server.excess is not None or server.loss_probability > 0.0:
                    raise CalculusError(
                        f"domain {server.name!r} promises an excess tail, which cannot be joined to left-over servers; "
                        "give every domain an envelope, or none"
                    )
                plain.append(RateLatency(server.rate_bps, server.latency_s, server.name))
            else:
                plain.append(server)
        path = cls(arrival, tuple(plain))
        slots = {flow.slot_s if isinstance(flow, Slotted) else None for flow in path.flows}
        if len(slots) != 1:
            raise CalculusError("slotted flows and flows in continuous time cannot share a path; use one model")
        for index, server in enumerate(path.servers):
            room = server.mean_bps if isinstance(server, LeftOver) else server.rate_bps
            if not arrival.mean_bps < room:
                raise UnstableError(
                    f"mean arrival rate < mean left-over rate fails at {path.names[index]}: "
                    f"{arrival.mean_bps:g} against {room:g} bit/s; reserve more rate or admit less traffic"
                )
        return path

    @property
    def flows(self) -> tuple[Arrival, ...]:
        """The tenant's flow and all cross flows."""
        return (self.arrival, *(server.cross for server in self.servers if isinstance(server, LeftOver)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the servers."""
        return tuple(server.name or f"server {index + 1}" for index, server in enumerate(self.servers))

    @property
    def slot_s(self) -> float | None:
        """The slot, or None in continuous time."""
        return self.arrival.slot_s if isinstance(self.arrival, Slotted) else None

    @property
    def latency_s(self) -> float:
        """Sum of the constant latencies, in whole slots where time is slotted."""
        latency = math.fsum(server.latency_s for server in self.servers if isinstance(server, RateLatency))
        return latency if self.slot_s is None else math.ceil(latency / self.slot_s - 1e-9) * self.slot_s

    @property
    def capacities(self) -> FloatArray:
        """Constant capacity of each server, shape (servers,)."""
        return np.array([s.capacity_bps if isinstance(s, LeftOver) else s.rate_bps for s in self.servers])

    def service_rates(self, theta: FloatArray) -> FloatArray:
        """R_i(theta), shape (..., servers)."""
        rates = [
            s.service_rate(theta) if isinstance(s, LeftOver) else np.full_like(theta, s.rate_bps)
            for s in self._distinct
        ]
        return np.stack(rates, axis=-1)[..., self._kind]

    def service_bursts(self, theta: FloatArray, *, first_slot: bool = False) -> FloatArray:
        """sigma_i(theta), shape (..., servers); negative values only with `first_slot`."""
        bursts = [
            np.zeros_like(theta)
            if isinstance(server, RateLatency)
            else (server.first_slot_burst(theta) if first_slot else server.service_burst(theta))
            for server in self._distinct
        ]
        return np.stack(bursts, axis=-1)[..., self._kind]

    @cached_property
    def _distinct(self) -> tuple[RateLatency | LeftOver, ...]:
        """Servers that differ: equal ones are evaluated once."""
        distinct: list[RateLatency | LeftOver] = []
        for server in self.servers:
            if server not in distinct:
                distinct.append(server)
        return tuple(distinct)

    @cached_property
    def _kind(self) -> IntArray:
        """Which of the distinct servers each one is, shape (servers,)."""
        return np.array([self._distinct.index(server) for server in self.servers])

    @cached_property
    def theta_limit(self) -> float:
        """The largest theta at which every server is stable; infinite when all are."""

        def excess(theta: float) -> float:
            argument = np.asarray(theta)
            spare = self.service_rates(argument).min() - self.arrival.envelope_rate(argument)
            return -float(spare)

        scale = 1.0 / math.fsum(1.0 / flow.theta_scale for flow in self.flows)
        return largest_below(excess, 0.0, scale, min(flow.theta_pole for flow in self.flows))

    @property
    def search_limit(self) -> float:
        """The end of the search for theta: the stability limit, or far out where none exists."""
        if math.isfinite(self.theta_limit):
            return self.theta_limit
        return 1e3 / math.fsum(1.0 / flow.theta_scale for flow in self.flows)

    def log_factor(self, per: Per) -> float:
        """Ln of how much more often the tenant's packets see a delay than time does."""
        return self.arrival.log_seen_factor() if per == "packet" else 0.0

    def tandem(self, theta: FloatArray, per: Per, step_s: FloatArray | None = None) -> Tandem:
        """The convolution of all servers at a batch of thetas.

        Args:
            theta: Shape (...).
            per: Count packets or time.
            step_s: Discretisation step in continuous time, shape (...); None in slotted time.
        """
        rates = self.service_rates(theta)
        rho = self.arrival.envelope_rate(theta)
        if isinstance(self.arrival, Slotted):
            slot = np.full_like(theta, self.arrival.slot_s)
            log_prefactor = theta * self.arrival.first_slot_burst(theta)
            log_g = theta[..., None] * self.service_bursts(theta, first_slot=True)
        else:
            slot = self.step(theta) if step_s is None else step_s
            bursts = self.arrival.envelope_burst(theta) + self.service_bursts(theta).sum(axis=-1)
            log_prefactor = theta * (bursts + slot * self.edge_bps(theta))
            log_g = np.zeros_like(rates)
        lengths = theta * slot
        return Tandem(log_prefactor + self.log_factor(per), lengths * rho, -lengths[..., None] * rates, log_g)

    def edge_bps(self, theta: FloatArray) -> FloatArray:
        """What rounding the ends of intervals to a lattice costs, in bits per second of step; shape (...).

        The capacity of the first server, every increase of capacity along the path, and the cross traffic of all
        servers but the last (docs/calculus.md, "Continuous time").
        """
        capacity = self.capacities
        fixed = capacity[0] + np.maximum(np.diff(capacity), 0.0).sum()
        cross = (capacity - self.service_rates(theta))[..., :-1].sum(axis=-1)
        return np.asarray(fixed + cross)

    def step(self, theta: FloatArray) -> FloatArray:
        """The best discretisation step for equal servers, a good one for others; shape (...), in s."""
        edge = self.edge_bps(theta)
        spare = self.service_rates(theta).min(axis=-1) - self.arrival.envelope_rate(theta)
        gap = np.clip(spare / edge, 1e-12, 1.0 - 1e-9)
        return np.asarray(np.log1p(len(self.servers) * gap / (1.0 - gap)) / gap / (theta * edge))


def convolved_delay(path: RandomPath, epsilon: float, per: Per) -> tuple[float, float]:
    """The smallest delay of the convolution at epsilon, latencies included, and its theta."""
    log_epsilon = math.log(epsilon)

    def smooth(theta: FloatArray) -> FloatArray:
        slots = path.tandem(theta, per).slots_for(log_epsilon)[1]
        if path.slot_s is not None:
            return slots * path.slot_s
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(slots), slots * path.step(theta), np.inf)

    theta = minimum(smooth, 0.0, path.search_limit, _THETAS)[None]
    slots = path.tandem(theta, per).slots_for(log_epsilon)[0]
    if path.slot_s is not None:
        return float(slots[0]) * path.slot_s + path.latency_s, float(theta[0])
    return _shrunk_step(path, theta, slots, log_epsilon, per) + path.latency_s, float(theta[0])


def _shrunk_step(path: RandomPath, theta: FloatArray, slots: IntArray, log_epsilon: float, per: Per) -> float:
    """Slots times the smallest step at which the bound still holds: removes the rounding to whole steps."""
    if slots[0] == 0:
        return 0.0
    step = float(path.step(theta)[0])

    def holds(factor: float) -> bool:
        log_bound = path.tandem(theta, per, np.array([step * factor])).log_sum(slots)
        return bool(log_bound[0] <= log_epsilon)

    low, high = max(float(slots[0]) - 1.0, 0.5) / float(slots[0]), 1.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return float(slots[0]) * step * high


def convolved_log_violation(path: RandomPath, delay_s: float, per: Per) -> float:
    """Ln of the convolution's bound on P(W > delay_s), at most 0."""
    spare = delay_s - path.latency_s
    if spare < 0.0:
        return 0.0

    def value(theta: FloatArray) -> FloatArray:
        if path.slot_s is not None:
            return path.tandem(theta, per).log_sum(math.floor(spare / path.slot_s + 1e-9))
        wanted = path.step(theta)
        count = np.maximum(np.rint(spare / wanted), 1.0 if spare > 0.0 else 0.0).astype(np.int64)
        count = np.minimum(count, 1 << 40)
        step = np.where(count > 0, spare / np.maximum(count, 1), wanted)
        return path.tandem(theta, per, step).log_sum(count)

    theta = minimum(value, 0.0, path.search_limit)[None]
    return min(0.0, float(value(theta)[0]))


def log_backlog_prefactor(path: RandomPath, theta: FloatArray, per: Per) -> FloatArray:
    """Ln K of `P(backlog > q) <= K e^{-theta q}`, shape of theta; the convolution at delay 0."""
    return path.tandem(theta, per).log_sum(0)


def hop_by_hop_delay(path: RandomPath, epsilon: float, per: Per) -> float:
    """The sum of one bound per server, each fed by the output of the one before; the risk split optimally.

    The baseline of the theory: it pays the burst at every hop.
    """

    def hops(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        rates = path.service_rates(theta)
        bursts = path.service_bursts(theta)
        rho = path.arrival.envelope_rate(theta)
        spare = np.maximum(rates - rho[..., None], 0.0)
        grown = theta * path.arrival.envelope_burst(theta)
        logs = []
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for hop, capacity in enumerate(path.capacities):
                if path.slot_s is None:
                    ratio = np.clip(spare[..., hop] / capacity, 1e-300, 1.0 - 1e-12)
                    width = -np.log1p(-ratio) / ratio
                    output = width * (1.0 - ratio) - np.log(-np.expm1(-width * ratio))
                    delayed = output
                else:
                    exponent = theta * spare[..., hop] * path.slot_s
                    output, delayed = -np.log(-np.expm1(-exponent)), -np.log(np.expm1(exponent))
                entering = grown + theta * bursts[..., hop]
                logs.append(np.where(spare[..., hop] > 0.0, entering + delayed, np.inf))
                grown = entering + output
        return np.stack(logs, axis=-1) + path.log_factor(per), theta[..., None] * np.maximum(rates, 0.0)

    def total(theta: FloatArray) -> FloatArray:
        log_m, decay = hops(theta)
        usable = np.all(np.isfinite(log_m), axis=-1) & np.all(decay > 0.0, axis=-1)
        log_m, decay = np.where(usable[..., None], log_m, 0.0), np.where(usable[..., None], decay, 1.0)
        delays = waterfill.for_risk(log_m, decay, np.zeros(1), np.full(theta.shape, epsilon)).delay_s
        if path.slot_s is not None:
            delays = np.ceil(delays / path.slot_s - 1e-9) * path.slot_s
        return np.where(usable, delays.sum(axis=-1), np.inf)

    theta = minimum(total, 0.0, path.search_limit)
    return float(total(theta[None])[0]) + path.latency_s
