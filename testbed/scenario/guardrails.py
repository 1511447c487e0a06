"""Meter rate, burst and queue limit of a reservation whose scenario leaves them out.

The choices are open and fixed, so that two readers of a file derive the same numbers:

* The meter's rate r is half-way between the tenant's mean and its reserved rate R: below R, or nothing would ever
  drain; above the mean, or conforming packets would be dropped.
* The burst b holds what conforming arrivals pile up at rate r with probability 1 - 1e-7. The backlog's tail decays at
  least as fast as e^{-theta b}, with theta from Lundberg's inequality for independent gaps (a Poisson process has
  them), the exact decay of the fluid queue for Markov on-off arrivals, and the martingale of docs/calculus.md with its
  prefactor for modulated Poisson arrivals; a policer drops less than such a queue overflows. Two packets are added, for
  the packet itself and for the cutting of fluid into packets, and 1 ms of r for the meter's refill grain. A trace gets
  the largest backlog of its own endless repetition. Requests count with all they put on the wire, and their bucket
  holds 100 ms of R more: what TCP held back leaves at the rate of the queue.
* The queue holds b and 50 ms of R, room for what a late scheduler leaves behind; of requests, in packets as small as
  theirs, and of a trace in as many packets as so many bits of it can be.

Nothing here judges whether a reservation makes sense; `testbed.scenario.tenants` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from testbed.scenario.model import (
    FULL_FRAME_BITS,
    Arrivals,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    TraceArrivals,
    whole_kbit,
)
from testbed.traffic.modulation import stationary
from testbed.traffic.request_demand import Demand, packets, wire_bits
from testbed.traffic.workloads import read_requests, read_workload

OVERFLOW = 1e-7
REFILL_GRAIN_S = 1e-3
QUEUE_HEADROOM_S = 0.05
LEAST_PACKETS = 10
HELD_BACK_S = 0.1
SMALL_PACKETS = 2.0
"""How many packets TCP makes of what full ones would carry, where messages fill several: a queue's limit is counted in
packets. Of small messages it makes more (`Demand.crowding`)."""
_KBIT = 1000


def meter_rate_bps(mean_bps: float, rate_bps: int) -> int:
    """Half-way between `mean_bps` and `rate_bps`, in whole kbit/s."""
    return round((mean_bps + rate_bps) / 2 / _KBIT) * _KBIT


def burst_bits(arrivals: Arrivals, meter_bps: int) -> int:
    """Bucket that conforming `arrivals` overflow with at most `OVERFLOW` of their packets, in whole kbit.

    Args:
        arrivals: The declared process, with a mean below `meter_bps`.
        meter_bps: Rate of the meter.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    if isinstance(arrivals, TraceArrivals):
        requests = read_requests(arrivals)
        backlog_bits = largest_backlog_bits(requests.time_s, requests.size_bits, requests.period_s, meter_bps)
    elif isinstance(arrivals, MmppArrivals):
        backlog_bits = _modulated_backlog_bits(arrivals, _Sizes.one(arrivals.size_bits), meter_bps)
    else:
        backlog_bits = -math.log(OVERFLOW) / decay_per_bit(arrivals, meter_bps)
    packet_bits = arrivals.size_bits
    needed = backlog_bits + 2 * packet_bits + REFILL_GRAIN_S * meter_bps
    return whole_kbit(max(needed, LEAST_PACKETS * packet_bits))


