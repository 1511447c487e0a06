"""Bounds for thousands of tenants in one call, each with its own flow, rate and probability.

The closed forms of the sharpest theorem of each kind of flow are evaluated on arrays and the risk is split on arrays;
flows without a closed form fall back to one call each. For a single tenant, with every candidate and an explanation,
use `delay_bound`: where Chernoff's bound is better than the closed form it finds a smaller one, and never a larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import lambertw

from testbed.calculus import waterfill
from testbed.calculus.amounts import Constant, Gamma
from testbed.calculus.arrivals.base import Arrival
from testbed.calculus.arrivals.bucket import TokenBucket
from testbed.calculus.arrivals.onoff import MarkovOnOff, decay_per_bit, log_martingale_prefactor, log_phase_mgf
from testbed.calculus.arrivals.poisson import CompoundPoisson
from testbed.calculus.delay import delay_bound
from testbed.calculus.errors import CalculusError, UnstableError
from testbed.calculus.numeric import FloatArray
from testbed.calculus.tandem import PromisedPath, PromisedService, choices


@dataclass(frozen=True, slots=True)
class _Tails:
    """Exponential tails of many queues; a sure limit is a floor without risk. All of shape (tenants,)."""

    log_prefactor: FloatArray
    decay_per_s: FloatArray
    floor_s: FloatArray


def delay_bounds(
    arrivals: Sequence[Arrival],
    servers: Sequence[PromisedService],
    epsilon: FloatArray | float,
    rates_bps: FloatArray | float | None = None,
) -> FloatArray:
    """A delay bound per packet for each of many tenants on the same path.

    Args:
        arrivals: One flow for each tenant.
        servers: The path's services; their latencies, excesses and losses hold for every tenant.
        epsilon: One probability for each tenant, or one for all.
        rates_bps: The smallest reserved rate of each tenant, or None for that of `servers`.

    Returns:
        Delays in seconds, shape (tenants,).

    Raises:
        UnstableError: A tenant's rate reaches its reserved rate; the message names the first.
    """
    path = PromisedPath.of(servers)
    count = len(arrivals)
    rates = np.broadcast_to(np.asarray(path.rate_bps if rates_bps is None else rates_bps, dtype=np.float64), count)
    epsilons = np.broadcast_to(np.asarray(epsilon, dtype=np.float64), count)
    if not np.all((epsilons > path.loss) & (epsilons < 1.0)):
        raise CalculusError(f"sum of loss probabilities < epsilon < 1 fails for a tenant: losses are {path.loss:g}")
    _require_stable(arrivals, rates)
    result = np.empty(count)
    for kind, members in _by_kind(arrivals).items():
        chosen = [arrivals[index] for index in members]
        closed_form = _CLOSED_FORMS.get(kind)
        if closed_form is None:
            result[members] = [
                delay_bound(flow, [replace(server, rate_bps=rate) for server in servers], eps).delay_s
                for flow, rate, eps in zip(chosen, rates[members], epsilons[members], strict=True)
            ]
        else:
            tails = closed_form(chosen, rates[members])
            result[members] = _with_path(path, tails, epsilons[members] - path.loss)
    return result


def _require_stable(arrivals: Sequence[Arrival], rates: FloatArray) -> None:
    means = np.array([flow.mean_bps for flow in arrivals])
    contract = np.array([isinstance(flow, TokenBucket) for flow in arrivals])
    unstable = np.flatnonzero(np.where(contract, means > rates, means >= rates))
    if len(unstable):
        first = int(unstable[0])
        raise UnstableError(
            f"mean arrival rate < service rate fails for tenant {first}: "
            f"{means[first]:g} against {rates[first]:g} bit/s"
        )


def _by_kind(arrivals: Sequence[Arrival]) -> dict[str, list[int]]:
    kinds: dict[str, list[int]] = {}
    for index, flow in enumerate(arrivals):
        kinds.setdefault(_kind(flow), []).append(index)
    return kinds


def _kind(flow: Arrival) -> str:
    match flow:
        case TokenBucket():
            return "bucket"
        case MarkovOnOff():
            return "on-off"
        case CompoundPoisson() if isinstance(flow.amount, Constant):
            return "constant Poisson"
        case CompoundPoisson() if isinstance(flow.amount, Gamma) and flow.amount.shape == 1.0:
            return "exponential Poisson"
        case _:
            return "other"


def _with_path(path: PromisedPath, tails: _Tails, epsilon: FloatArray) -> FloatArray:
    log_m, decays, floors = choices(path, tails.log_prefactor, tails.decay_per_s)
    floors[..., 0] = tails.floor_s
    delays = waterfill.for_risk(log_m, decays, floors, epsilon).delay_s
    return np.asarray(delays.sum(axis=-1).min(axis=0) + path.latency_s)


def _buckets(flows: Sequence[Arrival], rates: FloatArray) -> _Tails:
    buckets = [flow for flow in flows if isinstance(flow, TokenBucket)]
    limits = np.array([flow.backlog_bits(rate) / rate for flow, rate in zip(buckets, rates.tolist(), strict=True)])
    return _Tails(np.full_like(rates, -np.inf), np.ones_like(rates), limits)


def _on_off(flows: Sequence[Arrival], rates: FloatArray) -> _Tails:
    members = [flow for flow in flows if isinstance(flow, MarkovOnOff)]
    peak, on, off, number, packet = np.array(
        [(f.peak_bps, f.mean_on_s, f.mean_off_s, float(f.flows), f.largest_packet_bits) for f in members]
    ).T
    up, down, share = 1.0 / off, 1.0 / on, rates / number
    queued = share < peak
    share = np.where(queued, share, 0.5 * peak * (1.0 + up / (up + down)))
    theta = decay_per_bit(share, peak, up, down)
    log_k = log_martingale_prefactor(theta, share, peak=peak, up=up, down=down, flows=number)
    mean = number * peak * up / (up + down)
    ahead = np.where(packet > 0.0, (number - 1.0) * log_phase_mgf(np.maximum(theta * packet, 1e-12)), 0.0)
    log_k = np.where(queued, log_k + np.log(rates / mean) + ahead, -np.inf)
    return _Tails(log_k, theta * rates, np.where(queued, 0.0, (number - 1.0) * packet / rates))


def _constant_poisson(flows: Sequence[Arrival], rates: FloatArray) -> _Tails:
    bits = np.array([flow.largest_packet_bits for flow in flows])
    load = np.array([flow.mean_bps for flow in flows]) / rates
    # (e^x - 1) load = x; Newton's steps restore the digits that Lambert's function loses near load 1.
    x = -lambertw(-load * np.exp(-load), -1).real - load
    for _ in range(2):
        x = x - (np.expm1(x) * load - x) / (np.exp(x) * load - 1.0)
    return _Tails(np.zeros_like(rates), x / bits * rates, np.zeros_like(rates))


def _exponential_poisson(flows: Sequence[Arrival], rates: FloatArray) -> _Tails:
    members = [flow for flow in flows if isinstance(flow, CompoundPoisson)]
    bits = np.array([flow.amount.mean for flow in members])
    load = np.array([flow.mean_bps for flow in members]) / rates
    return _Tails(np.log(load), (1.0 - load) / bits * rates, np.zeros_like(rates))


_CLOSED_FORMS: dict[str, Callable[[Sequence[Arrival], FloatArray], _Tails]] = {
    "bucket": _buckets,
    "on-off": _on_off,
    "constant Poisson": _constant_poisson,
    "exponential Poisson": _exponential_poisson,
}
