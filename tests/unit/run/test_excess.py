"""Lag and lingering excess of packets at a domain's borders, and what a domain signs of them."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.envelope.calibration import Calibration
from testbed.envelope.descriptor import Envelope
from testbed.run.excess import Excess, excess_of, refuted, supported
from testbed.telemetry.requests import Passages
from tests.unit.envelope.samples import envelope, guardrails

RATE_BPS = 8_000_000
BITS = 8_000
LATENCY_S = 2e-3


def passages(*border_s: list[float]) -> Passages:
    """Packets of 1 ms at the rate, seen at these times at each border."""
    time_s = np.array(border_s).T
    return Passages(time_s, np.full(len(time_s), BITS, dtype=np.int64))


def test_a_domain_lags_by_what_is_beyond_its_latency_and_the_tenants_own_queue() -> None:
    # The second packet waits for the first by itself; the third comes 1 ms late for no such reason.
    found = excess_of(passages([0.0, 0.0, 0.010], [0.0, 0.003, 0.013]), 0, RATE_BPS, LATENCY_S)
    assert found.lag_s == pytest.approx([0.0, 0.002, 0.003])
    assert found.excess_s == pytest.approx([0.0, 0.0, 0.001])
    assert found.lost == 0


def test_an_excess_lingers_until_the_tenants_queue_has_been_idle_for_as_long() -> None:
    # 5 ms too late at first; then on time, after 1 ms of work and 3 ms of idleness each.
    entered = [0.0, 0.004, 0.008, 0.012]
    found = excess_of(passages(entered, [0.007, 0.006, 0.010, 0.014]), 0, RATE_BPS, LATENCY_S)
    assert found.excess_s == pytest.approx([0.005, 0.002, 0.0, 0.0])


def test_each_domain_answers_for_its_own_borders_only() -> None:
    seen = passages([0.0, 0.010], [0.009, 0.011], [0.010, 0.020])
    first, second = (excess_of(seen, domain, RATE_BPS, LATENCY_S) for domain in (0, 1))
    assert first.excess_s == pytest.approx([0.007, 0.0])
    assert second.excess_s == pytest.approx([0.0, 0.007])


def test_packets_that_entered_and_never_left_are_lost_there_and_nowhere_else() -> None:
    nan = float("nan")
    seen = passages([0.0, 0.01, 0.02], [0.0, nan, 0.02], [0.0, nan, nan])
    lost = [excess_of(seen, domain, RATE_BPS, LATENCY_S) for domain in (0, 1)]
    assert [one.lost for one in lost] == [1, 1]
    assert [one.excess_s.size for one in lost] == [2, 1]


def test_packets_that_overtook_each_other_before_the_domain_are_counted_as_they_entered_it() -> None:
    found = excess_of(passages([0.001, 0.0], [0.001, 0.0]), 0, RATE_BPS, LATENCY_S)
    assert found.lag_s == pytest.approx([0.0, 0.0])


def drawn(late: bool, *, lost: int = 0, n: int = 20_000) -> Excess:
    rng = np.random.default_rng(3)
    lag_s = rng.exponential(3e-4, n)
    return Excess(lag_s, np.maximum(0.0, lag_s - LATENCY_S) if late else np.zeros(n), lost)


def test_a_domain_declares_no_impairment_where_that_is_true_and_else_signs_the_tail() -> None:
    declared = supported(drawn(late=False), RATE_BPS, declares_none=True)
    assert declared is not None
    assert declared.stochastic is None
    assert declared.evidence.n == 20_000
    for untrue in (drawn(late=True), drawn(late=False, lost=1)):
        measured = supported(untrue, RATE_BPS, declares_none=True)
        assert measured is not None
        assert measured.stochastic is not None
        assert measured.stochastic.tail.rate_bps == RATE_BPS
    calibrated = supported(drawn(late=False), RATE_BPS, declares_none=False)
    assert calibrated is not None
    assert calibrated.stochastic is not None


@pytest.mark.parametrize("n", [0, 50])
def test_of_a_handful_of_packets_nothing_is_said(n: int) -> None:
    assert supported(drawn(late=False, n=n), RATE_BPS, declares_none=False) is None


def signed(found: Calibration | None) -> Envelope:
    assert found is not None
    rates = {"reserved_rate_bps": RATE_BPS, "meter_rate_bps": RATE_BPS // 2}
    rails = guardrails(**rates, latency_ns=round(LATENCY_S * 1e9), loss_cap_ppb=0)
    return envelope(guardrails=rails, stochastic=found.stochastic, evidence=found.evidence)


def test_a_signed_tail_is_contradicted_by_a_window_that_is_worse_and_not_by_its_like() -> None:
    promise = signed(supported(drawn(late=True), RATE_BPS, declares_none=False))
    assert refuted([(promise, drawn(late=True))]) == []
    worse = drawn(late=True)
    worse = Excess(2 * worse.lag_s, np.maximum(0.0, 2 * worse.lag_s - LATENCY_S), 0)
    (said,) = refuted([(promise, worse)])
    assert said.startswith("east broke its envelope for alice: excess")


def test_a_declaration_of_no_impairment_is_refuted_by_a_packet_unless_the_host_may_have_delayed_it() -> None:
    promise = signed(supported(drawn(late=False), RATE_BPS, declares_none=True))
    assert refuted([(promise, drawn(late=False))]) == []
    late = drawn(late=False)
    late.excess_s[::1000] = 1e-6
    assert refuted([(promise, late)], host_share=2e-3) == []
    (said,) = refuted([(promise, late)])
    assert said.startswith("east broke its envelope for alice: later than promised")
    late.excess_s[::100] = 1e-6
    assert refuted([(promise, late)], host_share=2e-3) != []


def test_one_lost_packet_refutes_a_promise_of_no_loss_whatever_the_host_is_granted() -> None:
    promise = signed(supported(drawn(late=False), RATE_BPS, declares_none=True))
    (said,) = refuted([(promise, drawn(late=False, lost=1))], host_share=2e-3)
    assert "loss: 5e-05 of the packets, at most 0 promised" in said
