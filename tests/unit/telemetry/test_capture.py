from __future__ import annotations

from pathlib import Path

import pytest

from testbed.telemetry.capture import CaptureCounts, arguments

LISTENING = "tcpdump: listening on d1i-up, link-type EN10MB (Ethernet), snapshot length 96 bytes\n"
ASKED = "tcpdump: 10 packets captured, 12 packets received by filter, 0 packets dropped by kernel\n"
ENDED = "1 packet captured\n12 packets received by filter\n3 packets dropped by kernel\n"
INTERFACE = "2 packets dropped by interface\n"

TEXTS = {
    "nothing said": ("", None),
    "only listening": (LISTENING, None),
    "asked while it ran": (LISTENING + ASKED, CaptureCounts(10, 12, 0)),
    "the last answer counts": (LISTENING + ASKED + ENDED, CaptureCounts(1, 12, 3)),
    "an interface that counts": (ENDED + INTERFACE, CaptureCounts(1, 12, 3, 2)),
    "half an answer": ("tcpdump: 10 packets captured, 12 packets rec", None),
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS.keys())
def test_counters_are_read_from_what_tcpdump_says(text: str, expected: CaptureCounts | None) -> None:
    assert CaptureCounts.parse(text) == expected


MISSED = {
    "nothing": (CaptureCounts(10, 10, 0), 0),
    "what the kernel dropped": (CaptureCounts(7, 10, 3), 3),
    "what it accepted and nobody wrote": (CaptureCounts(7, 10, 0), 3),
    "what the interface dropped before": (CaptureCounts(10, 10, 0, 2), 2),
    "nothing of what came before the filter": (CaptureCounts(10, 13, 0, unfiltered=3), 0),
    "what nobody wrote beside what came before the filter": (CaptureCounts(9, 13, 0, unfiltered=3), 1),
    "what the kernel dropped, whatever came before the filter": (CaptureCounts(10, 13, 2, unfiltered=3), 2),
}


@pytest.mark.parametrize(("counts", "missed"), MISSED.values(), ids=MISSED.keys())
def test_a_capture_missed(counts: CaptureCounts, missed: int) -> None:
    assert counts.missed == missed


def test_the_filter_leaves_the_direction_to_the_port_and_not_to_libpcap() -> None:
    command = arguments("d1i-up", Path("x.pcap"))
    assert command[-1] == "udp dst port 9000"
    assert command[command.index("-Q") + 1] == "in"
    assert "--time-stamp-precision=nano" in command


def test_a_capture_of_a_connection_keeps_whole_packets_in_both_directions() -> None:
    command = arguments("c1-eth0", Path("x.pcap"), "tcp port 8001", snap_bytes=0, both_ways=True)
    assert command[command.index("-s") + 1] == "0"
    assert "-Q" not in command
