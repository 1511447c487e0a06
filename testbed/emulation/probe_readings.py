"""Counters read while a probe's traffic runs, so that a pause of the host makes them unsure and not wrong.

A queue that a pause has made late makes up for it afterwards, out of its burst. Read in between it has sent too little,
and from there on too much: a right one would look too fast. So a port is read when the host has not been away for a
while, and what it may have missed is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from controller import traffic_control
from controller.counters import ClassCounters, MeterCounters
from testbed.emulation.probe_bucket import Look
from testbed.emulation.probe_checks import Passed
from testbed.emulation.probe_traffic import Injector, Pacer, flood, punctually

Classes = Mapping[str, Mapping[int, ClassCounters]]
_LOOKS_AT_REST = 4
_LOOK_EVERY_S = 0.0005
"""A userspace switch answers up to 50 questions in a row before it forwards again: it is not asked without a pause."""
_UNDER_WAY = 256
"""Frames of a flood that a switch has not met yet, at most: more may not fit into the buffer that holds them."""


@dataclass(frozen=True)
class Reading:
    """The classes of a port as a punctual host had them at some moment between two readings of CLOCK_MONOTONIC."""

    classes: Classes
    earliest_s: float
    latest_s: float


@dataclass(frozen=True)
class Stretch:
    """A port while it was offered more than it lets through.

    Attributes:
        first: At the beginning.
        last: At the end.
        absences_s: How long each absence of the host in between was, seconds.
        wasted_s: For how long, in between, a bucket may have been full for want of frames, seconds.
    """

    first: Reading
    last: Reading
    absences_s: tuple[float, ...] = ()
    wasted_s: float = 0.0

    def passed(self, bits: int, outlasts_s: float = float("inf")) -> Passed:
        """What came through, with how long that took and how sure that is.

        Args:
            bits: How much.
            outlasts_s: How long an absence may be without that anything was forgone.
        """
        shortest_s = self.last.earliest_s - self.first.latest_s
        longest_s = self.last.latest_s - self.first.earliest_s
        forgone_s = sum(max(0.0, absence_s - outlasts_s) for absence_s in self.absences_s)
        unsure_s = (longest_s - shortest_s) / 2 + forgone_s + self.wasted_s
        return Passed(bits, (shortest_s + longest_s) / 2, unsure_s)


def watch(pacer: Pacer, ports: Iterable[str], lead_s: float, drive_s: float) -> dict[str, Stretch]:
    """Send for a while, and then watch ports for a while longer.

    Args:
        pacer: Sends.
        ports: Whose classes are read.
        lead_s: How long until they are watched, seconds.
        drive_s: For how long they are, seconds.
    """
    pacer.run(time.monotonic() + lead_s)
    wasted_s = pacer.wasted_s
    first = {port: _read(port, pacer) for port in ports}
    pacer.run(time.monotonic() + drive_s)
    last = {port: _read(port, pacer) for port in first}
    most_s = max(after_s - before_s for before_s, after_s in zip(wasted_s, pacer.wasted_s, strict=True))
    return {port: Stretch(first[port], last[port], pacer.absences_s(first[port].latest_s), most_s) for port in first}


def _read(port: str, pacer: Pacer) -> Reading:
    late_s = pacer.keep_up()
    return Reading(traffic_control.counters([port]), pacer.seen_s - late_s, time.monotonic())


def flood_and_look(
    read: Callable[[], MeterCounters], injector: Injector, data: bytes, count: int, *, within_s: float
) -> list[Look]:
    """Flood a meter, as fast as the switch takes it, and look at it until it has met all of it, or patience ends.

    Args:
        read: Reads the meter.
        injector: Where frames are sent.
        data: The frame.
        count: How many.
        within_s: How long they may take to come, seconds.
    """
    start = read()
    with punctually():
        sent = flood(injector, data, min(count, _UNDER_WAY))
        offered, accepted, last_s = min(count, _UNDER_WAY), sent.packets, sent.last_s
        looks = [Look(sent.first_s, sent.first_s, 0, 0)]
        while looks[-1].met < accepted and time.monotonic() < last_s + within_s:
            time.sleep(_LOOK_EVERY_S)
            earliest_s = time.monotonic()
            found = read()
            met, dropped = found.in_packets - start.in_packets, found.dropped_packets - start.dropped_packets
            looks.append(Look(earliest_s, time.monotonic(), met, dropped))
            more = min(count - offered, _UNDER_WAY - (accepted - met))
            if more > 0:
                sent = flood(injector, data, more)
                offered, accepted, last_s = offered + more, accepted + sent.packets, sent.last_s
    return looks


class Rest:
    """Whether what is looked at again and again has come to rest.

    For a while, and for several looks: while the host is away time passes, and nothing can move.

    Args:
        quiet_s: How long nothing may have moved, seconds.
    """

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._previous: object = None
        self._since_s, self._looks = 0.0, 0

    def reached(self, found: object, looked_s: float, seen_s: float, *, moving: bool = False) -> bool:
        """Look once more.

        Args:
            found: What was seen.
            looked_s: Time just before that.
            seen_s: Time just after.
            moving: Whether it is known to move on.
        """
        if moving or found != self._previous:
            self._previous, self._since_s, self._looks = found, seen_s, 0
            return False
        self._looks += 1
        return self._looks >= _LOOKS_AT_REST and looked_s - self._since_s >= self._quiet_s
