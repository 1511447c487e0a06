"""One domain of a real network serves slower than it signed for, and the audit of the run's folder names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import Command
from tests.integration.slow_domain import KEPT, SLOW, TENANT, broken_gates, run_slowed

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run in which one domain is slow, on a host that kept up."""
    # A host that cannot keep up is no failure of the code: up to three tries, each shown.
    for attempt in range(3):
        path = run_slowed(tmp_path / str(attempt))
        failed = broken_gates(path)
        print(f"attempt {attempt}: {failed or 'every gate holds'}")
        if not failed:
            break
    return path


def test_the_one_slow_domain_of_a_network_is_named_accused_and_taken_out(
    folder: Path, testbed: Command, tmp_path: Path
) -> None:
    audited = testbed("audit", str(folder), "--json")
    assert audited.returncode in {0, 4}, audited.stderr
    tenant = json.loads(audited.stdout)["tenants"][TENANT]
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
    assert again.stdout.count("SAME") == 3
