"""A whole run on the kernel's datapath, over long links: what was installed acts, and the bound counts propagation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from typer.testing import CliRunner

from testbed.cli.app import app
from testbed.cli.exits import Exit
from testbed.report.record import RunRecord, read_record
from testbed.report.tenant_record import TenantRecord
from testbed.scenario.loader import load
from testbed.scenario.model import Scenario
from testbed.scenario.slow_down import slowed
from testbed.telemetry import samples
from testbed.telemetry.samples import Replay, TenantSamples
from tests.integration.conftest import ROOT, is_noise

pytestmark = [pytest.mark.network, pytest.mark.emulated]

KERNEL = ROOT / "topologies" / "kernel.yaml"
SLOW_DOWN = 2.0
"""For an emulated processor that shares its core: everything about the host may then take twice as long."""


@dataclass(frozen=True)
class Run:
    """What `testbed run` left."""

    scenario: Scenario
    exit_code: int
    record: RunRecord
    folder: Path

    @property
    def promised(self) -> list[TenantRecord]:
        return [tenant for tenant in self.record.tenants if tenant.bound is not None]

    def read(self, tenant: str) -> tuple[TenantSamples, Replay | None]:
        return samples.read(self.folder / self.record.windows[0].samples[tenant])

    @property
    def propagation_s(self) -> float:
        return sum(domain.link_delay_s for domain in self.scenario.domains)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with TemporaryDirectory() as out:
        command = ["run", str(KERNEL), "--slow-down", str(SLOW_DOWN), "--out", out]
        ended = CliRunner().invoke(app, command, catch_exceptions=False)
        (folder,) = Path(out).iterdir()
        found = Run(slowed(load(KERNEL), SLOW_DOWN), ended.exit_code, read_record(folder), folder)
        print(ended.output, found.record.timings_s)
        yield found


def test_every_meter_and_queue_is_read_back_as_reserved_and_was_driven(run: Run) -> None:
    assert run.record.datapath == "kernel"
    for domain in run.scenario.domains:
        state = run.record.installed[domain.name]["tenants"]
        for tenant in run.scenario.tenants:
            if tenant.reservation is not None:
                (meter,) = state[tenant.name]["meters"].values()
                queues = state[tenant.name]["queues"].values()
                assert meter["rate_kbps"] == tenant.reservation.meter_rate_bps // 1000
                assert {queue["rate_bps"] for queue in queues} == {tenant.reservation.rate_bps}
    driven = {(p.domain, p.tenant, p.what.partition(" at ")[0].partition(" (try")[0]) for p in run.record.probes}
    parts = ("meter burst, bits", "meter rate, bit/s", "queue rate", "packets in its class")
    reserved = [tenant.name for tenant in run.promised]
    assert {(d.name, name, part) for d in run.scenario.domains for name in reserved for part in parts} <= driven
    assert all(probe.ok for probe in run.record.probes)


def test_nothing_but_the_host_makes_the_run_invalid(run: Run) -> None:
    failed = [gate for gate in run.record.gates if not gate.ok]
    print(json.dumps([(gate.name, gate.value, gate.limit, gate.detail) for gate in failed], indent=1))
    assert [gate.name for gate in failed if not is_noise(gate.name)] == []
    # With every gate open the promises are kept, or too few packets say so.
    assert run.exit_code == Exit.INVALID if failed else run.exit_code in {Exit.PASS, Exit.UNDETERMINED}
    assert all(tenant.lost == 0 for tenant in run.promised)


def test_an_ideal_replay_counts_every_link(run: Run) -> None:
    """Off by one in the middle of the packets if it does not; how often the host was away moves only those above it."""
    shortest_s = min(domain.link_delay_s for domain in run.scenario.domains)
    for tenant in run.promised:
        if tenant.requests is None:
            found, replay = run.read(tenant.name)
            assert replay is not None
            off_s = float(np.nanmedian(found.network_s - replay.shaped_s))
            assert abs(off_s) < shortest_s / 2, (tenant.name, off_s)
        else:  # nothing of the ideal is kept but its percentile
            (gate,) = [gate for gate in run.record.gates if gate.name == f"replay, {tenant.name}"]
            (ideal_ms,) = re.findall(r"ideal ([0-9.]+) ms", gate.detail)
            assert float(ideal_ms) / 1e3 > run.propagation_s, gate


def test_every_bound_counts_every_link_and_lies_above_what_was_measured(run: Run) -> None:
    assert {tenant.name for tenant in run.promised} == {"alpha", "charlie", "vision"}
    for tenant in run.promised:
        assert tenant.bound is not None
        parts = {part.name: part.delay_s for part in tenant.bound.parts}
        ways = ("", " back") if tenant.requests is not None else ("",)
        for domain, way in product(run.scenario.domains, ways):
            assert domain.link_delay_s < parts[domain.name + way] < domain.link_delay_s + 0.04 * SLOW_DOWN
        assert sum(parts.values()) == pytest.approx(tenant.bound.bound_s, rel=1e-6)
        assert tenant.promised_s is not None
        assert run.propagation_s < tenant.promised_s
        if tenant.requests is None:  # too few are asked to tell a lower limit
            assert tenant.promised_lower_s is not None
            assert run.propagation_s < tenant.promised_lower_s <= min(tenant.promised_s, tenant.bound.bound_s)
        assert not tenant.bound_broken


def test_no_packet_is_faster_than_the_links_and_the_fastest_hardly_slower(run: Run) -> None:
    for tenant in run.scenario.tenants:
        if tenant.requests is not None:
            continue
        found, _ = run.read(tenant.name)
        fastest = np.nanmin(found.domain_s, axis=0)
        for domain, fastest_s in zip(run.scenario.domains, fastest.tolist(), strict=True):
            assert domain.link_delay_s <= fastest_s
        assert run.propagation_s <= float(np.nanmin(found.network_s)) <= 1.02 * run.propagation_s


def test_requests_are_answered_by_a_real_model_over_long_links_both_ways(run: Run) -> None:
    (vision,) = [tenant for tenant in run.record.tenants if tenant.requests is not None]
    asked = vision.requests
    assert asked is not None
    assert asked.answered == vision.n > 20
    assert asked.accuracy is not None
    assert asked.accuracy > 0.7
    mean_s = {part.name: part.mean_s or 0.0 for part in asked.parts}
    assert all(mean_s[domain.name] >= domain.link_delay_s for domain in run.scenario.domains)
    assert mean_s["network back"] >= run.propagation_s


def test_the_report_shows_the_bounds_beside_what_was_measured(run: Run) -> None:
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert all(tenant.name in report for tenant in run.promised)
    assert len(report) > 20_000
