"""Every shipped scenario on the kernel's datapath, slowed down to what one emulated processor carries."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from testbed.cli.app import app
from testbed.management.planner import plan
from testbed.management.staging import scenario_of
from testbed.report.record import read_record
from testbed.run.agents import reserving
from testbed.run.pipeline import Options, run, run_reserved
from testbed.run.progress import Silent
from testbed.scenario import market
from testbed.scenario.federation import Operator
from testbed.scenario.loader import load
from testbed.scenario.model import Datapath
from testbed.scenario.slow_down import slowed_market
from tests.integration.spine import CROWD, crowd, reserved
from tests.kernel.guest.packets import pair
from tests.kernel.guest.shipped import HOW, TOPOLOGIES, judged, shortened

pytestmark = [pytest.mark.network, pytest.mark.emulated, pytest.mark.slow]

FEDERATIONS = {"federation", "intents"}


def test_every_shipped_scenario_is_here() -> None:
    assert {file.stem for file in TOPOLOGIES.glob("*.yaml")} == {*HOW, *FEDERATIONS, "kernel"}


@pytest.mark.parametrize("name", sorted(HOW))
def test_a_shipped_scenario_runs_on_the_kernel_s_datapath(name: str, tmp_path: Path) -> None:
    record = judged(read_record(run(shortened(name), Options(out=tmp_path), Silent())))
    assert [fault.name for fault in record.faults if not fault.met] == []


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


def emulated(operator: Operator) -> Operator:
    """With one worker of a site, at its part of the price and of the seats, and what its domain's host may be late."""
    site = operator.site
    if site is not None:
        site = replace(site, workers=1, seats=site.seats // site.workers, price=site.price / site.workers)
    return replace(operator, site=site, host_allowance_s=0.002)


def test_a_federation_of_competing_operators_serves_the_intents_it_plans_for_by_the_same_ways(tmp_path: Path) -> None:
    sold = replace(market.load(TOPOLOGIES / "federation.yaml"), warmup_s=2.0, duration_s=5.0)
    ways = {one.tenant: str(one.route) for one in plan(sold) if one.admitted}
    assert set(ways) == {"archive", "cashier", "clinic", "courier"}
    slow = slowed_market(replace(sold, operators=tuple(map(emulated, sold.operators))), 20.0)
    planned = plan(slow)
    assert {one.tenant: str(one.route) for one in planned if one.admitted} == ways
    built = scenario_of(slow, planned, workers=1)
    record = judged(read_record(run_reserved(built, Options(out=tmp_path), Silent(), partial(reserving, slow))))
    decided = {one["tenant"]: one for one in record.plan["decisions"]}
    assert {name for name, one in decided.items() if one["admitted"]} == set(ways)
    promised = {one.tenant: {bought.domain for bought in one.purchases} for one in planned if one.admitted}
    held = {name: {domain for domain, read in record.installed.items() if name in read["tenants"]} for name in ways}
    assert held == promised
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
