"""Breaks what a scenario says is to be broken, at its moment within a measured window, and mends it again.

All of it happens inside the run's own namespaces and to its own processes, which its journal names already, so a run
that is interrupted or killed leaves nothing of it behind; the clock, which is the host's, is set back by a process that
outlives the run by as long as that takes. What a fault explains, a gate may not hold against the host:
`EXPLAINED` is the whole list. Whether the right tenants failed is `testbed.run.expectations`' to say.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from controller.client import CallError, ControllerClient
from controller.program import DomainProgram, Hop
from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import IMPAIRMENTS
from inference_server.protocol import Kind as Impaired
from testbed.emulation import delay_line, links, packet_filter
from testbed.emulation.network import TandemNetwork
from testbed.errors import FidelityError, PreflightError
from testbed.run import room
from testbed.run.requests import SERVER_START_S, impairment_socket
from testbed.scenario.faults import Fault, FaultKind, begin_s
from testbed.scenario.model import FULL_FRAME_BITS, Datapath, Scenario

UNFINISHED = "measured to the end"
"""The gate that a run does not pass which could not go on."""

COUNTERS = "queue counters"
"""The gate that holds what borders saw against what meters and queues counted."""

EXPLAINED: Mapping[FaultKind, frozenset[str]] = {
    # A queue whose link goes down is emptied, and what still comes to it is dropped, by a kernel that counts neither.
    FaultKind.LINK_DOWN: frozenset({COUNTERS}),
    FaultKind.RATE_CHANGE: frozenset(),
    # Dropped between the border and the meter, which is where a border and a meter are compared.
    FaultKind.LOSS: frozenset({COUNTERS}),
    # As the way changes, a packet may fall between the old one and the new one.
    FaultKind.DELAY: frozenset({COUNTERS}),
    # A data plane needs no controller, and no agent.
    FaultKind.CONTROLLER_KILLED: frozenset(),
    FaultKind.AGENT_KILLED: frozenset(),
    # Meters, flows and their counters begin anew, and the first packets look for a flow that is not there yet.
    FaultKind.SWITCH_KILLED: frozenset({COUNTERS, "upcalls"}),
    # Tenants that it touches are to fail, and what is left of them is judged as ever.
    FaultKind.SERVER_KILLED: frozenset(),
    FaultKind.SERVER_SLOWED: frozenset(),
    FaultKind.SERVER_WRONG: frozenset(),
    # Stamps of the window are worth nothing, and the run must say so.
    FaultKind.CLOCK_STEPPED: frozenset(),
    # What was captured of the window is not all there, and the run must say why.
    FaultKind.DISK_FULL: frozenset(),
}
"""Gates that each kind of fault breaks by being what it is, for the tenants and the domain it touches and no others."""

CAUGHT: Mapping[FaultKind, tuple[str, str]] = {
    FaultKind.CLOCK_STEPPED: ("clock step", ""),
    FaultKind.DISK_FULL: (UNFINISHED, room.SAID),
}
"""The gate that must see a kind of fault after which what was measured is worth nothing, and what it must say."""

_MAY_SET_CLOCK = 1 << 25
_ANSWERS_WITHIN_S = 2.0
_AGENT_START_S = 60.0


@dataclass(frozen=True)
class Occurrence:
    """A fault that was done.

    Attributes:
        fault: Which.
        begin_s: Before anything was changed, seconds from the window's start.
        end_s: When everything was as before.
        mended_s: How much of it that took: from when the fault was to be over.
    """

    fault: Fault
    begin_s: float
    end_s: float
    mended_s: float = 0.0


@dataclass(frozen=True)
class Site:
    """What faults are done to.

    Attributes:
        network: The network, installed.
        controllers: A client of each domain's controller, by name.
        promised: Tells what each domain has promised and so installed, by name.
        fill_disk: Takes all room that is left on the disk of the run's folder, until the run ends.
    """

    network: TandemNetwork
    controllers: Mapping[str, ControllerClient]
    promised: Callable[[], Mapping[str, DomainProgram]]
    fill_disk: Callable[[], None]

    @property
    def programs(self) -> Mapping[str, DomainProgram]:
        """What each controller is to have installed now, by name."""
        return self.promised()

    def ingress(self, domain: str | None) -> Hop:
        """The first switch of a domain."""
        return next(skeleton.hops[0] for skeleton in self.network.layout.skeletons if skeleton.domain == domain)

    def server(self, domain: str | None) -> str:
        """The compute host of a domain that somebody asks."""
        layout = self.network.layout
        return next(layout.path_of(t.name).server.host for t in self.network.scenario.tenants if t.site == domain)

    def inner_link(self, domain: str | None) -> str:
        """The port of a domain's first switch that leads to its second."""
        port = self.ingress(domain).towards_server
        if port is None:
            raise AssertionError(f"domain {domain}: its first switch leads nowhere")
        return port


