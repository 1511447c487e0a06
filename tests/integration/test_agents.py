"""Real agents, controllers and Open vSwitch: whatever is killed at whatever step, they agree afterwards.

The whole matrix takes minutes and runs with `scripts/test --full`; a case of each kind is quick. How long recovery took
is listed at the end of the tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from testbed.errors import ReservationError
from testbed.management.journal import UNFINISHED
from tests.integration.agents_lab import (
    BRIDGE,
    OPERATORS,
    PORTS,
    VICTIM,
    WAY,
    Place,
    RealLab,
    Reviver,
    places,
    traffic_of,
)
from tests.integration.controller_lab import FRAME_BYTES, wait_for
from tests.unit.management.federation_lab import NEVER_S, intent, run_orchestrator

pytestmark = [pytest.mark.network, pytest.mark.untimed]

LOOK_EVERY_S = 0.2

AGENT_POINTS = (
    *("prepare:received", "prepare:begun", "prepare:written", "prepare:durable"),
    *("commit:received", "check:durable", "commit:installed", "commit:begun", "commit:written", "commit:durable"),
    *("commit:recorded", "release:received", "release:begun", "release:written", "release:durable"),
    *("release:recorded", "release:removed"),
)
"""Where the agent, the controller or the switch of one domain is killed, seen from that domain."""

ORCHESTRATOR_POINTS = (
    *("planned", "offered", "journalled", *(f"prepared:{name}" for name in WAY)),
    *("decided", *(f"committed:{name}" for name in WAY), "done", "undoing", *(f"released:{name}" for name in WAY)),
)
QUICK = {
    ("agent", "commit:installed"),
    ("orchestrator", f"committed:{VICTIM}"),
    ("controller", "commit:received"),
    ("switch", "commit:installed"),
}
MATRIX = [
    *(("agent", point) for point in AGENT_POINTS),
    *(("orchestrator", point) for point in ORCHESTRATOR_POINTS),
    *(("controller", point) for point in AGENT_POINTS),
    *(("switch", point) for point in AGENT_POINTS),
]


@pytest.fixture(scope="module")
def standing() -> Iterator[dict[str, Place]]:
    with places() as made:
        yield made


@pytest.fixture
def lab(tmp_path: Path, standing: dict[str, Place]) -> Iterator[RealLab]:
    """Agents that look at their switches all the time."""
    found = RealLab(tmp_path, OPERATORS, look_every_s=LOOK_EVERY_S, places=standing)
    yield found
    found.stop()


@pytest.fixture
def still(tmp_path: Path, standing: dict[str, Place]) -> Iterator[RealLab]:
    """Agents that touch their switches only when they are asked to do something."""
    found = RealLab(tmp_path, OPERATORS, look_every_s=NEVER_S, places=standing)
    yield found
    found.stop()


def recover(lab: RealLab) -> None:
    with lab.orchestrator() as orchestrator:
        orchestrator.recover()
        assert not orchestrator.journal.transfers(*UNFINISHED)


def everywhere(*tenants: str) -> dict[str, set[str]]:
    return {name: set(tenants) for name in WAY}


def admit(lab: RealLab, *tenants: str) -> None:
    with lab.orchestrator() as orchestrator:
        assert all(outcome.admitted for outcome in orchestrator.admit([intent(tenant) for tenant in tenants]))


def case(lost: str, point: str) -> object:
    marks = [] if (lost, point) in QUICK else [pytest.mark.slow]
    return pytest.param(lost, point, marks=marks, id=f"{lost} killed at {point}")


@pytest.mark.parametrize(("lost", "point"), [case(lost, point) for lost, point in MATRIX])
def test_ledgers_and_switches_agree_after(
    lost: str, point: str, lab: RealLab, record_property: Callable[[str, object], None]
) -> None:
    """A neighbour that was there before stays, and the tenant on its way is in every domain or in none."""
    lab.start()
    admit(lab, "t9")
    died_s = {"agent": _agent, "orchestrator": _orchestrator}.get(lost, _part)(lab, lost, point)
    recover(lab)
    wait_for(lab.in_step, "ledgers and switches to agree")
    record_property("recovery_s", time.monotonic() - died_s)
    lab.require_in_step()
    assert lab.tenants() in (everywhere("t9"), everywhere("t1", "t9"))


def _agent(lab: RealLab, _lost: str, point: str) -> float:
    seat = lab.seats[VICTIM]
    seat.end_agent()
    seat.start_agent(point)
    _transfer(lab, release=point.startswith("release"))
    seat.agent.join()
    died_s = time.monotonic()
    assert seat.agent.exitcode == -9
    seat.start_agent()
    return died_s


def _orchestrator(lab: RealLab, _lost: str, point: str) -> float:
    releases = point == "undoing" or point.startswith("released")
    assert run_orchestrator(lab, point, releases=releases) == -9
    return time.monotonic()


def _part(lab: RealLab, lost: str, point: str) -> float:
    """The agent of the domain kills its controller or its switch; somebody starts it again at once."""
    seat, place = lab.seats[VICTIM], lab.places[VICTIM]
    seat.end_agent()
    seat.start_agent(f"{point}@{place.pid_of(lost)}")
    reviver = Reviver(place, lost)
    _transfer(lab, release=point.startswith("release"))
    reviver.join()
    return reviver.died_s


def _transfer(lab: RealLab, *, release: bool) -> None:
    with lab.orchestrator() as orchestrator:
        orchestrator.admit([intent()])
        if release:
            try:
                orchestrator.release(["t1"])
            except ReservationError:
                # What could not be given back is still in the journal, and `recover` gives it back.
                assert orchestrator.journal.transfers(*UNFINISHED)


DRIFTS: dict[str, Callable[[Place], object]] = {
    "a flow deleted": lambda place: place.net.ofctl("del-flows", BRIDGE, "ip,nw_src=10.1.0.1"),
    "all flows deleted": lambda place: place.net.ofctl("del-flows", BRIDGE),
    "a meter changed": lambda place: place.net.ofctl(
        "mod-meter", BRIDGE, "meter=1,kbps,burst,stats,band=type=drop,rate=9,burst_size=9"
    ),
    "a class changed": lambda place: place.net.tc(
        f"class change dev {PORTS[1]} parent 1:1 classid 1:11 htb rate 1gbit ceil 1gbit"
    ),
    "a queueing discipline deleted": lambda place: place.net.tc(f"qdisc del dev {PORTS[1]} root"),
    "a stranger's flow added": lambda place: place.net.ofctl("add-flow", BRIDGE, "priority=200,ip,actions=drop"),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_drift_on_a_switch_is_found_and_repaired(drift: str, lab: RealLab) -> None:
    lab.start()
    admit(lab, "t1", "t2")
    place = lab.places[VICTIM]
    before = _objects(place)
    with lab.client(VICTIM) as client:
        repaired = client.health().repairs
        DRIFTS[drift](place)
        wait_for(lambda: client.health().repairs > repaired, f"the repair of {drift}")
        assert client.health().in_step
    assert _objects(place) == before


@pytest.mark.parametrize("lost", ["switch", "controller"])
def test_a_part_that_was_restarted_gets_its_state_again(lost: str, lab: RealLab) -> None:
    lab.start()
    admit(lab, "t1", "t2")
    place = lab.places[VICTIM]
    before = _objects(place)
    place.kill(lost)
    if lost == "controller":
        place.net.ofctl("del-flows", BRIDGE)
        place.net.ofctl("del-meters", BRIDGE)
    place.start(lost)
    wait_for(lambda: _objects(place) == before, f"the state of the {lost} to be back")
    with lab.client(VICTIM) as client:
        wait_for(lambda: client.health().in_step, "the agent to find it in step")


def test_others_lose_no_packet_while_a_tenant_is_renegotiated_and_removed(still: RealLab) -> None:
    lab = still
    lab.start()
    admit(lab, "t1", "t2")
    with lab.orchestrator() as orchestrator, _Streams(lab, "t2") as streams:
        before = {name: lab.places[name].installed()["t1"] for name in WAY}
        assert orchestrator.renegotiate(intent("t1", deadline_s=0.12)).admitted
        streams.go_on()
        after = {name: lab.places[name].installed()["t1"] for name in WAY}
        assert all(after[name][0] == before[name][0] and after[name][1] > before[name][1] for name in WAY)
        assert not orchestrator.renegotiate(intent("t1", deadline_s=0.001)).admitted
        assert {name: lab.places[name].installed()["t1"] for name in WAY} == after
        streams.go_on()
        orchestrator.release(["t1"])
        assert all(set(lab.places[name].installed()) == {"t2"} for name in WAY)
        streams.go_on()
    assert streams.passed() == streams.sent()


def test_nobody_loses_a_packet_when_a_renegotiation_fails_in_the_last_domain(still: RealLab) -> None:
    """The first domains have replaced the reservation when the last one's controller dies; the old one comes back."""
    lab = still
    lab.start()
    admit(lab, "t1", "t2")
    before = {name: lab.places[name].installed() for name in WAY}
    last = lab.places[WAY[-1]]

    def reached(point: str) -> None:
        if point == f"committed:{WAY[-2]}":
            last.kill("controller")

    with _Streams(lab, "t1", "t2") as streams:
        with lab.orchestrator(reached) as orchestrator:
            assert not orchestrator.renegotiate(intent("t1", deadline_s=0.12)).admitted
        last.start("controller")
        lab.seats[last.domain].end_agent()
        lab.seats[last.domain].start_agent()
        recover(lab)
        assert {name: lab.places[name].installed() for name in WAY} == before
        streams.go_on()
    assert streams.passed() == streams.sent()
    lab.require_in_step()


