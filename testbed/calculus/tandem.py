"""A tenant's wait across domains that promise a rate, a latency and a tail: burst paid once, risk split optimally.

Theorem (docs/calculus.md, "Tandem"): for every packet `W <= W0 + sum (T_d + Y_d)`, where W0 is the wait in one queue
drained at the smallest reserved rate. All terms carry the index of the same packet, so a union bound over them needs no
independence, and its split is a water-filling problem. Queues whose bound is a family in theta are optimised over theta
and the split together.

Everything is vectorised over epsilon (or over the delay): results carry the shape of that argument.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from testbed.calculus import waterfill
from testbed.calculus.errors import CalculusError, NotApplicableError
from testbed.calculus.numeric import FloatArray, minimum
from testbed.calculus.service.promised import EnvelopeService, RateLatency
from testbed.calculus.tails import ExponentialTail, Per, SureTail, Tail, TailFamily

PromisedService: TypeAlias = RateLatency | EnvelopeService

_ALL_SUBSETS_UP_TO = 6
_THETAS = 30


@dataclass(frozen=True)
class PromisedPath:
    """Promises of consecutive domains, gathered into arrays.

    Attributes:
        names: Domain names, shape (domains,).
        rate_bps: The smallest reserved rate.
        last_rate_bps: The reserved rate of the last domain.
        latencies_s: T of each domain, shape (domains,).
        losses: Loss probability of each domain, shape (domains,).
        uncertain: Indices of the domains with an excess, shape (parts,).
        log_m: ln M of those domains.
        decay: Their decays in 1/s.
        floor: Their x_min in s.
        cap: Their caps in s.
    """

    names: tuple[str, ...]
    rate_bps: float
    last_rate_bps: float
    latencies_s: tuple[float, ...]
    losses: tuple[float, ...]
    uncertain: tuple[int, ...]
    log_m: FloatArray
    decay: FloatArray
    floor: FloatArray
    cap: FloatArray

    @classmethod
    def of(cls, servers: Sequence[PromisedService]) -> PromisedPath:
        """Gather the promises of the given services, in path order.

        Raises:
            CalculusError: There is no service.
        """
        if not servers:
            raise CalculusError("a path has 0 servers; expected at least 1")
        excesses = [(index, server.excess) for index, server in enumerate(servers) if server.excess is not None]
        table = np.array(
            [(e.prefactor, e.decay_per_s, min(e.x_min_s, e.cap_s), e.cap_s) for _, e in excesses], dtype=np.float64
        ).reshape(-1, 4)
        return cls(
            names=tuple(server.name or f"domain {index + 1}" for index, server in enumerate(servers)),
            rate_bps=min(server.rate_bps for server in servers),
            last_rate_bps=servers[-1].rate_bps,
            latencies_s=tuple(server.latency_s for server in servers),
            losses=tuple(server.loss_probability for server in servers),
            uncertain=tuple(index for index, _ in excesses),
            log_m=np.log(table[:, 0]),
            decay=table[:, 1],
            floor=table[:, 2],
            cap=table[:, 3],
        )

    def require_countable(self, per: Per) -> None:
        """Raise `NotApplicableError` when time is to be counted and a domain has promised something about packets."""
        if per == "time" and (self.uncertain or self.loss > 0.0):
            raise NotApplicableError(
                "an excess tail and a loss probability count packets, and say nothing about time; ask per packet"
            )

    @property
    def latency_s(self) -> float:
        """Sum of the latencies."""
        return math.fsum(self.latencies_s)

    @property
    def loss(self) -> float:
        """Sum of the loss probabilities."""
        return math.fsum(self.losses)

    @cached_property
    def resting(self) -> NDArray[np.bool_]:
        """Which domains may be charged their cap at no risk: boolean, shape (choices, parts)."""
        capped = np.flatnonzero(np.isfinite(self.cap))
        if len(capped) <= _ALL_SUBSETS_UP_TO:
            choices = [s for n in range(len(capped) + 1) for s in itertools.combinations(capped.tolist(), n)]
        else:
            # Too many subsets: only those that put the smallest caps to rest first. Any choice is sound.
            order = capped[np.argsort(self.cap[capped])].tolist()
            choices = [tuple(order[:n]) for n in range(len(order) + 1)]
        table = np.zeros((len(choices), len(self.cap)), dtype=np.bool_)
        for row, chosen in enumerate(choices):
            table[row, list(chosen)] = True
        return table


class Allocation(NamedTuple):
    """One way to spend a risk on a path; leading shape that of epsilon.

    Attributes:
        queue_s: Delay charged to the tenant's own queue.
        queue_log_risk: ln of its probability; minus infinity for a sure bound.
        excess_s: Delay charged to each uncertain domain, shape (..., parts).
        excess_log_risk: ln of their probabilities, minus infinity where a domain rests on its cap.
        log_price: ln of the common marginal in 1/s.
    """

    queue_s: FloatArray
    queue_log_risk: FloatArray
    excess_s: FloatArray
    excess_log_risk: FloatArray
    log_price: FloatArray

    @property
    def delay_s(self) -> FloatArray:
        """Queue and excesses together, without the latencies."""
        return np.asarray(self.queue_s + self.excess_s.sum(axis=-1))


def choices(
    path: PromisedPath, log_prefactor: FloatArray, decay: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Prefactors, decays and floors of the queue and the domains: shape (choices, ..., 1 + parts)."""
    resting = path.resting
    shape = np.broadcast_shapes(np.shape(log_prefactor), np.shape(decay))
    lift = (slice(None), *(None for _ in shape), slice(None))
    full = (len(resting), *shape, 1 + len(path.decay))
    log_m, decays, floors = np.empty(full), np.empty(full), np.zeros(full)
    log_m[..., 0] = log_prefactor
    log_m[..., 1:] = np.where(resting, -np.inf, path.log_m)[lift]
    decays[..., 0] = decay
    decays[..., 1:] = path.decay
    floors[..., 1:] = np.where(resting, path.cap, path.floor)[lift]
    return log_m, decays, floors


