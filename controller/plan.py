"""From a program to the objects that switches and kernel must hold; pure, and the only place that knows the layout.

Flows: at each hop a rule becomes one flow a direction, matched on the port it enters, the client and the server; at an
ingress hop the flow towards the server carries the meter; everything else is dropped by the table-miss flow. Queues:
on each queued port an HTB root 1: with one class 1:1 of the link's rate, one class for unclassified packets, and below
1:1 one leaf class a rule, or one for several rules that share a queue. On the userspace datapath, which ignores
`set_queue`, a `u32` hash table on the client's address selects the class; on the kernel datapath `set_queue` does
(queue N becomes priority 1:N+1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.checks import KERNEL, USERSPACE, check, port_towards
from controller.objects import (
    ClassifierKey,
    ClassifierValue,
    ClassKey,
    ClassValue,
    FilterKey,
    FilterValue,
    FlowKey,
    FlowValue,
    Key,
    LeafKey,
    LeafValue,
    MeterKey,
    MeterValue,
    RootKey,
    RootValue,
    Value,
    burst_ticks,
)
from controller.program import DomainProgram, Hop, Queue, Rule

ROOT_MINOR, UNCLASSIFIED_MINOR = 1, 2
OWN_ROOT = RootValue("htb", major=1, default_minor=UNCLASSIFIED_MINOR)
"""The only root installed; what hangs below any other is not read, for it goes when that one is replaced."""
LEAF_KIND = "pfifo_head_drop"
"""A full FIFO must not report its drop to the sender. Open vSwitch's userspace datapath hands a port up to 32 packets
at once, and at the first one refused it silently throws away the rest of them, whoever's they are. This FIFO makes room
by dropping its oldest packet, counts that, and reports no error; what is served, and how long it waits, stays FIFO."""
TENANT_PRIORITY, MISS_PRIORITY = 100, 0
METER_FLAGS = ("BURST", "KBPS", "STATS")

_FULL_FRAME_BYTES = 1514
_UNCLASSIFIED = Queue(
    minor=UNCLASSIFIED_MINOR,
    rate_bps=64_000,
    ceil_bps=64_000,
    burst_bytes=2 * _FULL_FRAME_BYTES,
    quantum_bytes=_FULL_FRAME_BYTES,
    limit_packets=64,
)
"""A class nobody should need: so slow that a tenant whose packets are not classified is noticed at once."""


@dataclass
class Plan:
    """The objects of a program and which tenant each belongs to."""

    objects: dict[Key, Value] = field(default_factory=dict)
    tenants: dict[Key, str] = field(default_factory=dict)

    def add(self, key: Key, value: Value, tenant: str | None = None) -> None:
        """Ask for one object."""
        self.objects[key] = value
        if tenant is not None:
            self.tenants[key] = tenant


def plan(program: DomainProgram) -> Plan:
    """Objects that `program` needs.

    Raises:
        ProgramError: As `controller.checks.check`.
    """
    check(program)
    wanted = Plan()
    for hop in program.hops:
        wanted.add(FlowKey(hop.bridge, MISS_PRIORITY, ()), FlowValue(0, ()))
        for rule in program.rules:
            _plan_flows(wanted, program, hop, rule)
        for port in hop.queued_ports:
            _plan_port(wanted, program, port, address_towards(hop, port))
    return wanted


def sharers(rules: Iterable[Rule]) -> dict[Queue, list[str]]:
    """Names of the tenants whose packets each class holds: of one, unless tenants share it."""
    found: dict[Queue, list[str]] = {}
    for rule in rules:
        found.setdefault(rule.queue, []).append(rule.tenant)
    return found


def address_towards(hop: Hop, port: str) -> str:
    """The address that tells tenants apart on an egress port: the destination of packets towards clients."""
    clientward = {hop.towards_client, *(name for _, name in hop.client_ports)}
    return "destination" if port in clientward else "source"


def _plan_flows(wanted: Plan, program: DomainProgram, hop: Hop, rule: Rule) -> None:
    client_port, server_port = port_towards(hop, "client", rule), port_towards(hop, "server", rule)
    queue: list[tuple[str, int | str]] = []
    if program.datapath == KERNEL:
        queue = [("set_queue", rule.queue.minor - 1)]
    metered: list[tuple[str, int | str]] = []
    if hop.ingress and rule.meter is not None:
        metered = [("meter", rule.meter.meter_id)]
        band = ("drop", rule.meter.rate_kbps, rule.meter.burst_kbit)
        wanted.add(MeterKey(hop.bridge, rule.meter.meter_id), MeterValue(METER_FLAGS, (band,)), rule.tenant)
    wanted.add(
        FlowKey(hop.bridge, TENANT_PRIORITY, _match(client_port, rule.client, rule.server)),
        FlowValue(rule.number, (*metered, *queue, ("output", server_port))),
        rule.tenant,
    )
    wanted.add(
        FlowKey(hop.bridge, TENANT_PRIORITY, _match(server_port, rule.server, rule.client)),
        FlowValue(rule.number, (*queue, ("output", client_port))),
        rule.tenant,
    )


def _match(in_port: str, source: str, destination: str) -> tuple[tuple[str, str], ...]:
    return (("eth_type", "0x800"), ("in_port", in_port), ("ipv4_dst", destination), ("ipv4_src", source))


def _plan_port(wanted: Plan, program: DomainProgram, port: str, address: str) -> None:
    wanted.add(RootKey(port), OWN_ROOT)
    wanted.add(ClassKey(port, ROOT_MINOR), _link_class(program.link_rate_bps))
    _plan_queue(wanted, port, _UNCLASSIFIED, None)
    if program.datapath == USERSPACE:
        wanted.add(ClassifierKey(port), ClassifierValue(address, linked=True))
    for queue, tenants in sharers(program.rules).items():
        _plan_queue(wanted, port, queue, ", ".join(tenants))
    for rule in program.rules:
        if program.datapath == USERSPACE:
            wanted.add(FilterKey(port, rule.client), FilterValue(rule.queue.minor, address), rule.tenant)


def _plan_queue(wanted: Plan, port: str, queue: Queue, tenant: str | None) -> None:
    rate, ceil = queue.rate_bps // 8, queue.ceil_bps // 8
    value = ClassValue(
        parent_minor=ROOT_MINOR,
        rate_bytes_per_s=rate,
        ceil_bytes_per_s=ceil,
        burst_ticks=burst_ticks(queue.burst_bytes, rate),
        cburst_ticks=burst_ticks(queue.burst_bytes, ceil),
        quantum_bytes=queue.quantum_bytes,
        prio=0,
    )
    wanted.add(ClassKey(port, queue.minor), value, tenant)
    wanted.add(LeafKey(port, queue.minor), LeafValue(LEAF_KIND, queue.limit_packets), tenant)


def _link_class(link_rate_bps: int) -> ClassValue:
    """The class of the whole link.

    Reserved leaves send at their own rate whatever their parent has left, so this bucket only limits what best effort
    borrows; a millisecond at the link's rate covers the lateness of the kernel's timer.
    """
    rate = link_rate_bps // 8
    ticks = burst_ticks(rate // 1000 + _FULL_FRAME_BYTES, rate)
    return ClassValue(0, rate, rate, ticks, ticks, _FULL_FRAME_BYTES, 0)
