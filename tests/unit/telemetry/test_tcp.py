"""A byte is the same byte at every place, however it travelled, and is seen when it is first seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from testbed.errors import FidelityError
from testbed.telemetry import pcap, tcp
from testbed.telemetry.tcp import NEVER_NS, Segments
from tests.unit.telemetry.dialogues import Line, tcp_frame

STREAM = bytes(range(256)) * 4


def segments(line: Line, path: Path, *, snap: int = 65_535, base: int | None = None) -> tuple[pcap.Records, Segments]:
    records = pcap.read_records(line.write(path, snap=snap))
    (packets,) = tcp.flows(records, server_port=8001).values()
    return records, tcp.segments(records, packets, base=base)


def seen(found: Segments, *ranges: tuple[int, int]) -> list[int]:
    start, end = np.array(ranges).T
    return found.seen_ns(start, end).tolist()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "capture.pcap"


def test_bytes_are_seen_with_the_packets_that_carry_them(path: Path) -> None:
    line = Line().open(1).see(10, 0, STREAM[:100]).see(20, 100, STREAM[100:200])
    _, found = segments(line, path)
    assert seen(found, (0, 100), (0, 101), (100, 200), (99, 100), (150, 250)) == [10, 20, 20, 10, NEVER_NS]


def test_a_repeated_byte_was_seen_the_first_time(path: Path) -> None:
    line = Line().open(1).see(10, 0, STREAM[:100]).see(50, 0, STREAM[:100]).see(60, 50, STREAM[50:150])
    _, found = segments(line, path)
    assert seen(found, (0, 100), (0, 150)) == [10, 60]


def test_a_range_is_complete_when_its_missing_middle_has_come(path: Path) -> None:
    line = Line().open(1).see(10, 0, STREAM[:50]).see(20, 100, STREAM[100:150]).see(300, 50, STREAM[50:100])
    records, found = segments(line, path)
    assert seen(found, (0, 150), (100, 150)) == [300, 20]
    assert found.stream(records.data).tobytes() == STREAM[:150]


@pytest.mark.parametrize("base", [2**32 - 60, 2**32 - 1, 0, 5])
def test_sequence_numbers_may_wrap_around(path: Path, base: int) -> None:
    line = Line(base).open(1).see(10, 0, STREAM[:100]).see(20, 100, STREAM[100:200])
    records, found = segments(line, path)
    assert found.start.tolist() == [0, 0, 100]
    assert found.stream(records.data).tobytes() == STREAM[:200]


def test_offsets_go_on_beyond_four_gigabytes(path: Path) -> None:
    line = Line().open(1)
    step = 2**30
    for k in range(10):
        line.see(10 + k, k * step, b"x")
    _, found = segments(line, path)
    assert found.start[1:].tolist() == [k * step for k in range(10)]


def test_where_the_opening_was_not_captured_the_earliest_byte_is_the_first(path: Path) -> None:
    line = Line().see(10, 500, STREAM[100:200]).see(20, 400, STREAM[:100])
    records, found = segments(line, path)
    assert found.start.tolist() == [100, 0]
    assert found.stream(records.data).tobytes() == STREAM[:200]


def test_another_capture_counts_from_the_same_byte(path: Path) -> None:
    line = Line().see(30, 300, STREAM[:50]).see(40, -20, STREAM[:10])
    _, found = segments(line, path, base=1000)
    assert found.start.tolist() == [300, -20]


def test_headers_are_enough_to_know_when_bytes_were_seen(path: Path) -> None:
    _, found = segments(Line().open(1).see(10, 0, STREAM[:400]), path, snap=66)
    assert found.kept_bytes.tolist() == [0, 0]
    assert seen(found, (0, 400)) == [10]


def test_a_stream_that_was_cut_short_is_refused(path: Path) -> None:
    line = Line().open(1).see(10, 0, STREAM[:400]).see(20, 400, STREAM[400:800])
    records, found = segments(line, path, snap=96)
    with pytest.raises(FidelityError, match=r"from offset 30 on \(2 packets are cut short\)"):
        found.stream(records.data)


def test_the_bits_of_packets_are_shared_by_their_bytes_and_repeats_count_again(path: Path) -> None:
    line = Line().open(1).see(10, 0, STREAM[:100]).see(20, 100, STREAM[100:300])
    _, found = segments(line, path)
    first, second = 8 * (66 + 100), 8 * (66 + 200)
    ranges = np.array([(0, 100), (0, 50), (100, 300), (50, 200), (0, 300)]).T
    expected = [first, first / 2, second, first / 2 + second / 2, first + second]
    assert found.wire_bits(*ranges) == pytest.approx(expected)
    line.see(30, 0, STREAM[:100])
    _, found = segments(line, path)
    assert found.wire_bits(*ranges)[[0, 2]] == pytest.approx([2 * first, second])


def test_bytes_are_finished_by_the_packet_that_first_completes_them(path: Path) -> None:
    line = Line().open(1).see(10, 0, STREAM[:100]).see(20, 100, STREAM[100:300]).see(30, 0, STREAM[:100])
    _, found = segments(line, path)
    assert found.finishing_start(np.array([1, 100, 101, 300, 301])).tolist() == [0, 0, 100, 100, 301]


def test_only_tcp_packets_of_the_port_are_taken_and_both_directions_are_apart(path: Path) -> None:
    up, down = Line().open(1).see(10, 0, b"abc"), Line(7, back=True).see(20, 0, b"defg")
    other = [(30, tcp_frame(b"x", sequence=1, protocol=17)), (40, tcp_frame(b"x", sequence=1)[:40])]
    mixed = Line(packets=[*up.packets, *down.packets, *other])
    records = pcap.read_records(mixed.write(path))
    found = tcp.flows(records, server_port=8001)
    assert sorted(len(packets) for packets in found.values()) == [1, 2]
    (first, second) = found
    assert first.reverse == second
    assert tcp.flows(records, server_port=9000) == {}


def test_an_empty_capture_has_no_flows(path: Path) -> None:
    assert tcp.flows(pcap.read_records(Line().write(path)), server_port=8001) == {}
