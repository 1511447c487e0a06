"""Composition is associative, traceable, and never promises more than its parts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from testbed.calculus import TokenBucket, delay_bound
from testbed.envelope import Envelope, Stage, Stochastic, Subject, Validity
from testbed.envelope.composition import Path, Rule
from testbed.envelope.errors import MixAndMatchError, WrongRateError
from testbed.envelope.service import to_service

from .samples import NOW_S, envelope, guardrails, tail

DOMAINS = ("east", "core", "west", "south")


def part(domain: str, **changes: object) -> Envelope:
    return envelope(domain=domain, **changes)


def with_tail(domain: str, *, cap_ns: int = 10**10, loss_ppb: int = 0, **changes: int) -> Envelope:
    return part(
        domain,
        stochastic=Stochastic(tail(**changes), loss_ppb=loss_ppb, error_ppb=0),
        guardrails=guardrails(delay_cap_ns=cap_ns, loss_cap_ppb=10**9, burst_bits=10**12),
    )


def replace_tail(item: Envelope, **changes: int) -> Envelope:
    assert item.stochastic is not None
    return replace(item, stochastic=replace(item.stochastic, tail=replace(item.stochastic.tail, **changes)))


@st.composite
def parts(draw: st.DrawFn) -> list[Envelope]:
    """One to four parts with widely different figures, meters large enough for what comes before."""
    found = []
    for domain in DOMAINS[: draw(st.integers(1, 4))]:
        x_min_ns = draw(st.sampled_from((0, 1_000_000, 7_000_000)))
        rails = guardrails(
            reserved_rate_bps=draw(st.integers(10_000_000, 20_000_000)),
            meter_rate_bps=draw(st.integers(1_000_000, 9_000_000)),
            peak_rate_bps=draw(st.none() | st.integers(9_000_000, 10**9)),
            burst_bits=draw(st.integers(10**9, 10**10)),
            latency_ns=draw(st.integers(500_000, 10**7)),
            largest_packet_bits=draw(st.integers(512, 12_112)),
            delay_cap_ns=draw(st.integers(0, 10**8)),
            loss_cap_ppb=draw(st.integers(0, 10**6)),
            load_cap_ppm=draw(st.integers(1, 10**6)),
        )
        lingering = tail(
            exceedance_ppb=draw(st.integers(1, 10**9)),
            decay_micro_per_s=draw(st.integers(10**7, 10**10)),
            x_min_ns=x_min_ns,
            x_max_ns=x_min_ns + draw(st.sampled_from((0, 10**6, 10**9))),
        )
        stochastic = draw(st.sampled_from((None, Stochastic(lingering, loss_ppb=50, error_ppb=0))))
        found.append(part(domain, guardrails=rails, stochastic=stochastic))
    smallest = min(item.guardrails.reserved_rate_bps for item in found)
    return [
        item
        if item.stochastic is None
        else replace(item, stochastic=replace(item.stochastic, tail=replace(item.stochastic.tail, rate_bps=smallest)))
        for item in found
    ]


@given(parts())
def test_composing_is_associative_and_keeps_provenance(found: list[Envelope]) -> None:
    singles = [Path((item,)) for item in found]
    left = singles[0]
    for single in singles[1:]:
        left = left.then(single)
    right = singles[-1]
    for single in reversed(singles[:-1]):
        right = single.then(right)
    assert left == right == Path.of(found)
    assert [source.digest for source in left.sources] == [item.digest for item in found]
    assert left.to_dict() == right.to_dict()


@given(parts())
def test_what_the_tenant_may_send_only_tightens(found: list[Envelope]) -> None:
    whole = Path.of(found).guardrails
    for item in found:
        own = item.guardrails
        assert whole.reserved_rate_bps <= own.reserved_rate_bps
        assert whole.meter_rate_bps <= own.meter_rate_bps
        assert whole.burst_bits <= own.burst_bits
        assert whole.largest_packet_bits <= own.largest_packet_bits
        assert whole.load_cap_ppm * whole.reserved_rate_bps <= own.load_cap_ppm * own.reserved_rate_bps
        if own.peak_rate_bps is not None:
            assert whole.peak_rate_bps is not None
            assert whole.peak_rate_bps <= own.peak_rate_bps


@given(parts())
def test_what_the_domains_add_is_never_less_than_any_part(found: list[Envelope]) -> None:
    path = Path.of(found)
    for item in found:
        assert path.guardrails.latency_ns >= item.guardrails.latency_ns
        assert path.guardrails.delay_cap_ns >= item.guardrails.delay_cap_ns
        assert path.guardrails.host_allowance_ns >= item.guardrails.host_allowance_ns
        assert path.loss_probability >= item.loss_probability
        assert path.confidence <= (item.evidence.confidence if item.evidence and item.stochastic else 1)


@given(parts(), st.floats(0, 0.5))
def test_assuming_less_never_bounds_less(found: list[Envelope], x_s: float) -> None:
    path = Path.of(found)
    sample_path, union, independent = (path.excess_exceedance(x_s, rule) for rule in Rule)
    assert 1 >= sample_path >= union >= independent >= 0


@given(parts(), st.integers(1, 10**9))
def test_a_heavier_tail_never_lowers_the_sum(found: list[Envelope], more_ppb: int) -> None:
    heavier = [
        item
        if item.stochastic is None
        else replace(
            item,
            stochastic=replace(
                item.stochastic,
                tail=replace(
                    item.stochastic.tail, exceedance_ppb=min(10**9, item.stochastic.tail.exceedance_ppb + more_ppb)
                ),
            ),
        )
        for item in found
    ]
    for rule in Rule:
        for x_s in (0.0, 0.001, 0.01, 0.1):
            lighter = Path.of(found).excess_exceedance(x_s, rule)
            assert Path.of(heavier).excess_exceedance(x_s, rule) >= lighter - 1e-12


@given(parts(), st.floats(1e-6, 0.5))
def test_the_quantile_is_where_the_probability_falls_to_epsilon(found: list[Envelope], epsilon: float) -> None:
    path = Path.of(found)
    for rule in Rule:
        x_s = path.excess_quantile_s(epsilon, rule)
        assert path.excess_exceedance(x_s, rule) <= epsilon
        if x_s > 0:
            assert path.excess_exceedance(x_s * (1 - 1e-6), rule) > epsilon


THREE = [
    with_tail("east", exceedance_ppb=5 * 10**7, decay_micro_per_s=2 * 10**9, x_min_ns=0, x_max_ns=10**9),
    with_tail("core", exceedance_ppb=2 * 10**6, decay_micro_per_s=5 * 10**8, x_min_ns=10**6, x_max_ns=10**9),
    with_tail("west", exceedance_ppb=3 * 10**8, decay_micro_per_s=9 * 10**9, x_min_ns=0, x_max_ns=10**9),
]


ONE_SHORT = [replace_tail(THREE[0], x_max_ns=700_000), *THREE[1:]]


@pytest.mark.parametrize("x_s", [0.0012, 0.002, 0.004, 0.008, 0.02])
@pytest.mark.parametrize("found", [THREE, ONE_SHORT], ids=["long ranges", "one short range"])
def test_the_union_is_the_best_split_that_an_optimiser_finds(found: list[Envelope], x_s: float) -> None:
    tails = [item.tail for item in found if item.tail is not None]

    def risk(shares: np.ndarray) -> float:
        return math.fsum(t.exceedance(x) for t, x in zip(tails, shares, strict=True))

    starts = np.array([t.x_min_s for t in tails])
    spare = x_s - starts.sum()
    best = min(
        minimize(
            lambda z: math.log(risk(starts + spare * np.exp(z) / np.exp(z).sum())), start, method="Nelder-Mead",
            options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 4000},
        ).fun
        for start in (np.zeros(3), np.array([2.0, 0.0, 0.0]), np.array([0.0, 3.0, 0.0]))
    )  # fmt: skip
    assert Path.of(found).excess_exceedance(x_s, Rule.UNION) == pytest.approx(math.exp(best), rel=1e-3)


@given(parts(), st.floats(0, 0.2))
def test_one_part_alone_promises_end_to_end_what_it_promises_alone(found: list[Envelope], x_s: float) -> None:
    alone = Path.of(found[:1])
    if found[0].tail is not None and found[0].tail.rate_bps == alone.rate_bps:
        capped = 0.0 if x_s >= found[0].guardrails.delay_cap_s else found[0].tail.exceedance(x_s)
        assert alone.excess_exceedance(x_s, Rule.UNION) == pytest.approx(capped, rel=1e-9, abs=1e-300)


def test_short_ranges_end_in_the_sum_of_their_floors() -> None:
    short = [replace_tail(item, x_max_ns=2_000_000) for item in THREE]
    floors = math.fsum(item.tail.floor for item in short if item.tail is not None)
    assert Path.of(short).excess_exceedance(1.0, Rule.UNION) == pytest.approx(floors)
    assert Path.of(short).excess_exceedance(1.0, Rule.INDEPENDENT) == pytest.approx(floors)


def test_the_independent_rule_is_the_convolution() -> None:
    rng = np.random.default_rng(1)
    n, total = 2_000_000, 1e-3
    often = [
        replace_tail(item, exceedance_ppb=share)
        for item, share in zip(THREE, (5 * 10**8, 10**8, 9 * 10**8), strict=True)
    ]
    for item in often:
        assert item.tail is not None
        p = item.tail.exceedance_ppb / 1e9
        total = total + rng.exponential(1 / item.tail.decay_per_s, n) * (rng.random(n) < p)
    for x_s in (0.004, 0.006, 0.01):
        seen = float(np.mean(total > x_s))
        assert Path.of(often).excess_exceedance(x_s, Rule.INDEPENDENT) == pytest.approx(seen, rel=0.02)


def test_the_independent_rule_refutes_nothing_that_depends() -> None:
    """One stall that holds up two parts at once breaks the independent rule, not the union."""
    twice = [
        with_tail(domain, exceedance_ppb=10**6, decay_micro_per_s=10**9, x_min_ns=0, x_max_ns=10**9)
        for domain in ("east", "west")
    ]
    both = 1e-3 * math.exp(-1e3 * 0.01 / 2)  # the same excess in both, so half of the sum in each
    path = Path.of(twice)
    assert path.excess_exceedance(0.01, Rule.INDEPENDENT) < both <= path.excess_exceedance(0.01, Rule.UNION)


def test_a_later_meter_shortens_the_burst_by_what_the_earlier_parts_hold_back() -> None:
    first = part("east", guardrails=guardrails(latency_ns=10**6, delay_cap_ns=4 * 10**6))
    second = part("west", guardrails=guardrails(burst_bits=230_000))
    assert Path.of([first, second]).guardrails.burst_bits == 230_000 - 45_000


def test_meters_that_leave_no_room_for_a_packet_are_refused_with_the_remedy() -> None:
    first = part("east", guardrails=guardrails(delay_cap_ns=10**9))
    with pytest.raises(MixAndMatchError, match="ask each later domain for more"):
        _ = Path.of([first, part("west")]).guardrails


OTHER = Subject("bob", "reserved", "packet-forwarding", Stage.NETWORK)
MODEL = Subject("alice", "reserved", "resnet", Stage.COMPUTE)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param([], id="nothing"),
        pytest.param([part("east"), part("west", subject=OTHER)], id="two tenants"),
        pytest.param([part("east"), part("east", subject=MODEL, version=8)], id="two offers of one domain"),
        pytest.param([part("east"), part("east")], id="one subject twice"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(found: list[Envelope]) -> None:
    with pytest.raises(MixAndMatchError):
        Path.of(found)


def test_parts_that_are_never_valid_at_once_are_refused() -> None:
    path = Path.of([part("east"), part("west", validity=Validity(NOW_S + 10**6, NOW_S + 2 * 10**6))])
    with pytest.raises(MixAndMatchError, match="ends at"):
        _ = path.validity


def test_a_tail_measured_at_another_rate_than_the_path_has_is_refused() -> None:
    narrow = part("west", stochastic=None, guardrails=guardrails(reserved_rate_bps=9_500_000))
    with pytest.raises(WrongRateError, match="calibration at 9500000"):
        Path.of([part("east"), narrow]).excess_exceedance(0.01, Rule.UNION)
    with pytest.raises(WrongRateError):
        to_service(part("east"), 9_500_000)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3, 1e-4])
def test_the_calculus_reads_the_same_promise(epsilon: float) -> None:
    """Its bound is the deterministic wait, the latencies and the union of the excesses."""
    services = [to_service(item, 10_000_000) for item in THREE]
    bucket = TokenBucket(9_000_000, 200_000, packet_bits=11_312)
    bound = delay_bound(bucket, services, epsilon)
    path = Path.of(THREE)
    expected = 200_000 / 1e7 + path.guardrails.latency_s + path.excess_quantile_s(epsilon, Rule.UNION)
    assert bound.delay_s == pytest.approx(expected, rel=1e-3)


def test_a_level_tail_becomes_latency_and_misses() -> None:
    level = with_tail("east", x_min_ns=2_000_000, x_max_ns=2_000_000, exceedance_ppb=500)
    service = to_service(level)
    assert service.excess is None
    assert service.latency_s == pytest.approx(level.latency_s + 0.002)
    assert service.loss_probability == pytest.approx(5e-7)


def test_what_lies_beyond_the_range_of_a_tail_counts_as_missed() -> None:
    item = with_tail("east", loss_ppb=1_000)
    assert item.tail is not None
    assert to_service(item).loss_probability == pytest.approx(1e-6 + item.tail.floor)
    capped = with_tail("east", loss_ppb=1_000, cap_ns=4_000_000)
    assert to_service(capped).loss_probability == pytest.approx(1e-6)


def test_a_domain_without_impairment_is_a_latency() -> None:
    service = to_service(part("east", stochastic=None, evidence=None))
    assert (service.excess, service.latency_s, service.rate_bps) == (None, 0.0015, 10_000_000)
    assert service.loss_probability == pytest.approx(2e-6)
