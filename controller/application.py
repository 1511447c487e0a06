"""One domain's controller as an application on the Ryu API: it keeps switches and queues equal to a program.

Every call compares what switches and kernel hold with what the program needs and sends the difference, so installing
the same program again sends nothing, a changed rule touches only its own objects, and a switch that reconnects gets
back exactly what it lacks. Flows are proactive: packets without a flow are dropped, and a packet sent to the
controller is counted as the fault it is. How calls arrive is not known here (see `controller.northbound`).
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from controller import report, traffic_control
from controller.errors import ControllerError, ReadBackError, SwitchError
from controller.objects import Change, Key, PortKey, Value, compare
from controller.openflow import Switch
from controller.plan import Plan, plan
from controller.program import DomainProgram, ProgramError
from controller.ryu_api import (
    DEAD_DISPATCHER,
    MAIN_DISPATCHER,
    VERSION,
    WANTED,
    Application,
    hub,
    ofp_event,
    ofproto_v1_3,
    set_ev_cls,
)

CONNECT_TIMEOUT_S = 20.0
_POLL_S = 0.02


@dataclass(frozen=True)
class _Work:
    """Changes that make `program` (hops and ports concerned) hold what is wanted, and what was seen before them."""

    program: DomainProgram
    wanted: Plan
    observation: traffic_control.Observation
    changes: list[Change]


class DomainController(Application):
    """Holds one program and makes its switches and ports follow it."""

    OFP_VERSIONS: ClassVar[list[int]] = [ofproto_v1_3.OFP_VERSION]

    def __init__(self, *args: Any, domain: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.domain = domain
        self.errors: list[str] = []
        self._program = DomainProgram(domain, "userspace", 8, (), ())
        self._switches: dict[int, Switch] = {}
        self._unclaimed: dict[int, Any] = {}
        self._connections: Counter[int] = Counter()
        self._refused: Counter[int] = Counter()
        self._packet_ins: Counter[int] = Counter()
        self._lock = hub.Semaphore(1)
        self._claiming = False

    def install(self, program: DomainProgram) -> dict[str, Any]:
        """Replace the program; returns which objects changed.

        Raises:
            ProgramError: The program cannot be installed anywhere; nothing was changed.
            ControllerError: A switch or the kernel refused something, or what reads back differs. The previous
                program has been put back, unless the message says that this failed too.
        """
        if program.domain != self.domain:
            raise ProgramError(f"program: found domain {program.domain!r}, expected {self.domain!r}")
        plan(program)
        with self._lock:
            return self._replace(program)

    def remove(self, numbers: list[int]) -> dict[str, Any]:
        """Take the rules with these numbers out of the program; other rules are not touched.

        Raises:
            ProgramError: A number that no rule has.
            ControllerError: As `install`.
        """
        with self._lock:
            unknown = sorted(set(numbers) - {rule.number for rule in self._program.rules})
            if unknown:
                raise ProgramError(f"rules of {self.domain}: numbers {unknown} not found")
            rules = tuple(rule for rule in self._program.rules if rule.number not in set(numbers))
            return self._replace(replace(self._program, rules=rules))

    def verify(self) -> list[dict[str, str]]:
        """Every difference between the program and what is there: object, tenant, found, expected."""
        with self._lock:
            wanted = plan(self._program)
            missing = {hop.bridge for hop in self._program.hops if hop.dpid not in self._switches}
            found, _ = self._observe(self._program, missing)
            changes = [change for change in compare(found, wanted.objects) if _bridge(change.key) not in missing]
            lost = [
                {"object": f"switch {bridge}", "tenant": "", "found": "not connected", "expected": "connected"}
                for bridge in sorted(missing)
            ]
            return lost + report.differences(changes, wanted.tenants)

    def read_back(self) -> dict[str, Any]:
        """Everything installed, as switches and kernel report it."""
        with self._lock:
            found, _ = self._observe(self._program)
            return report.read_back(self._program, found)

    def counters(self) -> dict[str, Any]:
        """What meters and classes have seen, sent and dropped, for each tenant."""
        with self._lock:
            meters = {
                hop.bridge: self._switch(hop.dpid, hop.bridge).meter_counters()
                for hop in self._program.hops
                if hop.ingress
            }
            classes = traffic_control.counters(_ports(self._program))
            return report.counters(self._program, meters, classes)

    def health(self) -> dict[str, Any]:
        """Who is connected and what went wrong since the start."""
        stray = [error for switch in list(self._switches.values()) for error in switch.stray_errors]
        return {
            "domain": self.domain,
            "api": f"{WANTED} {VERSION}",
            "programmed": bool(self._program.hops),
            "rules": len(self._program.rules),
            "switches": {
                hop.bridge: {
                    "dpid": hop.dpid,
                    "connected": hop.dpid in self._switches,
                    "connections": self._connections[hop.dpid],
                    "packet_ins": self._packet_ins[hop.dpid],
                }
                for hop in self._program.hops
            },
            "unclaimed": sorted(self._unclaimed),
            "refused": {str(dpid): count for dpid, count in sorted(self._refused.items())},
            "packet_ins": sum(self._packet_ins.values()),
            "errors": [*self.errors, *stray],
        }

    def _replace(self, program: DomainProgram) -> dict[str, Any]:
        previous = self._program
        self._program = program
        try:
            self._claim_switches()
        except SwitchError:
            # Who connected while others were waited for was given nothing.
            self._program = previous
            self._restore()
            raise
        try:
            work = self._work(previous, program)
        except ControllerError:
            self._program = previous
            raise
        try:
            result = self._carry_out(work)
        except ControllerError as error:
            self._program = previous
            result = self._put_back(program, previous, error)
            if program != previous:
                raise
            # Somebody changed what was just being looked at, and what was asked for has been put back.
        self._release_switches()
        return result

    def _put_back(self, program: DomainProgram, previous: DomainProgram, cause: ControllerError) -> dict[str, Any]:
        try:
            return self._carry_out(self._work(program, previous))
        except ControllerError as second:
            failed = "the previous program could not be put back:"
            raise type(cause)([*cause.problems, failed, *second.problems]) from second

    def _work(self, previous: DomainProgram, program: DomainProgram) -> _Work:
        """What has to change, on every hop of both programs, for `program` to be in place."""
        wanted = plan(program)
        both = _union(previous, program)
        found, observation = self._observe(both)
        return _Work(both, wanted, observation, compare(found, wanted.objects))

    def _carry_out(self, work: _Work) -> dict[str, Any]:
        """Send what differs, then read all of it back.

        Queues come before the flows that use them, and flows go before the queues they used.
        """
        changes, tenants = work.changes, work.wanted.tenants
        on_ports = [change for change in changes if isinstance(change.key, PortKey)]
        requests = traffic_control.apply([c for c in on_ports if c.expected is not None], work.observation)
        messages = 0
        for hop in work.program.hops:
            here = [change for change in changes if _bridge(change.key) == hop.bridge]
            if here:
                messages += self._switch(hop.dpid, hop.bridge).apply(here)
        requests += traffic_control.apply([c for c in on_ports if c.expected is None], work.observation)
        if changes:
            found, _ = self._observe(work.program)
            left = report.differences(compare(found, work.wanted.objects), tenants)
            if left:
                raise ReadBackError(report.sentence(difference) for difference in left)
        return report.installed(changes, tenants, {"openflow": messages, "netlink": requests})

    def _observe(
        self, program: DomainProgram, missing: set[str] | None = None
    ) -> tuple[dict[Key, Value], traffic_control.Observation]:
        observation = traffic_control.observe(_ports(program))
        found: dict[Key, Value] = dict(observation.objects)
        for hop in program.hops:
            if hop.bridge not in (missing or ()):
                found.update(self._switch(hop.dpid, hop.bridge).observe())
        return found, observation

    def _switch(self, dpid: int, bridge: str) -> Switch:
        try:
            return self._switches[dpid]
        except KeyError:
            raise SwitchError(
                f"switch {bridge} (datapath id {dpid}): found not connected, expected connected"
            ) from None

    def _claim_switches(self) -> None:
        """Take over switches that connected before the program was known, refuse strangers, wait for the rest."""
        for dpid in list(self._unclaimed):
            self._admit(self._unclaimed.pop(dpid))
        for hop in self._program.hops:
            if hop.dpid in self._switches:
                self._switches[hop.dpid].bridge = hop.bridge
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        # Who connects now is given the program by whoever waits for it, and once more would undo what came after that.
        self._claiming = True
        while (missing := self._missing()) and time.monotonic() < deadline:
            hub.sleep(_POLL_S)
        self._claiming = False
        if missing:
            raise SwitchError(
                f"switch {bridge}: not connected within {CONNECT_TIMEOUT_S:g} s; expected datapath id {dpid}"
                for dpid, bridge in missing.items()
            )

    def _missing(self) -> dict[int, str]:
        return {hop.dpid: hop.bridge for hop in self._program.hops if hop.dpid not in self._switches}

    def _release_switches(self) -> None:
        """Disconnect switches that no hop of the program names any more."""
        for dpid in set(self._switches) - {hop.dpid for hop in self._program.hops}:
            self._switches.pop(dpid).close()

    def _admit(self, datapath: Any) -> Switch | None:
        """The newest connection of a switch of ours replaces an older one; unknown switches are turned away."""
        bridge = {hop.dpid: hop.bridge for hop in self._program.hops}.get(datapath.id)
        if bridge is None:
            self._refused[datapath.id] += 1
            datapath.close()
            return None
        switch = Switch(datapath, bridge)
        older = self._switches.get(datapath.id)
        self._switches[datapath.id] = switch
        self._connections[datapath.id] += 1
        if older is not None:
            older.close()
        return switch

    def _come_back(self) -> None:
        """A switch that was not waited for is there."""
        with self._lock:
            self._restore()

    def _restore(self) -> None:
        """Give switches that came back what they lack."""
        with self._collecting_errors():
            here = tuple(hop for hop in self._program.hops if hop.dpid in self._switches)
            connected = replace(self._program, hops=here)
            self._carry_out(self._work(connected, connected))

    @contextlib.contextmanager
    def _collecting_errors(self) -> Iterator[None]:
        try:
            yield
        except ControllerError as error:
            self.errors.extend(error.problems)

    @set_ev_cls(ofp_event.EventOFPStateChange, [MAIN_DISPATCHER, DEAD_DISPATCHER])
    def switch_changed(self, event: Any) -> None:
        """A switch finished its handshake or went away."""
        datapath = event.datapath
        if event.state == DEAD_DISPATCHER:
            _forget(self._switches, datapath, lambda switch: switch.datapath)
            _forget(self._unclaimed, datapath, lambda waiting: waiting)
        elif not self._program.hops:
            self._unclaimed[datapath.id] = datapath
        elif self._admit(datapath) is not None and not self._claiming:
            hub.spawn(self._come_back)

    @set_ev_cls(
        [
            ofp_event.EventOFPBarrierReply,
            ofp_event.EventOFPFlowStatsReply,
            ofp_event.EventOFPMeterConfigStatsReply,
            ofp_event.EventOFPMeterStatsReply,
            ofp_event.EventOFPPortDescStatsReply,
        ],
        MAIN_DISPATCHER,
    )
    def answered(self, event: Any) -> None:
        """An answer to something this application asked."""
        switch = self._switches.get(event.msg.datapath.id)
        if switch is not None:
            switch.receive(event.msg)

    @set_ev_cls(ofp_event.EventOFPErrorMsg, MAIN_DISPATCHER)
    def refused(self, event: Any) -> None:
        """A switch refused a message."""
        switch = self._switches.get(event.msg.datapath.id)
        if switch is not None:
            switch.receive_error(event.msg)

    @set_ev_cls(ofp_event.EventOFPPacketIn, MAIN_DISPATCHER)
    def packet_arrived(self, event: Any) -> None:
        """A packet in the control plane: with proactive flows there is no good one."""
        self._packet_ins[event.msg.datapath.id] += 1


def _bridge(key: Key) -> str | None:
    return None if isinstance(key, PortKey) else key.bridge


def _ports(program: DomainProgram) -> list[str]:
    return [port for hop in program.hops for port in hop.queued_ports]


def _union(previous: DomainProgram, program: DomainProgram) -> DomainProgram:
    """`program` with, as well, the hops and queued ports that only `previous` has: they are to be emptied."""
    own_ports = set(_ports(program))
    hops = {hop.dpid: hop for hop in program.hops}
    for hop in previous.hops:
        left = tuple(port for port in hop.queued_ports if port not in own_ports)
        current = hops.get(hop.dpid)
        if current is None:
            hops[hop.dpid] = replace(hop, queued_ports=left)
        else:
            hops[hop.dpid] = replace(current, queued_ports=(*current.queued_ports, *left))
    return replace(program, hops=tuple(hops.values()))


def _forget(known: dict[int, Any], datapath: Any, connection: Callable[[Any], Any]) -> None:
    """Drop an entry, unless a newer connection of the same switch has taken its place."""
    if datapath.id in known and connection(known[datapath.id]) is datapath:
        del known[datapath.id]
