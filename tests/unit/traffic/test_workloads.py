"""Which requests a scenario's trace arrivals stand for: a stretch of a recording, or a drawing from a description."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import ScenarioError
from testbed.scenario.dictionary import from_dict, to_dict
from testbed.scenario.loader import load
from testbed.scenario.model import Scenario, TokenSize, TraceArrivals
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.streams import stream
from testbed.traffic.arrivals import mean_bps, schedule, tenant_seed
from testbed.traffic.request_demand import demand
from testbed.traffic.request_schedules import request_schedule
from testbed.traffic.workloads import read_workload
from tests.unit.traffic.test_requests import MAKER
from tests.unit.traffic.test_servegen import client

BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
MOONCAKE = '{{"timestamp": {}, "input_length": {}, "output_length": 5, "hash_ids": [1]}}\n'


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a made-up trace of every format that counts tokens."""
    rng = np.random.default_rng(6)
    seconds = np.sort(rng.integers(0, 600, 900))
    asked = rng.integers(1, 400, 900)
    rows = (f"{s},ChatGPT,{n},50,{n + 50},Conversation log\n" for s, n in zip(seconds, asked, strict=True))
    (tmp_path / "burstgpt.csv").write_text(BURSTGPT + "".join(rows))
    lines = (MOONCAKE.format(3000 * (s // 3), n) for s, n in zip(seconds, asked, strict=True))
    (tmp_path / "mooncake.jsonl").write_text("".join(lines))
    stamps = (f"2023-11-16 18:{s // 60:02}:{s % 60:02}.5000000,{n},9\n" for s, n in zip(seconds, asked, strict=True))
    (tmp_path / "azure-llm.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(stamps))
    client(tmp_path).rename(tmp_path / "servegen-trace.csv")
    (tmp_path / "chunk-7-dataset.json").rename(tmp_path / "servegen-dataset.json")
    return tmp_path


NAMES = {
    "burstgpt": "burstgpt.csv",
    "mooncake": "mooncake.jsonl",
    "azure-llm": "azure-llm.csv",
    "servegen": "servegen-trace.csv",
}


def scenario(folder: Path, kind: str, keys: str = "length: 600 s, speed-up: 4") -> Scenario:
    """Two tenants of one trace: packets, and requests as large as its tokens say."""
    traced = f"{{model: trace, file: {NAMES[kind]}, format: {kind}, bits-per-token: 16, {keys}}}"
    path = folder / "scenario.yaml"
    path.write_text(
        "name: traced\ndomains: [{name: only, link-rate: 100 Mbit/s, compute: true}]\ntenants:\n"
        f"  - {{name: packets, arrivals: {traced}, reservation: {{rate: 20 Mbit/s}}}}\n"
        f"  - {{name: asks, arrivals: {traced}, requests: {{model: digits-small}}, reservation: {{rate: 20 Mbit/s}}}}\n"
    )
    return load(path)


@pytest.mark.parametrize("kind", NAMES)
def test_every_format_drives_packets_and_requests_from_a_scenario_file(files: Path, kind: str) -> None:
    found = scenario(files, kind)
    assert from_dict(json.loads(json.dumps(to_dict(found)))) == found
    packets, asks = found.tenants
    arrivals = packets.arrivals
    assert isinstance(arrivals, TraceArrivals)
    assert (arrivals.span_s, arrivals.speed_up) == (600.0, 4.0)
    trace = read_workload(arrivals)
    assert asks.requests is not None
    assert asks.requests.size == TokenSize()
    drawn = request_schedule(arrivals, TokenSize(), MAKER, seed=3, duration_s=trace.period_s / 4)
    assert len(drawn) == trace.time_s.size
    assert demand(arrivals, TokenSize(), MAKER).per_s == pytest.approx(4 * trace.time_s.size / trace.period_s)
    sent = schedule(arrivals, seed=3, duration_s=trace.period_s / 4)
    assert sent.rate_bps(trace.period_s / 4) == pytest.approx(mean_bps(arrivals))


@pytest.mark.parametrize("kind", NAMES)
def test_the_simulator_is_fed_what_senders_of_every_format_send(files: Path, kind: str) -> None:
    arrivals = scenario(files, kind).tenants[0].arrivals
    expected = schedule(arrivals, seed=tenant_seed(9, 1, 0), duration_s=50.0)
    seen = stream(arrivals, tenant_seed(9, 1, 0)).until(50 * PS_PER_S)
    assert seen.time_ps.size == len(expected) > 100
    assert np.abs(seen.time_ps - expected.time_s * PS_PER_S).max() < 1000
    assert np.array_equal(seen.size_bits, expected.size_bits)


def test_a_stretch_of_a_recording_holds_its_requests_and_no_others(files: Path) -> None:
    whole = read_workload(TraceArrivals(files / "azure-llm.csv", "azure-llm", 1.0, 16, 12_112))
    part = read_workload(TraceArrivals(files / "azure-llm.csv", "azure-llm", 1.0, 16, 12_112, 100.0, 200.0))
    kept = (whole.time_s >= 100.0) & (whole.time_s < 300.0)
    assert np.array_equal(part.request, whole.request[kept])
    assert part.time_s == pytest.approx(whole.time_s[kept] - whole.time_s[kept][0])
    rest = read_workload(TraceArrivals(files / "azure-llm.csv", "azure-llm", 1.0, 16, 12_112, 100.0))
    assert rest.time_s.size == (whole.time_s >= 100.0).sum()


def test_stamps_that_a_recorder_rounded_to_three_seconds_are_spread_and_the_same_at_every_reading(files: Path) -> None:
    arrivals = TraceArrivals(files / "mooncake.jsonl", "mooncake", 1.0, 16, 12_112)
    first, again = read_workload(arrivals), read_workload(arrivals)
    assert first.grid_s == 3.0
    assert np.unique(first.time_s).size > 850
    assert np.array_equal(first.time_s, again.time_s)


def test_a_described_client_is_drawn_for_the_stretch_that_is_asked_for(files: Path) -> None:
    path = files / "servegen-trace.csv"
    busy = read_workload(TraceArrivals(path, "servegen", 1.0, 16, 12_112, 0.0, 600.0))
    later = read_workload(TraceArrivals(path, "servegen", 1.0, 16, 12_112, 1200.0, 600.0))
    assert busy.time_s.size == pytest.approx(12_000, rel=0.1)
    assert set(busy.request) == {10, 300}
    assert set(later.request) == {40, 50}
    assert np.array_equal(busy.time_s, read_workload(TraceArrivals(path, "servegen", 1.0, 16, 8000, 0.0, 600.0)).time_s)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("speed-up: 4", "found no length; expected length: how much of the client's time"),
        ("from: 600 s, length: 600 s", "found 0 requests from 600 s on in 600 s, expected at least 2"),
    ],
)
def test_a_description_without_a_busy_stretch_is_refused(files: Path, keys: str, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(files, "servegen", keys)
    assert said in str(caught.value)


def test_a_stretch_beyond_a_recording_is_refused(files: Path) -> None:
    with pytest.raises(ScenarioError, match=r"found 0 requests from 9000 s to inf s, expected at least two moments"):
        scenario(files, "azure-llm", "from: 9000 s")


@pytest.mark.parametrize("kind", NAMES)
def test_bad_rows_are_all_counted_and_named_with_their_lines(files: Path, kind: str) -> None:
    path = files / NAMES[kind]
    lines = path.read_text().splitlines()
    lines[1], lines[2] = "x" + lines[1], "x" + lines[2]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ScenarioError) as caught:
        scenario(files, kind)
    message = str(caught.value)
    assert f"{path.name}, line 2" in message
    assert f"{path.name}, line 3" in message
    assert "2 of " in message