def request_burst_bits(arrivals: Arrivals, demand: Demand, meter_bps: int, rate_bps: int) -> int:
    """The same for requests: a bucket that neither conforming arrivals nor TCP's own bursts overflow, in whole kbit.

    Args:
        arrivals: The declared process, one arrival a request.
        demand: What its requests put on the wire, with a mean below `meter_bps`.
        meter_bps: Rate of the meter.
        rate_bps: Reserved rate.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    largest = float(demand.wire_bits.max())
    if isinstance(arrivals, TraceArrivals):
        trace = read_workload(arrivals)
        sizes = np.broadcast_to(demand.wire_bits, trace.time_s.shape)
        speed_up = arrivals.speed_up
        backlog_bits = largest_backlog_bits(trace.time_s / speed_up, sizes, trace.period_s / speed_up, meter_bps)
    elif isinstance(arrivals, OnOffArrivals):
        fluid = meter_bps * arrivals.size_bits / float(demand.wire_bits @ demand.share)
        backlog_bits = -math.log(OVERFLOW) / decay_per_bit(arrivals, fluid) * meter_bps / fluid
    elif isinstance(arrivals, MmppArrivals):
        backlog_bits = _modulated_backlog_bits(arrivals, _Sizes.of(demand), meter_bps)
    else:
        backlog_bits = -math.log(OVERFLOW) / decay_per_bit(arrivals, meter_bps, demand)
    needed = backlog_bits + 2 * largest + REFILL_GRAIN_S * meter_bps + HELD_BACK_S * rate_bps
    return whole_kbit(max(needed, LEAST_PACKETS * FULL_FRAME_BITS))


def request_queue_bits(
    burst: int, rate_bps: int, crowding: float, deadline_s: float | None, *, headroom_s: float = QUEUE_HEADROOM_S
) -> int:
    """Queue limit of a request tenant for a bucket of `burst` bits, in whole kbit: not all of its packets are full.

    Args:
        burst: The bucket.
        rate_bps: Reserved rate.
        crowding: How many packets its requests are for each full one that would carry their bits, at most.
        deadline_s: After which an answer is late; None where none is promised.
        headroom_s: As for `queue_bits`.
    """
    requests = whole_kbit(max(SMALL_PACKETS, crowding) * queue_bits(burst, rate_bps, headroom_s=headroom_s))
    return requests if deadline_s is None else max(requests, _answer_queue_bits(rate_bps, deadline_s))


def _answer_queue_bits(rate_bps: int, wait_s: float) -> int:
    """Queue limit that the smallest answers reach only where `wait_s` of the reserved rate wait, in whole kbit.

    Args:
        rate_bps: Reserved rate.
        wait_s: After which an answer is late.
    """
    smallest = np.zeros(1, dtype=np.int64)
    crowding, own = float(packets(smallest)[0] / wire_bits(smallest)[0]), float(packets(smallest)[0])
    return whole_kbit((crowding * rate_bps * wait_s + own) * FULL_FRAME_BITS)


def queue_bits(burst: int, rate_bps: int, *, headroom_s: float = QUEUE_HEADROOM_S) -> int:
    """Queue limit for a bucket of `burst` bits, in whole kbit, where all packets are equal.

    Args:
        burst: The bucket.
        rate_bps: Reserved rate.
        headroom_s: For how long of that rate there is room beyond the bucket.
    """
    return whole_kbit(burst + headroom_s * rate_bps)


def packet_queue_bits(arrivals: Arrivals, burst: int, meter_bps: int, rate_bps: int) -> int:
    """Queue limit of a tenant that sends packets for a bucket of `burst` bits, in whole kbit.

    Args:
        arrivals: What it sends.
        burst: The bucket.
        meter_bps: Rate of the meter.
        rate_bps: Reserved rate.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    needed = queue_bits(burst, rate_bps)
    if not isinstance(arrivals, TraceArrivals):
        return needed
    return whole_kbit(most_packets(arrivals, needed, bucket=(meter_bps, burst)) * arrivals.size_bits)