@dataclass
class Injector:
    """Does the faults of one window, when its `look` is called often enough.

    Attributes:
        site: What they are done to.
        due: Faults not yet begun, with when each is to begin, seconds from the window's start.
    """

    site: Site
    due: list[tuple[float, Fault]]
    _start_ns: int = 0
    _active: list[tuple[float, Fault, AbstractContextManager[None]]] = field(default_factory=list)
    _done: list[Occurrence] = field(default_factory=list)

    @classmethod
    def of(cls, site: Site, seed: int, window: int, *, last: bool) -> Injector:
        """The faults of a scenario in one window, with those that end a run if it is the last one."""
        faults = site.network.scenario.faults
        due = sorted(zip(begin_s(faults, seed, window), faults, strict=True), key=lambda each: each[0])
        return cls(site, [each for each in due if last or each[1].kind is not FaultKind.DISK_FULL])

    def begin(self, start_ns: int) -> None:
        """Tell when the window starts, CLOCK_MONOTONIC."""
        self._start_ns = start_ns

    def look(self) -> None:
        """Begin what is due and end what is over.

        Raises:
            FidelityError: A fault could not be done, or not be undone.
        """
        for begun_s, fault, way in [each for each in self._active if each[0] + each[1].for_s <= self.now_s]:
            self._active.remove((begun_s, fault, way))
            self._end(begun_s, fault, way)
        while self.due and self.due[0][0] <= self.now_s:
            _, fault = self.due.pop(0)
            begun_s, way = self.now_s, WAYS[fault.kind](self.site, fault)
            with _reported(fault):
                way.__enter__()
            self._active.append((begun_s, fault, way))

    def next_in_s(self) -> float:
        """How long until there is something to do; infinite if there is nothing left."""
        moments = [begun_s + fault.for_s for begun_s, fault, _ in self._active] + [at_s for at_s, _ in self.due[:1]]
        return max(0.0, min(moments, default=float("inf")) - self.now_s)

    def finish(self) -> tuple[Occurrence, ...]:
        """End what is still in force, and tell what was done, in the order of the beginnings."""
        while self._active:
            self._end(*self._active.pop())
        return self.done

    @property
    def done(self) -> tuple[Occurrence, ...]:
        """What was done and is over, in the order of the beginnings."""
        return tuple(sorted(self._done, key=lambda occurrence: occurrence.begin_s))

    def abandon(self, error: BaseException) -> None:
        """Let go of what this process holds for the faults in force; the network is about to go as it is."""
        while self._active:
            _, _, way = self._active.pop()
            way.__exit__(type(error), error, error.__traceback__)

    def _end(self, begun_s: float, fault: Fault, way: AbstractContextManager[None]) -> None:
        over_s = self.now_s
        with _reported(fault):
            way.__exit__(None, None, None)
        self._done.append(Occurrence(fault, begun_s, self.now_s, self.now_s - over_s))

    @property
    def now_s(self) -> float:
        """How long ago the window started; negative before it does."""
        return (time.monotonic_ns() - self._start_ns) / 1e9


@contextmanager
def _link_down(site: Site, fault: Fault) -> Iterator[None]:
    """The link between the two switches of a domain, in both directions."""
    port = site.inner_link(fault.domain)
    links.run(["ip", "link", "set", port, "down"])
    yield
    links.run(["ip", "link", "set", port, "up"])


@contextmanager
def _rate_change(site: Site, fault: Fault) -> Iterator[None]:
    """One class at a lower rate; its bucket holds a packet, or the class would make up for the rate with its burst."""
    port, program = site.inner_link(fault.domain), site.programs[fault.domain or ""]
    (queue,) = [rule.queue for rule in program.rules if rule.tenant == fault.tenant]
    rate, burst = f"{int(fault.rate_bps or 0)}bit", f"{FULL_FRAME_BITS // 8}b"
    command = ["tc", "class", "change", "dev", port, "parent", "1:1", "classid", f"1:{queue.minor:x}", "htb"]
    links.run([*command, "rate", rate, "ceil", rate, "burst", burst, "cburst", burst])
    yield
    # The controller compares with its program and puts back exactly what differs.
    site.controllers[program.domain].install(program)


