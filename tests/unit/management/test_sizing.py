"""Token buckets deep enough to keep a rate, and no deeper."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.calculus.service.htb import HtbClass, htb_latency
from testbed.errors import ReservationError
from testbed.management.sizing import DRAIN_BPS, TIMER_S, ClassDemand, best_effort_class, design_classes

rates = st.lists(st.integers(100_000, 10_000_000), min_size=1, max_size=8)


@given(rates)
def test_the_latency_found_is_the_formula_s_for_the_classes_installed(wanted: list[int]) -> None:
    demands = [ClassDemand(str(i), rate, 11_200) for i, rate in enumerate(wanted)]
    designed = design_classes(demands)
    bystander = HtbClass(1.0, 2 * 12_112, 12_112, 12_112)
    installed = [
        HtbClass(d.rate_bps, designed[d.tenant].burst_bytes * 8, designed[d.tenant].quantum_bytes * 8, 11_200)
        for d in demands
    ]
    for i, own in enumerate(installed):
        others = [*installed[:i], *installed[i + 1 :], bystander]
        assert designed[str(i)].latency_s == pytest.approx(htb_latency(own, others, DRAIN_BPS, TIMER_S), rel=0.01)


@given(rates, st.integers(100_000, 10_000_000))
def test_one_more_reservation_never_shortens_anybody_s_latency(wanted: list[int], more: int) -> None:
    few = [ClassDemand(str(i), rate, 11_200) for i, rate in enumerate(wanted)]
    before = design_classes(few)
    after = design_classes([*few, ClassDemand("new", more, 11_200)])
    assert all(after[name].latency_s >= before[name].latency_s - 1e-9 for name in before)


def test_reservations_that_no_burst_can_carry_are_refused() -> None:
    with pytest.raises(ReservationError, match="no finite burst"):
        design_classes([ClassDemand(str(i), 95_000_000, 11_200) for i in range(4)])


def test_best_effort_may_borrow_the_whole_link_one_packet_at_a_time() -> None:
    queue = best_effort_class(4, 40_000_000, 11_200)
    assert (queue.ceil_bps, queue.quantum_bytes, queue.minor) == (40_000_000, 1_400, 0x14)
