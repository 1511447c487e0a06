"""`testbed experiment`: the points that scripts rely on, and what makes no sense is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from testbed.cli.app import app
from testbed.errors import PreflightError
from testbed.simulation.experiments.isolation import CORRELATIONS, SCHEDULERS
from testbed.simulation.experiments.table import WIDTH


def test_points_have_what_was_varied_what_was_compared_and_limits(tmp_path: Path) -> None:
    asked = ["experiment", "isolation", "--replications", "2", "--duration", "5", "--out", str(tmp_path)]
    ended = CliRunner().invoke(app, [*asked, "--json"])
    assert ended.exit_code == 0
    points = json.loads(ended.stdout)
    assert [(point["correlation"], point["scheduler"]) for point in points] == [
        (correlation, str(scheduler)) for correlation in CORRELATIONS for scheduler in SCHEDULERS
    ]
    wanted = {"p999_s", "p999_interval_s", "compliance", "admitted", "bound_s", "utilisation_interval"}
    assert all(wanted <= point.keys() for point in points)
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0
    assert max(len(line) for line in shown.stdout.splitlines()) <= WIDTH
    heading, _, _, *body = shown.stdout.splitlines()
    assert heading.split()[:3] == ["correlation", "scheduler", "bound"]
    rows = [line.split()[:2] for line in body if line.split()[1:2] and line.split()[1] in {*map(str, SCHEDULERS)}]
    assert rows == [[f"{point['correlation']:g}", point["scheduler"]] for point in points]


def test_a_table_is_as_wide_as_the_terminal(tmp_path: Path) -> None:
    asked = ["experiment", "isolation", "--replications", "2", "--duration", "1", "--out", str(tmp_path)]
    # What tells rich that it writes to a terminal, and how wide that is.
    shown = CliRunner().invoke(app, asked, env={"TTY_COMPATIBLE": "1", "COLUMNS": "70", "NO_COLOR": "1"})
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout)
    assert max(map(len, text.splitlines())) <= 70
    assert "left out for want of room" in text


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = CliRunner().invoke(app, ["experiment", "isolation", "--duration", "5", "--out", str(tmp_path / "file")])
    assert isinstance(ended.exception, PreflightError)
    assert "choose another folder with --out" in str(ended.exception)


def test_what_only_a_simulation_has_is_refused_on_a_network_before_anything_happens() -> None:
    for option, hint in (("--replications", "3"), ("--workers", "2")):
        ended = CliRunner().invoke(app, ["experiment", "overload", "--on", "network", option, hint])
        assert ended.exit_code == 2
        assert option in ended.stderr
        assert "expected --on simulation" in " ".join(ended.stderr.replace("│", " ").split())


@pytest.mark.parametrize("asked", [["--at-most", "0"], ["--isolate"], ["--keep-awake"]])
def test_what_only_a_network_has_is_refused_in_a_simulation_before_anything_happens(
    asked: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    ended = CliRunner().invoke(app, ["experiment", "isolation", "--duration", "5", "--out", str(folder), *asked])
    assert ended.exit_code == 2
    assert asked[0] in ended.stderr
    assert "expected --on network" in " ".join(ended.stderr.replace("│", " ").split())
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "said"), [("points.gif", "expected .svg, .png or .pdf"), ("no/points.svg", "make it")]
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_simulated(
    tmp_path: Path, name: str, said: str
) -> None:
    folder = tmp_path / "out"
    asked = ["experiment", "isolation", "--duration", "5", "--out", str(folder), "--plot", str(tmp_path / name)]
    ended = CliRunner().invoke(app, asked)
    assert ended.exit_code == 2
    assert said in " ".join(ended.stderr.replace("│", " ").split())
    assert not folder.exists()
