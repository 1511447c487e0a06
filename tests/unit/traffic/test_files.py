"""Schedules, specifications and records survive their files; what is no such file is refused."""

import errno
import json
import stat
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from testbed.traffic.records import NOT_ATTEMPTED, SenderSpec, SendRecord
from testbed.traffic.schedules import Schedule, save_arrays

SPEC = SenderSpec(3, "10.1.0.3", "10.2.0.1", "/x/schedule.npz", "/x/record.npz", 1_700_000_000_000_000_000)


def three_packets() -> Schedule:
    return Schedule(
        np.array([0.0, 0.5, 0.5]), np.array([800, 1600, 800], dtype=np.int32), np.array([True, False, True])
    )


def record() -> SendRecord:
    return SendRecord(
        3, 10, 1_700_000_000, three_packets(), np.array([1e-4, np.nan, 0.75]), np.array([0, errno.ENOBUFS, 0], np.int32)
    )


def test_a_schedule_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = three_packets()
    saved.save(tmp_path / "s.npz")
    loaded = Schedule.load(tmp_path / "s.npz")
    assert np.array_equal(loaded.time_s, saved.time_s)
    assert np.array_equal(loaded.size_bits, saved.size_bits)
    assert np.array_equal(loaded.last_of_request, saved.last_of_request)
    assert loaded.size_bits.dtype == np.int32


def test_only_the_owner_can_read_what_is_saved_and_nothing_else_is_left(tmp_path: Path) -> None:
    three_packets().save(tmp_path / "s.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["s.npz"]
    assert stat.S_IMODE((tmp_path / "s.npz").stat().st_mode) == 0o600


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    three_packets().save(tmp_path / "s.npz")
    before = (tmp_path / "s.npz").read_bytes()

    class Broken(np.ndarray):
        def __array_function__(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "no space")

        def __array__(self, *_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        save_arrays(tmp_path / "s.npz", {"time_s": np.zeros(3).view(Broken)})
    assert [file.name for file in tmp_path.iterdir()] == ["s.npz"]
    assert (tmp_path / "s.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("time_s", "sizes"),
    [([0.0, 1.0], 3), ([1.0, 0.5], 2), ([-1.0, 0.5], 2)],
    ids=["lengths that differ", "times that decrease", "a time before the window"],
)
def test_a_schedule_that_contradicts_itself_is_refused(time_s: list[float], sizes: int) -> None:
    with pytest.raises(ValueError, match="schedule"):
        Schedule(np.array(time_s), np.full(sizes, 800, dtype=np.int32), np.ones(2, dtype=np.bool_))


def test_offered_rate_counts_all_bits_over_the_window() -> None:
    assert three_packets().rate_bps(2.0) == 1600.0


def test_a_foreign_file_is_no_schedule(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("time_s,size_bits\n")
    with pytest.raises(ValueError, match=r"text\.npz"):
        Schedule.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", time_s=np.zeros(1))
    with pytest.raises(ValueError, match=r"size_bits"):
        Schedule.load(tmp_path / "other.npz")


def test_a_file_that_would_need_pickle_is_refused(tmp_path: Path) -> None:
    objects = np.array([object()], dtype=object)
    np.savez(tmp_path / "o.npz", time_s=objects, size_bits=objects, last_of_request=objects)
    with pytest.raises(ValueError, match=r"found no \.npz file of plain arrays"):
        Schedule.load(tmp_path / "o.npz")


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = record()
    saved.save(tmp_path / "r.npz")
    loaded = SendRecord.load(tmp_path / "r.npz")
    assert (loaded.tenant, loaded.start_monotonic_ns, loaded.start_realtime_ns) == (3, 10, 1_700_000_000)
    assert np.array_equal(loaded.sent_s, saved.sent_s, equal_nan=True)
    assert np.array_equal(loaded.error, saved.error)
    assert np.array_equal(loaded.schedule.time_s, saved.schedule.time_s)


def test_a_record_is_also_a_schedule_file(tmp_path: Path) -> None:
    record().save(tmp_path / "r.npz")
    assert len(Schedule.load(tmp_path / "r.npz")) == 3


def test_refused_packets_are_counted_by_error_and_have_no_lateness() -> None:
    summary = record().summary()
    assert (summary["packets"], summary["sent"], summary["errors"]) == (3, 2, {"ENOBUFS": 1})
    # Of two packets the median is the later one: a quantile of lateness never flatters.
    assert (summary["lateness_s"]["p50"], summary["lateness_s"]["max"]) == (0.25, 0.25)
    assert np.isnan(record().lateness_s[1])


def test_a_window_in_which_nothing_was_sent_has_no_lateness() -> None:
    nothing = replace(record(), sent_s=np.full(3, np.nan), error=np.full(3, NOT_ATTEMPTED, np.int32))
    assert nothing.summary()["errors"] == {"ECANCELED": 3}
    assert set(nothing.summary()["lateness_s"].values()) == {None}
    json.dumps(nothing.summary(), allow_nan=False)


def test_a_specification_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    SPEC.save(tmp_path / "spec.json")
    assert SenderSpec.load(tmp_path / "spec.json") == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1}, r"unknown keys \['speed'\]"),
        ({"tenant": "3"}, "tenant is '3'"),
        ({"tenant": True}, "tenant is True"),
        ({"clock_offset_ns": 1.5}, r"clock_offset_ns is 1\.5"),
        ({"priority": "high"}, "priority is 'high'"),
        ({"source": 5}, "source is 5"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_specification_with_a_wrong_value_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(asdict(SPEC) | change))
    with pytest.raises(ValueError, match=message):
        SenderSpec.load(tmp_path / "spec.json")


@pytest.mark.parametrize("text", ["[]", "{}", "{", "{'tenant': 1}"])
def test_a_file_that_is_no_specification_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(ValueError, match=r"spec\.json|Expecting"):
        SenderSpec.load(tmp_path / "spec.json")


def _array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.arange(3))


@pytest.mark.parametrize(
    "write", [lambda path: path.touch(), lambda path: path.write_text("{}"), _array], ids=["empty", "text", "an array"]
)
def test_what_is_no_archive_of_arrays_is_refused_without_a_word_of_how_to_run_it(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "s.npz"
    write(path)
    with pytest.raises(ValueError, match=r"s\.npz: found no \.npz file of plain arrays; written by") as said:
        Schedule.load(path)
    assert "pickle" not in str(said.value)
