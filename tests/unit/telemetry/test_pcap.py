from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from testbed.errors import FidelityError
from testbed.telemetry import pcap
from tests.unit.telemetry import frames

STAMP_NS = 1_764_000_000_123_456_789


def read(tmp_path: Path, data: bytes) -> pcap.PcapFile:
    return pcap.read(frames.write(tmp_path / "border.pcap", data))


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian file", "big-endian file"])
def test_every_field_of_a_tenant_packet_is_read_whatever_the_byte_order_of_the_file(tmp_path: Path, order: str) -> None:
    frame = frames.udp_frame(tenant=300, flags=3, sequence=2**40 + 5, intended_ns=STAMP_NS - 7, payload_bytes=1000)
    packets = read(tmp_path, frames.pcap([(STAMP_NS, frame)], order=order)).packets
    assert {
        name: getattr(packets, name).tolist()
        for name in ("time_ns", "size_bits", "tenant", "flags", "sequence", "intended_ns", "source", "destination")
    } == {
        "time_ns": [STAMP_NS],
        "size_bits": [8 * 1042],
        "tenant": [300],
        "flags": [3],
        "sequence": [2**40 + 5],
        "intended_ns": [STAMP_NS - 7],
        "source": [0x0A010001],
        "destination": [0x0A020003],
    }
    assert (packets.source_port.tolist(), packets.destination_port.tolist()) == ([40300], [9000])


def test_microsecond_stamps_become_nanoseconds(tmp_path: Path) -> None:
    data = frames.pcap([(STAMP_NS, frames.udp_frame())], magic=frames.MICROSECOND)
    assert read(tmp_path, data).packets.time_ns.tolist() == [STAMP_NS // 1000 * 1000]


FOREIGN = {
    "an ARP request": b"\xff" * 12 + b"\x08\x06" + b"\0" * 46,
    "UDP without the magic": frames.udp_frame(magic=b"DNS!"),
    "IPv6": b"\2" * 12 + b"\x86\xdd" + b"\0" * 60,
    "TCP": frames.udp_frame()[:23] + b"\x06" + frames.udp_frame()[24:],
    "IPv4 with options": frames.udp_frame()[:14] + b"\x46" + frames.udp_frame()[15:],
    "a fragment": frames.udp_frame()[:20] + b"\x20\x00" + frames.udp_frame()[22:],
    "a frame too short for the header": frames.udp_frame()[:65],
    "an empty frame": b"",
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_frame_is_skipped_and_counted(tmp_path: Path, foreign: bytes) -> None:
    data = frames.pcap([(1, frames.udp_frame(sequence=4)), (2, foreign), (3, frames.udp_frame(sequence=5))])
    capture = read(tmp_path, data)
    assert (capture.packets.sequence.tolist(), capture.foreign) == ([4, 5], 1)


@pytest.mark.parametrize("missing", [1, 15, 16, 96, 111], ids=lambda n: f"{n} bytes missing")
def test_a_record_cut_off_by_the_end_of_the_file_is_left_out_and_said(tmp_path: Path, missing: int) -> None:
    whole = frames.pcap([(1, frames.udp_frame(sequence=0)), (2, frames.udp_frame(sequence=1))])
    capture = read(tmp_path, whole[:-missing])
    assert (capture.packets.sequence.tolist(), capture.truncated, capture.foreign) == ([0], True, 0)
    assert not read(tmp_path, whole).truncated


def test_a_capture_without_packets_is_empty_and_not_an_error(tmp_path: Path) -> None:
    capture = read(tmp_path, frames.pcap([]))
    assert (len(capture.packets), capture.foreign, capture.truncated) == (0, 0, False)


REFUSED = {
    "empty file": (b"", "found nothing at its beginning"),
    "text": (b"time,size\n" * 10, "found 74696d65 at its beginning"),
    "half a file header": (frames.pcap([])[:20], "expected the magic number"),
    "pcapng": (b"\x0a\x0d\x0d\x0a" + b"\0" * 40, "found pcapng, expected classic pcap"),
    "Linux cooked capture": (frames.pcap([], link=113), "found link type 113, expected 1"),
    "damaged record length": (
        frames.pcap([(1, frames.udp_frame())]) + b"\0" * 8 + b"\xff\xff\xff\x7f" + b"\0" * 40,
        "the record at byte 136 claims more than 262144 bytes",
    ),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_foreign_file_gives_one_clear_error_that_names_it(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(FidelityError, match=message) as caught:
        read(tmp_path, data)
    assert str(caught.value).startswith(str(tmp_path / "border.pcap"))
    assert len(caught.value.problems) == 1


def test_tables_of_one_tenant_keep_the_order_of_capture(tmp_path: Path) -> None:
    sightings = [(10, 2, 0), (11, 1, 7), (12, 2, 1), (13, 1, 6), (14, 300, 0)]
    data = frames.pcap([(t, frames.udp_frame(tenant=k, sequence=s)) for t, k, s in sightings])
    tables = read(tmp_path, data).packets.by_tenant()
    assert {k: (table.time_ns.tolist(), table.sequence.tolist()) for k, table in tables.items()} == {
        1: ([11, 13], [7, 6]),
        2: ([10, 12], [0, 1]),
        300: ([14], [0]),
    }


def test_no_packets_give_no_tables(tmp_path: Path) -> None:
    assert read(tmp_path, frames.pcap([])).packets.by_tenant() == {}


def test_many_records_of_different_lengths_are_all_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(24, 1400, 3000)
    data = frames.pcap([(i, frames.udp_frame(sequence=i, payload_bytes=int(size))) for i, size in enumerate(sizes)])
    packets = read(tmp_path, data).packets
    assert packets.sequence.tolist() == list(range(3000))
    assert packets.size_bits.tolist() == (8 * (sizes + 42)).tolist()
