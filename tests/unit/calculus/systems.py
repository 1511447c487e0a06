"""Random systems, each with a bound to check and a simulation that knows nothing of the bound.

`random_system(seed)` draws a kind of flow, a load and a path; `judge` compares the bound with what the simulation sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from testbed.calculus import (
    CompoundPoisson,
    Copies,
    DependentSum,
    Empirical,
    EnvelopeService,
    ExcessTail,
    Gamma,
    IndependentIncrements,
    IndependentSum,
    LeftOver,
    MarkovFluid,
    MarkovOnOff,
    MarkovPoisson,
    Metered,
    PoissonCount,
    RateLatency,
    Renewal,
    SlottedOnOff,
    TokenBucket,
    delay_bound,
    exponential,
)
from tests.unit.calculus import reference as ref
from tests.unit.calculus.reference import Trace

BATCHES = 64
FALSE_ALARM = 1e-6
LONG = 50.0
SLOT_TOLERANCE = 1e-9

Simulate = Callable[[float], np.ndarray]


@dataclass(frozen=True)
class System:
    """One random system.

    `late(bound_s)` simulates it once and returns the fraction that is later than the bound in each batch.
    `span_s` is how long the simulation is, in the system's own time.
    """

    kind: str
    arrival: object
    servers: list
    epsilon: float
    late: Simulate
    scenario: str
    span_s: float
    per: str = "packet"
    exact: bool = False


@dataclass(frozen=True)
class Verdict:
    """How a bound compares with the simulation: t is the distance from epsilon in standard errors of a batch mean."""

    system: System
    bound_s: float
    method: str
    fraction: float
    t: float

    @property
    def critical(self) -> float:
        return float(student.isf(FALSE_ALARM, BATCHES - 1))

    @property
    def broken(self) -> bool:
        return self.t > self.critical

    @property
    def two_sided(self) -> bool:
        """Whether the form is exact and each batch is so long that its share of late packets is no matter of luck."""
        return self.system.exact and self.system.span_s >= LONG * BATCHES * self.bound_s

    @property
    def loose(self) -> bool:
        """Whether an exact form lies above the truth."""
        return self.two_sided and self.t < -self.critical

    def __str__(self) -> str:
        return (
            f"{self.system.kind}: {self.method} promises that at most {self.system.epsilon:g} exceed "
            f"{self.bound_s:.6g} s, simulated {self.fraction:.4g} "
            f"(t = {self.t:.1f}, critical {self.critical:.1f})\n{self.system.scenario}"
        )


def judge(system: System, scale: float = 1.0) -> Verdict:
    """Compare the bound, times a scale that a test may set to see the oracle fail, with the simulation."""
    bound = delay_bound(system.arrival, system.servers, system.epsilon, system.per)
    late = system.late(scale * bound.delay_s)
    error = late.std(ddof=1) / math.sqrt(len(late))
    skew = ((late - late.mean()) ** 3).mean() / late.var(ddof=1) if error > 0.0 else 0.0
    # Johnson's correction keeps the lower side honest for skewed counts; it is small where there are many.
    shifted = (
        late.mean()
        - system.epsilon
        + max(0.0, skew) / (6.0 * len(late)) * (system.exact and late.mean() < system.epsilon)
    )
    t = shifted / error if error > 0.0 else (-math.inf if late.mean() <= system.epsilon else math.inf)
    return Verdict(system, bound.delay_s, bound.method, float(late.mean()), float(t))


def by_batch(late: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Fractions late in consecutive batches, each weighted as its share of the counted packets."""
    counted = np.ones(len(late)) if counted is None else counted
    edges = np.linspace(0, len(late), BATCHES + 1).astype(np.int64)
    misses = np.add.reduceat(late * counted, edges[:-1])
    return misses / (counted.sum() / BATCHES)


# flows: each returns (arrival, trace maker)