def _best(split: waterfill.Split) -> tuple[NDArray[np.intp], FloatArray]:
    """Index of the cheapest choice and its total delay, over the first axis."""
    total = split.delay_s.sum(axis=-1)
    return np.asarray(np.argmin(total, axis=0)), np.asarray(total.min(axis=0))


def _family_theta(path: PromisedPath, family: TailFamily, epsilon: FloatArray) -> FloatArray:
    """The theta whose exponential gives the smallest delay at epsilon, shape of epsilon."""

    def total(theta: FloatArray) -> FloatArray:
        log_prefactor, decay = family.member(theta)
        usable = np.isfinite(log_prefactor)
        parts = choices(path, np.where(usable, log_prefactor, 0.0), decay)
        return np.where(usable, _best(waterfill.for_risk(*parts, epsilon[..., None]))[1], np.inf)

    return minimum(total, np.zeros_like(epsilon), np.full_like(epsilon, family.theta_limit), _THETAS)


def spend_risk(path: PromisedPath, tail: Tail, epsilon: FloatArray | float) -> Allocation:
    """The smallest bound on queue and excess delay at a total probability of epsilon (losses already taken off).

    Args:
        path: The promises.
        tail: Bound on the wait at the path's smallest rate.
        epsilon: Probability, any shape.
    """
    epsilon = np.asarray(epsilon, dtype=np.float64)
    if not path.uncertain:
        return _spend_on_queue(tail, epsilon)
    if isinstance(tail, TailFamily):
        log_prefactor, decay = tail.member(_family_theta(path, tail, epsilon))
    elif isinstance(tail, ExponentialTail):
        log_prefactor, decay = np.asarray(tail.log_prefactor), np.asarray(tail.decay_per_s)
    else:
        # A sure bound costs no risk: a part of probability 0 that rests on its limit.
        log_prefactor, decay = np.asarray(-np.inf), np.asarray(1.0)
    log_m, decays, floors = choices(path, np.broadcast_to(log_prefactor, epsilon.shape), decay)
    if isinstance(tail, SureTail):
        floors[..., 0] = tail.limit_s
    split = waterfill.for_risk(log_m, decays, floors, epsilon)
    choice = _best(split)[0]
    take = choice[None, ..., None]
    delay = np.take_along_axis(split.delay_s, take, axis=0)[0]
    log_risk = np.take_along_axis(log_m - decays * split.delay_s, take, axis=0)[0]
    price = np.take_along_axis(split.log_price, choice[None], axis=0)[0]
    return Allocation(delay[..., 0], log_risk[..., 0], delay[..., 1:], log_risk[..., 1:], price)


