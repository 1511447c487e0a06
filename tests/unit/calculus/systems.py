"""Random systems, each with a bound to check and a simulation that knows nothing of the bound.

`random_system(seed)` draws a kind of flow (`tests.unit.calculus.flows`), a load and a path; `judge` of
`tests.unit.calculus.verdicts` compares the bound with what the simulation sees.
"""

from __future__ import annotations

import math

import numpy as np

from testbed.calculus import (
    EnvelopeService,
    ExcessTail,
    IndependentIncrements,
    LeftOver,
    MarkovFluid,
    MarkovOnOff,
    PoissonCount,
    RateLatency,
    SlottedOnOff,
    delay_bound,
    exponential,
)
from tests.unit.calculus import reference as ref
from tests.unit.calculus.flows import PACKET_FLOWS, as_tuple, generator, scales
from tests.unit.calculus.reference import Trace
from tests.unit.calculus.verdicts import BATCHES, System, by_batch

SLOT_TOLERANCE = 1e-9


def _packet_system(kind, rng, packets) -> System:
    flow, trace = PACKET_FLOWS[kind](rng)
    load = float(rng.uniform(0.3, 0.95))
    rate = flow.mean_bps / load
    epsilon = float(rng.choice([1e-2, 3e-3]))
    made = trace(packets, np.random.default_rng(int(rng.integers(1 << 30))))
    servers = int(rng.integers(1, 9)) if rng.random() < 0.5 else 0
    if servers == 0 and rng.random() < 0.4:
        return _virtual_wait_system(kind, flow, made, load, epsilon)
    if servers == 0:
        path = [RateLatency(rate, 0.0)]
        delays = ref.waits(made.times, made.bits, rate)
    else:
        path, delays = _promised_path(rng, made, rate, servers)
    exact = bool(servers == 0 and delay_bound(flow, path, epsilon).exact)
    return System(
        kind,
        flow,
        path,
        epsilon,
        lambda bound: by_batch(delays > bound * (1.0 + 1e-9), made.counted),
        f"arrival: {flow}\nload: {load:.4f}\nservers: {path}",
        float(made.times[-1]),
        exact=exact,
    )


def _virtual_wait_system(kind, flow, made: Trace, load: float, epsilon: float) -> System:
    """The wait that a bit of no size would have, at every instant and not only where packets come."""
    rate = flow.mean_bps / load
    path = [RateLatency(rate, 0.0)]

    def late(bound):
        above, total = ref.time_above(made.times, made.bits, rate, bound * rate * (1.0 + 1e-9), BATCHES)
        return above / total.mean()

    scenario = f"arrival: {flow}\nload: {load:.4f}\nper: time"
    exact = delay_bound(flow, path, epsilon, "time").exact
    return System(kind, flow, path, epsilon, late, scenario, float(made.times[-1]), "time", exact)


def _promised_path(rng, made: Trace, rate: float, servers: int):
    """Domains with jitter and stalls, each with the tightest exponential envelope of what it really did."""
    packet = float(made.bits.mean())
    arrivals, total = made.times, np.zeros(len(made.times))
    path = []
    for index in range(servers):
        own_rate = rate * float(rng.choice([1.0, 1.0, rng.uniform(1.0, 3.0)]))
        latency = float(made.bits.max()) / own_rate * 1.0
        jitter = rng.exponential(packet / rate * rng.uniform(0.0, 2.0), len(arrivals))
        every = int(rng.choice([0, 2000, 20_000]))
        stalls = rng.exponential(packet / rate * rng.uniform(1.0, 50.0), len(arrivals))
        departures, lag = ref.lagging_domain(
            arrivals, made.bits, rate, ref.Holdups(own_rate, latency, jitter, every, stalls)
        )
        total += departures - arrivals
        arrivals = departures
        path.append(EnvelopeService(own_rate, latency, _envelope_of(lag, made.counted), name=f"d{index}"))
    return path, total


