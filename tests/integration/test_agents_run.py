"""Intents on a real network: agents in processes of their own offer, reserve, install, sign again and release."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.envelope.descriptor import Stage
from testbed.report.record import read_record
from tests.integration.conftest import ROOT, Command

pytestmark = pytest.mark.network

SHORT = {"warm-up: 20 s": "warm-up: 2 s", "duration: 30 s": "duration: 3 s"}


def test_a_federation_is_planned_reserved_by_its_agents_measured_and_released(testbed: Command, tmp_path: Path) -> None:
    text = (ROOT / "topologies/intents.yaml").read_text(encoding="utf-8")
    for long, short in SHORT.items():
        assert long in text
        text = text.replace(long, short)
    federation = tmp_path / "short.yaml"
    federation.write_text(text, encoding="utf-8")
    planned = json.loads(testbed("plan", str(federation), "--json").stdout)["decisions"]

    # A run also fails if a controller still holds a rule after the release. Of the verdict nothing is asked: seconds
    # decide no promise, and a busy host may make them INVALID.
    ended = testbed("run", str(federation), "--out", str(tmp_path / "runs"))
    assert ended.returncode in {0, 3, 4}, ended.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    record = read_record(folder)

    ways = {d["tenant"]: [r["domain"] for r in d["reservations"]] for d in planned if d["admitted"]}
    assert ways == {
        "kiosk": ["access"],
        "clinic": ["access", "metro-blue", "core"],
        "studio": ["access", "metro-gold", "core"],
    }
    decided = {decision["tenant"]: decision for decision in record.plan["decisions"]}
    for before in planned:
        now = decided[before["tenant"]]
        assert now["admitted"] == before["admitted"]
        if before["admitted"]:
            assert now["reservations"] == before["reservations"]
            assert now["bound_s"] <= before["deadline_s"]
            assert now["price"] == pytest.approx(before["price"], abs=1e-4)
    assert decided["trader"]["binding"] == ["deadline"]

    signed = {(e.domain, e.tenant, e.payload["subject"]["stage"]) for e in record.envelopes}
    assert {(d, t, s) for d, t, s in signed if s == Stage.NETWORK} == {
        (domain, tenant, Stage.NETWORK) for tenant, way in ways.items() for domain in way
    }
    assert {(d, t) for d, t, s in signed if s == Stage.COMPUTE} == {(way[-1], t) for t, way in ways.items()}
    for tenant, way in ways.items():
        held = {name for name, read in record.installed.items() if tenant in read["tenants"]}
        assert held == set(way)
    for tenant in record.tenants:
        assert tenant.requests is not None
        assert tenant.requests.answered == tenant.n > 0
        assert not tenant.bound_broken
    assert all(probe.ok for probe in record.probes)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "access &gt; metro-blue &gt; core" in page
    assert "trader was refused" in page
    assert "refused because of a deadline of 10 ms" in ended.stdout
