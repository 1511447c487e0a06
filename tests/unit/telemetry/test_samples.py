from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from testbed.errors import TestbedError
from testbed.telemetry import lag, samples
from tests.unit.telemetry import tandem

NAN = np.nan
BORDER_S = np.array([[0.0, 0.1, 0.3], [0.1, 0.2, NAN], [0.2, NAN, NAN], [NAN, NAN, NAN]])


def window() -> samples.TenantSamples:
    return tandem.window(np.array([-0.1, 0.0, 0.1, 0.2]), BORDER_S, domains=("north", "south"))


def assert_same(one: object, other: object) -> None:
    assert type(one) is type(other)
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, vars(other)[name], err_msg=name)


@pytest.mark.parametrize("requests", [None, np.array([True, False, True, True])], ids=["packets", "requests"])
@pytest.mark.parametrize("replayed", [False, True], ids=["samples alone", "with their replay"])
def test_what_is_written_is_read_back_unchanged(
    tmp_path: Path, requests: samples.BoolArray | None, replayed: bool
) -> None:
    measured = dataclasses.replace(window(), last_of_request=requests)
    replay = lag.replay(measured, 1e6, (0.001, 0.002)) if replayed else None
    samples.write(tmp_path / "a.parquet", measured, replay)
    found, found_replay = samples.read(tmp_path / "a.parquet")
    assert_same(found, measured)
    if replay is None:
        assert found_replay is None
    else:
        assert_same(found_replay, replay)


def test_columns_are_named_after_borders_and_domains(tmp_path: Path) -> None:
    samples.write(tmp_path / "a.parquet", window(), lag.replay(window(), 1e6, (0.0, 0.0)))
    assert pq.read_schema(tmp_path / "a.parquet").names == [
        "sequence", "intended_s", "sent_s", "size_bits", "border_0_s", "border_1_s", "border_2_s", "latency_s",
        "ideal_s", "ideal_intended_s", "idle_s", "lag_north_s", "lag_south_s", "excess_north_s", "excess_south_s",
    ]  # fmt: skip


def test_lost_packets_have_no_latency_and_a_last_border() -> None:
    measured = window()
    np.testing.assert_allclose(measured.latency_s, [0.4, NAN, NAN, NAN])
    assert measured.delivered.tolist() == [True, False, False, False]
    assert measured.last_border.tolist() == [2, 1, 0, -1]


def test_a_packet_that_was_not_seen_is_an_empty_cell_and_a_file_of_a_time_when_it_was_not_a_number_reads_the_same(
    tmp_path: Path,
) -> None:
    samples.write(tmp_path / "a.parquet", window())
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["latency_s"].null_count == 3
    assert table["border_0_s"].null_count == 1
    filled = [pa.array(table[name].to_numpy()) for name in table.column_names]
    pq.write_table(pa.table(filled, schema=table.schema), tmp_path / "old.parquet")
    assert pq.read_table(tmp_path / "old.parquet")["latency_s"].null_count == 0
    assert_same(samples.read(tmp_path / "old.parquet")[0], samples.read(tmp_path / "a.parquet")[0])


def test_samples_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="sent_s"):
        dataclasses.replace(window(), sent_s=np.zeros(3))


def test_a_file_of_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(samples, "KIND", dataclasses.replace(samples.KIND, version=99))
        samples.write(tmp_path / "a.parquet", window())
    with pytest.raises(TestbedError, match="found schema version 99, expected at most 1"):
        samples.read(tmp_path / "a.parquet")


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(TestbedError, match="without this testbed's metadata"):
        samples.read(tmp_path / "x.parquet")


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("time,latency\n")
    with pytest.raises(TestbedError, match="not a Parquet file"):
        samples.read(tmp_path / "x.parquet")
