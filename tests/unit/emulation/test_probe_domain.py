"""A domain's probe beside switches whose process is away: its first frames are counted through, and never judged."""

from __future__ import annotations

import math
import os
import socket
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Self

import pytest

from controller import traffic_control
from controller.counters import ClassCounters
from controller.plan import UNCLASSIFIED_MINOR
from controller.program import Meter, Queue, Rule
from testbed.emulation import namespace, probe_domain, probe_traffic
from testbed.emulation.layout import TenantPath, layout_of
from testbed.emulation.probe_bucket import BucketBounds
from testbed.emulation.probe_checks import METER_GRAIN_S
from testbed.emulation.probe_domain import DomainProbe
from testbed.emulation.probe_effort import is_reserved
from testbed.emulation.probe_traffic import Pacer, Sent
from testbed.scenario.model import Datapath
from tests.unit.emulation.scenarios import scenario

SCENARIO = scenario(1, sites=(1, 1, 1))
LAYOUT = layout_of(SCENARIO, Datapath.KERNEL)
LINK_BPS = SCENARIO.domains[0].link_rate_bps
TO_SERVER, TO_CLIENT = ("d1i-dn", "d1e-h"), ("d1e-up", "d1i-up")
PORTS = (*TO_SERVER, *TO_CLIENT)


def rule(path: TenantPath, *, reserved: bool) -> Rule:
    rate_bps, ceil_bps = (5_000_000, 5_000_000) if reserved else (LINK_BPS // 100, LINK_BPS)
    queue = Queue(0x10 + path.number, rate_bps, ceil_bps, 4000, 1514, 99)
    meter = Meter(path.number, 4000, 400) if reserved else None
    return Rule(path.tenant, path.number, path.client.address, path.server.address, meter, queue)


RULES = tuple(rule(path, reserved=path.number < 3) for path in LAYOUT.paths)
PROGRAM = replace(LAYOUT.skeletons[0], rules=RULES)


class Switches:
    """A clock, and beside it switches in which the first frame of every flow waits for a process that is away."""

    def __init__(self, away_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.away_s = away_s
        self.arrivals: list[tuple[float, str, int]] = []

    def monotonic(self) -> float:
        self.now_s += 1e-5
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def arrived(self) -> Counter[tuple[str, int]]:
        """Packets by port and class."""
        return Counter((port, minor) for at_s, port, minor in self.arrivals if at_s <= self.now_s)

    def counters(self, ports: Collection[str]) -> dict[str, dict[int, ClassCounters]]:
        self.now_s += 1e-4
        found = self.arrived()
        minors = [UNCLASSIFIED_MINOR, *(each.queue.minor for each in RULES)]
        return {port: {minor: ClassCounters(found[port, minor], 0, 0, 0, 0) for minor in minors} for port in ports}


@dataclass
class Injector:
    """What is sent comes to the class that its sender chose, or to those on the way of its addresses."""

    switches: Switches
    interface: str
    bypass: bool
    priority: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def send(self, data: bytes) -> bool:
        now_s = self.switches.now_s
        assert self.bypass is (self.priority is None)
        if self.priority is not None:
            self.switches.arrivals.append((now_s, self.interface, self.priority & 0xFFFF))
            return True
        source, destination = socket.inet_ntoa(data[26:30]), socket.inet_ntoa(data[30:34])
        (sender,) = [each for each in RULES if each.client in {source, destination}]
        forward = self.interface == LAYOUT.entry(1).upstream
        assert (source == sender.client) is forward
        for hop, port in enumerate(TO_SERVER if forward else TO_CLIENT, 1):
            self.switches.arrivals.append((now_s + hop * self.switches.away_s, port, sender.queue.minor))
        return True


@pytest.fixture
def probing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Switches], DomainProbe]:
    def made(switches: Switches) -> DomainProbe:
        for module in (probe_domain, probe_traffic):
            monkeypatch.setattr(module, "time", switches)
        monkeypatch.setattr(traffic_control, "counters", switches.counters)
        monkeypatch.setattr(os, "sched_setscheduler", lambda *_: None)
        monkeypatch.setattr(namespace, "entered", nullcontext)
        monkeypatch.setattr(probe_domain, "Injector", partial(Injector, switches))
        network: Any = SimpleNamespace(
            layout=LAYOUT,
            scenario=SCENARIO,
            datapath=Datapath.KERNEL,
            link_delays_s=(0.0,),
            namespace_of=lambda border: border.host,
            ovs=SimpleNamespace(meters=lambda _: {}),
        )
        return DomainProbe(network, 0, PROGRAM)

    return made


