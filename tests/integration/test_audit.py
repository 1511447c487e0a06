"""One domain of a real network serves slower than it signed for, and the audit of the run's folder names it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.management.federation import Federation
from testbed.report.record import read_record
from testbed.run.pipeline import Options, run
from testbed.run.progress import Silent
from testbed.scenario.loader import load
from testbed.scenario.model import PoissonArrivals, Scenario
from tests.integration.conftest import ROOT, Command

pytestmark = [pytest.mark.network, pytest.mark.timeout(400)]

SLOW, KEPT = "east", "west"
SLOW_PORT = "d2i-dn"
SLOW_RATE = "2500kbit"
"""Where 4 Mbit/s were signed for and 2 Mbit/s are sent: the queue still drains, with a long tail."""


def scenario() -> Scenario:
    """The smoke scenario without its flood, long enough for some forty independent slow events of its slow domain."""
    smoke = load(ROOT / "topologies" / "smoke.yaml")
    steady, bulk = (tenant for tenant in smoke.tenants if tenant.misbehaviour is None)
    steady = replace(steady, arrivals=PoissonArrivals(rate_per_s=625.0, size_bits=3200))
    return replace(smoke, tenants=(steady, bulk), duration_s=50.0)


def slowed(federation: Federation) -> tuple[str, ...]:
    """Lower the rate of one class and nothing else, then see no drift: what was signed is left to the audit.

    The host is held to what is installed, slow queue and all. The burst of rate and ceil stays, for a larger one would
    let more through at once.
    """
    (queue,) = [rule.queue for rule in federation.agents[SLOW].program.rules if rule.tenant == "steady"]
    command = ["tc", "class", "change", "dev", SLOW_PORT, "parent", "1:1", "classid", f"1:{queue.minor:x}", "htb"]
    settings = [
        "rate",
        SLOW_RATE,
        "ceil",
        SLOW_RATE,
        "burst",
        f"{queue.burst_bytes}b",
        "cburst",
        f"{queue.burst_bytes}b",
    ]
    subprocess.run([*command, *settings], check=True, capture_output=True)
    return ()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole run in which one domain's queue is slowed down between the probes and the measured window."""
    monkeypatch.setattr(Federation, "drift", slowed)
    # A host that cannot keep up is no failure of the code: up to three tries, each shown.
    for attempt in range(3):
        path = run(scenario(), Options(out=tmp_path / str(attempt)), Silent())
        failed = [gate for gate in read_record(path).gates if not gate.ok]
        print(f"attempt {attempt}: {failed or 'every gate holds'}")
        if not failed:
            break
    return path


def test_the_one_slow_domain_of_a_network_is_named_accused_and_taken_out(
    folder: Path, testbed: Command, tmp_path: Path
) -> None:
    audited = testbed("audit", str(folder), "--json")
    assert audited.returncode in {0, 4}, audited.stderr
    tenant = json.loads(audited.stdout)["tenants"]["steady"]
    contracts = {finding["domain"]: finding["verdict"] for finding in tenant["contracts"]}
    assert contracts[SLOW] == "BROKEN"
    assert contracts[KEPT] != "BROKEN"
    assert tenant["named"] == SLOW
    assert max(tenant["causes"], key=lambda part: tenant["causes"][part]["euler"]["share"]) == SLOW
    (had_kept,) = tenant["counterfactuals"]
    assert had_kept["domain"] == SLOW
    assert had_kept["kept_s"] < had_kept["measured_s"]
    assert f"Had {SLOW} kept its envelope" in (folder / "report.html").read_text()

    # The accused domain needs the folder, the log and a public key, and nothing else.
    testbed("envelope", "keygen", str(tmp_path / "keys"), "--domain", "auditor")
    log, public = str(folder / "findings.log"), str(tmp_path / "keys" / "auditor.pub")
    testbed("audit", str(folder), "--sign", str(tmp_path / "keys" / "auditor.key"))
    assert testbed("audit", "verify", log, "--key", public).returncode == 0
    again = testbed("audit", "recompute", log, str(folder), "--key", public)
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("SAME") == 2
