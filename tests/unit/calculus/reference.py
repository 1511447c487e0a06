"""Simulators for checking bounds: simple, written without the calculus, and sharing no formula with it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit


class Trace(NamedTuple):
    """Packets in order of arrival; `counted` is how much the delay of each counts when a bound is judged."""

    times: np.ndarray
    bits: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(cls, times, bits, counted=None):
        times = np.asarray(times, dtype=np.float64)
        bits = np.broadcast_to(np.asarray(bits, dtype=np.float64), times.shape)
        counted = np.ones(len(times)) if counted is None else counted
        return cls(times, np.ascontiguousarray(bits), counted)


def merge(*traces: Trace) -> Trace:
    """All packets of several flows, in order, up to the time at which the first flow ends."""
    end = min(trace.times[-1] for trace in traces)
    times, bits, counted = (np.concatenate(column) for column in zip(*traces, strict=True))
    order = np.argsort(times, kind="stable")
    order = order[times[order] <= end]
    return Trace(times[order], bits[order], counted[order])


@njit(cache=True)
def markov_path(rates, steps, rng):
    """States and holding times of a continuous-time chain, long enough to forget its start."""
    size = rates.shape[0]
    states = np.empty(steps, np.int64)
    holds = np.empty(steps)
    state = 0
    for step in range(steps + 100):
        out = rates[state].sum() - rates[state, state]
        hold = rng.exponential(1.0 / out)
        if step >= 100:
            states[step - 100] = state
            holds[step - 100] = hold
        pick = rng.random() * out
        for other in range(size):
            if other != state:
                pick -= rates[state, other]
                if pick <= 0.0:
                    state = other
                    break
    return states, holds


def cut_into_packets(holds, fluid_rates, packet_bits, rng) -> Trace:
    """Packets that leave when the cumulative fluid reaches multiples of the packet size, remainder carried over."""
    ends = np.cumsum(holds)
    fluid = np.cumsum(holds * fluid_rates)
    levels = np.arange(rng.random(), fluid[-1] / packet_bits) * packet_bits
    segment = np.searchsorted(fluid, levels, side="left")
    before = np.where(segment > 0, fluid[segment - 1], 0.0)
    start = ends[segment] - holds[segment]
    return Trace.of(start + (levels - before) / fluid_rates[segment], packet_bits)


class OnOff(NamedTuple):
    """One on-off flow cut into packets."""

    peak: float
    on: float
    off: float
    bits: float

    def segments(self, bursts, rng) -> tuple[np.ndarray, np.ndarray]:
        """Holding times and rates, a silence first."""
        holds = np.empty(2 * bursts)
        holds[0::2], holds[1::2] = rng.exponential(self.off, bursts), rng.exponential(self.on, bursts)
        return holds, np.tile([0.0, self.peak], bursts)

    def packets(self, bursts, rng) -> Trace:
        """Packets of so many bursts."""
        holds, rates = self.segments(bursts, rng)
        return cut_into_packets(holds, rates, self.bits, rng)


def modulated_poisson(holds, intensities, sizes, states, rng) -> Trace:
    """Poisson packets in each segment; sizes is a function of (states of packets, rng)."""
    counts = rng.poisson(holds * intensities)
    owner = np.repeat(np.arange(len(holds)), counts)
    start = np.cumsum(holds) - holds
    times = start[owner] + rng.random(len(owner)) * holds[owner]
    order = np.argsort(times, kind="stable")
    return Trace.of(times[order], sizes(states[owner[order]], rng))


@njit(cache=True)
def waits(times, bits, rate):
    """Wait of each packet, itself excluded, at a constant-rate queue."""
    result = np.empty(len(times))
    backlog = 0.0
    for n in range(len(times)):
        if n > 0:
            backlog = max(0.0, backlog + bits[n - 1] - rate * (times[n] - times[n - 1]))
        result[n] = backlog / rate
    return result


@njit(cache=True)
def time_above(times, bits, rate, level, batches):
    """Time with a backlog above a level, and time, in each batch of packets: shape (2, batches)."""
    table = np.zeros((2, batches))
    backlog = 0.0
    count = len(times)
    for n in range(count - 1):
        backlog += bits[n]
        span = times[n + 1] - times[n]
        batch = n * batches // count
        table[0, batch] += min(span, max(0.0, backlog - level) / rate)
        table[1, batch] += span
        backlog = max(0.0, backlog - rate * span)
    return table


@njit(cache=True)
def fluid_above(holds, fluid_rates, rate, level, batches):
    """Bits and time above a backlog level in each batch of segments, and the totals: shape (4, batches)."""
    table = np.zeros((4, batches))
    backlog = 0.0
    count = len(holds)
    for n in range(count):
        slope = fluid_rates[n] - rate
        span = holds[n]
        end = max(0.0, backlog + slope * span)
        if slope > 0.0:
            above = span if backlog >= level else max(0.0, span - (level - backlog) / slope)
        elif slope < 0.0:
            above = 0.0 if backlog <= level else min(span, (level - backlog) / slope)
        else:
            above = span if backlog > level else 0.0
        batch = n * batches // count
        table[0, batch] += above * fluid_rates[n]
        table[1, batch] += above
        table[2, batch] += span * fluid_rates[n]
        table[3, batch] += span
        backlog = end
    return table


class Holdups(NamedTuple):
    """What a domain does to packets: serve at own_rate, add a jitter to each, stop before every so many."""

    own_rate: float
    latency: float
    jitter: np.ndarray
    stall_every: int
    stalls: np.ndarray


@njit(cache=True)
def lagging_domain(arrivals, bits, rate, holdups):
    """One FIFO domain with jitter and stalls: departures, and the lingering lag Y at the path's rate."""
    own_rate, latency, jitter, stall_every, stalls = holdups
    count = len(arrivals)
    departures = np.empty(count)
    lag = np.empty(count)
    free, out, ideal, lingering = 0.0, 0.0, 0.0, 0.0
    for n in range(count):
        start = max(arrivals[n], free)
        if stall_every > 0 and n % stall_every == stall_every - 1:
            start += stalls[n // stall_every]
        free = start + bits[n] / own_rate
        out = max(out, free + jitter[n])
        departures[n] = out
        idle = max(0.0, arrivals[n] - ideal)
        begin = max(arrivals[n], ideal)
        ideal = begin + bits[n] / rate
        lingering = max(0.0, out - begin - latency, lingering - idle)
        lag[n] = lingering
    return departures, lag


@njit(cache=True)
def priority_tandem(flow, cross, capacities):
    """Slotted servers in tandem, cross traffic first at each: cumulative departures of the flow after the last.

    flow: amounts in each slot; cross: shape (servers, slots). Departures are arrivals less what is still inside, so
    that an empty system has let out exactly what came in: two sums rounded differently look like a lasting delay.
    """
    slots = len(flow)
    servers = len(capacities)
    waiting = np.zeros(servers)
    waiting_cross = np.zeros(servers)
    departed = np.empty(slots)
    arrived = 0.0
    for t in range(slots):
        carried = flow[t]
        arrived += flow[t]
        for i in range(servers):
            waiting[i] += carried
            waiting_cross[i] += cross[i, t]
            first = min(waiting_cross[i], capacities[i])
            waiting_cross[i] -= first
            carried = min(waiting[i], capacities[i] - first)
            waiting[i] -= carried
        departed[t] = arrived - waiting.sum()
    return departed


def virtual_delays(flow, departed):
    """Slots until everything that arrived up to each slot has left; the end of the run is cut off."""
    arrived = np.cumsum(flow)
    inside = arrived <= departed[-1]
    slots = np.arange(len(flow))[inside]
    # What is inside is known to rounding of the total; less than that is nothing.
    reached = np.maximum.accumulate(departed) + 1e-12 * arrived[-1]
    return np.searchsorted(reached, arrived[inside], side="left") - slots


@njit(cache=True)
def slotted_on_off(stay_on, stay_off, flows, slots, rng):
    """Number of flows that are on in each slot."""
    active = np.zeros(slots)
    for _ in range(flows):
        on = rng.random() < (1.0 - stay_off) / (2.0 - stay_on - stay_off)
        for t in range(slots):
            active[t] += on
            on = rng.random() < (stay_on if on else 1.0 - stay_off)
    return active


@njit(cache=True)
def metered(times, bits, rate, burst):
    """Which packets a token bucket passes."""
    passed = np.empty(len(times), np.bool_)
    tokens = burst
    for n in range(len(times)):
        if n > 0:
            tokens = min(burst, tokens + rate * (times[n] - times[n - 1]))
        passed[n] = bits[n] <= tokens
        if passed[n]:
            tokens -= bits[n]
    return passed