def without(monkeypatch: pytest.MonkeyPatch, *drives: str) -> None:
    for drive in drives:
        monkeypatch.setattr(DomainProbe, drive, lambda _: None)


@pytest.mark.parametrize("away_s", [0.0, 0.3, 2.0])
def test_nothing_comes_in_numbers_until_the_first_frame_of_every_flow_is_through(
    monkeypatch: pytest.MonkeyPatch, probing: Callable[[Switches], DomainProbe], away_s: float
) -> None:
    switches = Switches(away_s)
    found: list[Counter[tuple[str, int]]] = []
    without(monkeypatch, "_drive_reverse", "_drive_ports")
    monkeypatch.setattr(DomainProbe, "_drive_forward", lambda _: found.append(switches.arrived()))
    assert probing(switches).run() == ()
    # At every port one along the tenant's way and one that is sent into the port itself.
    assert found == [Counter({(port, each.queue.minor): 2 for port in PORTS for each in RULES})]
    assert switches.now_s < 2 * away_s + 0.1


def test_first_frames_that_do_not_come_are_waited_for_and_no_fault(
    monkeypatch: pytest.MonkeyPatch, probing: Callable[[Switches], DomainProbe]
) -> None:
    switches = Switches(math.inf)
    without(monkeypatch, "_drive_forward", "_drive_reverse", "_drive_ports")
    assert probing(switches).run() == ()
    assert 10 < switches.now_s < 11


def test_a_host_that_sends_too_late_wastes_tokens_of_reserved_classes_and_none_of_best_effort(
    monkeypatch: pytest.MonkeyPatch, probing: Callable[[Switches], DomainProbe]
) -> None:
    switches = Switches()
    wasted_s: list[float] = []

    def late(pacer: Pacer, ports: Collection[str], lead_s: float, drive_s: float) -> dict[str, object]:
        switches.sleep(5.0)
        pacer.run(switches.now_s + lead_s)
        wasted_s.extend(pacer.wasted_s)
        return {}

    without(monkeypatch, "_drive_forward", "_drive_reverse")
    monkeypatch.setattr(probe_domain, "watch", late)
    assert all(result.ok for result in probing(switches).run())
    assert [each_s > 0 for each_s in wasted_s] == [is_reserved(each.queue) for each in RULES] * len(PORTS)


def test_a_meter_is_flooded_once_its_bucket_is_full_and_until_that_is_known(
    monkeypatch: pytest.MonkeyPatch, probing: Callable[[Switches], DomainProbe]
) -> None:
    """Its 400 kbit take 100 ms to come back, at first from when it was installed."""
    switches = Switches()
    refill_s, flood_s = 0.1 + METER_GRAIN_S, 0.01
    told = {1: [BucketBounds(170_000, 570_000), BucketBounds(380_000, 999_000)], 2: [BucketBounds(360_000, 440_000)]}
    begun_s: dict[int, list[float]] = {number: [] for number in told}

    def flood(_probe: DomainProbe, _entry: Injector, flooded: Rule, _meter: Meter) -> BucketBounds:
        begun_s[flooded.number].append(switches.now_s)
        switches.sleep(flood_s)
        return told[flooded.number][len(begun_s[flooded.number]) - 1]

    monkeypatch.setattr(DomainProbe, "_flood", flood)
    monkeypatch.setattr(DomainProbe, "_overload_meters", lambda *_: {each.number: Sent(0, 0.0, 0.0) for each in RULES})
    without(monkeypatch, "_find_flows", "_drive_reverse", "_drive_ports")
    results = probing(switches).run()
    assert all(result.ok for result in results)
    assert [result.tenant for result in results if "burst" in result.what] == [RULES[0].tenant, RULES[1].tenant]
    (first_s, again_s), (other_s,) = begun_s.values()
    assert refill_s <= first_s < refill_s + 0.02
    assert other_s - (first_s + flood_s) < 0.001
    assert refill_s <= again_s - (first_s + flood_s) < refill_s + 0.02
