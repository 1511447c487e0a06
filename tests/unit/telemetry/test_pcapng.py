"""Captures put together for Wireshark, read by Wireshark's own terminal program."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from testbed.errors import FidelityError
from testbed.telemetry.pcapng import Place, write_together
from tests.unit.telemetry import frames

NAMES = {"10.1.0.1": "alpha", "10.2.0.3": "compute-west"}
FIELDS = ("frame.time_epoch", "frame.interface_name", "frame.interface_description", "ip.src_host", "ip.dst_host",
          "frame.len", "frame.cap_len")  # fmt: skip


def dissected(path: Path) -> list[list[str]]:
    fields = [word for name in FIELDS for word in ("-e", name)]
    command = ["tshark", "-r", str(path), "-N", "n", "-T", "fields", *fields]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split("\t") for line in told.splitlines()]


def place(tmp_path: Path, interface: str, description: str, *stamps: int, **frame: int) -> Place:
    packets = [(stamp, frames.udp_frame(sequence=i, **frame)) for i, stamp in enumerate(stamps)]
    return Place(frames.write(tmp_path / f"{interface}.pcap", frames.pcap(packets)), interface, description)


def test_wireshark_shows_each_packet_in_order_with_its_place_and_with_names(tmp_path: Path) -> None:
    places = [
        place(tmp_path, "i1-up", "into west", 1_700_000_000_000_000_001, 1_700_000_000_000_000_009, payload_bytes=101),
        place(tmp_path, "hw-eth0", "compute host of west", 1_700_000_000_000_000_005, payload_bytes=24),
    ]
    target = tmp_path / "captures.pcapng"
    assert write_together(target, places, NAMES) == 3
    assert dissected(target) == [
        ["1700000000.000000001", "i1-up", "into west", "alpha", "compute-west", "143", "96"],
        ["1700000000.000000005", "hw-eth0", "compute host of west", "alpha", "compute-west", "66", "66"],
        ["1700000000.000000009", "i1-up", "into west", "alpha", "compute-west", "143", "96"],
    ]


def test_nobody_else_can_read_it_and_none_is_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "captures.pcapng"
    one = place(tmp_path, "i1-up", "into west", 5)
    write_together(target, [one], NAMES)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_together(target, [one], NAMES)


def test_an_empty_capture_is_a_place_without_packets(tmp_path: Path) -> None:
    target = tmp_path / "captures.pcapng"
    assert write_together(target, [place(tmp_path, "i1-up", "into west")], NAMES) == 0
    assert dissected(target) == []


def test_a_damaged_capture_leaves_no_file(tmp_path: Path) -> None:
    target = tmp_path / "captures.pcapng"
    damaged = Place(frames.write(tmp_path / "i1-up.pcap", b"nonsense"), "i1-up", "into west")
    with pytest.raises(FidelityError, match=r"i1-up\.pcap"):
        write_together(target, [damaged], NAMES)
    assert not target.exists()