def _scales(rng) -> tuple[float, float]:
    return 10.0 ** rng.uniform(0.0, 5.0), 10.0 ** rng.uniform(-5.0, 1.0)


def _sizes(rng, bits):
    """A size distribution and its sampler."""
    kind = rng.choice(["constant", "exponential", "gamma", "empirical"])
    if kind == "constant":
        return bits, lambda n, _: np.full(n, bits)
    if kind == "exponential":
        return exponential(bits), lambda n, r: r.exponential(bits, n)
    if kind == "gamma":
        shape = float(rng.choice([0.5, 2.0, 3.7]))
        return Gamma(bits, shape), lambda n, r: r.gamma(shape, bits / shape, n)
    values = np.sort(rng.uniform(0.1, 2.0, 3)) * bits
    weights = rng.dirichlet(np.ones(3) * 3.0)
    return (
        Empirical(tuple(values.tolist()), tuple(weights.tolist())),
        lambda n, r: r.choice(values, n, p=weights),
    )


def _poisson(rng):
    bits, second = _scales(rng)
    size, sample = _sizes(rng, bits)
    rate = rng.uniform(0.2, 5.0) / second

    def trace(count, r):
        return Trace.of(np.cumsum(r.exponential(1.0 / rate, count)), sample(count, r))

    return CompoundPoisson(rate, size), trace


def _renewal(rng):
    bits, second = _scales(rng)
    size, sample = _sizes(rng, bits)
    kind = rng.choice(["on-off", "gamma", "periodic"])
    rate = rng.uniform(0.2, 5.0) / second
    if kind == "gamma":
        shape = float(rng.choice([0.4, 0.8, 2.0, 5.0]))
        flow = Renewal.gamma(rate, shape, size)
        gaps = lambda n, r: r.gamma(shape, 1.0 / rate / shape, n)  # noqa: E731
    elif kind == "periodic":
        flow = Renewal.periodic(rate, size)
        gaps = lambda n, _: np.full(n, 1.0 / rate)  # noqa: E731
    else:
        mean_packets, off = rng.uniform(2.0, 20.0), rng.uniform(1.0, 30.0) * second
        spacing = rng.uniform(0.2, 1.0) * second
        flow = Renewal.on_off(bits / spacing, mean_packets * spacing, off, bits)
        sample = lambda n, _: np.full(n, bits)  # noqa: E731

        def gaps(n, r):
            return spacing + np.where(r.random(n) < 1.0 / mean_packets, r.exponential(off, n), 0.0)

    return flow, lambda count, r: Trace.of(np.cumsum(gaps(count, r)), sample(count, r))


def _on_off(rng, flows=None):
    bits, second = _scales(rng)
    flows = int(rng.integers(1, 6)) if flows is None else flows
    on, off = rng.uniform(2.0, 20.0) * second, rng.uniform(1.0, 60.0) * second
    peak = bits / second
    flow = MarkovOnOff(peak, on, off, flows, bits)

    def trace(count, r):
        bursts = int(count / flows / (on / second)) + 50
        return ref.merge(*(ref.OnOff(peak, on, off, bits).packets(bursts, r) for _ in range(flows)))

    return flow, trace


def _generator(rng, states, second) -> np.ndarray:
    """Transition rates; a one-way cycle half the time, which no reversible chain is."""
    table = rng.uniform(0.02, 1.0, (states, states)) / second / 10.0
    if rng.random() < 0.5:
        table *= 0.05
        table += np.roll(np.diag(rng.uniform(0.1, 1.0, states)), 1, axis=1) / second / 5.0
    np.fill_diagonal(table, 0.0)
    return table


def _as_tuple(table):
    return tuple(tuple(row) for row in table.tolist())