def _envelope_of(lags, counted) -> ExcessTail | None:
    """An exponential above the empirical tail everywhere, through its one-in-a-hundred and its far end."""
    order = np.argsort(lags)[::-1]
    ordered, tail = lags[order], np.cumsum(counted[order]) / counted.sum()
    positive = (ordered > 0.0) & (tail > 0.0)
    if not positive.any():
        return None
    near, far = ordered[np.searchsorted(tail, 1e-2)], ordered[np.searchsorted(tail, 1e-4)]
    ordered, tail = ordered[positive], tail[positive]
    decay = min(math.log(100.0) / max(far - near, 1e-3 * ordered[0]), 300.0 / ordered[0])
    prefactor = float(np.exp((np.log(tail) + decay * ordered).max()))
    return ExcessTail(max(prefactor, 1e-12) * (1.0 + 1e-9), decay)


def _fluid_system(rng, segments) -> System:
    """Fluids per bit or per time at one server: the exact forms among them are checked from both sides."""
    bits, second = scales(rng)
    per = "packet" if rng.random() < 0.5 else "time"
    epsilon = float(rng.choice([1e-2, 3e-3]))
    if rng.random() < 0.5:
        peak, on, off = bits / second, rng.uniform(1.0, 20.0) * second, rng.uniform(1.0, 40.0) * second
        flow = MarkovOnOff(peak, on, off)
        table, rates = np.array([[0.0, 1.0 / off], [1.0 / on, 0.0]]), np.array([0.0, peak])
    else:
        states = int(rng.integers(2, 6))
        table = generator(rng, states, second)
        rates = rng.uniform(0.0, 5.0, states) * bits / second
        flow = MarkovFluid(tuple(rates.tolist()), as_tuple(table))
    load = float(rng.uniform(0.3, 0.95))
    rate = flow.mean_bps / load
    path = [RateLatency(rate, 0.0)]
    visited, holds = ref.markov_path(table, segments, rng)

    def late(bound):
        above_bits, above, total_bits, total = ref.fluid_above(holds, rates[visited], rate, bound * rate, BATCHES)
        return above_bits / total_bits.mean() if per == "packet" else above / total.mean()

    exact = bool(delay_bound(flow, path, epsilon, per).exact and rate < rates.max())
    scenario = f"arrival: {flow}\nload: {load:.4f}\nper: {per}"
    return System("fluid", flow, path, epsilon, late, scenario, float(holds.sum()), per, exact)


def _slotted_flow(rng, flows):
    if rng.random() < 0.5:
        stay_on, stay_off = rng.uniform(0.4, 0.95), rng.uniform(0.5, 0.97)
        flow = SlottedOnOff(1.0, 1.0, stay_on, stay_off, flows)
        return flow, lambda slots, r: ref.slotted_on_off(stay_on, stay_off, flows, slots, r)
    mean = rng.uniform(0.2, 2.0)
    amount, sample = (
        (exponential(mean), lambda shape, r: r.exponential(mean, shape))
        if rng.random() < 0.5
        else (PoissonCount(mean), lambda shape, r: r.poisson(mean, shape).astype(np.float64))
    )
    return (
        IndependentIncrements(1.0, amount, flows),
        lambda slots, r: sample((flows, slots), r).sum(axis=0),
    )


def _slotted_system(rng, slots) -> System:
    """Slotted flows behind strict priority, or alone at a constant rate; per slot, or per bit where that is defined."""
    flow, make = _slotted_flow(rng, int(rng.integers(1, 4)))
    servers = int(rng.integers(1, 9)) if rng.random() < 0.7 else 0
    load = float(rng.uniform(0.3, 0.95))
    epsilon = float(rng.choice([1e-2, 3e-3]))
    r = np.random.default_rng(int(rng.integers(1 << 30)))
    own = make(slots, r)
    if servers == 0:
        rate = flow.mean_bps / load
        path = [RateLatency(rate, 0.0)]
        capacities, crossing = np.array([rate]), np.zeros((1, slots))
    else:
        cross = [_slotted_flow(rng, int(rng.integers(1, 4))) for _ in range(servers)]
        capacities = np.array([(flow.mean_bps + c.mean_bps) / load for c, _ in cross])
        crossing = np.array([make_cross(slots, r) for _, make_cross in cross])
        path = [LeftOver(float(c), x) for c, (x, _) in zip(capacities, cross, strict=True)]
    packets = rng.random() < 0.5 and math.isfinite(flow.peak_rate_bps)
    delays = ref.virtual_delays(own, ref.priority_tandem(own, crossing, capacities))
    weights = own[: len(delays)] if packets else np.ones(len(delays))

    def late(bound):
        # One server is judged by its backlog, which is finer than whole slots.
        if servers == 0:
            # A busy slot ends with a backlog above the bound exactly when its last bit is later than the bound.
            backlog = _backlogs(own, capacities[0])
            beyond = backlog[: len(delays)] > bound * capacities[0] * (1.0 + SLOT_TOLERANCE)
        else:
            beyond = delays > bound + SLOT_TOLERANCE
        edges = np.linspace(0, len(delays), BATCHES + 1).astype(np.int64)[:-1]
        return np.add.reduceat(weights * beyond, edges) / (weights.sum() / BATCHES)

    per = "packet" if packets else "time"
    exact = bool(servers == 0 and delay_bound(flow, path, epsilon, per).exact)
    scenario = f"arrival: {flow}\nservers: {path}\nper: {per}"
    return System("slotted", flow, path, epsilon, late, scenario, float(slots), per, exact)


