"""`scripts/bench` says what is wrong with a command before it measures anything."""

from __future__ import annotations

import argparse
import json
import math
import pkgutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import benchmarks
from benchmarks import simulation, soundness
from benchmarks.__main__ import main, names_of
from benchmarks.figures import Figure, at_most
from testbed.errors import PreflightError
from testbed.scenario.model import Reservation
from testbed.simulation.experiments.isolation import IsolationOptions
from testbed.simulation.replay import Replayed
from testbed.simulation.system import Scheduler


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--only", "network"], "--only network: found no --run, expected the folder of a run; name one"),
        (["--only", "netwrok"], "--only: found netwrok, expected a part of one of exactness, queues"),
        (["--only", "network", "--run", "nowhere"], "nowhere"),
    ],
    ids=["no run", "no such group", "no such folder"],
)
def test_a_benchmark_of_the_simulator_that_cannot_be_is_one_clear_error(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulation", *asked]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_every_name_of_a_benchmark_measures_something_and_nothing_else_does() -> None:
    folder = Path(benchmarks.__path__[0])
    measuring = {
        entry.name
        for entry in pkgutil.iter_modules(benchmarks.__path__)
        if "\ndef measure(" in (folder / f"{entry.name}.py").read_text(encoding="utf-8")
    }
    assert set(names_of()) == measuring


def test_a_victim_whose_tail_is_not_known_at_one_correlation_has_not_been_isolated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def isolation(asked: IsolationOptions, *_: object) -> list[SimpleNamespace]:
        known = [(c, None if c == asked.correlations[-1] else 0.07) for c in asked.correlations]
        return [SimpleNamespace(value=c, name=one, p999_s=p999_s) for one in Scheduler for c, p999_s in known]

    monkeypatch.setattr(simulation, "isolation", isolation)
    figures = list(simulation.measure(argparse.Namespace(only="isolation")))
    assert [figure.reached for figure in figures] == [False, False]


def replayed(monkeypatch: pytest.MonkeyPatch, *, verdict: str, reserved: bool) -> list[Figure]:
    """What is said of a run in which the simulator is right about two tenants, neither of them with a bound."""
    contract = Reservation(1_000_000, 900_000, 40_000, 80_000)
    tenants = [SimpleNamespace(name="a", reservation=contract if reserved else None)]
    tenants.append(SimpleNamespace(name="b", reservation=None))
    windows = [SimpleNamespace(index=1, valid=verdict != "INVALID")]
    rows = [SimpleNamespace(name=name, bound_s=None) for name in "ab"]
    borders_s = np.column_stack([np.zeros(1000), np.linspace(0.01, 0.02, 1000)])
    told = [Replayed(name, 1, borders_s, borders_s, np.full(3, 1e-3), (5, 4)) for name in "ab"]
    monkeypatch.setattr(
        simulation,
        "read_record",
        lambda _: SimpleNamespace(windows=windows, tenants=rows, scenario=None, verdict=verdict),
    )
    monkeypatch.setattr(simulation, "from_dict", lambda _: SimpleNamespace(tenants=tenants))
    monkeypatch.setattr(simulation, "replay_run", lambda _: told)
    return list(simulation.measure(argparse.Namespace(only="network", run=Path("run"))))


def test_the_packets_of_every_tenant_with_a_reservation_are_held_against_the_simulators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = replayed(monkeypatch, verdict="PASS", reserved=True)
    assert {figure.name[0] for figure in figures} == {"a"}
    assert [figure.said for figure in figures] == ["yes"] * 3
    with pytest.raises(PreflightError, match="no tenant with a reservation"):
        replayed(monkeypatch, verdict="PASS", reserved=False)


def test_packets_of_a_run_that_was_not_valid_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [figure.said for figure in replayed(monkeypatch, verdict="INVALID", reserved=True)] == ["not shown"] * 3


def test_a_figure_that_is_infinite_or_not_a_number_reaches_nothing_and_leaves_json_that_everybody_reads() -> None:
    found = [at_most("off by", value, 3.0, peer="another", peer_value=value) for value in (math.inf, math.nan)]
    assert [figure.reached for figure in found] == [False, False]
    for row in json.loads(json.dumps([figure.to_dict() for figure in found], allow_nan=False)):
        assert (row["value"], row["peer_value"]) == (None, None)


def bounds(monkeypatch: pytest.MonkeyPatch, rows: list[soundness.Row]) -> list[Figure]:
    monkeypatch.setattr(soundness, "_rows", lambda *_: rows)
    return list(soundness.measure(argparse.Namespace(scenarios=1, packets=1000, again=2, workers=1)))


def test_what_numpy_measured_leaves_json_too() -> None:
    row = at_most("a", np.float64(0.5), 1.0).to_dict()
    assert json.loads(json.dumps(row))["reached"] is True


def test_a_bound_whose_queue_is_full_is_infinitely_exceeded_and_simulated_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = soundness.Row(7, asks=True, metered=False, ratio=math.inf, broken=False, overflowed=9)
    near = soundness.Row(8, asks=False, metered=True, ratio=0.5, broken=False, overflowed=0)
    figures = {figure.name: figure for figure in bounds(monkeypatch, [full, near])}
    assert figures["percentile over its bound in those, largest"].value == math.inf
    assert "requests of seed 7" in figures["percentile over its bound in those, largest"].note
    assert "1 percentiles above their bounds, seeds 7" in figures["bounds below a lower limit"].note
    assert not figures["the same of tenants that send requests"].reached
    with pytest.raises(PreflightError, match="--scenarios 1: found no tenant with a bound"):
        bounds(monkeypatch, [])