def _markov_fluid(rng):
    bits, second = _scales(rng)
    states = int(rng.integers(2, 6))
    table = _generator(rng, states, second)
    rates = rng.uniform(0.2, 5.0, states) * bits / second
    rates[rng.integers(states)] = 0.0
    flow = MarkovFluid(tuple(rates.tolist()), _as_tuple(table), bits)

    def trace(count, r):
        steps = int(count * bits / flow.mean_bps * np.abs(flow.chain.matrix).max()) + 2000
        visited, holds = ref.markov_path(table, steps, r)
        return ref.cut_into_packets(holds, rates[visited], bits, r)

    return flow, trace


def _mmpp(rng):
    bits, second = _scales(rng)
    states = int(rng.integers(2, 5))
    table = _generator(rng, states, second)
    rates = rng.uniform(0.1, 4.0, states) / second
    if rng.random() < 0.5:
        rates[rng.integers(states)] = 0.0
    per_state = rng.random() < 0.4
    chosen = [
        _sizes(rng, bits * (rng.uniform(0.3, 2.0) if per_state else 1.0)) for _ in range(states if per_state else 1)
    ]
    size = tuple(amount for amount, _ in chosen) if per_state else chosen[0][0]
    flow = MarkovPoisson(tuple(rates.tolist()), size, _as_tuple(table))

    def sizes(visited, r):
        if not per_state:
            return chosen[0][1](len(visited), r)
        drawn = np.empty(len(visited))
        for state, (_, sample) in enumerate(chosen):
            mask = visited == state
            drawn[mask] = sample(int(mask.sum()), r)
        return drawn

    def trace(count, r):
        mean = float(flow.chain.stationary @ rates)
        steps = int(count / mean * np.abs(flow.chain.matrix).max()) + 2000
        visited, holds = ref.markov_path(table, steps, r)
        return ref.modulated_poisson(holds, rates[visited], sizes, visited, r)

    return flow, trace


