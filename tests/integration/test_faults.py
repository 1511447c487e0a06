"""Faults done to a real network within a measured window: who failed, who did not, and how soon it was over."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.audit.evidence import read_evidence
from testbed.audit.folder import audit_run
from testbed.report.environment import Row, environment_rows
from testbed.report.record import FaultRecord, RunRecord, read_record
from testbed.run import faults
from testbed.run.faults import Site
from testbed.run.pipeline import Options, run
from testbed.run.progress import Silent
from testbed.scenario.faults import Fault, FaultKind
from testbed.scenario.loader import load
from testbed.telemetry import host
from tests.integration.conftest import ROOT, is_noise
from tests.leftovers import host_as_before

pytestmark = pytest.mark.network

FAULTS = ROOT / "topologies" / "faults.yaml"


def fault(kind: FaultKind, at_s: float, *, fails: bool = True, domain: str | None = "east", **more: object) -> Fault:
    """Half a second of it, in the domain that only the tenant far crosses."""
    told = ("far",) if fails else ()
    return Fault(kind.value, kind, at_s, 0.5, 1.0, domain=domain, fails=told, **more)  # type: ignore[arg-type]


def run_with(out: Path, *broken: Fault, duration_s: float = 8.0) -> RunRecord:
    """One run with these faults. A host that could not keep up may take its verdict away, and nothing else may."""
    scenario = replace(load(FAULTS), faults=broken, duration_s=duration_s)
    with host_as_before():
        record = read_record(run(scenario, Options(out=out, isolate=True), Silent()))
    breached = [gate for gate in record.gates if not gate.holds]
    print(record.verdict, breached, record.faults)
    assert all(is_noise(gate.name) for gate in breached)
    assert record.verdict in ({"INVALID"} if breached else {"PASS", "UNDETERMINED"})
    assert not any(tenant.bound_broken for tenant in record.tenants)
    return record


def by_name(record: RunRecord) -> dict[str, FaultRecord]:
    return {fault.name: fault for fault in record.faults}


def test_whoever_crosses_what_breaks_fails_and_recovers_and_nobody_else_notices(tmp_path: Path) -> None:
    record = run_with(
        tmp_path,
        fault(FaultKind.LINK_DOWN, 0.5),
        fault(FaultKind.RATE_CHANGE, 2.2, tenant="far", rate_bps=500_000),
        fault(FaultKind.LOSS, 4.0, share=0.3),
        fault(FaultKind.DELAY, 5.7, delay_s=0.06),
    )
    assert all(each.met for each in record.faults)
    near, far = record.tenants
    assert near.in_faults == 0
    assert far.in_faults > 0
    (folder,) = tmp_path.iterdir()
    audited = {tenant.tenant: tenant for tenant in audit_run(folder).tenants}
    assert (audited["near"].audit.n, audited["near"].left_out) == (near.n, ())
    assert (audited["far"].audit.n, audited["far"].verdict) == (far.n, far.verdict)
    assert [stretch.fault for stretch in audited["far"].left_out] == [each.name for each in record.faults]
    everything = audited["far"].everything
    assert everything is not None
    assert everything.audit.n == far.n + far.in_faults
    for each in record.faults:
        (recovered,) = [one for one in each.expectations if one.seconds is not None]
        assert (recovered.tenant, len(each.expectations)) == ("far", 3)
    excused = {gate.name for gate in record.gates if gate.excused_by}
    assert excused <= {f"queue counters, fault {name}" for name in by_name(record)}


@pytest.mark.slow
def test_a_killed_controller_is_no_business_of_the_data_plane(tmp_path: Path) -> None:
    record = run_with(tmp_path, fault(FaultKind.CONTROLLER_KILLED, 1.0, fails=False), duration_s=4.0)
    assert all(each.met for each in record.faults)
    assert not any(gate.excused_by for gate in record.gates)
    assert [tenant.in_faults for tenant in record.tenants] == [0, 0]


def test_a_killed_switch_takes_everyone_with_it_and_comes_back_with_all_it_held(tmp_path: Path) -> None:
    killed = replace(fault(FaultKind.SWITCH_KILLED, 1.0, domain=None), fails=("near", "far"), recovery_s=2.0)
    record = run_with(tmp_path, killed, duration_s=5.0)
    assert all(each.met for each in record.faults)
    assert {gate.name for gate in record.gates if gate.excused_by} <= {
        "upcalls",
        f"queue counters, fault {killed.name}",
    }
    assert all(gate.ok for gate in record.gates if gate.name == "installed reservations")


ASKING = """
name: asking
seed: 11
warm-up: 3 s
duration: 8 s
allow-zero-delay: true
datapath: userspace
domains:
  - {name: west, link-rate: 20 Mbit/s, compute: true}
  - {name: east, link-rate: 20 Mbit/s, compute: true}
