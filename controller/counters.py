"""What meters and classes have counted, as plain values; reading them is their owners' business."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MeterCounters:
    """What a meter has seen and dropped since it was installed or changed."""

    in_packets: int
    in_bytes: int
    dropped_packets: int
    dropped_bytes: int


@dataclass(frozen=True)
class ClassCounters:
    """What one HTB class has done since it was created. The kernel counts drops in packets only."""

    sent_packets: int
    sent_bytes: int
    dropped_packets: int
    backlog_packets: int
    backlog_bytes: int
