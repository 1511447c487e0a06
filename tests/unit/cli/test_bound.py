"""`testbed bound`: the interface that scripts rely on, and the picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from testbed.cli import main
from testbed.cli.app import app
from testbed.scenario.loader import load

DEMO = Path(__file__).parents[3] / "topologies" / "demo.yaml"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["bound", str(DEMO), *arguments])


def test_json_names_tenant_probability_bound_method_assumptions_and_the_budget_per_domain(run) -> None:
    result = run("--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    tenants = {tenant["name"]: tenant for tenant in printed["tenants"]}
    scenario = load(DEMO)
    packets = [tenant for tenant in scenario.tenants if tenant.requests is None]
    promised = {tenant.name: tenant.promise.epsilon for tenant in packets if tenant.promise}
    assert printed["left_out"] == [tenant.name for tenant in scenario.tenants if tenant.requests is not None]
    assert {name: tenant["epsilon"] for name, tenant in tenants.items()} == promised
    for tenant in tenants.values():
        assert tenant["assumptions"]
        assert all(isinstance(clause, str) for clause in tenant["assumptions"])
        domains = [domain.name for domain in scenario.domains]
        assert [line["domain"] for line in tenant["budget"]] == ["own burst", *domains]
        assert all(set(line) == {"domain", "epsilon", "delay_s", "price_per_s"} for line in tenant["budget"])
        # The budget is the network's; the bound adds the sender's allowance.
        assert math.fsum(line["delay_s"] for line in tenant["budget"]) < tenant["bound_s"]
        assert math.fsum(line["epsilon"] for line in tenant["budget"]) <= tenant["epsilon"]
    assert tenants["alpha"]["method"] == "martingale"
    assert tenants["bravo"]["method"] == "deterministic"


def test_the_table_explains_every_bound(run) -> None:
    result = run()
    assert result.exit_code == 0
    for phrase in ("alpha", "It is made of:", "It assumes that", "Rejected: deterministic"):
        assert phrase in result.stdout


def test_tenants_that_send_requests_are_left_out_and_named() -> None:
    result = CliRunner().invoke(app, ["bound", str(DEMO), "--json"])
    assert json.loads(result.stdout)["left_out"] == ["vision"]
    assert "left out: vision: requests, whose bounds need what a warm-up counts" in result.stderr


def test_where_only_requests_and_best_effort_are_left_nothing_is_shown_and_it_is_said_who_has_bounds_of_requests(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["testbed", "bound", str(DEMO.with_name("requests.yaml"))])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert "tenants vision, bulk: found requests" in said.err


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_plot_writes_a_picture_in_the_format_that_was_asked_for(run, suffix: str) -> None:
    result = run("--plot", "--out", f"bounds{suffix}")
    assert result.exit_code == 0
    content = Path(f"bounds{suffix}").read_bytes()
    assert content.startswith({".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix])


def test_the_picture_shows_every_tenant_with_a_bound_and_is_the_same_each_time(run) -> None:
    first = run("--plot", "--json")
    assert json.loads(first.stdout)["tenants"]
    drawn = Path("demo-bound.svg").read_text()
    text = "".join(ET.fromstring(drawn).itertext())
    for phrase in ("alpha (martingale)", "bravo (deterministic)", "charlie", "deadline", "demo: bounds before any run"):
        assert phrase in text
    assert "bulk" not in text
    run("--plot")
    assert Path("demo-bound.svg").read_text() == drawn


def test_a_suffix_that_names_no_picture_is_refused_before_anything_is_written(run) -> None:
    result = run("--plot", "--out", "bounds.txt")
    assert result.exit_code == 2
    assert "expected .svg, .png or .pdf" in " ".join(result.output.split())
    assert not Path("bounds.txt").exists()
