"""Random flows, each as the calculus describes it and as a maker of traces that knows nothing of that description.

Every kind in `PACKET_FLOWS` draws both from one generator: what the calculus is told, and a function that makes a trace
of so many packets.
"""

from __future__ import annotations

import math

import numpy as np

from testbed.calculus import (
    CompoundPoisson,
    Copies,
    DependentSum,
    Empirical,
    Gamma,
    IndependentSum,
    MarkovFluid,
    MarkovOnOff,
    MarkovPoisson,
    Metered,
    Renewal,
    TokenBucket,
    exponential,
)
from tests.unit.calculus import reference as ref
from tests.unit.calculus.reference import Trace


def scales(rng) -> tuple[float, float]:
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
    bits, second = scales(rng)
    size, sample = _sizes(rng, bits)
    rate = rng.uniform(0.2, 5.0) / second

    def trace(count, r):
        return Trace.of(np.cumsum(r.exponential(1.0 / rate, count)), sample(count, r))

    return CompoundPoisson(rate, size), trace


def _renewal(rng):
    bits, second = scales(rng)
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
    bits, second = scales(rng)
    flows = int(rng.integers(1, 6)) if flows is None else flows
    on, off = rng.uniform(2.0, 20.0) * second, rng.uniform(1.0, 60.0) * second
    peak = bits / second
    flow = MarkovOnOff(peak, on, off, flows, bits)

    def trace(count, r):
        bursts = int(count / flows / (on / second)) + 50
        return ref.merge(*(ref.OnOff(peak, on, off, bits).packets(bursts, r) for _ in range(flows)))

    return flow, trace


def generator(rng, states, second) -> np.ndarray:
    """Transition rates; a one-way cycle half the time, which no reversible chain is."""
    table = rng.uniform(0.02, 1.0, (states, states)) / second / 10.0
    if rng.random() < 0.5:
        table *= 0.05
        table += np.roll(np.diag(rng.uniform(0.1, 1.0, states)), 1, axis=1) / second / 5.0
    np.fill_diagonal(table, 0.0)
    return table


def as_tuple(table):
    return tuple(tuple(row) for row in table.tolist())


def _markov_fluid(rng):
    bits, second = scales(rng)
    states = int(rng.integers(2, 6))
    table = generator(rng, states, second)
    rates = rng.uniform(0.2, 5.0, states) * bits / second
    rates[rng.integers(states)] = 0.0
    flow = MarkovFluid(tuple(rates.tolist()), as_tuple(table), bits)

    def trace(count, r):
        steps = int(count * bits / flow.mean_bps * np.abs(flow.chain.matrix).max()) + 2000
        visited, holds = ref.markov_path(table, steps, r)
        return ref.cut_into_packets(holds, rates[visited], bits, r)

    return flow, trace


def _mmpp(rng):
    bits, second = scales(rng)
    states = int(rng.integers(2, 5))
    table = generator(rng, states, second)
    rates = rng.uniform(0.1, 4.0, states) / second
    if rng.random() < 0.5:
        rates[rng.integers(states)] = 0.0
    per_state = rng.random() < 0.4
    chosen = [
        _sizes(rng, bits * (rng.uniform(0.3, 2.0) if per_state else 1.0)) for _ in range(states if per_state else 1)
    ]
    size = tuple(amount for amount, _ in chosen) if per_state else chosen[0][0]
    flow = MarkovPoisson(tuple(rates.tolist()), size, as_tuple(table))

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
    return MarkovFluid(rates, as_tuple(np.array(flow.generator) * second), packet), scaled


def _copies(rng):
    count = int(rng.integers(2, 4))
    flow, trace = _on_off(rng, flows=1) if rng.random() < 0.5 else _renewal(rng)

    def repeated(packets, r):
        one = trace(packets // count, r)
        return Trace(np.repeat(one.times, count), np.repeat(one.bits, count), np.repeat(one.counted, count))

    return Copies(flow, count), repeated


def _dependent_sum(rng):
    """Two fluids driven by one chain: as strongly dependent as flows get, in either direction."""
    bits, second = scales(rng)
    states = int(rng.integers(2, 4))
    table = generator(rng, states, second)
    rates = rng.uniform(0.0, 4.0, (2, states)) * bits / second
    flows = tuple(MarkovFluid(tuple(row.tolist()), as_tuple(table), bits) for row in rates)

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
    bits, second = scales(rng)
    burst, rate = bits * int(rng.integers(2, 40)), bits / second
    flow = TokenBucket(rate, burst)

    def trace(count, r):
        each = round(burst / bits)
        starts = np.arange(count // each) * (burst / rate) * (1.0 + 1e-9)
        return Trace.of(np.repeat(starts, each), bits)

    return flow, trace


PACKET_FLOWS = {
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
