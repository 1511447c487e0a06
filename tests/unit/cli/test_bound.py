"""`testbed bound`: the interface that scripts rely on, and the picture."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from testbed.cli import main
from testbed.cli.app import app
from testbed.management.bounds import DECLARED_HOST_S
from testbed.scenario.loader import load
from testbed.simulation.bounds import bounds_on_paper
from testbed.simulation.choices import Choices
from testbed.simulation.known import known
from testbed.simulation.network import network

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
    promised = {tenant.name: tenant.promise.epsilon for tenant in scenario.tenants if tenant.promise}
    assert {name: tenant["epsilon"] for name, tenant in tenants.items()} == promised
    assert {tenant["why"] for tenant in tenants.values()} == {None}
    vision = tenants.pop("vision")
    assert 0 < vision["network_bound_s"] < vision["bound_s"]
    assert [line["domain"] for line in vision["budget"]][-1] == "access back"
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


def test_requests_have_the_bound_of_a_simulation_with_what_is_declared_for_the_host() -> None:
    scenario = load(DEMO)
    result = CliRunner().invoke(app, ["bound", str(DEMO), "--json"])
    printed = {tenant["name"]: tenant["bound_s"] for tenant in json.loads(result.stdout)["tenants"]}
    simulated = network(scenario, Choices(), known(scenario)).bounds
    assert set(printed) == set(simulated)
    for name, bound in simulated.items():
        # The host's allowance, and what its share of the risk costs the others.
        assert 1.0 - 1e-9 <= (printed[name] - DECLARED_HOST_S) / bound.bound_s < 1.25


def test_whose_requests_nobody_knows_how_long_to_compute_is_in_the_table_with_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "asking.yaml"
    text = DEMO.read_text(encoding="utf-8").replace(", work: {mean: 1.2 ms, cv: 0.6}", "")
    assert text != DEMO.read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["bound", str(file)])
    assert result.exit_code == 0
    said = " ".join(result.stdout.split())
    assert "vision" in said
    assert "nothing that says" in said
    rows = json.loads(CliRunner().invoke(app, ["bound", str(file), "--json"]).stdout)["tenants"]
    (vision,) = [row for row in rows if row["name"] == "vision"]
    assert (vision["bound_s"], vision["method"]) == (None, None)
    assert vision["why"].endswith("add it, or name the run's folder with --measured")
    assert all(row["bound_s"] for row in rows if row is not vision)


def test_a_neighbour_at_the_server_of_whom_nothing_is_known_leaves_no_bound() -> None:
    scenario = load(DEMO)
    (vision,) = [tenant for tenant in scenario.tenants if tenant.requests]
    assert vision.requests is not None
    stranger = replace(vision, name="stranger", requests=replace(vision.requests, work=None), reservation=None)
    paper = bounds_on_paper(replace(scenario, tenants=(*scenario.tenants, replace(stranger, promise=None))))
    assert "how long the same server computes the requests of stranger" in paper.missing["vision"]
    assert "alpha" in paper.found


def test_where_only_best_effort_is_left_nothing_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bulk.yaml"
    file.write_text(
        "name: bulk\ndomains: [{name: only, link-rate: 10 Mbit/s, compute: true}]\n"
        "tenants: [{name: bulk, arrivals: {model: poisson, rate: 1 Mbit/s, size: 500 B}}]\n",
        encoding="utf-8",
    )
    monkeypatch.setattr("sys.argv", ["testbed", "bound", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert "tenants bulk: found best effort only, which has no bound" in said.err


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


def test_a_picture_has_no_date_in_it(run) -> None:
    run("--plot", "--out", "bounds.pdf")
    assert b"CreationDate" not in Path("bounds.pdf").read_bytes()


def test_a_suffix_that_names_no_picture_is_refused_before_anything_is_written(run) -> None:
    result = run("--plot", "--out", "bounds.txt")
    assert result.exit_code == 2
    assert "expected .svg, .png or .pdf" in " ".join(result.output.split())
    assert not Path("bounds.txt").exists()
