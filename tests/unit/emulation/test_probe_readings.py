"""A host that pauses while a queue is watched: the probe measures around that, or says that it cannot tell."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import pytest

from controller import traffic_control
from controller.counters import ClassCounters, MeterCounters
from controller.program import Queue
from testbed.emulation import probe_readings, probe_traffic
from testbed.emulation.probe_checks import SWITCH_LATENESS_S, ProbeResult, queue_rate
from testbed.emulation.probe_readings import Rest, flood_and_look, watch
from testbed.emulation.probe_traffic import Injector, Pacer, Sent, Stream

RATE_BPS = 500_000
OUTLASTS_S = 0.1
QUEUE = Queue(0x11, RATE_BPS, RATE_BPS, int(RATE_BPS * OUTLASTS_S / 8), quantum_bytes=1514, limit_packets=1000)
FRAME_BYTES = 200
LEAD_S, DRIVE_S = 0.03, 0.3
SENDING_S = 0.5e-3
TIMER_S = 0.0003


class Host:
    """A clock, a token bucket behind it, and pauses in which neither moves; what it sends to is served as it sends."""

    def __init__(self, rate_bps: float, pauses: dict[float, float], sending_s: float = SENDING_S) -> None:
        self.now_s = 0.0
        self.pauses = sorted(pauses.items())
        self.rate_bps, self.burst_bits = rate_bps, 8 * QUEUE.burst_bytes
        self.sending_s = sending_s
        self.waiting_bits, self.sent_bits = 0, 0
        self.tokens, self.served_s = float(self.burst_bits), 0.0

    def _pass(self, seconds: float) -> bool:
        """Let time go by; whether there was a pause in it."""
        self.now_s += seconds
        paused = False
        while self.pauses and self.pauses[0][0] <= self.now_s:
            self.now_s += self.pauses.pop(0)[1]
            paused = True
        return paused

    def monotonic(self) -> float:
        self._pass(1e-6)
        return self.now_s

    def sleep(self, seconds: float) -> None:
        # Who sleeps through a pause wakes up before the queue's timer is served.
        if not self._pass(max(seconds, TIMER_S)):
            self._serve()

    def send(self, data: bytes) -> bool:
        self.waiting_bits += 8 * len(data)
        if not self._pass(self.sending_s):
            self._serve()
        return True

    def _serve(self) -> None:
        self.tokens = min(self.burst_bits, self.tokens + (self.now_s - self.served_s) * self.rate_bps)
        self.served_s = self.now_s
        frames = min(self.waiting_bits, int(self.tokens)) // (8 * FRAME_BYTES)
        self.waiting_bits -= 8 * FRAME_BYTES * frames
        self.tokens -= 8 * FRAME_BYTES * frames
        self.sent_bits += 8 * FRAME_BYTES * frames

    def counters(self, ports: list[str]) -> dict[str, dict[int, ClassCounters]]:
        counted = ClassCounters(self.sent_bits // 8 // FRAME_BYTES, self.sent_bits // 8, 0, 0, 0)
        self._pass(1e-4)
        return {port: {QUEUE.minor: counted} for port in ports}


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: None)
    return monkeypatch


def probed(patched: pytest.MonkeyPatch, host: Host) -> ProbeResult:
    """What a probe of the queue says on this host."""
    patched.setattr(probe_traffic, "time", host)
    patched.setattr(probe_readings, "time", host)
    patched.setattr(traffic_control, "counters", host.counters)
    per_s = 1.1 * RATE_BPS / (8 * FRAME_BYTES)
    bucket = QUEUE.burst_bytes / FRAME_BYTES
    head = int(0.02 * per_s + bucket) + 2
    stream = Stream(host, b"\0" * FRAME_BYTES, per_s, head, bucket, per_s / 1.1)  # type: ignore[arg-type]
    stretch = watch(Pacer([stream]), ["p"], LEAD_S, DRIVE_S)["p"]
    first, last = (reading.classes["p"][QUEUE.minor].sent_bytes for reading in (stretch.first, stretch.last))
    passed = stretch.passed(8 * (last - first), OUTLASTS_S)
    return queue_rate("d", "t", "p", QUEUE, passed=passed, frame_bits=8 * FRAME_BYTES)


def moments() -> Iterator[float]:
    """Closely around those in which a counter is read, some between, and none."""
    yield from (2e-4 * step for step in (*range(100, 260), *range(300, 1500, 100), *range(1500, 1800), 10**6))


@pytest.mark.parametrize("length_s", [0.003, 0.02, 0.09, 0.3])
def test_a_pause_at_any_moment_makes_no_right_queue_look_wrong(patched: pytest.MonkeyPatch, length_s: float) -> None:
    results = {at_s: probed(patched, Host(RATE_BPS, {at_s: length_s})) for at_s in moments()}
    wrong = {at_s: str(result) for at_s, result in results.items() if not (result.ok or result.blunt)}
    assert wrong == {}
    # Unsure only where it fell between a look at the clock and the counter.
    if length_s < OUTLASTS_S:
        assert sum(result.ok for result in results.values()) > 0.9 * len(results)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_pause_makes_no_wrong_queue_look_right(patched: pytest.MonkeyPatch, factor: float) -> None:
    for at_s in moments():
        result = probed(patched, Host(factor * RATE_BPS, {at_s: 0.05}))
        assert not result.ok, (at_s, str(result))


def test_a_host_too_slow_to_spend_a_burst_at_once_is_waited_for(patched: pytest.MonkeyPatch) -> None:
    result = probed(patched, Host(RATE_BPS, {}, sending_s=0.0015))
    assert result.ok, result


def test_a_host_that_cannot_send_as_fast_as_it_should_says_that_it_cannot_tell(patched: pytest.MonkeyPatch) -> None:
    result = probed(patched, Host(RATE_BPS, {}, sending_s=0.0035))
    assert result.blunt, result


def test_a_host_that_is_never_long_at_hand_is_late_by_its_longest_absence(patched: pytest.MonkeyPatch) -> None:
    host = Host(RATE_BPS, {0.004 * step: 0.003 for step in range(1, 1000)})
    patched.setattr(probe_traffic, "time", host)
    pacer = Pacer([Stream(host, b"\0" * FRAME_BYTES, 100.0)])  # type: ignore[arg-type]
    pacer.run(0.01)
    assert SWITCH_LATENESS_S < pacer.keep_up(0.1) < 0.004


def test_a_host_that_is_always_behind_and_yet_leaves_no_queue_empty_can_tell(patched: pytest.MonkeyPatch) -> None:
    # 331 frames a second, a tenth of the time left to others, where 344 are due and 312 are passed on.
    result = probed(patched, Host(RATE_BPS, {}, sending_s=0.00302 / 1.1))
    assert result.ok, result
    wrong = probed(patched, Host(1.1 * RATE_BPS, {}, sending_s=0.0015))
    assert not wrong.ok, wrong


def test_others_have_a_part_of_the_processor_however_much_is_due(patched: pytest.MonkeyPatch) -> None:
    host = Host(RATE_BPS, {}, sending_s=0.001)
    patched.setattr(probe_traffic, "time", host)
    slept_s: list[float] = []

    def sleep(seconds: float) -> None:
        slept_s.append(seconds)
        Host.sleep(host, seconds)

    patched.setattr(host, "sleep", sleep)
    Pacer([Stream(host, b"\0" * FRAME_BYTES, 5000.0)] * 3).run(1.0)  # type: ignore[arg-type]
    assert sum(slept_s) > 0.08


def test_nothing_is_read_before_every_bucket_is_empty(patched: pytest.MonkeyPatch) -> None:
    host = Host(RATE_BPS, {}, sending_s=0.0004)
    patched.setattr(probe_traffic, "time", host)
    # 625 frames a second of each, but for a tenth of the time that is left to others, of which 300 are passed on.
    streams = [Stream(host, b"\0" * FRAME_BYTES, 330.0, 40, 31.0, 300.0)] * 4  # type: ignore[arg-type]
    pacer = Pacer(streams)
    pacer.run(0.03)
    assert pacer.keep_up() == 0.0
    assert host.now_s == pytest.approx(31 / (625 / 1.1 - 300), abs=0.01)


def test_a_sender_that_was_too_slow_for_a_while_makes_no_right_queue_look_wrong(patched: pytest.MonkeyPatch) -> None:
    # Each pause is too short to be an absence.
    pauses = {0.15 + 0.004 * step: 0.0019 for step in range(60)}
    result = probed(patched, Host(RATE_BPS, pauses, sending_s=0.0028))
    assert result.blunt, result


def test_a_bucket_that_was_full_for_want_of_frames_makes_the_rate_unsure_by_that(patched: pytest.MonkeyPatch) -> None:
    host = Host(RATE_BPS, {0.2: 0.25}, sending_s=1e-4)
    patched.setattr(probe_traffic, "time", host)
    pacer = Pacer([Stream(host, b"\0" * FRAME_BYTES, 110.0, 5, 5.0, 100.0)])  # type: ignore[arg-type]
    pacer.run(0.19)
    assert pacer.wasted_s == pytest.approx((0.0,), abs=0.001)
    pacer.run(0.5)
    # At 0.2 s 5 and 22 frames are sent, which last until 0.27 s.
    assert pacer.wasted_s == pytest.approx((0.45 - 0.27,), abs=0.02)


def test_absences_are_those_since_a_moment_and_short_ones_are_none(patched: pytest.MonkeyPatch) -> None:
    host = Host(RATE_BPS, {0.1: 0.02, 0.2: 0.0005, 0.3: 0.04}, sending_s=1e-4)
    patched.setattr(probe_traffic, "time", host)
    pacer = Pacer([Stream(host, b"\0" * FRAME_BYTES, 100.0)])  # type: ignore[arg-type]
    pacer.run(0.5)
    assert pacer.absences_s(0.0) == pytest.approx([0.02, 0.04], abs=0.001)
    assert pacer.absences_s(0.25) == pytest.approx([0.04], abs=0.001)


def looks_until_at_rest(seen: list[tuple[int, float]], *, moving: bool = False) -> int | None:
    """How many looks it takes; each gives a counter and how long after the last one it is taken, seconds."""
    rest, now_s = Rest(0.015), 0.0
    for number, (found, after_s) in enumerate(seen, start=1):
        now_s += after_s
        if rest.reached(found, now_s, now_s + 1e-3, moving=moving):
            return number
    return None


def test_time_in_which_the_host_was_away_is_no_rest() -> None:
    """The fourth look comes after an absence, in which what was under way could not move on."""
    assert looks_until_at_rest([(1, 0.005), (1, 0.005), (1, 0.3), (2, 0.005), *[(2, 0.005)] * 9]) == 8


def test_rest_is_as_long_as_a_link_can_hold_a_packet_and_begins_with_the_last_move() -> None:
    assert looks_until_at_rest([(1, 0.002)] * 20) == 9
    assert looks_until_at_rest([(1, 0.005)] * 3 + [(2, 0.005)] * 9) == 8
    assert looks_until_at_rest([(number, 0.005) for number in range(20)]) is None
    assert looks_until_at_rest([(1, 0.005)] * 20, moving=True) is None


def test_a_flood_is_looked_at_from_before_its_first_frame_and_counted_from_what_the_meter_had_met(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The meter had met 7 frames and dropped 3 of them; 60 come, in two parts, of which 35 are dropped."""
    counted = iter([MeterCounters(7, 0, 3, 0), MeterCounters(57, 0, 13, 0), MeterCounters(67, 0, 38, 0)])
    monkeypatch.setattr(probe_readings, "flood", lambda *_: Sent(60, first_s=1.0, last_s=time.monotonic()))
    looks = flood_and_look(lambda: next(counted), cast(Injector, None), b"", 60, within_s=10.0)
    assert [(look.met, look.dropped) for look in looks] == [(0, 0), (50, 10), (60, 35)]
    assert (looks[0].earliest_s, looks[0].latest_s) == (1.0, 1.0)
    assert all(earlier.latest_s <= later.earliest_s <= later.latest_s for earlier, later in pairwise(looks))


def test_no_more_of_a_flood_is_under_way_than_a_switchs_buffer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch that takes in 90 frames from one look to the next meets all 1,000, of which 256 wait for it at most."""
    sent = met = most = 0

    def send(_injector: Injector, _data: bytes, count: int) -> Sent:
        nonlocal sent, most
        sent += count
        most = max(most, sent - met)
        return Sent(count, time.monotonic(), time.monotonic())

    def read() -> MeterCounters:
        nonlocal met
        met = min(sent, met + 90)
        return MeterCounters(met, 0, 0, 0)

    monkeypatch.setattr(probe_readings, "flood", send)
    looks = flood_and_look(read, cast(Injector, None), b"", 1000, within_s=10.0)
    assert (sent, looks[-1].met) == (1000, 1000)
    assert 200 < most <= 256
