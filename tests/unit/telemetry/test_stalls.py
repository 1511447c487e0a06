from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import FidelityError
from testbed.telemetry import stalls

MS = 1_000_000


def record(
    core: int,
    at_ms: list[int],
    late_ms: list[int],
    *,
    unrecorded: int = 0,
    clock_ms: Sequence[tuple[int, int]] = (),
) -> stalls.StallRecord:
    """What a core saw: overruns, and how far apart the clocks were from which moment on."""
    at_ns, late_ns = (np.array(values, np.int64) * MS for values in (at_ms, late_ms))
    moves = np.array(clock_ms, np.int64).reshape(-1, 2).T * MS
    return stalls.StallRecord(core, 500, 0, 2000 * MS, at_ns, late_ns, unrecorded, *moves)


def assert_same(one: stalls.StallRecord, other: stalls.StallRecord) -> None:
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def test_records_of_all_cores_are_read_back_unchanged(tmp_path: Path) -> None:
    written = [
        record(0, [8, 400], [20, 3], clock_ms=[(0, 7)]),
        record(1, [], []),
        record(3, [12], [1], unrecorded=2, clock_ms=[(0, 7), (80, 8), (90, 7)]),
    ]
    stalls.save(tmp_path / "stalls.npz", written)
    found = stalls.load(tmp_path / "stalls.npz")
    assert len(found) == 3
    for one, other in zip(found, written, strict=True):
        assert_same(one, other)
    assert (tmp_path / "stalls.npz").stat().st_mode & 0o777 == 0o600


def test_what_lies_outside_a_window_does_not_count_in_it() -> None:
    inside = record(0, [100, 196, 240, 300], [3, 20, 5, 9]).during(200 * MS, 300 * MS)
    assert (inside.at_ns // MS).tolist() == [196, 240]
    assert (inside.duration_s, inside.longest_s) == (0.1, 0.02)
    assert inside.stalled_s == pytest.approx(0.025)


def test_a_window_wider_than_the_record_does_not_stretch_it() -> None:
    assert record(0, [], []).during(-10 * MS, 9000 * MS).duration_s == 2.0


def test_a_core_without_overruns_was_never_away() -> None:
    assert (record(0, [], []).longest_s, record(0, [], []).stalled_s) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("begin_ms", "end_ms", "moved_ms"),
    [(0, 2000, 3), (0, 100, 0), (350, 450, 1), (450, 2000, 3), (700, 2000, 0)],
    ids=["all of it", "before it moved", "while it was back", "from further away", "after it had moved"],
)
def test_a_clock_that_moved_and_came_back_moved_while_it_did(begin_ms: int, end_ms: int, moved_ms: int) -> None:
    seen = record(0, [], [], clock_ms=[(0, 10), (200, 12), (400, 13), (600, 10)])
    assert seen.during(begin_ms * MS, end_ms * MS).clock_moved_s == pytest.approx(moved_ms / 1e3)
    assert record(0, [], [], clock_ms=[(0, 10)]).clock_moved_s == 0.0


def test_who_never_compared_the_clocks_has_not_seen_them_keep_together() -> None:
    assert record(0, [], []).clock_moved_s == np.inf


@pytest.mark.parametrize(
    ("seen", "noted"),
    [
        pytest.param([(0, 200), (2 * MS, 200), (0, 200)], [0, 2 * MS, 0], id="a step"),
        pytest.param([(0, 45_000), (2 * MS, 60_000), (0, 45_000)], [0, 2 * MS, 0], id="a step, by slow readings"),
        pytest.param([(0, 200), (90_000, 180_000), (-90_000, 180_000)], [0], id="slow readings that are off"),
        pytest.param([(90_000, 180_000), (0, 200), (60_000, 200)], [0, 60_000], id="a better reading after a slow one"),
        pytest.param([(0, 200), (2 * MS, 300_000)], [0], id="a reading that something came into"),
    ],
)
def test_clocks_have_moved_if_they_are_further_apart_than_reading_both_may_be_off(
    seen: Sequence[tuple[int, int]], noted: Sequence[int]
) -> None:
    state, moves = np.zeros(6, np.int64), np.zeros((2, 8), np.int64)
    for number, (offset_ns, took_ns) in enumerate(seen):
        stalls._compare(state, moves, number * stalls.PERIOD_NS, offset_ns, took_ns)
    assert moves[1, : state[4]].tolist() == noted


@pytest.mark.parametrize("content", [None, b"", b"not numpy"], ids=["missing", "empty", "foreign"])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "stalls.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FidelityError, match="no record of stalls"):
        stalls.load(path)
