"""Scenarios with requests are simulated into the folder of a run, judged like one, by what is declared or measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.audit.evidence import read_evidence
from testbed.audit.findings import Outcome, recompute, run_statements
from testbed.audit.folder import audit_run
from testbed.errors import ScenarioError
from testbed.management.sizing import ClassDemand, design_classes
from testbed.report.html import write_report
from testbed.report.record import RunRecord, read_record, write_record
from testbed.report.tenant_record import TenantRecord
from testbed.run.progress import Silent
from testbed.scenario.loader import load
from testbed.scenario.model import (
    FULL_FRAME_BITS,
    DrawnSize,
    OnOffArrivals,
    PoissonArrivals,
    Requests,
    Scenario,
    Tenant,
    Work,
)
from testbed.simulation.asking import Wire
from testbed.simulation.choices import Choices
from testbed.simulation.known import declared, known
from testbed.simulation.network import network
from testbed.simulation.pipeline import Options, simulate_scenario
from testbed.simulation.system import Scheduler
from testbed.telemetry import request_samples
from testbed.traffic.arrivals import tenant_seed
from testbed.traffic.request_makers import maker_of
from testbed.traffic.request_schedules import request_schedule
from tests.unit.simulation.commands import ended
from tests.unit.simulation.systems import mixed, tenant

ROOT = Path(__file__).parents[3]
ASKED = Requests("digits-medium", 8, DrawnSize((32_000,)), 100, 0.5, 0.75, work=Work(6e-3, 0.2))
LITTLE = replace(ASKED, model="digits-small", images=1, compute_share=0.25, work=Work(1e-3))


def vision(name: str = "vision", asked: Requests = ASKED, rate_bps: int | None = 4_000_000) -> Tenant:
    """One whose queues, where it reserves, hold all answers that may have piled up and all that a meter lets pass."""
    found = tenant(name, PoissonArrivals(60.0, 32_000), rate_bps, requests=asked)
    return replace(found, reservation=found.reservation and replace(found.reservation, queue_bits=80_000_000))


def asked(duration_s: float = 10.0) -> Scenario:
    """Everybody of `mixed`, a tenant that asks in their midst, and best effort that asks the same server."""
    whole = mixed(duration_s)
    return replace(whole, tenants=(whole.tenants[0], vision(), *whole.tenants[1:], vision("guest", LITTLE, None)))


def simulated(out: Path, scenario: Scenario | None = None, **more: object) -> Path:
    options = Options(out=out, page=False, **more)  # type: ignore[arg-type]
    return simulate_scenario(scenario or asked(), options, Silent())


def row(record: RunRecord, name: str) -> TenantRecord:
    return next(found for found in record.tenants if found.name == name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("runs"), replications=2)


def test_the_folder_holds_every_request_that_the_sender_of_a_run_would_send(folder: Path) -> None:
    record = read_record(folder)
    assert record.datapath == "simulated, scheduler reserved; requests of vision, guest as declared"
    maker = maker_of("vision", ASKED, asked().tenants[1].arrivals)
    for window in record.windows:
        seen = request_samples.read(folder / window.requests["vision"])
        expected = request_schedule(
            asked().tenants[1].arrivals,
            ASKED.size,
            maker,
            seed=tenant_seed(window.seed, 2, window.index),
            duration_s=10.0,
        )
        assert np.abs(seen.intended_s - expected.time_s).max() < 1e-9
        assert np.array_equal(seen.request_bytes, expected.message_bytes)
        assert "vision" not in window.samples


def test_the_parts_of_every_request_add_up_to_its_latency(folder: Path) -> None:
    for window in read_record(folder).windows:
        for name in ("vision", "guest"):
            seen = request_samples.read(folder / window.requests[name])
            assert np.all(np.isfinite(seen.latency_s))
            parts = np.stack(list(seen.parts_s().values()))
            assert np.abs(parts.sum(axis=0) - seen.latency_s).max() < 1e-9
            assert np.abs(seen.residual_s).max() < 1e-9
            assert np.abs(seen.client_wait_s).max() == 0.0


def test_the_record_of_requests_has_what_a_run_has_and_its_bounds_hold(folder: Path) -> None:
    found = row(read_record(folder), "vision")
    assert found.requests is not None
    assert found.requests.answered == found.n == pytest.approx(1200, rel=0.2)
    assert found.requests.accuracy == pytest.approx(0.98, abs=0.01)
    assert [part.name for part in found.requests.parts] == [
        "client wait", "west", "east", "server queue", "compute", "network back", "residual",
    ]  # fmt: skip
    compute = next(part for part in found.requests.parts if part.name == "compute")
    assert compute.mean_s == pytest.approx(6e-3, rel=0.02)
    values = (found.network_p999_s, found.p999_s, found.bound_s, found.network_bound_s)
    network_s, total_s, bound_s, network_bound_s = (value or 0.0 for value in values)
    assert 0 < network_s < network_bound_s < bound_s
    assert network_s + 5e-3 < total_s < bound_s
    assert not found.bound_broken
    assert found.bound is not None
    assert sum(part.delay_s for part in found.bound.parts) == pytest.approx(bound_s)
    assert "host" not in {part.name for part in found.bound.parts}
    guest = row(read_record(folder), "guest")
    assert (guest.bound_s, guest.verdict) == (None, "NONE")


def test_audit_report_and_findings_work_on_the_folder(folder: Path) -> None:
    audited = audit_run(folder)
    recorded = {found.name: found.verdict for found in read_record(folder).tenants}
    assert {found.tenant: found.verdict for found in audited.tenants} == recorded
    judged = next(found for found in audited.tenants if found.tenant == "vision")
    assert judged.what == "requests"
    verdicts = [finding.verdict.value for finding in judged.contracts]
    assert len(verdicts) == 3, "two networks and a server"
    assert "HELD" in verdicts
    assert "BROKEN" not in verdicts
    assert "network back" in write_report(folder).read_text(encoding="utf-8")
    again = recompute(list(run_statements(read_evidence(folder))), read_evidence(folder))
    assert {item.outcome for item in again} == {Outcome.SAME}


def test_counted_and_recorded_requests_give_the_same_answers(folder: Path, tmp_path: Path) -> None:
    counted = read_record(simulated(tmp_path, replications=2, recorded_packets=3000))
    for name in ("vision", "guest"):
        one, other = row(read_record(folder), name), row(counted, name)
        assert (one.n, one.lost, one.misses) == (other.n, other.lost, other.misses)
        for key in ("p50_s", "p99_s", "p999_s"):
            assert getattr(other, key) == pytest.approx(getattr(one, key), rel=1 / 512, abs=2e-9)
        assert other.network_p999_s == pytest.approx(one.network_p999_s, rel=0.02)
        assert one.requests is not None
        assert other.requests is not None
        assert other.requests.answered == one.requests.answered


def with_bucket(burst_bits: int, per_s: float = 60.0) -> Tenant:
    found = replace(vision(), arrivals=PoissonArrivals(per_s, 32_000))
    assert found.reservation is not None
    return replace(found, reservation=replace(found.reservation, burst_bits=burst_bits))


@pytest.mark.parametrize("metered", [True, False])
@pytest.mark.parametrize(
    ("burst_bits", "per_s", "breaks"),
    [
        pytest.param(36_000, 60.0, True, id="often"),
        pytest.param(200_000, 60.0, True, id="not once in what is recorded of the longer windows"),
        pytest.param(
            33_000, 2.0, True, id="by less than a bucket is given in a millisecond, which samples do not prove"
        ),
        pytest.param(2_000_000, 60.0, False, id="never"),
    ],
)
def test_a_breach_is_the_same_to_those_who_count_and_to_those_who_have_every_request(
    tmp_path: Path, burst_bits: int, per_s: float, breaks: bool, metered: bool
) -> None:
    """Of the very same windows, once recorded to their end and once hardly; and to the audit of those."""
    scenario = replace(asked(), tenants=(with_bucket(burst_bits, per_s),))
    more = {"choices": Choices(metered=metered), "replications": 2}
    found = [simulated(tmp_path, scenario, recorded_packets=most, **more) for most in (10**6, 40)]
    recorded, counted = (row(read_record(each), "vision") for each in found)
    assert recorded.requests is not None
    assert counted.requests is not None
    assert recorded.requests.nonconforming == counted.requests.nonconforming
    assert (recorded.requests.nonconforming > 0) == breaks
    assert (recorded.verdict == "EXCUSED", counted.verdict == "EXCUSED") == (breaks, breaks)
    assert not breaks or recorded.reason == counted.reason
    assert [tenant.verdict for tenant in audit_run(found[0]).tenants] == [recorded.verdict]


def test_what_breaks_a_contract_is_the_same_whether_a_meter_drops_it_or_nobody_does(tmp_path: Path) -> None:
    scenario = replace(asked(), tenants=(with_bucket(36_000), *asked().tenants[2:4]))
    dropped, passed = (
        read_record(simulated(tmp_path, scenario, choices=Choices(metered=each), recorded_packets=most))
        for each, most in ((True, 10**6), (False, 2000))
    )
    for name in ("vision", "flood"):
        one, other = row(dropped, name), row(passed, name)
        counts = [(of.conformance or of.requests) for of in (one, other)]
        assert counts[0] is not None
        assert counts[1] is not None
        assert counts[0].nonconforming == counts[1].nonconforming == one.lost > 100
    assert row(passed, "vision").lost == 0


def test_the_number_of_workers_changes_nothing(folder: Path, tmp_path: Path) -> None:
    several = simulated(tmp_path, replications=2, workers=2)
    one, other = ([found.model_dump() for found in read_record(each).tenants] for each in (folder, several))
    assert one == other


@pytest.mark.parametrize("scheduler", [kind for kind in Scheduler if kind is not Scheduler.ISOLATED])
def test_every_scheduler_that_knows_all_tenants_carries_requests(tmp_path: Path, scheduler: Scheduler) -> None:
    found = simulated(tmp_path, choices=Choices(scheduler), packets=8000)
    assert audit_run(found).valid
    record = row(read_record(found), "vision")
    assert (record.bound_s is not None) == (scheduler is Scheduler.RESERVED)
    assert record.n > 50


def test_one_tenant_that_asks_behind_isolated_ports_is_simulated_and_two_are_refused(tmp_path: Path) -> None:
    whole = asked()
    alone = replace(whole, tenants=whole.tenants[:-1])
    record = read_record(simulated(tmp_path, alone, choices=Choices(Scheduler.ISOLATED)))
    found = row(record, "vision")
    assert found.bound_s is not None
    assert found.p99_s is not None
    assert found.p99_s < found.bound_s
    with pytest.raises(ScenarioError, match="vision, guest: found isolated ports"):
        simulated(tmp_path, choices=Choices(Scheduler.ISOLATED))


@pytest.mark.parametrize(
    ("work", "share", "beside"),
    [
        (Work(1e-3), 0.5, Work(4e-3)),
        (Work(6e-3, 0.3), 0.7, Work(4e-3)),
        (Work(9e-3), 0.7, Work(4e-3)),
        pytest.param(Work(8e-3), 0.7, Work(4e-3, 0.6), id="others take longer than is expected now and then"),
        pytest.param(Work(3e-3, 1.0), 0.7, Work(4e-3), id="long computations that do not fit into the share"),
    ],
)
def test_what_is_simulated_lies_below_the_bound(tmp_path: Path, work: Work, share: float, beside: Work) -> None:
    """Loads of .57 on the network; of the server from little to all but .1 of the share, beside one that floods it."""
    whole = asked(200.0)
    one = vision(asked=replace(ASKED, work=work, compute_share=share))
    other = replace(LITTLE, compute_share=0.3, work=beside, timeout_s=2.0)
    flood = replace(vision("other", other), arrivals=PoissonArrivals(100.0, 32_000))
    record = read_record(simulated(tmp_path, replace(whole, tenants=(one, flood)), recorded_packets=10_000))
    found = row(record, "vision")
    assert found.bound_s is not None
    assert found.promised_s is not None
    assert 0.1 * found.bound_s < found.promised_s < found.bound_s
    assert found.network_p999_s is not None
    assert found.network_bound_s is not None
    assert 0.5 * found.network_bound_s < found.network_p999_s < found.network_bound_s


def test_bursts_of_requests_that_vary_are_bounded_by_their_own_model(tmp_path: Path) -> None:
    bursts = OnOffArrivals(peak_bps=6e6, mean_on_s=0.05, mean_off_s=0.1, size_bits=32_000)
    one = replace(vision(asked=replace(ASKED, work=Work(1e-3, 0.3))), arrivals=bursts)
    record = row(read_record(simulated(tmp_path, replace(asked(100.0), tenants=(one,)))), "vision")
    assert record.bound_method == "martingale"
    assert record.bound_s is not None
    assert record.promised_s is not None
    assert 0.5 * record.bound_s < record.promised_s < record.bound_s


def test_a_share_that_is_too_small_is_promised_nothing(tmp_path: Path) -> None:
    slow = replace(asked(), tenants=(vision(asked=replace(ASKED, work=Work(20e-3), timeout_s=0.2)),))
    record = row(read_record(simulated(tmp_path, slow)), "vision")
    assert record.bound_s is None
    assert record.verdict == "FAIL"
    assert record.requests is not None
    assert record.requests.timeouts == record.lost > 100


def test_a_tenant_of_which_nothing_was_recorded_or_sent_is_counted_all_the_same(tmp_path: Path) -> None:
    counted = row(read_record(simulated(tmp_path, recorded_packets=5)), "vision")
    assert counted.n == pytest.approx(600, rel=0.2)
    assert counted.verdict == "UNDETERMINED"
    assert counted.p99_s is not None
    nothing = row(read_record(simulated(tmp_path, packets=5)), "vision")
    assert (nothing.n, nothing.verdict, nothing.p99_s) == (0, "UNDETERMINED", None)


def test_requests_that_nobody_knows_how_long_to_compute_are_refused(tmp_path: Path) -> None:
    unknown = replace(asked(), tenants=(vision(asked=replace(ASKED, work=None)),))
    with pytest.raises(ScenarioError, match=r"tenant vision: .*expected work, such as .*--measured"):
        simulated(tmp_path / "runs", unknown)
    assert not (tmp_path / "runs").exists()


def test_declared_times_have_the_mean_and_are_no_longer_than_what_is_promised() -> None:
    found = declared(ASKED, Work(5e-3, 0.5))
    drawn = found.work(np.random.default_rng(1), 400_000)
    assert drawn.mean() == pytest.approx(5e-3, rel=0.01)
    assert drawn.std() == pytest.approx(2.5e-3, rel=0.02)
    assert drawn.max() == found.longest_s
    assert 1e-5 < np.mean(drawn == found.longest_s) < 3e-4


def as_a_run(folder: Path, target: Path, **requests: object) -> Path:
    """A folder whose record says that its requests were measured."""
    record = read_record(folder)
    tenants = tuple(
        found
        if found.requests is None
        else found.model_copy(update={"requests": found.requests.model_copy(update=requests)})
        for found in record.tenants
    )
    for window in record.windows:
        for path in window.requests.values():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes((folder / path).read_bytes())
    write_record(target, record.model_copy(update={"tenants": tenants, "run_id": "abc123"}))
    return target


def test_a_run_gives_back_the_framing_and_the_times_that_it_was_made_of(folder: Path, tmp_path: Path) -> None:
    measured = as_a_run(folder, tmp_path / "run", accuracy=0.5)
    found = known(asked(), measured)["vision"]
    assert (found.out, found.back) == (Wire(), Wire())
    assert found.answer_bytes == declared(ASKED, Work(6e-3, 0.2)).answer_bytes
    assert found.expected_s == pytest.approx(6e-3, rel=0.02)
    assert found.expected_s < found.longest_s < 0.02
    assert found.accuracy == 0.5
    again = read_record(simulated(tmp_path / "out", measured=measured))
    assert again.datapath.endswith("requests of vision, guest as run abc123 measured it")
    one, other = row(read_record(folder), "vision"), row(again, "vision")
    assert other.p50_s == pytest.approx(one.p50_s, rel=0.05)
    assert other.requests is not None
    assert other.requests.accuracy == pytest.approx(0.5, abs=0.05)


def test_a_run_of_other_requests_is_refused(folder: Path, tmp_path: Path) -> None:
    measured = as_a_run(folder, tmp_path / "run", images=4)
    with pytest.raises(ScenarioError, match=r"tenant vision: found 4 images for digits-medium in .*expected 8 images"):
        known(asked(), measured)


def test_tenants_that_a_run_does_not_have_are_taken_as_declared(folder: Path, tmp_path: Path) -> None:
    more = replace(asked(), tenants=(*asked().tenants, vision("late", LITTLE, None)))
    found = known(more, as_a_run(folder, tmp_path / "run"))
    assert found["late"] == declared(LITTLE, Work(1e-3))
    assert found["vision"].source == "as run abc123 measured it"


def test_classes_are_those_that_the_data_plane_installs_for_packets_on_the_wire() -> None:
    alone = replace(asked(), tenants=(vision(),))
    (west, _) = network(alone, Choices(), known(alone)).system.hops
    installed = design_classes([ClassDemand("vision", 4_000_000, FULL_FRAME_BITS)])["vision"]
    assert west.classes[0].burst_bits == 8 * installed.burst_bytes
    assert west.meters[0] is not None


def test_a_server_signs_its_longest_computation_and_one_of_everybody_else() -> None:
    scenario = replace(asked(), tenants=(vision(), vision("guest", replace(LITTLE, work=Work(3e-3)), None)))
    ready = network(scenario, Choices(), known(scenario))
    signed = ready.federation.server(scenario.tenants[0])
    assert signed is not None
    assert signed.latency_s == pytest.approx(ready.known["vision"].longest_s + 3e-3, abs=1e-9)
    # Beside turns that take what is expected its longest computation takes its share of the longest, and theirs theirs.
    rate = signed.guardrails.reserved_rate_bps / signed.guardrails.largest_packet_bits
    assert 0.75 / rate == pytest.approx(0.75 * ready.known["vision"].longest_s + 0.25 * 6e-3, rel=1e-6)


def test_the_demo_is_simulated_with_its_tenant_that_asks(tmp_path: Path) -> None:
    demo = load(ROOT / "topologies" / "demo.yaml")
    record = read_record(simulated(tmp_path, replace(demo, duration_s=10.0)))
    found = row(record, "vision")
    assert found.bound_s is not None
    assert found.p99_s is not None
    assert found.p99_s < found.bound_s
    assert found.n == pytest.approx(300, rel=0.3)


def test_the_command_refuses_intents_and_says_what_is_missing(tmp_path: Path) -> None:
    for verb, options in (("simulate", []), ("sweep", ["--grid", "load=1"])):
        done = ended(verb, str(ROOT / "topologies" / "intents.yaml"), *options, "--out", str(tmp_path))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "found a federation" in done.stderr


def test_the_command_says_who_has_no_bound(tmp_path: Path) -> None:
    text = (ROOT / "topologies" / "demo.yaml").read_text(encoding="utf-8")
    slow = tmp_path / "slow.yaml"
    slow.write_text(text.replace("mean: 1.2 ms", "mean: 60 ms"), encoding="utf-8")
    done = ended("simulate", str(slow), "--packets", "20000", "--no-page", "--out", str(tmp_path))
    assert "no bound: vision: " in done.stdout


def test_the_command_takes_a_run_that_measured_requests(folder: Path, tmp_path: Path) -> None:
    measured = as_a_run(folder, tmp_path / "run")
    asking = ROOT / "topologies" / "requests.yaml"
    text = asking.read_text(encoding="utf-8")
    (tmp_path / "asking.yaml").write_text(text.replace("duration: 60 s", "duration: 5 s"), encoding="utf-8")
    command = ["simulate", str(tmp_path / "asking.yaml"), "--out", str(tmp_path / "out"), "--json", "--no-page"]
    refused = ended(*command)
    assert refused.returncode == 2
    assert "tenant vision" in refused.stderr
    done = ended(*command, "--measured", str(measured))
    assert done.returncode in {0, 4}, done.stderr
    assert {found["name"] for found in json.loads(done.stdout)["tenants"]} == {"vision", "bulk"}
