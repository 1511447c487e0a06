"""What a run of requests cannot begin with: one clear error for each, and nothing of a run is left or was ever made."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.emulation.journal import RUNS
from tests.integration.conftest import ROOT

SCENARIO = """
name: refused
warm-up: 3 s
duration: 5 s
allow-zero-delay: true
domains: [{{name: only, link-rate: 20 Mbit/s, compute: true}}]
tenants:
  - name: vision
    arrivals: {arrivals}
    requests: {requests}
    reservation: {{rate: 5 Mbit/s}}
    promise: {{deadline: 300 ms, epsilon: 0.02}}
"""
POISSON = "{model: poisson, rate: 50 requests/s, size: 4 kB}"
ASKED = "{model: digits-small}"
TRACE = "{{model: trace, file: {file}, format: azure-llm, bits-per-token: {bits}, speed-up: 0.5}}"
ROWS = ["TIMESTAMP,ContextTokens,GeneratedTokens"] + [
    f"2023-11-16 18:17:{second:02}.0000000,{100 * second},7" for second in range(3, 10)
]


def run(
    folder: Path, *, arrivals: str = POISSON, requests: str = ASKED, first: str = ""
) -> subprocess.CompletedProcess[str]:
    """`testbed run`, with statements that Python executes first; it says nothing of a result and leaves no run."""
    scenario, out = folder / "refused.yaml", folder / "out"
    scenario.write_text(SCENARIO.format(arrivals=arrivals, requests=requests), encoding="utf-8")
    program = f"{first}\nfrom testbed.cli import main; main()"
    command = [sys.executable, "-c", program, "run", str(scenario), "--out", str(out)]
    before = journals()
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)
    assert ended.stdout == ""
    assert not out.exists() or list(out.iterdir()) == []
    assert journals() == before
    return ended


def journals() -> list[str]:
    return sorted(entry.name for entry in RUNS.iterdir()) if RUNS.exists() else []


@pytest.mark.parametrize(
    ("requests", "arrivals", "found"),
    [
        ("{model: digits-huge}", POISSON, "digits-huge"),
        (ASKED, "{model: poisson, rate: 1 requests/s, size: 1001 kB}", "1001 kB"),
        ("{model: digits-small, images: 40}", POISSON, "40 in a message of"),
        ("{model: digits-small, images: 0}", POISSON, "found 0"),
    ],
    ids=["an unknown model", "a request larger than the server accepts", "images beyond the message", "no images"],
)
def test_requests_that_no_server_would_answer_are_refused_when_the_file_is_read(
    tmp_path: Path, requests: str, arrivals: str, found: str
) -> None:
    ended = run(tmp_path, requests=requests, arrivals=arrivals)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert found in line
    assert "expected" in line


@pytest.mark.parametrize(
    ("rows", "bits", "found"),
    [
        (
            [*ROWS[:3], "yesterday,12,7", *ROWS[3:6], "2023-11-16 18:17:09.0000000,-4,7"],
            32,
            ("line 4", "line 8", "2 of 7 rows are bad"),
        ),
        (ROWS, 20_000, ("too large",)),
    ],
    ids=["bad rows", "requests that are too large"],
)
def test_a_trace_that_cannot_be_asked_for_is_refused_with_its_lines_and_how_many(
    tmp_path: Path, rows: list[str], bits: int, found: tuple[str, ...]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(rows) + "\n", encoding="utf-8")
    ended = run(tmp_path, arrivals=TRACE.format(file=trace, bits=bits))
    assert ended.returncode == 2
    assert all(part in ended.stderr for part in found), ended.stderr


@pytest.mark.network
@pytest.mark.untimed
def test_a_host_that_does_not_limit_real_time_processes_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "sched_rt_runtime_us").write_text("-1\n")
    (tmp_path / "sched_rt_period_us").write_text("1000000\n")
    there = f"from pathlib import Path; part.require_limited.__defaults__ = (Path({str(tmp_path)!r}),)"
    ended = run(tmp_path, first=f"import testbed.emulation.placement as part; {there}")
    assert ended.returncode == 2
    assert "kernel.sched_rt_runtime_us: found -1" in ended.stderr


@pytest.mark.network
@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("LARGEST_REQUEST_BYTES = 2_000", r"RESOURCE_EXHAUSTED .* in 4000 bytes, the window's largest request"),
        ("WORKERS = 0", r"(?s)server-.* it last said:.*--workers: found '0', expected a whole number of at least 1"),
        ("SERVER_START_S = 0.1", r"server-.* was not ready after 0\.1 s"),
    ],
    ids=["it accepts less than is asked", "it refuses to start", "it is not ready in time"],
)
def test_a_server_that_will_not_answer_ends_the_run_before_anything_is_measured(
    tmp_path: Path, change: str, found: str
) -> None:
    constant, _, _ = change.partition(" = ")
    ended = run(tmp_path, first=f"import testbed.run.requests as part; part.{constant}; part.{change}")
    assert ended.returncode == 2
    assert re.search(found, ended.stderr), ended.stderr
    assert ended.stderr.count("testbed: ") == 1
