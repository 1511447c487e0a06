"""Every shipped scenario on the kernel's datapath, slowed down to what one emulated processor carries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from testbed.cli.app import app
from testbed.report.record import RunRecord, read_record
from testbed.run.pipeline import Options, run
from testbed.run.progress import Silent
from testbed.scenario.faults import Fault, FaultKind
from testbed.scenario.loader import load
from testbed.scenario.model import Datapath, Scenario
from testbed.scenario.slow_down import slowed
from tests.integration.conftest import ROOT, is_noise
from tests.integration.spine import CROWD, crowd, reserved
from tests.kernel.guest.packets import pair

pytestmark = [pytest.mark.network, pytest.mark.emulated, pytest.mark.slow]

TOPOLOGIES = ROOT / "topologies"
HOW: Mapping[str, tuple[float, float, float]] = {
    "chat": (4, 5, 20),
    "delay": (16, 2, 5),
    "demo": (40, 1, 3),
    "faults": (8, 3, 8),
    "requests": (16, 2, 5),
    "smoke": (8, 2, 5),
}
"""How many times slower, and warm-up and window in the scenario's own seconds; `kernel` has a module of its own."""
FEDERATIONS = {"federation", "intents"}


def shortened(name: str, **changed: Any) -> Scenario:
    """What is to be run of a shipped scenario, with these fields instead of its own."""
    factor, warmup_s, duration_s = HOW[name]
    told = {"warmup_s": warmup_s, "duration_s": duration_s, **changed}
    scenario = replace(load(TOPOLOGIES / f"{name}.yaml"), **told)
    return replace(slowed(scenario, factor), datapath=Datapath.KERNEL)


def judged(record: RunRecord) -> RunRecord:
    """Nothing but the host took a verdict away; what was installed acted, and no bound is below its measurement."""
    breached = [(gate.name, gate.value, gate.limit, gate.detail) for gate in record.gates if not gate.holds]
    print(record.verdict, breached, record.faults, record.timings_s)
    assert record.datapath == "kernel"
    assert [name for name, *_ in breached if not is_noise(name)] == []
    assert all(probe.ok for probe in record.probes)
    assert not any(tenant.bound_broken for tenant in record.tenants)
    assert all(tenant.n > 0 for tenant in record.tenants)
    return record


def test_every_shipped_scenario_is_here() -> None:
    assert {file.stem for file in TOPOLOGIES.glob("*.yaml")} == {*HOW, *FEDERATIONS, "kernel"}


@pytest.mark.parametrize("name", sorted(HOW))
def test_a_shipped_scenario_runs_on_the_kernel_s_datapath(name: str, tmp_path: Path) -> None:
    record = judged(read_record(run(shortened(name), Options(out=tmp_path), Silent())))
    assert [fault.name for fault in record.faults if not fault.met] == []


def test_a_killed_switch_breaks_promises_as_its_flows_begin_anew_and_they_are_kept_again_soon(tmp_path: Path) -> None:
    killed = Fault("killed", FaultKind.SWITCH_KILLED, 1.0, 0.5, 2.0, fails=("near", "far"))
    scenario = shortened("faults", faults=(killed,), duration_s=5.0)
    record = judged(read_record(run(scenario, Options(out=tmp_path), Silent())))
    assert [fault.met for fault in record.faults] == [True]
    assert all(gate.ok for gate in record.gates if gate.name == "installed reservations")


def brief(text: str) -> str:
    """A federation's file with a tenth of its warm-up and its window."""
    return re.sub(r"^(warm-up|duration): (\d+) s$", lambda m: f"{m[1]}: {int(m[2]) / 10:g} s", text, flags=re.MULTILINE)


def test_a_federation_s_domains_calibrate_their_envelopes_and_sign_them_again(tmp_path: Path) -> None:
    file, runs = tmp_path / "intents.yaml", tmp_path / "runs"
    file.write_text(brief((TOPOLOGIES / "intents.yaml").read_text(encoding="utf-8")), encoding="utf-8")
    ended = CliRunner().invoke(app, ["run", str(file), "--slow-down", "10", "--out", str(runs)], catch_exceptions=False)
    print(ended.output)
    (folder,) = runs.iterdir()
    record = judged(read_record(folder))
    assert {tenant.name for tenant in record.tenants} == {"kiosk", "clinic", "studio"}
    assert all(tenant.bound is not None for tenant in record.tenants)


def test_every_tenant_of_a_crowd_has_a_reservation_and_its_packets_arrive(tmp_path: Path) -> None:
    file = crowd(tmp_path)
    promised = {tenant.name: tenant.reservation for tenant in load(file).tenants}
    with reserved(file, Datapath.KERNEL) as made:
        assert made.federation.drift() == ()
        assert made.rates("only") == {
            name: ({held.meter_rate_bps // 1000}, {held.rate_bps}) for name, held in promised.items() if held
        }
        for number in (1, 64, 65, CROWD):
            with pair(made, number) as sent:
                assert sent.lost(50) == set()  # fewer than the smallest bucket holds
        made.federation.release()
        assert made.rates("only") == {}
