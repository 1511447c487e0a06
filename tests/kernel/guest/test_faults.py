"""What breaks beside the faults of `topologies/faults.yaml`: a switch, a server, an agent, a clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testbed.report.record import read_record
from testbed.run.agents import run_market
from testbed.run.pipeline import Options, run
from testbed.run.progress import Silent
from testbed.scenario import market
from testbed.scenario.faults import Fault, FaultKind
from testbed.scenario.loader import load
from testbed.scenario.slow_down import slowed
from tests.kernel.guest.shipped import TOPOLOGIES, judged, shortened

pytestmark = [pytest.mark.network, pytest.mark.emulated, pytest.mark.slow]

ASKING = Path(__file__).parent / "asking.yaml"


def test_a_killed_switch_breaks_promises_as_its_flows_begin_anew_and_they_are_kept_again_soon(tmp_path: Path) -> None:
    killed = Fault("killed", FaultKind.SWITCH_KILLED, 1.0, 0.5, 2.0, fails=("near", "far"))
    scenario = shortened("faults", faults=(killed,), duration_s=5.0)
    record = judged(read_record(run(scenario, Options(out=tmp_path), Silent())))
    assert [fault.met for fault in record.faults] == [True]
    assert all(gate.ok for gate in record.gates if gate.name == "installed reservations")


def test_a_server_that_is_slow_wrong_or_gone_fails_who_asks_it_and_nobody_else(tmp_path: Path) -> None:
    record = judged(read_record(run(slowed(load(ASKING), 2.0), Options(out=tmp_path), Silent())))
    unmet = [(fault.name, each) for fault in record.faults for each in fault.expectations if not each.met]
    assert unmet == []
    assert {fault.kind for fault in record.faults} == {"server-slowed", "server-wrong", "server-killed"}
    vision, near = record.tenants
    assert vision.in_faults > 0
    assert near.in_faults == 0
    # Each expectation is about somebody, and the tenant that asks has more of them than the one that only goes by.
    assert {each.tenant for fault in record.faults for each in fault.expectations} == {"vision", "near", "all"}
    (window,) = record.windows
    assert [each.kind for each in window.impairments] == ["slow-down", "wrong-answers"]


def test_a_clock_that_is_stepped_makes_the_window_invalid_and_its_gate_says_so(tmp_path: Path) -> None:
    stepped = Fault("stepped", FaultKind.CLOCK_STEPPED, 1.0, 0.5, 1.0, step_s=0.002)
    scenario = shortened("faults", faults=(stepped,), warmup_s=2.0, duration_s=3.0)
    record = read_record(run(scenario, Options(out=tmp_path), Silent()))
    print(record.verdict, [gate for gate in record.gates if not gate.holds], record.faults)
    (gate,) = [gate for gate in record.gates if gate.name == "clock step"]
    by_s = 0.002 * scenario.slow_down
    assert gate.value == pytest.approx(by_s, rel=0.05)
    assert (record.datapath, record.verdict, gate.holds) == ("kernel", "INVALID", False)
    (done,) = record.faults
    assert [(each.tenant, each.met) for each in done.expectations] == [("all", True)]


def test_an_agent_that_is_killed_comes_back_with_its_ledger_and_nobody_s_requests_notice(tmp_path: Path) -> None:
    killed = Fault("clerk", FaultKind.AGENT_KILLED, 0.5, 0.5, 1.0, domain="core", ready_s=3.5)
    sold = replace(market.load(TOPOLOGIES / "intents.yaml"), warmup_s=2.0, duration_s=6.0, faults=(killed,))
    record = judged(read_record(run_market(sold, Options(out=tmp_path), Silent(), slow_down=10.0)))
    (clerk,) = record.faults
    assert [each for each in clerk.expectations if not each.met] == []
    assert {each.tenant for each in clerk.expectations} == {"all", "kiosk", "clinic", "studio"}
    assert all(gate.ok for gate in record.gates if gate.name == "installed reservations")
    assert [tenant.in_faults for tenant in record.tenants] == [0, 0, 0]