def most_packets(arrivals: Arrivals, bits: float, *, bucket: tuple[int, int] | None) -> int:
    """Most packets of a tenant's that so many bits waiting in one queue can be.

    Packets of a trace differ in size. Those that wait together came in a row, unless a meter dropped some of them; then
    all that wait may be the smallest.

    Args:
        arrivals: What the tenant sends.
        bits: What waits.
        bucket: Rate and burst of its meter; None where it breaks its contract.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    if not isinstance(arrivals, TraceArrivals):
        return int(bits // arrivals.size_bits)
    requests = read_requests(arrivals)
    sizes = requests.packets(np.arange(requests.time_s.size), requests.time_s).size_bits.astype(np.int64)
    if (
        bucket is None
        or largest_backlog_bits(requests.time_s, requests.size_bits, requests.period_s, bucket[0]) > bucket[1]
    ):
        return int(bits // sizes.min())
    rounds, rest = divmod(bits, sizes.sum())
    ends = np.cumsum(np.tile(sizes, 2))
    before = np.arange(sizes.size)
    in_row = np.searchsorted(ends, ends[before] - sizes + rest, side="right") - before
    return int(rounds) * sizes.size + int(in_row.max())


def decay_per_bit(
    arrivals: PoissonArrivals | OnOffArrivals | RenewalArrivals, rate_bps: float, demand: Demand | None = None
) -> float:
    """Theta such that P(backlog found by a packet >= q) <= e^{-theta q} at a server of `rate_bps`, in 1/bit.

    Infinite where packets never find a backlog. Independent gaps may come with requests' sizes of their own, `demand`.
    """
    sizes = _Sizes.of(demand) if demand is not None else _Sizes.one(arrivals.size_bits)
    match arrivals:
        case OnOffArrivals(peak_bps=peak, mean_on_s=on, mean_off_s=off):
            return math.inf if peak <= rate_bps else 1 / (on * (peak - rate_bps)) - 1 / (off * rate_bps)
        case PoissonArrivals(rate_per_s=rate):
            return _lundberg(lambda s: math.log1p(s / rate), sizes, rate_bps)
        case RenewalArrivals(gap="deterministic") if sizes.bits.min() == sizes.bits.max():
            return math.inf
        case RenewalArrivals(gap="deterministic", rate_per_s=rate):
            return _lundberg(lambda s: s / rate, sizes, rate_bps) if sizes.largest * rate > rate_bps else math.inf
        case RenewalArrivals(gap="hyperexponential", rate_per_s=rate, cv=cv):
            often = (1 + math.sqrt((cv**2 - 1) / (cv**2 + 1))) / 2
            phases = ((often, 2 * often * rate), (1 - often, 2 * (1 - often) * rate))
            return _lundberg(lambda s: -math.log(sum(p * mu / (mu + s) for p, mu in phases)), sizes, rate_bps)
        case RenewalArrivals(rate_per_s=rate, cv=cv):
            shape = 1 / cv**2
            return _lundberg(lambda s: shape * math.log1p(s / (shape * rate)), sizes, rate_bps)


@dataclass(frozen=True, eq=False)
class _Sizes:
    """Sizes of independent arrivals: each with its share, together 1."""

    bits: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, demand: Demand) -> Self:
        return cls(demand.wire_bits, demand.share)

    @classmethod
    def one(cls, bits: float) -> Self:
        return cls(np.array([float(bits)]), np.ones(1))

    @property
    def largest(self) -> float:
        return float(self.bits.max())

    def log_mean_exp(self, theta: float) -> float:
        """Ln E e^{theta L}."""
        return theta * self.largest + math.log(float(self.share @ np.exp(theta * (self.bits - self.largest))))


def _lundberg(exponent: Callable[[float], float], sizes: _Sizes, rate_bps: float) -> float:
    """Positive root of E e^{theta (L - R tau)} = 1, where E e^{-s tau} = e^{-exponent(s)}.

    ln E e^{theta L} is convex and exponent(theta R) concave with the larger slope at 0, so there is exactly one.
    """

    def excess(theta: float) -> float:
        return sizes.log_mean_exp(theta) - exponent(theta * rate_bps)

    return _root(excess, sizes)


def _root(excess: Callable[[float], float], sizes: _Sizes) -> float:
    """Positive root of a convex function that is 0 at 0, falls there, and then rises; by halving, from below."""
    high = 1 / sizes.largest
    while excess(high) < 0:
        high *= 2
    low = high
    while excess(low) >= 0:
        low /= 2
        if low * sizes.largest < 1e-12:
            return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return low


def _modulated_backlog_bits(arrivals: MmppArrivals, sizes: _Sizes, rate_bps: float) -> float:
    """Backlog at `rate_bps` that packets of a modulated Poisson process find with probability `OVERFLOW` at most.

    docs/calculus.md, "Martingale": theta is the root of lambda_max(Q + diag(lambda_z (E e^{theta L} - 1))) =
    theta R, h the positive eigenvector of the chain's time reversal there. A queue grows at arrivals only, hence
    P(backlog > q) <= pi h / min(h where packets come) e^{-theta q} of the time, and for R/mean times as many packets.
    """
    share, intensity = stationary(arrivals.switch_per_s), np.array(arrivals.rates_per_s)
    rates = np.array(arrivals.switch_per_s)
    np.fill_diagonal(rates, 0.0)
    reverse = rates.T * share / share[:, None]
    reverse -= np.diag(reverse.sum(axis=1))

    def tilted(theta: float) -> np.ndarray:
        return np.asarray(reverse + np.diag(intensity * math.expm1(sizes.log_mean_exp(theta))))

    def excess(theta: float) -> float:
        return float(np.linalg.eigvals(tilted(theta)).real.max()) - theta * rate_bps

    theta = _root(excess, sizes)
    values, vectors = np.linalg.eig(tilted(theta))
    h = np.abs(vectors[:, np.argmax(values.real)].real)
    mean_bps = arrivals.rate_per_s * float(sizes.share @ sizes.bits)
    prefactor = float(share @ h) / float(h[intensity > 0].min()) * rate_bps / mean_bps
    return (math.log(prefactor) - math.log(OVERFLOW)) / theta


def largest_backlog_bits(time_s: np.ndarray, size_bits: np.ndarray, period_s: float, rate_bps: float) -> float:
    """Largest backlog at `rate_bps`, above the mean rate, when any request has just come, over endless repetition.

    Args:
        time_s: When requests come, float64[n], not decreasing.
        size_bits: Their sizes, [n].
        period_s: After which they come again.
        rate_bps: Rate of the queue.
    """
    time_s = np.concatenate((time_s, time_s + period_s))
    size_bits = np.tile(size_bits, 2)
    spare = np.cumsum(size_bits) - rate_bps * time_s
    before = np.minimum.accumulate(spare - size_bits)
    return float(np.max(spare - before))
