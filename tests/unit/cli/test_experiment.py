"""`testbed experiment`: the points that scripts rely on, and what makes no sense is said."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from testbed.cli.app import app
from testbed.simulation.experiments.isolation import CORRELATIONS, SCHEDULERS


def test_points_have_what_was_varied_what_was_compared_and_limits() -> None:
    ended = CliRunner().invoke(app, ["experiment", "isolation", "--replications", "2", "--duration", "5", "--json"])
    assert ended.exit_code == 0
    points = json.loads(ended.stdout)
    assert [(point["correlation"], point["scheduler"]) for point in points] == [
        (correlation, str(scheduler)) for correlation in CORRELATIONS for scheduler in SCHEDULERS
    ]
    wanted = {"p999_s", "p999_interval_s", "compliance", "admitted", "bound_s", "utilisation_interval"}
    assert all(wanted <= point.keys() for point in points)


def test_what_only_a_simulation_has_is_refused_on_a_network_before_anything_happens() -> None:
    for option, hint in (("--replications", "3"), ("--workers", "2")):
        ended = CliRunner().invoke(app, ["experiment", "overload", "--on", "network", option, hint])
        assert ended.exit_code == 2
        assert option in ended.stderr
        assert "expected --on simulation" in " ".join(ended.stderr.replace("│", " ").split())
