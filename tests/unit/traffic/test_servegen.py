"""Requests drawn from ServeGen's parametric clients, and client files that are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from testbed.errors import ScenarioError
from testbed.traffic import renewal, servegen
from testbed.traffic.arrivals import replay
from testbed.traffic.traces import as_requests

PUBLISHED = Path(__file__).parents[4] / "shared" / "traces" / "servegen" / "m-large"
ROWS = ("0,20.0,1.5,Gamma,0.5,0.1", "600,0,0,,0,0", "1200,5.0,3.0,Weibull,0.4,0.01", "1800,0,0,,0,0")
TOKENS = {
    "0": {"input_tokens": "{10: 0.25, 300: 0.75}", "output_tokens": "{7: 1.0}"},
    "600": {"input_tokens": "{}", "output_tokens": "{}"},
    "1200": {"input_tokens": "{40: 3, 50: 1}", "output_tokens": "{1: 0.5, 2: 0.5}"},
}


def client(folder: Path, rows: tuple[str, ...] = ROWS, tokens: object = TOKENS) -> Path:
    path = folder / "chunk-7-trace.csv"
    path.write_text("".join(row + "\n" for row in rows))
    (folder / "chunk-7-dataset.json").write_text(json.dumps(tokens))
    return path


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(ScenarioError) as caught:
        servegen.read_client(path).draw(seed=1, start_s=0, duration_s=2400)
    return caught.value.problems


def test_each_window_has_its_rate_its_law_and_its_silence(tmp_path: Path) -> None:
    drawn = [servegen.read_client(client(tmp_path)).draw(seed=s, start_s=0, duration_s=2400) for s in range(20)]
    counts = np.array([np.histogram(trace.time_s, [0, 599, 1190, 1800, 2400])[0] for trace in drawn])
    busy = counts.mean(axis=0)
    assert busy[0] == pytest.approx(12_000, rel=0.02)
    assert busy[2] == pytest.approx(3000, rel=0.12)
    assert busy[3] == 0
    first = [np.diff(trace.time_s[trace.time_s < 590]) * 20 for trace in drawn]
    third = [np.diff(trace.time_s[trace.time_s > 1200]) * 5 for trace in drawn]
    assert stats.kstest(np.concatenate(first)[:20_000], stats.gamma(0.5, scale=2).cdf).pvalue > 0.01
    law = stats.weibull_min(0.4, scale=1 / math.gamma(3.5))
    assert stats.kstest(np.concatenate(third)[:20_000], law.cdf).pvalue > 0.01


def test_requests_have_the_tokens_of_their_window_or_of_the_last_one_that_knew(tmp_path: Path) -> None:
    read = servegen.read_client(client(tmp_path))
    first = read.draw(seed=1, start_s=0, duration_s=600)
    assert set(first.request.tolist()) == {10, 300}
    assert np.mean(first.request == 300) == pytest.approx(0.75, abs=0.02)
    assert set(first.response.tolist()) == {7}
    third = read.draw(seed=1, start_s=1200, duration_s=600)
    assert np.mean(third.request == 40) == pytest.approx(0.75, abs=0.04)
    empty_now = {**TOKENS, "1200": TOKENS["600"]}
    older = servegen.read_client(client(tmp_path, tokens=empty_now)).draw(seed=1, start_s=1200, duration_s=600)
    assert set(older.request.tolist()) == {10, 300}


def test_a_stretch_starts_where_it_is_asked_to_and_is_reproducible(tmp_path: Path) -> None:
    read = servegen.read_client(client(tmp_path))
    stretch = read.draw(seed=3, start_s=550, duration_s=100)
    assert stretch.time_s[-1] < 50
    assert stretch.time_s.size == pytest.approx(1000, rel=0.15)
    assert np.array_equal(stretch.time_s, read.draw(seed=3, start_s=550, duration_s=100).time_s)
    assert not np.array_equal(stretch.request, read.draw(seed=4, start_s=550, duration_s=100).request)


def test_drawn_requests_become_packets_like_those_of_any_trace(tmp_path: Path) -> None:
    trace = servegen.read_client(client(tmp_path)).draw(seed=1, start_s=0, duration_s=300)
    requests = as_requests(trace, speed_up=10, bits_per_token=32, size_bits=8 * 666)
    assert set(requests.count.tolist()) == {1, 2}
    packets = replay(requests, seed=1, duration_s=60.0)
    assert packets.rate_bps(60.0) == pytest.approx(requests.size_bits.sum() / requests.period_s, rel=0.1)


def test_weibull_gaps_wait_for_the_first_point_in_equilibrium() -> None:
    law = renewal.weibull(0.4)
    drawn = [renewal.points(law, 1.0, rng=np.random.default_rng(s), duration_s=0.5).size for s in range(4000)]
    assert abs(np.mean(drawn) - 0.5) < 3.5 * np.std(drawn) / math.sqrt(4000)


def test_a_distribution_is_parsed_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    attack = {"0": {"input_tokens": f"__import__('pathlib').Path({str(mark)!r}).touch()", "output_tokens": "{1: 1}"}}
    (problem,) = problems(client(tmp_path, tokens=attack))
    assert 'dataset window 0, input_tokens: found "__import__' in problem
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[1, 2]",
        "{1: -0.5, 2: 1.5}",
        "{-1: 1}",
        "{'a': 1}",
        "{1: 0.0}",
        "{1: 1e999}",
        "{1: 1",
        "{1: None}",
        "9**9",
    ],
)
def test_a_distribution_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (problem,) = problems(client(tmp_path, tokens={"0": {"input_tokens": "{5: 1}", "output_tokens": text}}))
    assert "dataset window 0, output_tokens" in problem


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("600,3.0,1.0,Pareto,0.5,0.1", "found pattern 'Pareto', expected one of"),
        ("600,3.0,1.0,Gamma,0,0.1", "found shape '0', expected more than 0"),
        ("600,3.0,1.0,,0.5,0.1", "found rate_req_per_s '3.0', expected 0 where there is no pattern"),
        ("600,-3.0,1.0,Gamma,0.5,0.1", "found rate_req_per_s '-3.0', expected requests per second"),
        ("600,3.0,1.0,Gamma,0.5", "found 5 values, expected 6"),
        ("x,3.0,1.0,Gamma,0.5,0.1", "found window_start_s 'x'"),
    ],
    ids=["unknown law", "no shape", "a rate without a law", "negative rate", "a value missing", "no start"],
)
def test_a_bad_window_is_named_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    named, counted = problems(client(tmp_path, rows=(ROWS[0], row, ROWS[2])))
    assert "line 2: " in named
    assert message in named
    assert "1 of 3 rows are bad" in counted


@pytest.mark.parametrize(
    ("rows", "tokens", "message"),
    [
        ((ROWS[0], ROWS[1], "1300,1,1,Gamma,1,1"), TOKENS, r"windows of \[600, 700\] s"),
        ((ROWS[0], ROWS[0]), TOKENS, r"windows of \[0\] s"),
        ((ROWS[1], ROWS[3]), TOKENS, "found 0 requests"),
        (ROWS, {"0": {}}, "found no distribution of input_tokens"),
        (ROWS, [], "found no object of windows"),
        (ROWS, {"zero": {}}, "found no object of windows"),
    ],
    ids=[
        "windows of two lengths",
        "a window twice",
        "always silent",
        "no tokens",
        "no object",
        "a window without start",
    ],
)
def test_a_client_that_cannot_be_drawn_from_is_refused(
    tmp_path: Path, rows: tuple[str, ...], tokens: object, message: str
) -> None:
    with pytest.raises(ScenarioError, match=message):
        servegen.read_client(client(tmp_path, rows, tokens)).draw(seed=1, start_s=0, duration_s=2400)


def test_a_client_without_its_dataset_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = client(tmp_path)
    (tmp_path / "chunk-7-dataset.json").unlink()
    with pytest.raises(ScenarioError, match="keep both files of a client together"):
        servegen.read_client(path)


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is not on this machine")
@pytest.mark.parametrize("number", [61, 73, 142, 148])
def test_the_published_clients_can_be_read_and_drawn_from(tmp_path: Path, number: int) -> None:
    path = client(tmp_path, tokens={"0": TOKENS["0"]})
    path.write_bytes((PUBLISHED / f"chunk-{number}-trace.csv").read_bytes())
    read = servegen.read_client(path)
    assert read.start_s[1] == 600
    hour = (read.start_s >= 3600) & (read.start_s < 7200)
    trace = read.draw(seed=1, start_s=3600, duration_s=3600)
    assert trace.time_s.size == pytest.approx(read.rate_per_s[hour].sum() * 600, rel=0.25)
