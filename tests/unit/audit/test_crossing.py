"""Requests as the audit sees them: how they ended, where they were, and for whom they waited."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from testbed.audit.causes import Cause
from testbed.audit.crossing import PacketCrossing, RequestCrossing
from testbed.envelope.descriptor import Stage, Stochastic, Subject
from testbed.telemetry.request_samples import RequestSamples
from tests.unit.audit import asking
from tests.unit.audit.asking import RATE_BPS, SEND_S, failed, window
from tests.unit.audit.test_contracts import envelope
from tests.unit.audit.test_folder import window as packets
from tests.unit.envelope.samples import evidence, tail


def crossing(*windows: RequestSamples, rate_bps: float | None = RATE_BPS) -> RequestCrossing:
    return RequestCrossing.of(windows, rate_bps)


def test_every_way_to_end_is_counted_and_what_was_still_to_come_is_left_out() -> None:
    seen = crossing(failed(window(1), timeout=5, rejected=4, error=3, skipped=2, overdue=1, to_come=10))
    ends = seen.endings
    assert (ends.timeouts, ends.rejected, ends.errors, ends.skipped, ends.overdue) == (5, 4, 3, 2, 1)
    assert ends.answered == 20_000 - 10 - 15
    assert seen.latency_s.size == 20_000 - 10
    assert np.count_nonzero(np.isnan(seen.latency_s)) == 15
    assert str(ends) == (
        "19975 requests were answered, 5 timed out, 4 were rejected, 3 ended in an error, 2 were never sent with too "
        "many unanswered, 1 were never sent past their deadline; 75.00% of the images were classified rightly."
    )


def test_a_wrong_answer_is_no_miss_and_lowers_accuracy_alone() -> None:
    samples = window(2)
    wrong = crossing(replace(samples, correct=np.zeros_like(samples.correct)))
    assert (wrong.endings.accuracy, wrong.endings.answered) == (0.0, 20_000)
    assert np.array_equal(wrong.latency_s, crossing(samples).latency_s)
    assert crossing(failed(window(2, 200), timeout=1)).endings.accuracy == pytest.approx(0.75)


def test_windows_are_pooled_in_order() -> None:
    one, two = window(3, 1000), window(4, 500)
    seen = crossing(one, two)
    assert np.array_equal(seen.latency_s, np.concatenate([one.latency_s, two.latency_s]))
    assert seen.runs.tolist() == [0] * 1000 + [1] * 500
    assert {name: part.size for name, part in seen.places().items()} == dict.fromkeys(
        ("client wait", "west", "east", "server queue", "compute", "network back", "residual"), 1500
    )


@pytest.mark.parametrize("rate_bps", [RATE_BPS, None])
def test_places_and_causes_both_add_up_to_the_latency(rate_bps: float | None) -> None:
    seen = crossing(window(5, pause_share=0.01, slow_share=0.01), rate_bps=rate_bps)
    assert sum(seen.places().values()) == pytest.approx(seen.latency_s)
    causes = seen.causes()
    assert sum(causes.values()) == pytest.approx(seen.latency_s)
    assert Cause.ELSEWHERE not in causes


def test_each_cause_gets_what_was_put_into_it() -> None:
    causes = crossing(window(6)).causes()
    assert causes["east"] == pytest.approx(np.full(20_000, 1e-3))
    assert causes["west"] == pytest.approx(np.full(20_000, 5e-4)), "its queue is the tenant's own burst"
    assert causes[Cause.COMPUTE] == pytest.approx(np.full(20_000, 2e-3))
    assert causes[Cause.NETWORK_BACK] == pytest.approx(np.full(20_000, 1e-3))
    # 0.2 ms late at the sender, 0.1 ms at either end of the server, 0.2 ms at the client.
    assert causes[Cause.HOST] == pytest.approx(np.full(20_000, 6e-4))
    assert Cause.RETRANSMISSION not in causes
    assert causes[Cause.OWN_BURST].min() >= SEND_S * (1 - 1e-9), "its own transmission at the promised rate too"
    assert causes[Cause.OWN_BURST].max() > 4 * SEND_S


def test_queueing_and_computing_come_from_the_servers_stamps() -> None:
    samples = window(7, slow_share=0.01)
    causes = crossing(samples).causes()
    assert causes[Cause.INFERENCE_QUEUE] == pytest.approx(samples.server_s[:, 2] - samples.server_s[:, 0])
    assert causes[Cause.COMPUTE] == pytest.approx(samples.server_s[:, 3] - samples.server_s[:, 2])
    assert np.count_nonzero(causes[Cause.COMPUTE] > 0.05) == pytest.approx(200, rel=0.3)


def test_what_tcp_holds_back_for_the_promised_rate_is_the_tenants_own() -> None:
    # The same requests, but the client lets each go no sooner than the promised rate has carried the ones before.
    samples = window(8)
    paced = samples.out_s[:, 1] - 5e-4
    out = np.stack([paced, paced + 5e-4, samples.out_s[:, 2]], axis=1)
    held = replace(samples, first_s=paced - SEND_S, out_s=out)
    causes = crossing(held).causes()
    assert causes["west"] == pytest.approx(np.full(20_000, 5e-4))
    assert causes[Cause.TRANSPORT].max() < 2e-4
    assert causes[Cause.OWN_BURST] == pytest.approx(crossing(samples).causes()[Cause.OWN_BURST], abs=2e-4)


def test_waiting_to_send_again_is_a_cause_of_its_own() -> None:
    samples = window(9)
    out, resent = samples.out_s.copy(), np.zeros_like(samples.out_s)
    out[500, 1:] += 0.2
    resent[500, 0], resent[600, 2] = 0.2, 2e-4
    again = replace(
        samples, out_s=out, server_s=samples.server_s + 0.2 * (np.arange(20_000) == 500)[:, None],
        back_s=samples.back_s + 0.2 * (np.arange(20_000) == 500)[:, None],
        received_s=samples.received_s + 0.2 * (np.arange(20_000) == 500), resent_s=resent,
    )  # fmt: skip
    causes = crossing(again).causes()
    assert causes[Cause.RETRANSMISSION][[400, 500, 600]] == pytest.approx([0.0, 0.2, 2e-4])
    assert causes["west"][500] == pytest.approx(5e-4)
    assert causes[Cause.NETWORK_BACK][600] == pytest.approx(8e-4)
    unmeasured = crossing(replace(again, resent_s=None)).causes()
    assert Cause.RETRANSMISSION not in unmeasured
    assert unmeasured["west"][500] == pytest.approx(0.2005)


def test_what_a_server_lost_on_purpose_is_neither_queueing_nor_computing() -> None:
    samples = window(11)
    lost = np.zeros((20_000, 3))
    lost[500], lost[600] = (0.02, 0.01, 0.0), (0.0, 0.0, 0.04)
    queued, worked = lost[:, :2].sum(axis=1), lost[:, 2]
    server = samples.server_s.copy()
    server[:, 2] += queued
    server[:, 3] += queued + worked
    later = queued + worked
    impaired = replace(
        samples, server_s=server, back_s=samples.back_s + later[:, None], received_s=samples.received_s + later,
        impaired=np.where(later > 0, 0b11, 0).astype(np.uint8), lost_time_s=lost,
    )  # fmt: skip
    seen, before = crossing(impaired), crossing(samples).causes()
    causes = seen.causes()
    assert causes[Cause.PAUSED][[400, 500, 600]] == pytest.approx([0.0, 0.02, 0.0])
    assert causes[Cause.SLOWED_DOWN][[400, 500, 600]] == pytest.approx([0.0, 0.01, 0.04])
    assert causes[Cause.INFERENCE_QUEUE] == pytest.approx(before[Cause.INFERENCE_QUEUE])
    assert causes[Cause.COMPUTE] == pytest.approx(before[Cause.COMPUTE])
    assert sum(causes.values()) == pytest.approx(seen.latency_s)
    assert seen.endings.impaired == {"slow-down": 2, "pause": 2}
    assert not {Cause.PAUSED, Cause.SLOWED_DOWN} & set(before)
    assert crossing(samples).endings.impaired == {}


def test_windows_with_and_without_impairments_are_pooled() -> None:
    samples = window(12, 100)
    one = np.zeros(100, np.uint8)
    one[7] = 1 << 2
    seen = crossing(samples, replace(samples, impaired=one, lost_time_s=np.zeros((100, 3))))
    assert seen.endings.impaired == {"wrong-answers": 1}


def test_without_a_promised_rate_no_wait_is_the_tenants_own() -> None:
    causes = crossing(window(10), rate_bps=None).causes()
    assert Cause.OWN_BURST not in causes
    assert causes["west"].max() > 4 * asking.SEND_S


def test_packets_are_cut_by_cause_only_where_a_rate_was_promised() -> None:
    seen = PacketCrossing.of([packets(1, 1000)], [])
    assert list(seen.places()) == ["access", "metro", "core"]
    assert seen.causes() is None
    assert seen.endings is None


def test_a_server_is_measured_at_the_rate_of_its_tail_where_it_has_one_whatever_the_size_of_a_request() -> None:
    seen = window(1, 2)
    stamps = np.array([[0.0, 0.0, 0.0, 0.002], [0.001, 0.001, 0.002, 0.010]])
    seen = replace(seen, server_s=stamps, out_bits=seen.out_bits / 2)
    rails = replace(
        envelope().guardrails, reserved_rate_bps=16_000_000, largest_packet_bits=32_000, latency_ns=3_000_000
    )
    subject = Subject("vision", "reserved", "digits", Stage.COMPUTE)
    declared = replace(envelope(impaired=False), guardrails=rails, subject=subject)
    # One request every 2 ms: the second may begin at 2 ms and end at 5. One every 4 ms: it may end at 7.
    slower = Stochastic(tail(rate_bps=8_000_000), 0, 0)
    for promised, excess_s in (
        (declared, 0.005),
        (replace(declared, stochastic=slower, evidence=evidence()), 0.003),
    ):
        assert crossing(seen).excess_s(promised) == pytest.approx([0.0, excess_s])
