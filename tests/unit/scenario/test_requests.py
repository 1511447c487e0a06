"""What a tenant's requests become, what guardrails follow from them, and who refuses to go on without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from inference_server.digits import held_out
from testbed.errors import ScenarioError
from testbed.scenario import guardrails, summary
from testbed.scenario.dictionary import from_dict, to_dict
from testbed.scenario.loader import load
from testbed.scenario.model import (
    Arrivals,
    DrawnSize,
    Misbehaviour,
    MmppArrivals,
    ModelSize,
    OnOffArrivals,
    PoissonArrivals,
    Requests,
    RequestSize,
    Scenario,
    TokenSize,
    Work,
)
from testbed.simulation.bounds import bounds_on_paper
from testbed.simulation.choices import Choices
from testbed.simulation.network import network
from testbed.traffic.request_demand import demand
from testbed.traffic.request_schedules import request_schedule
from testbed.traffic.request_wire import RequestMaker

BAD = Path(__file__).parent / "bad"
TOPOLOGIES = Path(__file__).parents[3] / "topologies"
MAKER = RequestMaker("alpha", "digits-small", 1, held_out())
RATE_BPS = 10_000_000
POISSON = "{model: poisson, rate: 50 requests/s, size: 8 kB}"
TWO_SIZES = DrawnSize((16_000, 160_000), (3.0, 1.0))
MODULATED = MmppArrivals((60.0, 250.0, 0.0), ((0.0, 2.0, 1.0), (5.0, 0.0, 0.0), (0.0, 8.0, 0.0)), 64_000)


def scenario(
    requests: str, folder: Path, arrivals: str = "{model: poisson, rate: 50 requests/s, size: 8 kB}"
) -> Scenario:
    path = folder / "scenario.yaml"
    path.write_text(
        f"""
        name: asking
        domains: [{{name: core, link-rate: 100 Mbit/s, compute: true}}]
        tenants:
          - name: alpha
            arrivals: {arrivals}
            requests: {requests}
            reservation: {{rate: 10 Mbit/s}}
            promise: {{deadline: 300 ms, epsilon: 0.001}}
          - {{name: beta, arrivals: {arrivals}, requests: {{model: digits-small, compute-share: 0.25}}}}
        """,
        encoding="utf-8",
    )
    return load(path)


def test_what_is_left_out_is_decided_when_the_file_is_read(tmp_path: Path) -> None:
    alpha, beta = scenario("{model: digits-large}", tmp_path).tenants
    assert alpha.requests == Requests("digits-large", 1, DrawnSize((64_000,)), 10_000, 0.3, 0.75)
    assert beta.requests == Requests("digits-small", 1, DrawnSize((64_000,)), 10_000, 10.0, 0.25)
    assert alpha.packet_bits == 8 * 1514


@pytest.mark.parametrize(
    ("requests", "size"),
    [
        ("{model: digits-small, sizes: model}", ModelSize()),
        ("{model: digits-small, sizes: mixed, mix: [{size: 2 kB, weight: 3}, {size: 20 kB}]}", TWO_SIZES),
    ],
    ids=["the model's", "a distribution"],
)
def test_sizes_are_read_and_survive_a_run_folder(requests: str, size: RequestSize, tmp_path: Path) -> None:
    found = scenario(requests, tmp_path)
    asked = found.tenants[0].requests
    assert asked is not None
    assert asked.size == size
    assert from_dict(json.loads(json.dumps(to_dict(found)))) == found


def test_a_trace_gives_its_tokens_as_sizes_unless_told_otherwise(tmp_path: Path) -> None:
    traced = f"{{model: trace, file: {BAD / 'requests.csv'}, format: azure-llm, bits-per-token: 16, speed-up: 0.01}}"
    asked = scenario("{model: digits-small}", tmp_path, traced).tenants[0].requests
    assert asked is not None
    assert asked.size == TokenSize()


def test_bursts_of_request_tenants_may_coincide(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    bursts = "arrivals: {model: on-off, peak: 8 Mbit/s, mean-on: 50 ms, mean-off: 150 ms, size: 8 kB}"
    breach = "misbehaviour: {kind: correlated, group: storm, strength: 0.5}, requests: {model: digits-small}"
    path.write_text(
        "name: together\ndomains: [{name: core, link-rate: 100 Mbit/s, compute: true}]\n"
        f"tenants: [{{name: a, {bursts}, {breach}}}, {{name: b, {bursts}, {breach}}}]\n"
    )
    found = load(path)
    assert [tenant.misbehaviour for tenant in found.tenants] == [Misbehaviour("correlated", None, "storm", 0.5)] * 2
    assert all(tenant.keeps_its_law for tenant in found.tenants)


def test_tenants_that_send_packets_are_written_as_before() -> None:
    assert not any("requests" in tenant for tenant in to_dict(load(TOPOLOGIES / "smoke.yaml"))["tenants"])


def test_a_reader_is_told_what_is_asked(tmp_path: Path) -> None:
    told = "\n".join(summary.lines(scenario("{model: digits-large, images: 4}", tmp_path)))
    assert "4 images for digits-large, padded to 8000 B, with 75 % of the server" in told
    assert "for 99.9 % of its requests" in told


@pytest.mark.parametrize(
    ("arrivals", "size"),
    [
        (PoissonArrivals(100.0, 64_000), DrawnSize((64_000,))),
        (PoissonArrivals(120.0, 64_000), TWO_SIZES),
        (OnOffArrivals(20e6, 0.05, 0.1, 64_000), DrawnSize((64_000,))),
        (MODULATED, DrawnSize((64_000,))),
        (MODULATED, TWO_SIZES),
    ],
    ids=["one size", "two sizes", "bursts", "modulated", "modulated, two sizes"],
)
def test_a_derived_bucket_holds_conforming_requests(arrivals: Arrivals, size: RequestSize) -> None:
    asked = demand(arrivals, size, MAKER)
    meter = guardrails.meter_rate_bps(asked.mean_bps, RATE_BPS)
    bucket = guardrails.request_burst_bits(arrivals, asked, meter, RATE_BPS)
    sent = request_schedule(arrivals, size, MAKER, seed=1, duration_s=600.0)
    bits = np.interp(8.0 * sent.message_bytes, asked.message_bits, asked.wire_bits)
    backlog = np.cumsum(bits) - meter * sent.time_s
    largest = float(np.max(backlog - np.minimum.accumulate(backlog - bits)))
    assert largest <= bucket
    # One that is far too large would let a flood through.
    assert bucket <= 8 * largest
    assert asked.mean_bps == pytest.approx(float(bits.sum()) / 600.0, rel=0.1)


def test_the_time_of_a_computation_is_read_and_kept(tmp_path: Path) -> None:
    alpha, beta = scenario("{model: digits-large, work: {mean: 2 ms, cv: 0.5}}", tmp_path).tenants
    assert alpha.requests is not None
    assert alpha.requests.work == Work(2e-3, 0.5)
    assert beta.requests is not None
    assert beta.requests.work is None
    found = scenario("{model: digits-large, work: {mean: 2 ms}}", tmp_path)
    assert from_dict(to_dict(found)) == found
    assert "work" not in to_dict(found)["tenants"][1]["requests"]


@pytest.mark.parametrize("work", ["{cv: 0.5}", "{mean: 0 ms}", "{mean: 2 ms, cv: -1}", "2 ms"])
def test_a_time_of_a_computation_that_is_none_is_refused(tmp_path: Path, work: str) -> None:
    with pytest.raises(ScenarioError, match=r"tenant alpha: requests\.work"):
        scenario(f"{{model: digits-large, work: {work}}}", tmp_path)


def test_nothing_simulates_unknown_requests_or_bounds_them_before_a_warm_up(tmp_path: Path) -> None:
    found = scenario("{model: digits-small}", tmp_path)
    with pytest.raises(ScenarioError, match=r"tenants alpha, beta: found requests only, of which nothing is known"):
        network(found, Choices())
    paper = bounds_on_paper(found)
    assert not paper.found
    assert all("found requests to digits-small and nothing that says how long" in why for why in paper.missing.values())
