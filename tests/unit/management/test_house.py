"""A full house bounds every population, and admission sees whose promise would break."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.calculus import HtbClass, htb_latency
from testbed.errors import ReservationError
from testbed.management.admission import Crowd, Guest
from testbed.management.house import BYSTANDERS, House, latencies_s
from testbed.management.sizing import TIMER_S, ReservedClass
from testbed.scenario.model import FULL_FRAME_BITS

HOUSE = House(reservable_bps=100_000_000, classes=40)
Population = list[tuple[int, ReservedClass, int]]


def population(seed: int, house: House = HOUSE) -> Population:
    """Tenants of random rates and packets, as many as fit."""
    dice = np.random.default_rng(seed)
    found: Population = []
    left = house.reservable_bps
    while len(found) < house.classes:
        rate = int(dice.lognormal(14.5, 1.2)) // 1000 * 1000 + 1000
        packet = int(dice.integers(66, 1515)) * 8
        if rate > left:
            break
        found.append((rate, house.shape(rate, packet), packet))
        left -= rate
    return found


@pytest.mark.parametrize("seed", range(20))
def test_no_population_that_fits_has_a_latency_above_the_full_houses(seed: int) -> None:
    assert latencies_s(population(seed), HOUSE.drain_bps).max() <= HOUSE.latency_s


def test_a_house_full_of_the_worst_comes_close_to_what_is_signed() -> None:
    rate = HOUSE.reservable_bps // HOUSE.classes
    worst = [(rate, HOUSE.shape(rate, FULL_FRAME_BITS), FULL_FRAME_BITS)] * HOUSE.classes
    assert 0.9 * HOUSE.latency_s < latencies_s(worst, HOUSE.drain_bps).max() <= HOUSE.latency_s


@pytest.mark.parametrize("seed", range(3))
def test_the_sum_is_the_latency_of_the_calculus(seed: int) -> None:
    """`htb_latency` also checks that bucket and quantum let each class keep its rate."""
    people = population(seed)
    classes = [HtbClass(rate, 8.0 * c.burst_bytes, 8.0 * c.quantum_bytes, packet) for rate, c, packet in people]
    bystander = HtbClass(1.0, 2 * FULL_FRAME_BITS, FULL_FRAME_BITS, FULL_FRAME_BITS)
    expected = [
        htb_latency(own, [*classes[:i], *classes[i + 1 :], *[bystander] * BYSTANDERS], HOUSE.drain_bps, TIMER_S)
        for i, own in enumerate(classes)
    ]
    assert latencies_s(people, HOUSE.drain_bps) == pytest.approx(expected)


def test_the_crowd_of_a_port_breaks_exactly_when_a_signed_latency_does() -> None:
    """Beyond the full house, where newcomers do break promises."""
    small = House(reservable_bps=20_000_000, classes=4)
    rate = 1_000_000
    shaped = small.shape(rate, FULL_FRAME_BITS)
    crowd, people = Crowd(), []
    for number in range(40):
        newcomer = small.guest(f"t{number}", rate, shaped, FULL_FRAME_BITS)
        after = [*people, (rate, shaped, FULL_FRAME_BITS)]
        holds = bool((latencies_s(after, small.drain_bps) <= small.latency_s).all())
        assert (crowd.broken_by(newcomer) is None) is holds
        if not holds:
            break
        crowd.admit(newcomer)
        people = after
    assert 4 <= len(people) < 40
    with pytest.raises(ReservationError, match=f"t{len(people)}: would break the promise made to t"):
        crowd.admit(small.guest(f"t{len(people)}", rate, shaped, FULL_FRAME_BITS))


def test_a_crowd_names_who_bears_least_and_counts_the_newcomer_too() -> None:
    crowd = Crowd([Guest("patient", 1.0, 10.0), Guest("hasty", 1.0, 2.0)])
    assert crowd.broken_by(Guest("light", 1.0, 10.0)) is None
    assert crowd.broken_by(Guest("heavy", 1.5, 10.0)) == "hasty"
    assert crowd.broken_by(Guest("tender", 0.5, 1.0)) == "tender"


@pytest.mark.parametrize(
    ("reservable", "classes", "said"),
    [(200_000_000, 10, "less than half"), (0, 10, "more than none"), (10**6, 0, "at least one")],
)
def test_a_house_without_a_finite_latency_is_refused(reservable: int, classes: int, said: str) -> None:
    with pytest.raises(ReservationError, match=said):
        House(reservable, classes)


def test_packets_larger_than_the_house_is_made_for_are_refused() -> None:
    with pytest.raises(ReservationError, match="send smaller ones"):
        House(10**6, 10, packet_bits=800).shape(10_000, 808)