tenants:
  - name: vision
    site: east
    arrivals: {model: poisson, rate: 50 requests/s, size: 4 kB}
    requests: {model: digits-medium, images: 4}
    reservation: {rate: 5 Mbit/s}
    promise: {deadline: 100 ms, epsilon: 0.02}
  - name: near
    site: west
    arrivals: {model: poisson, rate: 1 Mbit/s, size: 200 B}
    reservation: {rate: 4 Mbit/s, burst: 20 kB}
    promise: {deadline: 50 ms, epsilon: 0.02}
faults:
"""


def asking_with(folder: Path, *lines: str, duration_s: float = 8.0) -> RunRecord:
    """One run of a tenant that asks and one that sends packets elsewhere, with the faults of these lines."""
    file = folder / "asking.yaml"
    told = ASKING.replace("duration: 8 s", f"duration: {duration_s:g} s")
    file.write_text(told + "".join(f"  - {{{line}}}\n" for line in lines), encoding="utf-8")
    with host_as_before():
        record = read_record(run(load(file), Options(out=folder / "runs", isolate=True), Silent()))
    breached = [gate for gate in record.gates if not gate.holds]
    print(record.verdict, breached, record.faults)
    assert all(is_noise(gate.name) or gate.name.startswith("idle") for gate in breached)
    assert not any(tenant.bound_broken for tenant in record.tenants)
    return record


def test_a_server_that_is_slow_fails_who_asks_it_and_one_that_is_wrong_is_wrong_in_time(tmp_path: Path) -> None:
    slow = (
        "name: slow, kind: server-slowed, domain: east, factor: 1000, at: 500 ms, for: 1 s, recovers-within: 2 s, "
        "fails: [vision]"
    )
    wrong = "name: wrong, kind: server-wrong, domain: east, share: 0.5, at: 4 s, for: 1500 ms, fails: [vision]"
    record = asking_with(tmp_path, slow, wrong)
    assert all(each.met for each in record.faults)
    vision, near = record.tenants
    # The slow server's requests are judged as the fault's, the wrong one's as the tenant's: they came in time.
    assert 50 < vision.in_faults < 200
    (audited, _) = audit_run(next((tmp_path / "runs").iterdir())).tenants
    assert (audited.audit.n, [stretch.n for stretch in audited.left_out]) == (vision.n, [vision.in_faults])
    assert near.in_faults == 0
    assert vision.requests is not None
    assert vision.requests.accuracy is not None
    assert 0.7 < vision.requests.accuracy < 0.95
    # What the server itself says of it: when it began and ended, which answers it touched, and what it cost them.
    (window,) = record.windows
    assert [(each.kind, each.amount, each.seed, each.tenants) for each in window.impairments] == [
        ("slow-down", 1000.0, 11, ("vision",)),
        ("wrong-answers", 0.5, 11, ("vision",)),
    ]
    assert all(each.end_s is not None for each in window.impairments)
    assert vision.requests.impaired["wrong-answers"] > 10
    (folder,) = (tmp_path / "runs").iterdir()
    asked = read_evidence(folder).crossings["vision"]
    causes = asked.causes()
    assert asked.endings is not None
    assert causes is not None
    assert set(asked.endings.impaired) == {"slow-down", "wrong-answers"}
    assert np.nanmax(causes["server slowed down on purpose"]) > np.nanmax(causes["compute"])
    assert "slow down by 1000 times" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_killed_server_fails_who_asks_it_until_it_is_back_and_its_clients_find_it_again(tmp_path: Path) -> None:
    killed = (
        "name: gone, kind: server-killed, domain: east, at: 1 s, for: 500 ms, ready-within: 14 s, "
        "recovers-within: 2 s, fails: [vision]"
    )
    record = asking_with(tmp_path, killed, duration_s=20.0)
    assert all(each.met for each in record.faults)
    (gone,) = record.faults
    vision, near = record.tenants
    assert near.in_faults == 0
    # Whoever asks goes on asking: what came after the recovery was answered over another connection, and found there.
    assert vision.n > 50 * (20 - 1 - (gone.end_s - gone.begin_s) - 2) / 2
    assert vision.lost < 0.02 * vision.n


# It sets this machine's clock.
@pytest.mark.slow
def test_a_clock_that_is_set_forward_and_back_within_the_window_makes_it_invalid_and_is_as_before(
    tmp_path: Path,
) -> None:
    before_ns = host.clock_offset_ns()
    step = fault(FaultKind.CLOCK_STEPPED, 1.0, fails=False, domain=None, step_s=0.002)
    scenario = replace(load(FAULTS), faults=(step,), warmup_s=2.0, duration_s=3.0)
    with host_as_before():
        record = read_record(run(scenario, Options(out=tmp_path, isolate=True), Silent()))
    assert abs(host.clock_offset_ns() - before_ns) < 1_000_000
    (gate,) = [gate for gate in record.gates if gate.name == "clock step"]
    print(gate, record.faults)
    assert 0.0019 < gate.value < 0.0021
    assert (gate.holds, record.verdict) == (False, "INVALID")
    (done,) = record.faults
    assert [(each.tenant, each.met) for each in done.expectations] == [("all", True)]


def test_what_a_fault_does_not_explain_invalidates_the_run_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = faults.WAYS

    @contextlib.contextmanager
    def and_more(site: Site, cut: Fault) -> Iterator[None]:
        """The fault; and the queue of a tenant that has nothing to do with it is lowered, its port set otherwise."""
        with ways[cut.kind](site, cut):
            yield
        command = ["tc", "class", "change", "dev", "d1i-dn", "parent", "1:1", "classid", "1:11", "htb"]
        subprocess.run([*command, "rate", "3mbit", "ceil", "3mbit", "burst", "20k"], check=True, capture_output=True)
        subprocess.run(["ethtool", "-K", "d1i-dn", "gro", "on"], check=True, capture_output=True)

    monkeypatch.setattr(faults, "WAYS", {FaultKind.LINK_DOWN: and_more})
    scenario = replace(load(FAULTS), faults=(fault(FaultKind.LINK_DOWN, 1.0, fails=False),), duration_s=4.0)
    record = read_record(run(scenario, Options(out=tmp_path), Silent()))
    (drift,) = [gate for gate in record.gates if gate.name == "installed reservations"]
    assert (drift.ok, drift.excused_by, record.verdict) == (False, "", "INVALID")
    assert "d1i-dn" in drift.detail
    # The host is recorded before and after the window, and what changed is named.
    (window,) = record.windows
    before, after = window.environment_before, window.environment_after
    limit_us = Path("/proc/sys/kernel/sched_rt_runtime_us").read_text().strip()
    assert before["settings"]["kernel.sched_rt_runtime_us"] == limit_us
    assert "net.ipv4.tcp_congestion_control" in before["settings"]
    assert {"cores", "load", "some_us", "throttled_ns", "modules", "clock_offset_ns"} <= before.keys() == after.keys()
    assert before["monotonic_ns"] + 4e9 < after["monotonic_ns"]
    # Modules are the whole machine's, and others may load some.
    changed = [row for row in environment_rows(window) if row.differs and not row.name.startswith("module ")]
    assert changed == [Row("d1i-dn generic-receive-offload", "off", "on", differs=True)]
    (settings,) = [gate for gate in record.gates if gate.name == "host settings"]
    assert (settings.ok, settings.detail) == (False, "d1i-dn generic-receive-offload was off and is on")
