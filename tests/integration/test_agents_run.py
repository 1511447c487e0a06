"""Intents on a real network: agents in processes of their own offer, reserve, install, sign again and release."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from testbed.envelope.descriptor import Stage
from testbed.report.record import read_record
from testbed.run.undoing import NOT_UNDONE
from tests.integration.conftest import QUIETED, Command
from tests.leftovers import host_as_before

pytestmark = pytest.mark.network

FEDERATION = """
name: short
seed: 5
warm-up: 2 s
duration: 3 s
segments:
  - name: metro
    operators:
      - {name: gold, link-rate: 100 Mbit/s, reservable: 40 Mbit/s, classes: 4, host-allowance: 8 ms, price: 0.5,
         calibrated: true}
      - {name: blue, link-rate: 40 Mbit/s, reservable: 4 Mbit/s, classes: 4, host-allowance: 8 ms, price: 0.1}
  - name: core
    operators:
      - name: core
        link-rate: 100 Mbit/s
        reservable: 40 Mbit/s
        classes: 4
        host-allowance: 8 ms
        price: 0.1
        site:
          workers: 1
          seats: 4
          price: 10
          models: [{name: digits-medium, task: digits, work: 8 ms}]
intents:
"""
INTENT = """
  - name: {name}
    task: digits
    deadline: {deadline}
    epsilon: 0.02
    arrivals: {{model: poisson, rate: 30 requests/s, size: 8 kB}}
    price: 20
"""
DEADLINES = {"clinic": "300 ms", "studio": "300 ms", "trader": "10 ms"}
ATTEMPTS = 3
"""A pause of the host in the warm-up may refute what a domain declared; then nothing is measured, and it runs again."""


def measured(testbed: Command, federation: Path, folder: Path) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A run of a federation that came as far as measuring, and its folder.

    It also fails if a controller still holds a rule after the release. Of the verdict nothing is asked: seconds decide
    no promise, and a busy host may make them INVALID.
    """
    for attempt in range(ATTEMPTS):
        ended = testbed("run", str(federation), "--out", str(folder / f"runs-{attempt}"), *QUIETED)
        assert ended.returncode in {0, 3, 4}, ended.stderr
        (found,) = (folder / f"runs-{attempt}").iterdir()
        record = read_record(found)
        assert not [gate.detail for gate in record.gates if gate.name == NOT_UNDONE]
        if record.windows:
            return ended, found
        print(ended.stdout)
    raise AssertionError(f"nothing was measured in {ATTEMPTS} attempts")


def test_a_federation_is_planned_reserved_by_its_agents_measured_and_released(testbed: Command, tmp_path: Path) -> None:
    federation = tmp_path / "short.yaml"
    intents = [INTENT.format(name=name, deadline=deadline) for name, deadline in DEADLINES.items()]
    federation.write_text(FEDERATION + "".join(intents), encoding="utf-8")
    planned = json.loads(testbed("plan", str(federation), "--json").stdout)["decisions"]

    ended, folder = measured(testbed, federation, tmp_path)
    record = read_record(folder)

    ways = {d["tenant"]: [r["domain"] for r in d["reservations"]] for d in planned if d["admitted"]}
    assert ways == {"clinic": ["blue", "core"], "studio": ["gold", "core"]}
    decided = {decision["tenant"]: decision for decision in record.plan["decisions"]}
    for before in planned:
        now = decided[before["tenant"]]
        assert now["admitted"] == before["admitted"]
        if before["admitted"]:
            assert now["reservations"] == before["reservations"]
            assert now["bound_s"] <= before["deadline_s"]
            assert now["price"] == pytest.approx(before["price"], abs=1e-4)
        else:
            assert now["binding"] == before["binding"]
            assert f"{before['tenant']}: refused because of {before['refused_because']}" in " ".join(
                ended.stdout.split()
            )
    assert not decided["trader"]["admitted"]

    signed = {(e.domain, e.tenant, e.payload["subject"]["stage"]) for e in record.envelopes}
    assert {(d, t, s) for d, t, s in signed if s == Stage.NETWORK} == {
        (domain, tenant, Stage.NETWORK) for tenant, way in ways.items() for domain in way
    }
    assert {(d, t) for d, t, s in signed if s == Stage.COMPUTE} == {(way[-1], t) for t, way in ways.items()}
    for tenant, way in ways.items():
        held = {name for name, read in record.installed.items() if tenant in read["tenants"]}
        assert held == set(way)
    assert not any(tenant.bound_broken for tenant in record.tenants)
    assert {probe.domain for probe in record.probes} >= {"blue", "gold", "core"}
    assert all(probe.ok for probe in record.probes)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "blue &gt; core" in page
    assert "trader was refused" in page


@pytest.mark.slow
def test_an_agent_that_is_killed_comes_back_with_its_ledger_and_nobodys_requests_notice(
    testbed: Command, tmp_path: Path
) -> None:
    federation = tmp_path / "orphaned.yaml"
    killed = (
        "faults:\n"
        "  - {name: clerk, kind: agent-killed, domain: core, at: 500 ms, for: 500 ms, ready-within: 8 s}\n"
        "  - {name: orphan, kind: controller-killed, domain: blue, at: 10500 ms, for: 200 ms}\n"
    )
    intents = [INTENT.format(name=name, deadline=deadline) for name, deadline in DEADLINES.items()]
    text = FEDERATION.replace("duration: 3 s", "duration: 13 s") + "".join(intents) + killed
    federation.write_text(text, encoding="utf-8")
    # What the run releases in the end it releases through the agents, the one that was started again too.
    with host_as_before():
        _, folder = measured(testbed, federation, tmp_path)
    record = read_record(folder)
    print(record.verdict, [gate for gate in record.gates if not gate.holds], record.faults)
    assert {fault.name: fault.met for fault in record.faults} == {"clerk": True, "orphan": True}
    assert all(gate.ok for gate in record.gates if gate.name == "installed reservations")
    assert [tenant.in_faults for tenant in record.tenants] == [0, 0]
