"""Latencies cut into causes, and what would have been."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed.audit.causes import Cause, DomainPassage, add_up, counterfactual, separate
from testbed.envelope.tail import ExcessTail

TAIL = ExcessTail(
    rate_bps=10_000_000,
    exceedance_ppb=10_000_000,
    decay_micro_per_s=1_000_000_000,
    x_min_ns=1_000_000,
    x_max_ns=4_000_000,
)
"""P(Y > x) <= .01 exp(-1000 (x - 1 ms)) up to 4 ms."""


def test_causes_add_up_to_the_latency() -> None:
    rng = np.random.default_rng(1)
    delay, wait, lateness = rng.random((2, 1000)), rng.random((2, 1000)) * 2, rng.random(1000)
    latency = delay.sum(axis=0) + lateness + 0.25
    found = separate(
        latency,
        {"north": DomainPassage(delay[0], wait[0]), "south": DomainPassage(delay[1], wait[1])},
        {Cause.HOST: lateness},
    )
    assert set(found) == {"north", "south", Cause.OWN_BURST, Cause.HOST, Cause.ELSEWHERE}
    assert np.sum(list(found.values()), axis=0) == pytest.approx(latency)
    assert found["elsewhere"] == pytest.approx(0.25)


def test_what_an_ideal_server_would_have_made_wait_is_the_tenants_own_burst() -> None:
    found = separate([0.05, 0.02], {"north": DomainPassage([0.05, 0.02], [0.04, 0.03])})
    assert found[Cause.OWN_BURST] == pytest.approx([0.04, 0.02])
    assert found["north"] == pytest.approx([0.01, 0.0])


def test_nothing_is_left_elsewhere_when_the_domains_account_for_everything() -> None:
    found = separate([0.05, math.nan], {"north": DomainPassage([0.05, math.nan], [0.0, math.nan])})
    assert Cause.ELSEWHERE not in found


@pytest.mark.parametrize("digits", [9, 5], ids=["the parts add up", "rounded, so something is left elsewhere"])
def test_nothing_is_known_of_the_parts_of_what_was_never_answered(digits: int) -> None:
    rng = np.random.default_rng(3)
    parts = {"north": rng.random(1000), "south": rng.random(1000)}
    latency = np.round(parts["north"] + parts["south"], digits)
    latency[::10], parts["north"][::10] = math.nan, 5.0
    found = add_up(latency, parts)
    assert (Cause.ELSEWHERE in found) == (digits == 5)
    assert all(np.array_equal(np.isnan(part), np.isnan(latency)) for part in found.values())


def test_arrays_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"north: found shape \(1,\), expected \(2,\)"):
        separate([0.1, 0.2], {"north": DomainPassage([0.1], [0.1])})


def test_a_domain_that_kept_its_envelope_changes_nothing() -> None:
    n = 100_000
    probability = np.arange(1, n + 1) / n
    excess = np.where(probability < 0.01, 1e-3 - np.log(probability / 0.01) / 1000, 0.0)
    found = counterfactual("north", 0.01 + excess, excess, TAIL)
    assert found.kept_s == pytest.approx(found.measured_s, abs=1e-6)


def test_a_breach_is_taken_back_to_what_the_envelope_allows() -> None:
    n = 100_000
    rng = np.random.default_rng(2)
    excess = np.where(rng.random(n) < 0.005, 0.08, 0.0)
    found = counterfactual("north", 0.01 + excess, excess, TAIL)
    assert found.measured_s == pytest.approx(0.09)
    # At p99.9 the envelope allows 1 ms + ln(.01 / .001) / 1000.
    assert found.kept_s == pytest.approx(0.01 + 0.001 + math.log(10) / 1000, rel=0.02)
    assert "Had north kept its envelope, p99.9 would have been 13." in str(found)


def test_beyond_its_last_evidence_an_envelope_limits_no_size() -> None:
    n = 1_000_000
    excess = np.zeros(n)
    excess[:100] = 5.0
    floor = TAIL.exceedance(1.0)
    assert 100 / n < floor
    assert counterfactual("north", 0.01 + excess, excess, TAIL, 0.99995).kept_s == pytest.approx(5.01)


def test_a_promise_of_no_excess_allows_none_and_the_lost_stay_lost() -> None:
    latency = np.full(10_000, 0.02)
    latency[:50] = math.nan
    found = counterfactual("north", latency, np.full(10_000, 0.015), None, 0.99)
    assert found.kept_s == pytest.approx(0.005)
    assert math.isinf(counterfactual("north", latency, np.full(10_000, 0.015), None).kept_s)