def _backlogs(own, rate):
    walk = np.cumsum(own - rate)
    return walk - np.minimum(np.minimum.accumulate(walk), 0.0)


def _continuous_left_over(rng, slots) -> System:
    """Markov fluids behind strict priority in tandem, integrated over steps that are short for the system."""
    servers = int(rng.integers(1, 6))
    load = float(rng.uniform(0.3, 0.9))
    epsilon = float(rng.choice([1e-2, 3e-3]))
    r = np.random.default_rng(int(rng.integers(1 << 30)))
    step = 0.05

    def one(flows):
        on, off, peak = rng.uniform(0.5, 4.0), rng.uniform(0.5, 6.0), rng.uniform(0.5, 2.0)
        flow = MarkovOnOff(peak, on, off, flows)

        def amounts():
            total = np.zeros(slots)
            for _ in range(flows):
                bursts = int(slots * step / (on + off) * 1.5) + 100
                holds, rates = ref.OnOff(peak, on, off, 1.0).segments(bursts, r)
                ends = np.concatenate(([0.0], np.cumsum(holds)))
                fluid = np.concatenate(([0.0], np.cumsum(holds * rates)))
                total += np.diff(np.interp(np.arange(slots + 1) * step, ends, fluid))
            return total

        return flow, amounts

    flow, own_amounts = one(1)
    cross = [one(int(rng.integers(1, 4))) for _ in range(servers)]
    capacities = [(flow.mean_bps + c.mean_bps) / load for c, _ in cross]
    path = [LeftOver(c, x) for c, (x, _) in zip(capacities, cross, strict=True)]
    own = own_amounts()
    crossing = np.array([amounts() for _, amounts in cross])
    delays = ref.virtual_delays(own, ref.priority_tandem(own, crossing, np.array(capacities) * step)) * step
    packets = rng.random() < 0.5
    weights = own[: len(delays)] if packets else np.ones(len(delays))

    def late(bound):
        # Everything of a step is taken to arrive with its last bit and to leave within a step: less than h + 1 off.
        beyond = delays > bound + (servers + 1) * step
        edges = np.linspace(0, len(delays), BATCHES + 1).astype(np.int64)[:-1]
        return np.add.reduceat(weights * beyond, edges) / (weights.sum() / BATCHES)

    per = "packet" if packets else "time"
    scenario = f"arrival: {flow}\nservers: {path}\nper: {per}"
    return System("left-over fluid", flow, path, epsilon, late, scenario, slots * step, per)


KINDS = (*PACKET_FLOWS, "fluid", "slotted", "left-over fluid")


def random_system(seed: int, effort: float = 1.0) -> System:
    """The system of a seed; kinds take turns, and `effort` scales the length of the simulation."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    if kind == "fluid":
        return _fluid_system(rng, int(400_000 * effort))
    if kind == "slotted":
        return _slotted_system(rng, int(400_000 * effort))
    if kind == "left-over fluid":
        return _continuous_left_over(rng, int(200_000 * effort))
    return _packet_system(kind, rng, int(400_000 * effort))