@contextmanager
def _loss(site: Site, fault: Fault) -> Iterator[None]:
    """Between a domain's border, where packets are captured, and its first switch."""
    scenario, port = site.network.scenario, site.ingress(fault.domain).towards_client or ""
    client = None if fault.tenant is None else site.network.layout.path_of(fault.tenant).client.address
    program = packet_filter.losing(fault.share or 0.0, scenario.seed, client)
    with site.network.filtering(port, program):
        yield


@contextmanager
def _delay(site: Site, fault: Fault) -> Iterator[None]:
    """On the link between the two switches of a domain, away from the clients."""
    (_, egress) = next(s.hops for s in site.network.layout.skeletons if s.domain == fault.domain)
    enters, leaves = site.inner_link(fault.domain), egress.towards_client or ""
    held = site.network.filtering(leaves, delay_line.ONLY_DELAYED)
    with delay_line.delayed(enters, leaves, held, fault.delay_s or 0.0):
        yield


@contextmanager
def _controller_killed(site: Site, fault: Fault) -> Iterator[None]:
    """Its successor knows nothing; it is told the program, and finds that nothing has to change."""
    supervisor, domain = site.network.supervisor, fault.domain or ""
    child = supervisor.children[f"controller-{domain}"]
    supervisor.kill(child)
    yield
    client = site.controllers[domain]
    client.path.unlink(missing_ok=True)
    supervisor.start(child.name, child.argv, role=child.role)
    client.reconnect()
    changed = client.install(site.programs[domain])
    if touched := [*changed["added"], *changed["changed"], *changed["removed"]]:
        raise FidelityError(f"fault {fault.name}: the data plane of {domain} lost {touched} with its controller")


@contextmanager
def _switch_killed(site: Site, _fault: Fault) -> Iterator[None]:
    """Controllers give their switches back what they lack as these connect; the others get theirs from us."""
    network = site.network
    network.supervisor.kill(network.ovs.daemon)
    yield
    network.ovs.restart(network.supervisor)
    network.configure_flows()
    for name, client in site.controllers.items():
        # Waits until all its switches are there, and for whatever is still being put back.
        client.install(site.programs[name])


@contextmanager
def _agent_killed(site: Site, fault: Fault) -> Iterator[None]:
    """Its successor has the ledger, and all that was in it."""
    network, domain = site.network, fault.domain or ""
    before = site.programs[domain]
    child = network.supervisor.children[f"agent-{domain}"]
    network.supervisor.kill(child)
    yield
    network.start(child.name, child.argv, timeout_s=_AGENT_START_S)
    if (after := site.programs[domain]) != before:
        raise FidelityError(
            f"fault {fault.name}: the agent of {domain} came back with {sorted(rule.tenant for rule in after.rules)} "
            f"in its ledger, expected {sorted(rule.tenant for rule in before.rules)} at the same rates"
        )


@contextmanager
def _server_killed(site: Site, fault: Fault) -> Iterator[None]:
    """What was being computed is lost; clients connect again when there is somebody to connect to."""
    host = site.server(fault.domain)
    child = site.network.supervisor.children[f"server-{host}"]
    site.network.supervisor.kill(child)
    yield
    site.network.start(child.name, child.argv, host=host, role=child.role, timeout_s=SERVER_START_S)


@contextmanager
def _server_impaired(site: Site, fault: Fault) -> Iterator[None]:
    """The server does it to itself and ends it by itself: a computation that was begun slowly ends slowly."""
    kind = Impaired.SLOW_DOWN if fault.kind is FaultKind.SERVER_SLOWED else Impaired.WRONG_ANSWERS
    asked = pb.Impairment(kind=kind, to_s=fault.for_s, factor=fault.factor or 0.0, rate=fault.share or 0.0)
    with grpc.insecure_channel(f"unix:{impairment_socket(site.network, site.server(fault.domain))}") as channel:
        impair: Callable[..., pb.ImpairResponse] = channel.unary_unary(
            f"/{IMPAIRMENTS}/Impair",
            request_serializer=pb.ImpairRequest.SerializeToString,
            response_deserializer=pb.ImpairResponse.FromString,
        )
        try:
            impair(pb.ImpairRequest(seed=site.network.scenario.seed, impairments=[asked]), timeout=_ANSWERS_WITHIN_S)
        except grpc.RpcError as error:
            raise FidelityError(f"fault {fault.name} ({fault.kind}): {error.code().name}, {error.details()}") from error
    yield


