"""A request tenant's row: misses of every kind, accuracy, parts that add up, and a host that is caught."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from inference_server.digits import held_out
from testbed.calculus.service.promised import EnvelopeService
from testbed.envelope.descriptor import Envelope, Validity
from testbed.errors import FidelityError
from testbed.management.request_bounds import RequestTerms, bound_requests
from testbed.management.sealing import Computation, compute_envelope, computing_rate_bps
from testbed.report.tenant_record import TenantRecord
from testbed.run.judge_requests import judge_requests
from testbed.run.request_terms import (
    Granted,
    host_lateness,
    ideal_network_s,
    idle_ends_s,
    idle_law_s,
    request_gates,
)
from testbed.run.requests import RequestOutcome
from testbed.run.serving import computation_s
from testbed.run.window import Shaper
from testbed.scenario import guardrails
from testbed.scenario.model import (
    DrawnSize,
    PoissonArrivals,
    Promise,
    Requests,
    Reservation,
    Tenant,
    TokenSize,
    TraceArrivals,
)
from testbed.telemetry.idle_path import IdlePath
from testbed.telemetry.lag import fifo
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.requests import Framing, Passages, RequestMatch
from testbed.traffic.request_demand import demand
from testbed.traffic.request_records import NOT_ATTEMPTED, OK, SKIPPED, RequestRecord
from testbed.traffic.request_schedules import request_schedule
from testbed.traffic.request_wire import RequestMaker
from testbed.traffic.traces import read_trace

FloatArray = npt.NDArray[np.float64]

AZURE = Path(__file__).parents[4] / "shared" / "traces" / "AzureLLMInferenceTrace_code.csv"
RATE_BPS = 10_000_000
ASKED = Requests("digits-small", 4, DrawnSize((64_000,)), 1000, 0.3, 1.0)
TENANT = Tenant(
    "alpha",
    PoissonArrivals(100.0, 64_000),
    "east",
    Reservation(RATE_BPS, 8_500_000, 4_000_000, 9_000_000),
    Promise(0.3, 0.001),
    None,
    ASKED,
)
MAKER = RequestMaker("alpha", "digits-small", 4, held_out())
OUT = Framing(64_000, 67_840.0, 0.0, 1.05, 640.0)
BACK = Framing(2_000, 3_200.0, 0.0, 1.05, 1_100.0)
SHAPER = Shaper(RATE_BPS, 25_600)
LAST_BITS = 8_000.0
TIMEOUT, REJECTED = 4, 8
COMPUTE_S, BACK_S = 1e-3, 1e-3


def server(work_s: float = 1.5 * COMPUTE_S, message_bits: int = 64_000, **changes: Any) -> Envelope:
    """A whole worker that computes requests of up to so many bits in this time each, as its domain signs it."""
    largest = math.ceil(OUT.wire_bits(message_bits))
    promised = Computation(
        tenant="alpha", model="digits-small", rate_bps=computing_rate_bps(1.0, 1, largest, work_s), latency_s=work_s,
        host_allowance_s=0.0, delay_cap_s=1.0, largest_request_bits=largest, meter_rate_bps=8_500_000,
        burst_bits=max(4_000_000, largest),
    )  # fmt: skip
    return compute_envelope("east", replace(promised, **changes), version=1, validity=Validity(0, 1))


def terms(promised: Envelope | None = None) -> RequestTerms:
    services = tuple(EnvelopeService(RATE_BPS, 1e-3, name=name) for name in ("west", "east"))
    declared = demand(TENANT.arrivals, ASKED.size, MAKER)
    return RequestTerms(declared, OUT, BACK, 2_000, promised or server(), 1, services)


def outcome(duration_s: float = 200.0, late_s: float | FloatArray = 0.0) -> RequestOutcome:
    """A window in which the network is the ideal queue; every request is `late_s` late in the first domain."""
    schedule = request_schedule(TENANT.arrivals, ASKED.size, MAKER, seed=5, duration_s=duration_s)
    n, at = len(schedule), schedule.time_s
    none = np.zeros(n)
    record = RequestRecord(
        tenant=1, images=4, deadline_s=0.3, start_monotonic_ns=0, start_realtime_ns=0, schedule=schedule,
        sent_s=at, received_s=at, server_s=np.zeros((n, 4)), status=np.full(n, OK, np.int16),
        request_bytes=schedule.message_bytes, response_bytes=np.full(n, 250), correct=np.full(n, 3, np.int32),
    )  # fmt: skip
    samples = RequestSamples(
        tenant="alpha", number=1, domains=("west", "east"), window_start_ns=0, deadline_s=0.3, images=4,
        intended_s=at, sent_s=at, first_s=at, out_s=np.zeros((n, 3)), server_s=np.zeros((n, 4)),
        back_s=np.zeros((n, 2)), received_s=at, status=record.status, request_bytes=record.request_bytes,
        response_bytes=record.response_bytes, out_bits=none, back_bits=none, correct=record.correct,
    )  # fmt: skip
    packets = Passages(np.empty((0, 3)), np.empty(0, dtype=np.int64))
    match = RequestMatch(samples, OUT, BACK, 0, 0.0, packets, np.full(n, LAST_BITS))
    there = at + ideal_network_s(RequestOutcome(record, match), SHAPER) + late_s
    server = np.stack([there, there, there, there + COMPUTE_S], axis=1)
    back = np.stack([there + COMPUTE_S, there + COMPUTE_S + BACK_S], axis=1)
    moments = {"server_s": server, "received_s": back[:, 1]}
    out = np.stack([at, there, there], axis=1)
    found = replace(samples, out_s=out, back_s=back, **moments)
    return RequestOutcome(replace(record, **moments), replace(match, samples=found))


@pytest.mark.skipif(not AZURE.exists(), reason=f"{AZURE} is not on this machine")
@pytest.mark.parametrize(
    ("speed_up", "bits_per_token", "fitted"), [(3.0, 8, True), (20.0, 32, False)], ids=["sparse", "dense"]
)
def test_azures_code_trace_has_the_meters_bound_and_a_fitted_one_only_where_its_replay_confirms_it(
    speed_up: float, bits_per_token: int, fitted: bool
) -> None:
    arrivals = TraceArrivals(AZURE, "azure-llm", speed_up, bits_per_token, 12_112)
    declared = demand(arrivals, TokenSize(), MAKER)
    meter_bps = guardrails.meter_rate_bps(declared.mean_bps, RATE_BPS)
    burst = guardrails.request_burst_bits(arrivals, declared, meter_bps, RATE_BPS)
    reserved = Reservation(RATE_BPS, meter_bps, burst, 2 * burst)
    tenant = replace(TENANT, arrivals=arrivals, reservation=reserved, requests=replace(ASKED, size=TokenSize()))
    counted = replace(terms(), demand=declared, server=server(COMPUTE_S, int(declared.message_bits.max())))
    bound = bound_requests(tenant, counted, host_s=0.01)
    assert f"{AZURE.name} is replayed {speed_up:g} times as fast as it was recorded" in bound.assumptions
    by_method = {bound.method: bound.bound_s, **bound.rejected}
    # The whole trace, half of which the fit has not seen, in the ideal queue of the path.
    trace = read_trace(AZURE, "azure-llm")
    sizes_s = np.maximum(OUT.wire_bits(declared.message_bits) / RATE_BPS, counted.path.virtual_sizes_s.min())
    time_s = trace.time_s / speed_up
    wait_s = fifo(time_s, sizes_s, 1.0).start_s - time_s
    assert wait_s.max() < by_method["deterministic"] < 1.1 * burst / RATE_BPS + 0.1
    if fitted:
        assert bound.method == "kingman"
        assert np.quantile(wait_s, 0.999) < bound.bound_s < by_method["deterministic"]
    else:
        assert bound.method == "deterministic"
        assert "the fitted part of the trace" in bound.explanation
        # Two milliseconds of computation are as long as the smallest message is on the wire: no bit of it says so.
        slow = replace(counted, server=server(2e-3, int(declared.message_bits.max())))
        assert bound_requests(tenant, slow, host_s=0.01).bound_s < 1.1 * bound.bound_s


def with_status(seen: RequestOutcome, **which: int) -> RequestOutcome:
    """The same window in which the first requests, one for each of `which`, ended in these ways."""
    status, sent = seen.record.status.copy(), seen.record.request_bytes.copy()
    status[: len(which)] = list(which.values())
    sent[status == SKIPPED] = 0
    record = replace(seen.record, status=status, request_bytes=sent)
    samples = replace(seen.match.samples, status=status)
    return RequestOutcome(record, replace(seen.match, samples=samples))


def test_whatever_gave_no_answer_in_time_is_a_miss_and_is_counted_by_its_kind() -> None:
    seen = with_status(outcome(), timeout=TIMEOUT, rejected=REJECTED, skipped=SKIPPED, error=14, cut=NOT_ATTEMPTED)
    row = judge_requests(TENANT, ASKED, [seen], None, SHAPER, seconds=200.0, valid=True)
    asked = row.requests
    assert asked is not None
    assert (row.misses, row.lost, row.n) == (4, 4, len(seen.record.schedule) - 1)
    assert (asked.timeouts, asked.rejected, asked.skipped, asked.errors) == (1, 1, 1, 1)
    assert asked.answered == row.n - 4
    assert asked.accuracy == pytest.approx(0.75)


def test_the_parts_add_up_to_the_mean_latency() -> None:
    seen = outcome()
    asked = judge_requests(TENANT, ASKED, [seen], None, SHAPER, seconds=200.0, valid=True).requests
    assert asked is not None
    assert [part.name for part in asked.parts] == [
        "client wait", "west", "east", "server queue", "compute", "network back", "residual",
    ]  # fmt: skip
    total = sum(part.mean_s for part in asked.parts if part.mean_s is not None)
    assert total == pytest.approx(float(seen.record.latency_s.mean()))
    assert asked.framing_out == pytest.approx(1.06)
    assert asked.network_s == pytest.approx(asked.ideal_network_s)


def test_what_an_idle_path_takes_is_told_by_requests_that_wait_for_nobody_and_is_in_every_ideal() -> None:
    seen = outcome(late_s=1.5e-3)
    assert idle_law_s(outcome(), SHAPER) == pytest.approx(0.0, abs=1e-9)
    assert idle_law_s(seen, SHAPER) == pytest.approx(1.5e-3, rel=1e-6)
    took = np.full(3, 1.5e-3)
    asked = judge_requests(
        TENANT, ASKED, [seen], None, SHAPER, idle=[IdlePath(took)], seconds=200.0, valid=True
    ).requests
    assert asked is not None
    assert asked.idle_s == 1.5e-3
    assert asked.network_s == pytest.approx(asked.ideal_network_s)


def test_an_ideal_has_the_whole_law_of_an_idle_path_without_the_hosts_pauses() -> None:
    """Nearly a third of these requests wait for nobody: their p30 is a high quantile of what an idle path takes."""
    rng = np.random.default_rng(7)
    took_s = rng.exponential(1e-3, len(outcome().record.schedule))
    took_s[::100] = 80e-3
    warm, seen = outcome(late_s=took_s), outcome(late_s=rng.exponential(1e-3, took_s.size))
    path_s = idle_law_s(warm, SHAPER)
    assert 3e-3 < path_s.max() < 10e-3
    measured_s, law_s, median_s = (
        float(np.quantile(network_s, 0.3))
        for network_s in (
            seen.match.samples.network_out_s,
            ideal_network_s(seen, SHAPER, IdlePath(path_s)),
            ideal_network_s(seen, SHAPER, IdlePath(np.array([np.median(path_s)]))),
        )
    )
    assert law_s == pytest.approx(measured_s, rel=0.05)
    assert median_s < 0.9 * measured_s


def test_a_request_waits_for_its_own_packets_but_for_the_last_one_and_for_all_that_came_before() -> None:
    seen = outcome()
    bits = OUT.factor * 8.0 * seen.record.request_bytes
    unpaid_s = np.minimum(LAST_BITS, np.maximum(0.0, bits - SHAPER.burst_bits)) / RATE_BPS
    whole = RequestOutcome(seen.record, replace(seen.match, last_bits=np.zeros(len(bits))))
    earlier_s = ideal_network_s(whole, SHAPER) - ideal_network_s(seen, SHAPER)
    assert earlier_s == pytest.approx(unpaid_s)
    assert not idle_law_s(whole, SHAPER).any(), "a path that pays for less than its queues would is no faster than none"


def test_a_bound_is_held_against_the_percentile_it_was_made_for() -> None:
    tenant = replace(TENANT, promise=Promise(0.3, 0.05, 0.95))
    seen = outcome()
    p95_s = float(np.quantile(seen.record.latency_s, 0.95))
    bound = bound_requests(tenant, terms(), host_s=0.0).model_copy(update={"bound_s": 1.05 * p95_s})
    row = judge_requests(tenant, ASKED, [seen], bound, SHAPER, seconds=200.0, valid=True)
    assert row.promised_s == pytest.approx(p95_s, rel=0.01)
    assert not row.bound_broken
    assert row.p999_lower_s is not None
    assert row.p999_lower_s > bound.bound_s


def test_the_host_overrules_the_data() -> None:
    row = judge_requests(TENANT, ASKED, [outcome()], None, SHAPER, seconds=200.0, valid=False)
    assert row.verdict == "INVALID"


def test_a_tenant_that_sent_beyond_its_bucket_is_excused_and_breaks_no_bound() -> None:
    seen = outcome()
    small = bound_requests(TENANT, terms(), host_s=0.0).model_copy(update={"bound_s": 1e-3})
    bits = np.full(len(seen.record.schedule), 68_000.0)

    def judged(times: float) -> TenantRecord:
        match = replace(seen.match, samples=replace(seen.match.samples, out_bits=times * bits))
        flood = RequestOutcome(seen.record, match)
        return judge_requests(TENANT, ASKED, [flood], small, SHAPER, seconds=200.0, valid=True)

    kept, broke = judged(1.0), judged(2.0)
    assert (kept.verdict != "EXCUSED", kept.bound_broken) == (True, True)
    assert (broke.verdict, broke.bound_broken) == ("EXCUSED", False)
    assert broke.requests is not None
    assert f"{broke.requests.nonconforming:,} of {broke.n:,} requests exceeded its token bucket" in broke.reason


def test_a_path_that_keeps_its_word_is_never_late_and_stays_below_its_bound() -> None:
    seen = outcome()
    assert np.nanmax(host_lateness(seen, terms())) <= 0.0
    bound = bound_requests(TENANT, terms(), host_s=0.0)
    row = judge_requests(TENANT, ASKED, [seen], bound, SHAPER, seconds=200.0, valid=True)
    assert row.p999_s is not None
    assert row.p999_s < bound.bound_s < 1.6 * row.p999_s
    assert row.network_p999_s is not None
    assert row.network_p999_s < bound.network_bound_s < bound.bound_s
    assert not row.bound_broken
    assert sum(part.delay_s for part in bound.parts) == pytest.approx(bound.bound_s)


def test_a_bound_below_the_lower_limit_is_broken() -> None:
    small = bound_requests(TENANT, terms(), host_s=0.0).model_copy(update={"bound_s": 1e-3})
    assert judge_requests(TENANT, ASKED, [outcome()], small, SHAPER, seconds=200.0, valid=True).bound_broken


def test_a_request_that_its_client_gave_up_breaks_no_bound_above_its_timeout() -> None:
    """A tenth of them is never answered: they are known to have taken longer than the 300 ms of the timeout."""
    seen = outcome()
    status = seen.record.status.copy()
    status[::10] = TIMEOUT
    given_up = RequestOutcome(replace(seen.record, status=status), seen.match)
    assert not np.isfinite(given_up.record.latency_s[::10]).any()
    bounds = [bound_requests(TENANT, terms(), host_s=0.0).model_copy(update={"bound_s": s}) for s in (0.25, 0.35)]
    rows = [judge_requests(TENANT, ASKED, [given_up], each, SHAPER, seconds=200.0, valid=True) for each in bounds]
    assert [row.bound_broken for row in rows] == [True, False]


def test_a_server_promises_what_all_but_its_paused_computations_take() -> None:
    seen = outcome()
    compute_s = np.random.default_rng(3).uniform(1e-3, 2e-3, len(seen.record.schedule))
    compute_s[::100] = 50e-3  # one in a hundred is paused
    server = seen.match.samples.server_s.copy()
    server[:, 3] = server[:, 2] + compute_s
    busy = RequestOutcome(seen.record, replace(seen.match, samples=replace(seen.match.samples, server_s=server)))
    assert np.quantile(compute_s, 0.95) < computation_s("alpha", busy) < 2e-3


def test_of_a_warm_up_that_answered_too_little_half_as_much_again_as_the_longest_computation_is_promised() -> None:
    seen = outcome()
    server = seen.match.samples.server_s.copy()
    server[20:] = np.nan
    few = RequestOutcome(seen.record, replace(seen.match, samples=replace(seen.match.samples, server_s=server)))
    assert computation_s("alpha", few) == pytest.approx(1.5 * COMPUTE_S)
    server[:] = np.nan
    with pytest.raises(FidelityError, match="tenant alpha: no request was answered during the warm-up"):
        computation_s("alpha", few)


@pytest.mark.parametrize(
    ("late_s", "idle_s", "closed"),
    [
        (0.0, 0.0, set()),
        (0.05, 0.0, {"host allowance, alpha", "replay, alpha"}),
        (0.0015, 0.0015, set()),
        (0.004, 0.004, {"idle path, alpha"}),
    ],
    ids=[
        "an ideal host",
        "one that holds every request for 50 ms",
        "one that took as long in the warm-up, when it was idle",
        "one that is slow even when it is idle",
    ],
)
def test_gates_close_on_a_host_that_holds_requests_up(late_s: float, idle_s: float, closed: set[str]) -> None:
    gates = request_gates(TENANT, outcome(late_s=late_s), Granted(terms(), 0.01, IdlePath(np.array([idle_s]))), SHAPER)
    assert {gate.name for gate in gates if not gate.ok} == closed


def test_a_gate_closes_on_a_queue_slower_than_it_was_read_back_to() -> None:
    for faster, closed in ((1.0, set()), (1.08, {"replay, alpha"})):
        said = replace(SHAPER, rate_bps=faster * SHAPER.rate_bps)
        gates = request_gates(TENANT, outcome(), Granted(terms(), 0.01), said)
        assert {gate.name for gate in gates if not gate.ok} == closed


def test_what_a_path_takes_behind_a_window_counts_too() -> None:
    granted = Granted(terms(), 0.01, IdlePath(np.array([1e-3])), 0.5e-3)
    cool_down = outcome(late_s=1.8e-3)
    both = granted.bracketed(cool_down, SHAPER, 200.0)
    assert both.idle.typical_s == pytest.approx(1.8e-3)
    assert (both.idle.window_s, both.terms, both.ends_s) == (200.0, granted.terms, 0.5e-3)
    for known, closed in (
        (granted, set()),
        (granted.bracketed(outcome(late_s=4e-3), SHAPER, 200.0), {"idle path, alpha"}),
    ):
        found = request_gates(TENANT, cool_down, known, SHAPER)
        assert {gate.name for gate in found if not gate.ok} == closed


def test_a_gate_closes_on_a_sender_that_is_slow_even_when_it_is_idle() -> None:
    seen = outcome(late_s=0.003)
    for at_sender_s, closed in ((0.0015, set()), (0.0025, {"idle sender, alpha"}), (0.0, {"idle path, alpha"})):
        samples = replace(seen.match.samples, first_s=seen.match.samples.first_s + at_sender_s)
        partly = RequestOutcome(seen.record, replace(seen.match, samples=samples))
        granted = Granted(terms(), 0.01, IdlePath(idle_law_s(partly, SHAPER)), idle_ends_s(partly, SHAPER))
        assert granted.ends_s == pytest.approx(at_sender_s)
        assert {gate.name for gate in request_gates(TENANT, partly, granted, SHAPER) if not gate.ok} == closed


def test_requests_that_a_fault_was_to_touch_are_counted_apart_and_judged_by_nothing_here() -> None:
    ideal, slow = outcome(), outcome(late_s=0.5)
    touched = (ideal.record.schedule.time_s >= 50) & (ideal.record.schedule.time_s < 60)
    column = touched[:, None]
    record = replace(ideal.record, received_s=np.where(touched, slow.record.received_s, ideal.record.received_s))
    samples = replace(
        ideal.match.samples,
        out_s=np.where(column, slow.match.samples.out_s, ideal.match.samples.out_s),
        received_s=record.received_s,
    )
    broken = RequestOutcome(record, replace(ideal.match, samples=samples))
    granted = Granted(terms(), 0.01)
    late = {"host allowance, alpha", "replay, alpha"}
    for outside, missed, closed in ((~touched, 0, set()), (None, int(touched.sum()), late)):
        told = None if outside is None else [outside]
        row = judge_requests(TENANT, ASKED, [broken], None, SHAPER, seconds=200.0, valid=True, outside=told)
        assert (row.misses, row.n + row.in_faults) == (missed, len(touched))
        assert row.in_faults == (0 if outside is None else touched.sum())
        gates = request_gates(TENANT, broken, granted, SHAPER, outside=outside)
        assert {gate.name for gate in gates if not gate.ok} == closed


def test_who_was_touched_by_a_fault_with_every_request_is_not_judged() -> None:
    ideal = outcome()
    nothing = np.zeros(len(ideal.record.schedule.time_s), dtype=np.bool_)
    row = judge_requests(TENANT, ASKED, [ideal], None, SHAPER, seconds=200.0, valid=True, outside=[nothing])
    assert (row.verdict, row.n, row.in_faults, row.promised_s) == ("UNDETERMINED", 0, nothing.size, None)


def test_a_request_that_no_capture_has_seen_closes_a_gate() -> None:
    seen = outcome()
    out = seen.match.samples.out_s.copy()
    out[7, 1] = np.nan
    blind = RequestOutcome(seen.record, replace(seen.match, samples=replace(seen.match.samples, out_s=out)))
    gates = request_gates(TENANT, blind, None, None)
    assert [gate.name for gate in gates if not gate.ok] == ["requests found, alpha"]


@pytest.mark.parametrize(("latencies_s", "share"), [((1e-3, 1e-3), 1.0), ((0.5, 1e-3), 0.0), ((), 0.0)])
def test_each_domain_of_a_request_tenant_has_a_row_with_how_often_it_lagged_behind_its_word(
    latencies_s: tuple[float, ...], share: float
) -> None:
    seen = outcome(late_s=0.02)
    row = judge_requests(TENANT, ASKED, [seen], None, SHAPER, latencies_s=latencies_s, seconds=200.0, valid=True)
    west, east = row.domains
    assert [west.domain, east.domain] == ["west", "east"]
    assert west.mean_s == pytest.approx(float(np.mean(seen.match.samples.domain_s[:, 0])))
    assert east.mean_s == pytest.approx(0.0, abs=1e-12)
    assert (west.lag_share, east.lag_share) == (share, 0.0)
