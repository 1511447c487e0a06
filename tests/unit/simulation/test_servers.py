"""Every server against a plain model of it, on the same packets, with ties, drops and pauses."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from testbed.simulation.clock import PS_PER_S
from testbed.simulation.fifo import Bucket, FifoLink
from testbed.simulation.link import priority_link, weighted_link
from testbed.simulation.meter import Meter, Policy
from testbed.simulation.reserved import Reserved, ReservedLink
from testbed.simulation.wave import Wave
from tests.unit.simulation import references
from tests.unit.simulation.references import bursty, packets_of, push_in_pieces, wave_of

NS = 1000

LINK = 10_000_000
EVERYTHING = 2**62


def by_number(wave: Wave) -> dict[int, int]:
    return dict(zip(wave.number.tolist(), wave.time_ps.tolist(), strict=True))


def in_ps(departures: dict[int, Fraction]) -> dict[int, int]:
    return {number: round(time * PS_PER_S) for number, time in departures.items()}


def furthest_ps(found: dict[int, int], expected: dict[int, int]) -> int:
    assert found.keys() == expected.keys()
    return max(abs(found[number] - expected[number]) for number in expected)


@pytest.mark.parametrize(
    "hops",
    [
        pytest.param([(10e6, 0.0)], id="one link"),
        pytest.param([(10e6, 2e-3), (8e6, 5e-3), (40e6, 0.0)], id="three links with propagation"),
        pytest.param([(7e6, 1e-3), (3e6, 0.0), (6.1e6, 1e-4)], id="rates at which no bit takes whole picoseconds"),
        pytest.param([(1e9, 1e-6)] * 5, id="five fast links"),
    ],
)
@pytest.mark.parametrize("load", [0.3, 0.95])
def test_departures_from_fifo_tandems_equal_simpys_to_a_nanosecond(
    hops: list[tuple[float, float]], load: float
) -> None:
    slowest = min(rate for rate, _ in hops)
    wave = bursty(3, 4000, 1, 5546.7 / slowest / load * 1e6)
    out = wave
    for rate, delay in hops:
        out = FifoLink(rate, round(delay * PS_PER_S)).push(out, 0).on
    expected = references.simpy_tandem((wave.time_ps / PS_PER_S).tolist(), wave.size_bits.tolist(), hops)
    assert np.abs(out.time_ps - np.array(expected) * PS_PER_S).max() <= NS


@pytest.mark.parametrize("limit", [None, 1, 7, 20])
@pytest.mark.parametrize("burst", [0, 12_000, 100_000])
def test_a_lone_bucket_sends_when_the_reference_does_and_drops_the_same_packets(limit: int | None, burst: int) -> None:
    wave = bursty(5, 3000, 1, 700)
    # On a port so fast that a packet takes no time, the shared link's reference is a lone bucket.
    classes = [references.Class(Fraction(LINK), Fraction(burst), limit)]
    expected, dropped = references.reserved(packets_of(wave), 10**30, classes, references.Class())
    passed = push_in_pieces(Bucket(LINK, burst, 0, limit), wave, 7)
    assert by_number(passed.on) == in_ps(expected)
    assert passed.lost.number.tolist() == sorted(dropped)
    assert bool(dropped) == (limit is not None)


@pytest.mark.parametrize("limit", [1, 5, 40])
def test_a_fifo_link_drops_what_finds_its_queue_full(limit: int) -> None:
    wave = bursty(6, 3000, 1, 700)
    best_effort = [references.Class(None, limit=limit)]
    expected, dropped = references.reserved(packets_of(wave), LINK, best_effort, references.Class())
    passed = push_in_pieces(FifoLink(LINK, 0, limit), wave, 5)
    assert dropped
    assert by_number(passed.on) == in_ps(expected)
    assert passed.lost.number.tolist() == sorted(dropped)


@pytest.mark.parametrize("pieces", [1, 13, 400])
@pytest.mark.parametrize(
    ("rates", "bursts", "limits"),
    [
        pytest.param([2, 2, 2, 2], [12, 12, 12, 12], [None] * 4, id="four equal tenants"),
        pytest.param([5, 2, 1, 1], [30, 1, 12, 60], [None, 9, 30, 3], id="unequal tenants with short queues"),
        pytest.param([5, 2, None, None], [24, 12, 4, 4], [40, 40, 25, 25], id="two best-effort tenants in one queue"),
        pytest.param([None, 4, None, 4], [0, 0, 0, 0], [None] * 4, id="no burst"),
    ],
)
def test_a_reserved_port_serves_as_the_reference_does(
    rates: list[int | None], bursts: list[int], limits: list[int | None], pieces: int
) -> None:
    wave = bursty(7, 2500, 4, 600)
    borrowed = max((1000 * b for r, b in zip(rates, bursts, strict=True) if r is None), default=0)
    expected, dropped = references.reserved(
        packets_of(wave),
        16_000_000,
        [
            references.Class(None if r is None else Fraction(r * 10**6), Fraction(1000 * b), limit)
            for r, b, limit in zip(rates, bursts, limits, strict=True)
        ],
        references.Class(Fraction(LINK), Fraction(borrowed)),
    )
    classes = [
        Reserved(None if r is None else r * 1e6, 1000.0 * b, limit)
        for r, b, limit in zip(rates, bursts, limits, strict=True)
    ]
    passed = push_in_pieces(ReservedLink(16e6, classes, root_bps=LINK), wave, pieces)
    assert by_number(passed.on) == in_ps(expected)
    assert sorted(passed.lost.number.tolist()) == sorted(dropped)
    assert np.all(np.diff(passed.on.time_ps) >= 0)


@pytest.mark.parametrize(("limit", "kept"), [(3, [0, 1, 2, 3]), (0, [])])
def test_what_finds_a_reserved_queue_full_is_lost_before_the_queue_moves(limit: int, kept: list[int]) -> None:
    """A class that may not send for long must not keep what came meanwhile."""
    port = ReservedLink(LINK, [Reserved(1000.0, 0.0, limit)])
    wave = wave_of(np.arange(20) * 10**9, np.full(20, 8000))
    passed = port.push(wave, 20 * 10**9)
    assert passed.on.number.tolist() == kept[:1]
    assert passed.lost.number.tolist() == [number for number in range(20) if number not in kept]
    rest = port.push(Wave.empty(), 2**62)
    assert rest.on.number.tolist() == kept[1:]
    assert not rest.lost.number.size


def test_sixty_four_reserved_classes_are_served_as_the_reference_does() -> None:
    wave = bursty(8, 4000, 64, 600)
    classes = [references.Class(Fraction(125_000), Fraction(24_000)) for _ in range(64)]
    expected, _ = references.reserved(packets_of(wave), LINK, classes, references.Class(Fraction(LINK)))
    passed = push_in_pieces(ReservedLink(LINK, [Reserved(125e3, 24e3)] * 64), wave, 9)
    assert by_number(passed.on) == in_ps(expected)


@pytest.mark.parametrize("pieces", [1, 300])
@pytest.mark.parametrize("ranks", [[0, 1, 2, 3], [1, 0, 1, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("limit", [None, 2])
def test_a_priority_link_serves_as_the_reference_does(ranks: list[int], pieces: int, limit: int | None) -> None:
    wave = bursty(9, 2500, 4, 600)
    limits = () if limit is None else (limit, limit + 3, limit, limit + 9)[: max(ranks) + 1]
    expected, dropped = references.priority(packets_of(wave), LINK, ranks, limits)
    passed = push_in_pieces(priority_link(LINK, ranks, limits=limits), wave, pieces)
    assert by_number(passed.on) == in_ps(expected)
    assert sorted(passed.lost.number.tolist()) == dropped
    assert bool(dropped) == (limit is not None)


@pytest.mark.parametrize("pieces", [1, 300])
@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [4, 2, 1, 1]])
@pytest.mark.parametrize("limit", [None, 2])
def test_a_weighted_link_serves_as_the_reference_does(weights: list[int], pieces: int, limit: int | None) -> None:
    wave = bursty(10, 2500, 4, 600)
    limits = () if limit is None else (limit, limit + 3, limit, limit + 9)
    expected, dropped = references.weighted(packets_of(wave), LINK, weights, limits)
    passed = push_in_pieces(weighted_link(LINK, weights, limits=limits), wave, pieces)
    assert by_number(passed.on) == in_ps(expected)
    assert sorted(passed.lost.number.tolist()) == dropped
    assert bool(dropped) == (limit is not None)


def test_weighted_sharing_survives_the_end_of_its_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = bursty(11, 2500, 4, 600)
    undisturbed = push_in_pieces(weighted_link(LINK, [5, 3, 1, 1]), wave, 100).on
    monkeypatch.setattr("testbed.simulation.link._REBASE_AT", 10**9)
    disturbed = push_in_pieces(weighted_link(LINK, [5, 3, 1, 1]), wave, 100).on
    assert by_number(disturbed) == by_number(undisturbed)


def test_backlogged_tenants_share_a_weighted_link_in_proportion() -> None:
    n = 4000
    wave = references.wave_of(np.zeros(n, np.int64), np.full(n, 8000), np.arange(n) % 2)
    out = weighted_link(LINK, [3, 1]).push(wave, EVERYTHING).on
    assert np.count_nonzero(out.tenant[: n // 2] == 0) == pytest.approx(0.75 * n / 2, abs=2)


@pytest.mark.parametrize("bursts", [[12_000, 12_000, 12_000], [50_000, 12_000, 13_000]])
def test_meters_pass_what_a_plain_token_bucket_passes(bursts: list[int]) -> None:
    rates = [4_000_000, 2_000_000, 1_000_000]
    wave = bursty(12, 5000, 3, 500)
    policies = [Policy(rate, burst) for rate, burst in zip(rates, bursts, strict=True)]
    passed = push_in_pieces(Meter(policies), wave, 6)
    expected = references.meter(packets_of(wave), rates, bursts)
    assert passed.on.number.tolist() == expected
    assert 0 < len(expected) < len(wave)
    assert sorted([*expected, *passed.lost.number.tolist()]) == list(range(len(wave)))


def test_a_meter_leaves_tenants_without_a_policy_alone() -> None:
    wave = bursty(12, 500, 2, 50)
    passed = Meter([None, Policy(1e6, 12_000)]).push(wave, 0)
    assert set(passed.lost.tenant.tolist()) == {1}
