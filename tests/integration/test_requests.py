"""A request tenant on a real network: answered, found in the captures, bounded; and refused before a run begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.envelope import strict_json
from testbed.report.record import read_record
from testbed.telemetry import request_samples
from tests.integration.conftest import Command, run_until_valid

pytestmark = pytest.mark.network

SCENARIO = """
name: asking
seed: 11
warm-up: 3 s
cool-down: 3 s
duration: 5 s
allow-zero-delay: true
domains:
  - {name: west, link-rate: 20 Mbit/s}
  - {name: east, link-rate: 20 Mbit/s, compute: true}
tenants:
  - name: reader
    arrivals: {model: poisson, rate: 20 requests/s, size: 2 kB}
    requests: {model: digits-small, compute-share: 0.2, timeout: 1 s}
  - name: vision
    arrivals: {model: poisson, rate: 50 requests/s, size: 4 kB}
    requests: {model: digits-medium, images: 4}
    reservation: {rate: 5 Mbit/s}
    promise: {deadline: 100 ms, epsilon: 0.02}
"""


def test_requests_are_answered_found_and_bounded(testbed: Command, tmp_path: Path) -> None:
    scenario = tmp_path / "asking.yaml"
    scenario.write_text(SCENARIO, encoding="utf-8")
    ended, folder = run_until_valid(testbed, scenario, tmp_path)
    assert ended.returncode in {0, 4}, ended.stderr
    record = read_record(folder)
    reader, vision = record.tenants
    asked = vision.requests
    assert asked is not None
    assert (asked.answered, vision.lost, asked.retransmitted_bits) == (vision.n, 0, 0.0)
    assert asked.accuracy is not None
    assert asked.accuracy > 0.95
    assert asked.framing_out is not None
    assert 1.04 < asked.framing_out < 1.15
    assert vision.p99_s is not None
    assert vision.bound_s is not None
    assert vision.p99_s < vision.bound_s
    assert not vision.bound_broken
    assert {
        (each.domain, each.payload["subject"]["stage"]) for each in record.envelopes if each.tenant == "vision"
    } == {
        ("west", "network"),
        ("east", "network"),
        ("east", "compute"),
    }
    (computes,) = [each for each in record.envelopes if each.payload["subject"]["stage"] == "compute"]
    server = tmp_path / "server.json"
    server.write_bytes(strict_json.dumps(computes.dsse))
    signed = json.loads(testbed("envelope", "show", str(server), "--json").stdout)
    assert signed == computes.payload
    assert signed["subject"]["service"] == asked.model
    assert vision.bound is not None
    # Nothing but what was signed is in the bound: T without the host's part.
    rails = signed["guardrails"]
    (part,) = [part for part in vision.bound.parts if part.name == "compute"]
    assert part.delay_s >= (rails["latency_ns"] - rails["host_allowance_ns"]) / 1e9 - 1e-9
    assert [domain.domain for domain in vision.domains] == ["west", "east"]
    samples = request_samples.read(folder / record.windows[0].requests["vision"])
    assert len(samples) == vision.n
    parts = sum(samples.parts_s().values())
    assert parts == pytest.approx(samples.latency_s, abs=1e-9)
    assert "digits-medium" in (folder / "report.html").read_text(encoding="utf-8")
    assert not list(folder.glob("**/*.pcap"))
    assert {"cooling down 1 of 1"} <= set(record.timings_s)
    assert (folder / "window-2" / "vision.requests.npz").exists()

    # The other tenant of the same server, which nobody promised anything.
    other = reader.requests
    assert other is not None
    assert (other.model, other.compute_share, asked.compute_share) == ("digits-small", 0.2, 0.8)
    assert (other.answered, reader.lost, reader.bound_s) == (reader.n, 0, None)
    assert other.accuracy is not None
    assert other.accuracy > 0.75
    beside = request_samples.read(folder / record.windows[0].requests["reader"])
    assert len(beside) == reader.n > 0
    # Its answers carry the stamps of that server, on the same clock and in the same seconds.
    for stamps_s in (samples.server_s, beside.server_s):
        assert stamps_s[:, 0].min() < 2.0
        assert stamps_s[:, 0].max() > 3.0

    audits = json.loads(testbed("audit", str(folder), "--json").stdout)["tenants"]
    assert audits["reader"]["requests"]["accuracy"] == other.accuracy
    audited = audits["vision"]
    assert (audited["verdict"], audited["n"], audited["misses"]) == (vision.verdict, vision.n, vision.misses)
    assert audited["requests"]["accuracy"] == asked.accuracy
    # Each domain's contract, judged: broken by nobody.
    contracts = {(each["domain"], each["stage"]): each["verdict"] for each in audited["contracts"]}
    assert list(contracts) == [("west", "network"), ("east", "network"), ("east", "compute")]
    assert "BROKEN" not in contracts.values()
    assert list(audited["blame"]) == [part.name for part in asked.parts]
    causes = {"west", "east", "tenant's own burst", "client's transport", "compute", "network back", "host artefact"}
    assert causes <= set(audited["causes"])
    assert "retransmission" not in audited["causes"]