@contextmanager
def _clock_stepped(site: Site, fault: Fault) -> Iterator[None]:
    """By a process that steps it back when it ends, whoever ends it."""
    supervisor = site.network.supervisor
    by_ns = str(round((fault.step_s or 0.0) * 1e9))
    command = [sys.executable, "-m", "testbed.emulation.clock_step", by_ns]
    child = supervisor.start(f"clock-{fault.name}", command, restores=True)
    yield
    if supervisor.end(child):
        raise FidelityError(f"fault {fault.name}: the clock was not set back; {child.tail()}")


@contextmanager
def _disk_full(site: Site, _fault: Fault) -> Iterator[None]:
    """It stays full: what could not be written cannot be written later either, and nothing after it is measured."""
    site.fill_disk()
    yield


WAYS: Mapping[FaultKind, Callable[[Site, Fault], AbstractContextManager[None]]] = {
    FaultKind.LINK_DOWN: _link_down,
    FaultKind.RATE_CHANGE: _rate_change,
    FaultKind.LOSS: _loss,
    FaultKind.DELAY: _delay,
    FaultKind.CONTROLLER_KILLED: _controller_killed,
    FaultKind.SWITCH_KILLED: _switch_killed,
    FaultKind.AGENT_KILLED: _agent_killed,
    FaultKind.SERVER_KILLED: _server_killed,
    FaultKind.SERVER_SLOWED: _server_impaired,
    FaultKind.SERVER_WRONG: _server_impaired,
    FaultKind.CLOCK_STEPPED: _clock_stepped,
    FaultKind.DISK_FULL: _disk_full,
}
"""How each kind is done, and undone."""


def require(scenario: Scenario, datapath: Datapath, out: Path) -> None:
    """Refuse faults that cannot be done here, before anything is built.

    Args:
        scenario: With its faults.
        datapath: Which one carries it.
        out: Folder that is to receive the run's folder.

    Raises:
        PreflightError: Naming each.
    """
    filtered = [fault for fault in scenario.faults if fault.kind in {FaultKind.LOSS, FaultKind.DELAY}]
    wrong = []
    if filtered and datapath is Datapath.KERNEL and not packet_filter.ingress_available():
        wrong += [
            f"fault {fault.name}: found no filter for what the kernel datapath receives, expected sch_ingress, cls_bpf "
            "and act_gact; load them (modprobe -a sch_ingress cls_bpf act_gact), or ask for datapath: userspace"
            for fault in filtered
        ]
    if not _may_set_clock():
        wrong += [
            f"fault {fault.name}: found no right to set the host's clock; run with CAP_SYS_TIME, or leave the fault out"
            for fault in scenario.faults
            if fault.kind is FaultKind.CLOCK_STEPPED
        ]
    if filling := [fault.name for fault in scenario.faults if fault.kind is FaultKind.DISK_FULL]:
        wrong += [f"fault {filling[0]}: {problem}" for problem in room.own_disk_problems(out)]
    if wrong:
        raise PreflightError(wrong)


def _may_set_clock() -> bool:
    effective = re.search(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) & _MAY_SET_CLOCK)


def explains(occurrences: Sequence[Occurrence], gate: str, domain: str, tenant: str) -> str:
    """The name of a fault that breaks a gate for a tenant in a domain by being what it is; empty if none does."""
    for fault in (occurrence.fault for occurrence in occurrences):
        touched = fault.domain in {None, domain} and fault.tenant in {None, tenant}
        if touched and gate in EXPLAINED[fault.kind]:
            return fault.name
    return ""


def explains_all(occurrences: Sequence[Occurrence], gate: str) -> str:
    """The name of a fault that touches everyone and breaks a gate by being what it is; empty if none does."""
    return next(
        (f.name for f in (each.fault for each in occurrences) if f.domain is None and gate in EXPLAINED[f.kind]), ""
    )


@contextmanager
def _reported(fault: Fault) -> Iterator[None]:
    try:
        yield
    except (PreflightError, CallError, OSError) as error:
        problems = [str(error)] if isinstance(error, OSError) else error.problems
        raise FidelityError(f"fault {fault.name} ({fault.kind}): {'; '.join(problems)}") from error