def _spend_on_queue(tail: Tail, epsilon: FloatArray) -> Allocation:
    """All of the risk for the tenant's own queue: nothing else on the path is uncertain."""
    nothing = np.zeros((*epsilon.shape, 0))
    if isinstance(tail, SureTail):
        never = np.full(epsilon.shape, -np.inf)
        return Allocation(tail.delay(epsilon), never, nothing, nothing, never)
    if isinstance(tail, TailFamily):
        log_prefactor, decay = tail.member(tail.theta(epsilon))
    else:
        log_prefactor, decay = np.asarray(tail.log_prefactor), np.asarray(tail.decay_per_s)
    queue = np.maximum(0.0, (log_prefactor - np.log(epsilon)) / decay)
    log_risk = log_prefactor - decay * queue
    return Allocation(queue, log_risk, nothing, nothing, log_risk + np.log(decay))


def log_violation(path: PromisedPath, tail: Tail, delay_s: FloatArray | float) -> FloatArray:
    """Logarithm of the smallest bound on P(W > delay_s), losses not included; 0 where nothing smaller than 1 holds.

    Args:
        path: The promises.
        tail: Bound on the wait at the path's smallest rate.
        delay_s: End-to-end delay, latencies included; any shape.
    """
    spare = np.asarray(delay_s, dtype=np.float64) - path.latency_s
    if not path.uncertain:
        return np.where(spare < 0.0, 0.0, tail.log_probability(spare))
    if isinstance(tail, SureTail):
        return _log_violation_at(path, np.asarray(-np.inf), np.asarray(1.0), spare, tail.limit_s)
    if isinstance(tail, ExponentialTail):
        return _log_violation_at(path, np.asarray(tail.log_prefactor), np.asarray(tail.decay_per_s), spare)

    def risk(theta: FloatArray) -> FloatArray:
        log_prefactor, decay = tail.member(theta)
        usable = np.isfinite(log_prefactor)
        value = _log_violation_at(path, np.where(usable, log_prefactor, 0.0), decay, spare[..., None], clip=False)
        return np.where(usable, value, np.inf)

    theta = minimum(risk, np.zeros_like(spare), np.full_like(spare, tail.theta_limit))
    return np.minimum(0.0, risk(theta[..., None])[..., 0])


def _log_violation_at(
    path: PromisedPath,
    log_prefactor: FloatArray,
    decay: FloatArray,
    spare_s: FloatArray,
    queue_floor_s: float = 0.0,
    *,
    clip: bool = True,
) -> FloatArray:
    shape = np.broadcast_shapes(log_prefactor.shape, spare_s.shape)
    log_m, decays, floors = choices(path, np.broadcast_to(log_prefactor, shape), np.broadcast_to(decay, shape))
    floors[..., 0] = queue_floor_s
    split = waterfill.for_delay(log_m, decays, floors, spare_s)
    with np.errstate(invalid="ignore"):
        risk = waterfill.log_risk(log_m, decays, split.delay_s)
    best = np.where(np.isnan(risk), np.inf, risk).min(axis=0)
    return np.asarray(np.minimum(0.0, best) if clip else best)
