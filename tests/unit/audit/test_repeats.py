"""A repeated experiment gives the same figures however it was interrupted, and ends when they are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.repeats import Repeats, off_by
from testbed.errors import TestbedError

RARE = 0.02


def task(rng: np.random.Generator) -> tuple[float, ...]:
    """A rare truth, and a number that tells the draws apart."""
    return rng.random() < RARE, rng.random()


def broken(_: np.random.Generator) -> tuple[float, ...]:
    raise RuntimeError("nothing was to be drawn")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "one.py").write_text("one")
    return folder


def repeats(code: Path, most: int, kept: Path | None = None, workers: int = 1) -> Repeats:
    return Repeats(most, workers, kept, code)


def test_repetitions_end_where_every_percentage_is_known_and_not_before(code: Path) -> None:
    said = repeats(code, 5_000).until_known("rare", task, (0,))
    assert 200 < len(said) < 5_000
    assert off_by(said[:, 0]) <= 1.0
    assert off_by(said[: len(said) - 50, 0]) > 1.0 or len(said) == 200


def test_without_percentages_an_experiment_is_repeated_as_often_as_allowed(code: Path) -> None:
    assert len(repeats(code, 130).until_known("all", task)) == 130
    assert len(repeats(code, 130).until_known("fewer", task, most=70)) == 70


def test_a_percentage_is_off_by_the_longer_half_of_its_exact_interval() -> None:
    # Clopper and Pearson, 2 of 200 at 95 %: 0.0012 to 0.0357.
    assert off_by(np.repeat([1.0, 0.0], [2, 198])) == pytest.approx(2.57, abs=0.01)


def test_the_draws_do_not_depend_on_how_many_processes_compute_them(code: Path) -> None:
    one, two = (repeats(code, 120, workers=workers).until_known("same", task) for workers in (1, 2))
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(one[:, 1])) == 120


def test_an_interrupted_experiment_goes_on_to_the_figures_of_one_that_was_not(code: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    whole = repeats(code, 250).until_known("a", task)
    begun = repeats(code, 100, kept).until_known("a", task)
    np.testing.assert_array_equal(begun, whole[:100])
    np.testing.assert_array_equal(repeats(code, 250, kept).until_known("a", task), whole)
    np.testing.assert_array_equal(repeats(code, 250, kept).until_known("a", broken), whole)


def test_a_batch_that_was_cut_off_while_it_was_written_is_drawn_again(code: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    whole = repeats(code, 150, kept).until_known("a", task)
    text = kept.read_text()
    kept.write_text(text[:-20])
    assert json.loads(text.splitlines()[0])
    np.testing.assert_array_equal(repeats(code, 150, kept).until_known("a", task), whole)
    assert kept.read_text() == text


def test_results_of_other_code_are_refused(code: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    repeats(code, 50, kept).until_known("a", task)
    (code / "one.py").write_text("another")
    with pytest.raises(TestbedError, match="results of other code"):
        repeats(code, 50, kept)