def _independent_sum(rng):
    makers = [_on_off, _poisson, _markov_fluid, _bucket]
    parts = [
        makers[int(rng.integers(len(makers)))](np.random.default_rng(int(rng.integers(1 << 30)))) for _ in range(2)
    ]
    # Both flows in the same units and at comparable rates, else the smaller one is invisible.
    contract = any(isinstance(flow, TokenBucket) for flow, _ in parts)
    observer = None if rng.random() < 0.4 and not contract else int(rng.integers(2))
    unequal = float(rng.choice([1.0, 4.0]))
    first, second = _rescaled(*parts[0]), _rescaled(*parts[1], unequal)

    def trace(count, r):
        both = []
        for index, (_, make) in enumerate((first, second)):
            made = make(count // 2, r)
            counted = made.bits if observer is None else np.full(len(made.times), float(index == observer))
            both.append(Trace(made.times, made.bits, counted))
        return ref.merge(*both)

    return IndependentSum((first[0], second[0]), observer), trace


def _rescaled(flow, trace, packet=1.0):
    """The same flow in units in which its mean packet is `packet` bits and its mean rate 1 bit/s."""
    match flow:
        case CompoundPoisson():
            size = flow.amount.mean / packet
        case TokenBucket():
            size = flow.burst_bits / 8.0 / packet
        case _:
            size = flow.packet_bits / packet
    second = size / flow.mean_bps

    def scaled(count, r):
        made = trace(count, r)
        return Trace(made.times / second, made.bits / size, made.counted)

    match flow:
        case CompoundPoisson():
            amount = flow.packet_bits
            match amount:
                case Gamma():
                    amount = Gamma(amount.mean / size, amount.shape)
                case Empirical():
                    amount = Empirical(tuple(v / size for v in amount.values), amount.weights)
                case _:
                    amount = amount / size
            return CompoundPoisson(flow.packets_per_s * second, amount), scaled
        case MarkovOnOff():
            unit = size / second
            return (
                MarkovOnOff(
                    flow.peak_bps / unit, flow.mean_on_s / second, flow.mean_off_s / second, flow.flows, packet
                ),
                scaled,
            )
        case TokenBucket():
            return TokenBucket(1.0, flow.burst_bits / size), scaled
    rates = tuple(rate / size * second for rate in flow.rates_bps)
    return MarkovFluid(rates, _as_tuple(np.array(flow.generator) * second), packet), scaled


def _copies(rng):
    count = int(rng.integers(2, 4))
    flow, trace = _on_off(rng, flows=1) if rng.random() < 0.5 else _renewal(rng)

    def repeated(packets, r):
        one = trace(packets // count, r)
        return Trace(np.repeat(one.times, count), np.repeat(one.bits, count), np.repeat(one.counted, count))

    return Copies(flow, count), repeated


def _dependent_sum(rng):
    """Two fluids driven by one chain: as strongly dependent as flows get, in either direction."""
    bits, second = _scales(rng)
    states = int(rng.integers(2, 4))
    table = _generator(rng, states, second)
    rates = rng.uniform(0.0, 4.0, (2, states)) * bits / second
    flows = tuple(MarkovFluid(tuple(row.tolist()), _as_tuple(table), bits) for row in rates)

    def trace(count, r):
        steps = int(count * bits / flows[0].mean_bps * np.abs(flows[0].chain.matrix).max() / 2) + 2000
        visited, holds = ref.markov_path(table, steps, r)
        return ref.merge(*(ref.cut_into_packets(holds, row[visited], bits, r) for row in rates))

    return DependentSum(flows), trace


def _metered(rng):
    flow, trace = (_on_off if rng.random() < 0.5 else _poisson)(rng)
    largest = flow.largest_packet_bits if math.isfinite(flow.largest_packet_bits) else 30.0 * flow.amount.mean
    bucket = TokenBucket(flow.mean_bps * rng.uniform(1.02, 1.6), largest * rng.uniform(1.0, 60.0))

    def passed(count, r):
        made = trace(count, r)
        keep = ref.metered(made.times, made.bits, bucket.rate_bps, bucket.burst_bits)
        return Trace(made.times[keep], made.bits[keep], made.counted[keep])

    return Metered(flow, bucket), passed


def _bucket(rng):
    """A sender that empties its bucket at once, waits for it to fill, and does so again."""
    bits, second = _scales(rng)
    burst, rate = bits * int(rng.integers(2, 40)), bits / second
    flow = TokenBucket(rate, burst)

    def trace(count, r):
        each = round(burst / bits)
        starts = np.arange(count // each) * (burst / rate) * (1.0 + 1e-9)
        return Trace.of(np.repeat(starts, each), bits)

    return flow, trace


_PACKET_FLOWS = {
    "Poisson": _poisson,
    "renewal": _renewal,
    "on-off packets": _on_off,
    "Markov fluid in packets": _markov_fluid,
    "MMPP": _mmpp,
    "independent sum": _independent_sum,
    "copies": _copies,
    "dependent sum": _dependent_sum,
    "behind a meter": _metered,
    "token bucket": _bucket,
}


# paths


def _packet_system(kind, rng, packets) -> System:
    flow, trace = _PACKET_FLOWS[kind](rng)
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
    bits, second = _scales(rng)
    per = "packet" if rng.random() < 0.5 else "time"
    epsilon = float(rng.choice([1e-2, 3e-3]))
    if rng.random() < 0.5:
        peak, on, off = bits / second, rng.uniform(1.0, 20.0) * second, rng.uniform(1.0, 40.0) * second
        flow = MarkovOnOff(peak, on, off)
        table, rates = np.array([[0.0, 1.0 / off], [1.0 / on, 0.0]]), np.array([0.0, peak])
    else:
        states = int(rng.integers(2, 6))
        table = _generator(rng, states, second)
        rates = rng.uniform(0.0, 5.0, states) * bits / second
        flow = MarkovFluid(tuple(rates.tolist()), _as_tuple(table))
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


KINDS = (*_PACKET_FLOWS, "fluid", "slotted", "left-over fluid")


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
