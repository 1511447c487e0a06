"""The algebra of bounds, over random systems: units, monotony, composition, and the three directions of a question."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.calculus import (
    CompoundPoisson,
    Copies,
    DependentSum,
    Empirical,
    EnvelopeService,
    ExcessTail,
    Gamma,
    IndependentSum,
    LeftOver,
    MarkovFluid,
    MarkovOnOff,
    MarkovPoisson,
    Metered,
    NotApplicableError,
    RateLatency,
    Renewal,
    SlottedOnOff,
    TokenBucket,
    UnstableError,
    concatenated,
    delay_bound,
    delay_curve,
    violation_probability,
)
from testbed.calculus.arrivals.renewal import OnOffGap
from tests.unit.calculus import reference as ref

COMMON = settings(max_examples=60, derandomize=True)


def positive(low: float = 0.1, high: float = 10.0):
    return st.floats(low, high)


def sizes():
    return st.one_of(
        positive(),
        st.builds(Gamma, positive(), positive(0.3, 5.0)),
        st.builds(lambda a, b: Empirical((a, b)), positive(), positive()),
    )


def generators(states: int):
    return st.tuples(*(st.tuples(*(positive(0.05, 3.0) for _ in range(states))) for _ in range(states)))


ON_OFF = st.builds(
    MarkovOnOff, positive(), positive(), positive(), st.integers(1, 12), st.one_of(st.none(), positive(0.05, 1.0))
)
FLUID = st.builds(
    MarkovFluid, st.tuples(st.just(0.0), positive(), positive()), generators(3), st.one_of(st.none(), positive())
)
MMPP = st.builds(MarkovPoisson, st.tuples(st.just(0.0), positive(), positive()), sizes(), generators(3))
POISSON = st.builds(CompoundPoisson, positive(), sizes())
RENEWAL = st.one_of(
    st.builds(Renewal.gamma, positive(), positive(0.3, 5.0), sizes()),
    st.builds(Renewal, st.builds(OnOffGap, positive(), positive(1.0, 20.0), positive()), positive()),
)
MODULATED = st.one_of(ON_OFF, FLUID, MMPP, POISSON)
SUM = st.builds(
    lambda kind, flows, seen: kind(flows, seen),
    st.sampled_from([IndependentSum, DependentSum]),
    st.tuples(st.one_of(ON_OFF, FLUID), MODULATED),
    st.sampled_from([None, 0]),
)
METERED = st.builds(
    lambda flow, more, burst: Metered(flow, TokenBucket(flow.mean_bps * more, burst)),
    MODULATED,
    positive(1.01, 2.0),
    positive(1.0, 100.0),
)
COPIES = st.builds(Copies, ON_OFF, st.integers(1, 4))
FLOWS = st.one_of(ON_OFF, FLUID, MMPP, POISSON, RENEWAL, SUM, METERED, COPIES)
LOADS = st.floats(0.2, 0.97)
EPSILONS = st.floats(1e-9, 0.1)
UNITS = st.tuples(*(st.floats(-6.0, 8.0).map(lambda power: 10.0**power) for _ in range(2)))
EXCESSES = st.one_of(
    st.none(),
    st.builds(ExcessTail, positive(0.01, 5.0), positive(), st.floats(0.0, 1.0), st.sampled_from([np.inf, 3.0])),
)


def in_units(thing, bit: float, second: float, name: str = ""):
    """The same thing where a bit and a second are written as `bit` and `second`: field names carry the units."""
    if is_dataclass(thing):
        changed = {f.name: in_units(getattr(thing, f.name), bit, second, f.name) for f in fields(thing)}
        return replace(thing, **changed)
    if isinstance(thing, tuple):
        return tuple(in_units(item, bit, second, name) for item in thing)
    if not isinstance(thing, float):
        return thing
    units = {"_per_s": 1.0 / second, "_bps": bit / second, "_bits": bit, "_s": second}
    units |= {"generator": 1.0 / second, "mean_value": bit, "values": bit}
    return thing * next((unit for suffix, unit in units.items() if name.endswith(suffix)), 1.0)


def bound_or_none(*arguments, **options):
    """Seconds, or None where no theorem answers."""
    try:
        return delay_bound(*arguments, **options).delay_s
    except (NotApplicableError, UnstableError):
        return None


@COMMON
@given(st.tuples(FLOWS, LOADS, EXCESSES), EPSILONS, st.sampled_from(["packet", "time"]), UNITS)
def test_bounds_do_not_depend_on_the_units_of_time_and_data(system, epsilon, per, units):
    flow, load, excess = system
    rate = flow.mean_bps / load
    path = (EnvelopeService(rate, 0.3, excess), RateLatency(2.0 * rate, 0.1))
    here = bound_or_none(flow, path, epsilon, per)
    there = bound_or_none(in_units(flow, *units), in_units(path, *units), epsilon, per)
    if here is None or there is None:
        assert here is there
    else:
        assert there == pytest.approx(here * units[1], rel=1e-6)


@COMMON
@given(FLOWS, LOADS, EPSILONS, EXCESSES, st.floats(1.0, 3.0))
def test_more_rate_never_worsens_a_bound(flow, load, epsilon, excess, more):
    rate = flow.mean_bps / load
    before = bound_or_none(flow, [EnvelopeService(rate, 0.3, excess)], epsilon)
    after = bound_or_none(flow, [EnvelopeService(rate * more, 0.3, excess)], epsilon)
    assert before is None or after <= before * (1.0 + 1e-6) + 1e-12


@COMMON
@given(FLOWS, LOADS, EPSILONS, EXCESSES, st.floats(1.0, 100.0))
def test_a_larger_epsilon_and_a_later_deadline_never_worsen_a_bound(flow, load, epsilon, excess, more):
    path = [EnvelopeService(flow.mean_bps / load, 0.3, excess)]
    before = bound_or_none(flow, path, epsilon)
    if before is None:
        return
    assert delay_bound(flow, path, min(epsilon * more, 0.9)).delay_s <= before * (1.0 + 1e-6)
    assert violation_probability(flow, path, before * more) <= violation_probability(flow, path, before) * (1.0 + 1e-6)


@COMMON
@given(ON_OFF, LOADS, EPSILONS, st.floats(0.05, 1.0))
def test_less_burst_at_the_same_mean_never_worsens_a_bound(flow, load, epsilon, less):
    path = [RateLatency(flow.mean_bps / load, 0.0)]

    def bound(arrival):
        return delay_bound(arrival, path, epsilon).delay_s * (1.0 - 1e-9)

    fluid = replace(flow, packet_bits=None)
    shorter = replace(fluid, mean_on_s=flow.mean_on_s * less, mean_off_s=flow.mean_off_s * less)
    assert bound(shorter) <= delay_bound(fluid, path, epsilon).delay_s
    one = replace(fluid, flows=1, peak_bps=flow.peak_bps * flow.flows)
    slower = replace(one, peak_bps=one.mean_bps + less * (one.peak_bps - one.mean_bps))
    slower = replace(slower, mean_off_s=slower.mean_on_s * (slower.peak_bps / one.mean_bps - 1.0))
    assert bound(slower) <= delay_bound(one, path, epsilon).delay_s
    bucket = TokenBucket(flow.mean_bps, 10.0)
    assert bound(replace(bucket, burst_bits=10.0 * less)) <= delay_bound(bucket, path, epsilon).delay_s


@COMMON
@given(FLOWS, LOADS, EPSILONS, EXCESSES, st.sampled_from(["packet", "time"]))
def test_the_best_method_is_never_above_any_other(flow, load, epsilon, excess, per):
    path = [EnvelopeService(flow.mean_bps / load, 0.3, excess), RateLatency(2.0 * flow.mean_bps / load, 0.1)]
    if bound_or_none(flow, path, epsilon, per) is None:
        return
    bound = delay_bound(flow, path, epsilon, per)
    for candidate in bound.candidates:
        alone = bound_or_none(flow, path, epsilon, per, candidate.method)
        assert alone is None or alone == candidate.delay_s
        assert bound.delay_s <= candidate.delay_s


@COMMON
@given(st.lists(st.builds(RateLatency, positive(), st.floats(0.0, 2.0)), min_size=3, max_size=3), EPSILONS)
def test_concatenation_is_associative_and_bounds_depend_on_it_alone(services, epsilon):
    a, b, c = services
    left, right = concatenated(concatenated(a, b), c), concatenated(a, concatenated(b, c))
    assert left.rate_bps == right.rate_bps
    assert left.latency_s == pytest.approx(right.latency_s, rel=1e-12)
    flow = MarkovOnOff(left.rate_bps * 2.0, 1.0, 2.0)
    for grouped in ([a, b, c], [concatenated(a, b), c], [a, concatenated(b, c)], [left]):
        assert delay_bound(flow, grouped, epsilon).delay_s == pytest.approx(
            delay_bound(flow, [right], epsilon).delay_s, rel=1e-9
        )


@COMMON
@given(st.lists(MODULATED, min_size=3, max_size=3), LOADS, EPSILONS)
def test_adding_flows_is_associative(flows, load, epsilon):
    a, b, c = flows
    path = [RateLatency(sum(flow.mean_bps for flow in flows) / load, 0.0)]
    grouped = [IndependentSum((IndependentSum((a, b)), c)), IndependentSum((a, IndependentSum((b, c))))]
    flat = delay_bound(IndependentSum((a, b, c)), path, epsilon, "time", "chernoff").delay_s
    for flow in grouped:
        assert delay_bound(flow, path, epsilon, "time", "chernoff").delay_s == pytest.approx(flat, rel=1e-6)


@COMMON
@given(st.permutations([0.8, 0.85, 0.85, 0.9]), st.integers(1, 3), EPSILONS)
def test_the_order_of_slotted_left_over_servers_does_not_matter(loads, cross_flows, epsilon):
    flow, cross = SlottedOnOff(1.0, 1.0, 0.8, 0.9), SlottedOnOff(1.0, 1.0, 0.7, 0.9, cross_flows)

    def bound(order):
        servers = [LeftOver((flow.mean_bps + cross.mean_bps) / load, cross) for load in order]
        return delay_bound(flow, servers, epsilon, "time").delay_s

    assert bound(loads) == bound(sorted(loads))


@COMMON
@given(MODULATED, LOADS, EPSILONS, EXCESSES, st.sampled_from(["martingale", "lundberg", "chernoff"]))
def test_epsilon_to_delay_and_back_is_the_identity_below_one(flow, load, epsilon, excess, method):
    if method not in flow.queue_methods():
        return
    path = [EnvelopeService(flow.mean_bps / load, 0.3, excess)]
    delay = delay_bound(flow, path, epsilon, method=method).delay_s
    back = violation_probability(flow, path, delay, method=method)
    # Where every part rests on a floor or a cap, less risk is taken than is allowed.
    resting = delay_bound(flow, path, epsilon * 0.999, method=method).delay_s == delay
    assert back <= epsilon * (1.0 + 1e-6)
    assert resting or back == pytest.approx(epsilon, rel=1e-5)


def test_epsilon_to_delay_and_back_on_left_over_servers():
    flow, cross = MarkovOnOff(1.0, 1.0, 2.0), MarkovOnOff(1.0, 1.0, 2.0, 3)
    path = [LeftOver((flow.mean_bps + cross.mean_bps) / 0.7, cross) for _ in range(3)]
    for epsilon in (1e-2, 1e-4, 1e-8):
        delay = delay_bound(flow, path, epsilon, "time").delay_s
        assert violation_probability(flow, path, delay, "time") == pytest.approx(epsilon, rel=0.02)
    slotted, beside = SlottedOnOff(1.0, 1.0, 0.8, 0.9), SlottedOnOff(1.0, 1.0, 0.8, 0.9, 2)
    path = [LeftOver((slotted.mean_bps + beside.mean_bps) / 0.7, beside) for _ in range(3)]
    delay = delay_bound(slotted, path, 1e-3, "time").delay_s
    assert violation_probability(slotted, path, delay, "time") <= 1e-3 * (1.0 + 1e-9)
    assert violation_probability(slotted, path, delay - 1.0, "time") > 1e-3


@COMMON
@given(st.one_of(ON_OFF, FLUID, MMPP), LOADS, EPSILONS)
def test_packets_of_a_markov_modulated_fluid_never_see_less_than_time_does(flow, load, epsilon):
    """Of the fluid, and of packets as points of it; packets excluded from their own wait can see one packet less."""
    own = flow.largest_packet_bits
    path = [RateLatency(flow.mean_bps / load, 0.0)]
    per_packet, per_time = (delay_bound(flow, path, epsilon, per).delay_s for per in ("packet", "time"))
    slack = own / path[0].rate_bps if np.isfinite(own) and not isinstance(flow, MarkovPoisson) else 0.0
    assert per_packet >= per_time * (1.0 - 1e-9) - slack


def test_packets_of_a_smooth_flow_see_less_than_time_does():
    """Periodic packets never wait for each other, but the queue is busy for a share of the time that is the load."""
    rng = np.random.default_rng(7)
    rate, load, epsilon = 1.0, 0.7, 1e-2
    for flow, gaps in (
        (Renewal.periodic(load, 1.0), np.full(200_000, 1.0 / load)),
        (Renewal.gamma(load, 8.0, 1.0), rng.gamma(8.0, 1.0 / load / 8.0, 200_000)),
    ):
        packet, time = (delay_bound(flow, [RateLatency(rate, 0.0)], epsilon, per).delay_s for per in ("packet", "time"))
        assert packet < time
        trace = ref.Trace.of(np.cumsum(gaps), 1.0)
        late = (ref.waits(trace.times, trace.bits, rate) > packet).mean()
        above, total = ref.time_above(trace.times, trace.bits, rate, packet * rate, 1)
        assert late <= epsilon < (above / total)[0], "the packet bound does not hold for time"


@COMMON
@given(st.lists(st.builds(RateLatency, positive(2.0, 9.0), st.floats(0.0, 2.0)), min_size=1, max_size=5), EPSILONS)
def test_zero_jitter_gives_the_deterministic_tandem(services, epsilon):
    bucket = TokenBucket(1.0, 7.0)
    still = [EnvelopeService(s.rate_bps, s.latency_s, ExcessTail(1e-300, 1e12)) for s in services]
    expected = 7.0 / min(s.rate_bps for s in services) + sum(s.latency_s for s in services)
    assert delay_bound(bucket, services, epsilon).delay_s == pytest.approx(expected, rel=1e-12)
    assert delay_bound(bucket, still, epsilon).delay_s == pytest.approx(expected, rel=1e-9)


def test_the_curve_falls_and_holds_for_left_over_servers_too():
    flow, cross = SlottedOnOff(1.0, 1.0, 0.8, 0.9), SlottedOnOff(1.0, 1.0, 0.8, 0.9, 2)
    path = [LeftOver((flow.mean_bps + cross.mean_bps) / 0.7, cross) for _ in range(2)]
    curve = delay_curve(flow, path, np.array([1e-1, 1e-2, 1e-3]), "time")
    assert np.all(np.diff(curve) > 0.0)
    assert curve[2] == delay_bound(flow, path, 1e-3, "time").delay_s


@COMMON
@given(
    st.lists(st.tuples(positive(), st.integers(1, 9)), min_size=1, max_size=5), positive(0.01, 100.0), positive(0.01, 1)
)
def test_frequencies_need_not_add_up_to_one(seen: list[tuple[float, int]], unit: float, theta: float) -> None:
    """However they are counted, they describe the values written out."""
    values, counts = zip(*seen, strict=True)
    counted = Empirical(values, tuple(unit * count for count in counts))
    written = np.repeat(values, counts)
    weights = np.exp(theta * written)
    assert counted.mean == pytest.approx(written.mean())
    assert float(counted.log_mgf(theta)) == pytest.approx(np.log(weights.mean()))
    assert counted.tilted_mean(theta) == pytest.approx(np.average(written, weights=weights))
