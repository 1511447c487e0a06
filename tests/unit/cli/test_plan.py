"""`testbed plan` answers every intent and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from testbed.cli.app import app
from testbed.scenario.problems import ScenarioFileError

FEDERATION = Path(__file__).parents[3] / "topologies/federation.yaml"


def test_the_answer_in_json_has_what_others_rely_on() -> None:
    answer = CliRunner().invoke(app, ["plan", str(FEDERATION), "--json"])
    assert answer.exit_code == 0, answer.output
    decisions = {one["tenant"]: one for one in json.loads(answer.output)["decisions"]}
    assert len(decisions) == 6
    cashier = decisions["cashier"]
    assert cashier["admitted"] is True
    assert (cashier["model"], cashier["site"]) == ("digits-medium", "access")
    assert cashier["bound_s"] <= cashier["deadline_s"] == 0.025
    assert cashier["price"] > 0
    assert [one["domain"] for one in cashier["reservations"]] == ["access"]
    assert sum(one["delay_s"] for one in cashier["budget"]) == pytest.approx(cashier["bound_s"])
    trader = decisions["trader"]
    assert trader["admitted"] is False
    assert "deadline" in trader["refused_because"]
    assert trader["nearest_feasible"]["deadline_s"] > 0.01


def test_the_answer_for_people_says_who_serves_whom_and_why_not() -> None:
    answer = CliRunner().invoke(app, ["plan", str(FEDERATION)], env={"COLUMNS": "200"})
    assert answer.exit_code == 0, answer.output
    assert "metro-scenic" in answer.output
    assert "trader: refused because of a deadline of 10 ms, while" in answer.output
    assert "hobby: refused because of a price of at most 0.1, while" in answer.output


def test_the_same_file_is_planned_alike_every_time() -> None:
    first, second = (CliRunner().invoke(app, ["plan", str(FEDERATION), "--json"]).output for _ in range(2))
    assert first == second


def test_the_schema_can_be_had() -> None:
    answer = CliRunner().invoke(app, ["plan", "--schema"])
    assert json.loads(answer.output)["title"] == "Tail latency testbed federation"


def test_a_file_that_is_wrong_is_refused_with_all_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nsegments: []\n")
    answer = CliRunner().invoke(app, ["plan", str(path)])
    assert isinstance(answer.exception, ScenarioFileError)
    assert len(answer.exception.problems) == 2


def test_no_file_is_a_wrong_command() -> None:
    assert CliRunner().invoke(app, ["plan"]).exit_code == 2


def test_validate_knows_federations_too() -> None:
    answer = CliRunner().invoke(app, ["validate", str(FEDERATION)])
    assert answer.exit_code == 0, answer.output
    assert "metro: metro-direct" in answer.output
    as_json = CliRunner().invoke(app, ["validate", str(FEDERATION), "--json"])
    assert json.loads(as_json.output)["ok"] is True