class _Streams:
    """Packets of tenants into every domain for as long as the context lasts, and a count of what comes out."""

    PAUSE_S = 0.01

    def __init__(self, lab: RealLab, *tenants: str) -> None:
        self._pairs = [traffic_of(tenant) for tenant in tenants]
        self._lab = lab
        self._enough = threading.Event()
        self._sent = dict.fromkeys(WAY, 0)
        self._passed = dict.fromkeys(WAY, 0)
        self._threads = [threading.Thread(target=self._stream, args=(name,)) for name in WAY]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: min(self._sent.values()) > 0, "traffic in every domain")
        return self

    def __exit__(self, *_exception: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def go_on(self) -> None:
        """Wait until packets have crossed every domain that set out after this call."""
        before = dict(self._sent)
        wait_for(lambda: all(self._sent[name] >= before[name] + 40 for name in WAY), "more traffic in every domain")

    def sent(self) -> dict[str, int]:
        return self._sent

    def passed(self) -> dict[str, int]:
        return self._passed

    def _stream(self, name: str) -> None:
        net = self._lab.places[name].net
        with net.listening(PORTS[1]) as out:
            while not self._enough.is_set():
                net.send_mixed(PORTS[0], self._pairs * 10, self.PAUSE_S)
                self._sent[name] += 10 * len(self._pairs)
            wait_for(lambda: self._arrived(name, out) >= self._sent[name], f"the last packets of {name}")

    def _arrived(self, name: str, out: object) -> int:
        sources = {bytes(int(part) for part in source.split(".")) for source, _ in self._pairs}
        while True:
            try:
                frame = out.recv(2 * FRAME_BYTES)  # type: ignore[attr-defined]
            except BlockingIOError:
                return self._passed[name]
            self._passed[name] += frame[26:30] in sources


def _objects(place: Place) -> tuple[list[str], str, list[str]]:
    """Flows without counters, meters, and classes of both ports."""
    flows = place.net.run("ovs-ofctl", "-O", "OpenFlow13", "--no-stats", "dump-flows", BRIDGE).splitlines()
    classes = [line for port in PORTS for line in place.net.tc(f"class show dev {port}").splitlines()]
    return sorted(flows), place.net.ofctl("dump-meters", BRIDGE).partition("\n")[2], sorted(classes)
