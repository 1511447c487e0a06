"""`scripts/bench` says what is wrong with a command before it measures anything."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest

import benchmarks
from benchmarks.__main__ import main, names_of


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
