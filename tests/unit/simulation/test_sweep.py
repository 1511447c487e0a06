"""A sweep simulates every point of its grid once, whatever interrupts it and whoever works on it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import testbed
from testbed.cli.app import app
from testbed.errors import PreflightError, ScenarioError
from testbed.report.record import RECORD_NAME, read_record
from testbed.run.progress import Silent
from testbed.scenario.loader import load
from testbed.scenario.model import OnOffArrivals
from testbed.simulation.choices import Choices
from testbed.simulation.grid import Axis, axis, points, vary_choices, vary_file, vary_scenario
from testbed.simulation.inputs import code_digest
from testbed.simulation.pipeline import Options
from testbed.simulation.sweep import COLUMNS, Point, SweepOptions, sweep
from testbed.simulation.system import Scheduler
from tests.unit.simulation.commands import COMMAND, ended
from tests.unit.simulation.test_pipeline import DEMO, wait_for

AXES = [Axis("load", ("0.5", "0.8")), Axis("scheduler", ("reserved", "fifo"))]


def swept(out: Path, **more: object) -> list[dict[str, Any]]:
    return sweep(DEMO, AXES, SweepOptions(out=out, packets=3000, **more), Silent())  # type: ignore[arg-type]


def test_a_grid_is_every_combination() -> None:
    assert axis("load=0.5, 0.9") == Axis("load", ("0.5", "0.9"))
    found = points(AXES)
    assert found[0] == (("load", "0.5"), ("scheduler", "reserved"))
    assert found[1] == (("load", "0.5"), ("scheduler", "fifo"))
    assert len(found) == 4


@pytest.mark.parametrize("text", ["load", "load=", "=1", "load=1,,2"])
def test_an_axis_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError, match="KEY=VALUE"):
        axis(text)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ScenarioError, match="twice"):
        points([Axis("load", ("1",)), Axis("load", ("2",))])


def test_settings_reach_the_file_by_names(tmp_path: Path) -> None:
    text = vary_file(DEMO, (("tenants.flood.arrivals.peak", "12 Mbit/s"), ("seed", "99"), ("load", "2")))
    path = tmp_path / "scenario.yaml"
    path.write_text(text, encoding="utf-8")
    scenario = load(path)
    flood = scenario.tenants[1].arrivals
    assert isinstance(flood, OnOffArrivals)
    assert flood.peak_bps == 12e6
    assert scenario.seed == 99
    faster = vary_scenario(scenario, (("load", "2"),)).tenants[1].arrivals
    assert faster == OnOffArrivals(24e6, flood.mean_on_s / 2, flood.mean_off_s / 2, flood.size_bits)


@pytest.mark.parametrize("key", ["tenants.nobody.arrivals.peak", "nowhere.at.all", "seed.deeper"])
def test_a_path_that_leads_nowhere_is_refused(key: str) -> None:
    with pytest.raises(ScenarioError, match="grid"):
        vary_file(DEMO, ((key, "1"),))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scheduler", "magic"),
        ("loss", "2"),
        ("loss", "-0.1"),
        ("correlation", "-0.5"),
        ("correlation", "1.1"),
        ("correlation", "nan"),
        ("excess-ms", "much"),
        ("excess-ms", "-0.5"),
        ("excess-ms", "inf"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(key: str, value: str) -> None:
    with pytest.raises(ScenarioError, match=key):
        vary_choices(Choices(), ((key, value),))


@pytest.mark.parametrize("value", ["0", "-0.5", "inf", "nan", "heavy"])
def test_a_load_that_makes_no_sense_is_refused(value: str) -> None:
    with pytest.raises(ScenarioError, match="load"):
        vary_scenario(load(DEMO), (("load", value),))


def test_a_setting_that_makes_no_sense_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="load"):
        sweep(DEMO, [Axis("load", ("0.5", "0"))], SweepOptions(out=tmp_path / "sweep", packets=4000), Silent())
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("tenants.flood.arrivals.peak=banana", r'smoke.yaml:\d+: tenant flood: arrivals.peak: found "banana"'),
        ("nonsense=3", r"smoke.yaml:\d+: scenario: found the unknown key nonsense"),
    ],
)
def test_a_value_that_the_file_does_not_take_is_named_with_it_and_leaves_no_folder(
    tmp_path: Path, setting: str, said: str
) -> None:
    with pytest.raises(ScenarioError) as error:
        sweep(DEMO, [Axis("load", ("0.5",)), axis(setting)], SweepOptions(out=tmp_path / "sweep"), Silent())
    (problem,) = error.value.problems
    assert re.search(f"^grid: load=0.5, {re.escape(setting)}: {re.escape(str(DEMO.parent))}/{said}", problem)
    assert not (tmp_path / "sweep").exists()


def test_choices_of_a_point_override_those_of_the_sweep() -> None:
    found = vary_choices(Choices(Scheduler.FIFO, loss=0.1), (("scheduler", "weighted"), ("correlation", "0.5")))
    assert (found.scheduler, found.strength, found.loss) == (Scheduler.WEIGHTED, 0.5, 0.1)


def test_rows_say_of_each_tenant_what_a_run_says(tmp_path: Path) -> None:
    rows = swept(tmp_path)
    assert [row["settings"] for row in rows] == [dict(settings) for settings in points(AXES)]
    for number, row in enumerate(rows, start=1):
        record = read_record(tmp_path / f"point-{number}")
        assert row["packets"] == record.packets
        for tenant, recorded in zip(row["tenants"], record.tenants, strict=True):
            assert set(tenant) == set(COLUMNS)
            assert tenant["p999_s"] == recorded.p999_s
    assert json.loads((tmp_path / "sweep.json").read_text())["rows"] == rows


def test_a_sweep_shows_broken_bounds_and_says_who_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = swept(tmp_path / "sweep")
    rows[0]["tenants"][0]["bound_broken"] = True
    for row in rows:
        row["tenants"][1]["unbound"] = "a queue"
    rows[1]["tenants"][0]["unbound"] = "a meter"
    monkeypatch.setattr("testbed.cli.sweep.sweep_grid", lambda *_: rows)
    grid = [argument for axis in AXES for argument in ("--grid", f"{axis.key}={','.join(axis.values)}")]
    said = CliRunner().invoke(app, ["sweep", str(DEMO), *grid, "--out", str(tmp_path / "sweep")]).stdout
    assert said.count("BOUND BROKEN") == 1
    name, other = (tenant["name"] for tenant in rows[0]["tenants"][:2])
    assert f"no bound: {other}: a queue" in said
    settings = ", ".join(f"{key}={value}" for key, value in rows[1]["settings"].items())
    assert f"no bound: {name} at {settings}: a meter" in said


def test_the_number_of_workers_changes_no_row(tmp_path: Path) -> None:
    assert swept(tmp_path / "several", workers=2) == swept(tmp_path / "one")


def test_a_finished_point_is_not_simulated_again_unless_it_changed(tmp_path: Path) -> None:
    rows = swept(tmp_path)
    marks = {path: path.stat().st_mtime_ns for path in tmp_path.glob("point-*/run.json")}
    assert swept(tmp_path) == rows
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    changed = sweep(DEMO, AXES, SweepOptions(out=tmp_path, packets=4000), Silent())
    assert all(path.stat().st_mtime_ns > mark for path, mark in marks.items())
    assert changed != rows


def test_a_point_changes_with_the_code_and_with_what_was_measured_but_not_with_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(run: Path | None) -> str:
        return Point((), "a scenario", Options(out=tmp_path, measured=run)).digest

    runs = [tmp_path / name for name in ("one", "the same", "another")]
    for run, said in zip(runs, ("measured", "measured", "measured again"), strict=True):
        run.mkdir()
        (run / RECORD_NAME).write_text(said, encoding="utf-8")
    one, same, another = map(digest, runs)
    assert one == same
    assert len({digest(None), one, another}) == 3
    monkeypatch.setattr("testbed.simulation.sweep.code_digest", lambda: "another")
    assert digest(runs[0]) != one


TRACED = """
name: traced
duration: 5 s
allow-zero-delay: true
domains: [{name: only, link-rate: 10 Mbit/s, compute: true}]
tenants: [{name: a, site: only, arrivals: {model: trace, file: packets.csv, format: packets}}]
"""


def test_a_point_and_a_window_change_with_what_is_in_a_trace(tmp_path: Path) -> None:
    file, trace = tmp_path / "traced.yaml", tmp_path / "packets.csv"
    file.write_text(TRACED, encoding="utf-8")

    def sent(gap_s: float) -> tuple[int, str]:
        rows = "".join(f"{gap_s * row:.3f},500\n" for row in range(100))
        trace.write_text(f"time_s,size_bytes\n{rows}", encoding="utf-8")
        (row,) = sweep(file, [Axis("seed", ("1",))], SweepOptions(out=tmp_path / "out"), Silent())
        left = json.loads((tmp_path / "out" / "point-1" / "window-1" / "window.json").read_text(encoding="utf-8"))
        return row["packets"], left["digest"]

    (few, before), (more, after) = sent(0.01), sent(0.005)
    assert more == 2 * few
    assert before != after


def test_the_digest_of_the_code_is_that_of_every_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "deep" / "module.py"
    module.parent.mkdir()
    monkeypatch.setattr(testbed, "__file__", str(tmp_path / "__init__.py"))
    found = set()
    for text in ("one", "another"):
        module.write_text(text, encoding="utf-8")
        found.add(code_digest.__wrapped__())
    module.rename(module.with_name("another.py"))
    found.add(code_digest.__wrapped__())
    assert len(found) == 3


def test_a_sweep_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    grid = ["--grid", "load=0.5,0.6,0.7,0.8", "--packets", "300000"]
    command = ["sweep", str(DEMO), *grid, "--out", str(tmp_path / "killed"), "--json"]
    process = subprocess.Popen([*COMMAND, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "killed", "point-1/point.json", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed/point-*/point.json")}
    assert 1 <= len(kept) < 4
    resumed = ended(*command)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = ended("sweep", str(DEMO), *grid, "--out", str(tmp_path / "fresh"), "--json")
    assert (resumed.returncode, whole.returncode) == (0, 0), resumed.stderr + whole.stderr
    assert json.loads(resumed.stdout) == json.loads(whole.stdout)


class FakeRay:
    """As much of Ray's interface as a sweep uses, carried out on the spot and in the reverse order."""

    def init(self, **_: object) -> None: ...

    def remote(self, **_: object) -> Any:
        return lambda function: type("Remote", (), {"remote": staticmethod(lambda *args: (function, args))})

    def wait(self, waiting: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        return waiting[-1:], waiting[:-1]

    def get(self, done: list[Any]) -> list[Any]:
        return [function(*args) for function, args in done]


def test_ray_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay())  # type: ignore[arg-type]
    assert swept(tmp_path / "ray", on_ray=True) == swept(tmp_path / "processes")


def test_without_ray_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # type: ignore[arg-type]
    with pytest.raises(PreflightError, match=r"\[ray\]"):
        swept(tmp_path, on_ray=True)
