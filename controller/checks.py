"""What a program must satisfy before any of it is sent: everything wrong with it, each with object, found, expected.

Switches and kernel accept many programs that make no sense together (overlapping classes, more reserved than the link
has, a rate that rounds to nothing) and then do something else; those are refused here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import AddressValueError, IPv4Address

from controller.objects import burst_ticks
from controller.program import DomainProgram, Hop, Meter, ProgramError, Queue, Rule

USERSPACE, KERNEL = "userspace", "kernel"
FIRST_TENANT_MINOR, LAST_TENANT_MINOR = 0x10, 0x7FFF
"""Class minors of tenants. Smaller ones are the controller's; a leaf's handle is its class's minor, and the kernel
gives out handles from 0x8000 by itself."""

_LARGEST_METER_ID = 0xFFFF0000
_LARGEST_U32 = 0xFFFFFFFF


def check(program: DomainProgram) -> None:
    """Refuse a program that no switch could be asked to install.

    Raises:
        ProgramError: One sentence a line for everything that is wrong with it.
    """
    problems = list(_problems(program))
    if problems:
        raise ProgramError("\n".join(problems))


def port_towards(hop: Hop, role: str, rule: Rule) -> str:
    """The port of a hop that leads to a rule's `client` or `server`.

    Raises:
        ProgramError: The hop has none.
    """
    pairs, default = (
        (hop.client_ports, hop.towards_client) if role == "client" else (hop.server_ports, hop.towards_server)
    )
    address = rule.client if role == "client" else rule.server
    port = dict(pairs).get(address, default)
    if port is None:
        raise ProgramError(f"tenant {rule.tenant} at {hop.bridge}: found no port towards its {role} {address}")
    return port


def _problems(program: DomainProgram) -> Iterator[str]:
    if program.datapath not in {USERSPACE, KERNEL}:
        yield f"datapath of {program.domain}: found {program.datapath!r}, expected {USERSPACE!r} or {KERNEL!r}"
    if program.link_rate_bps < 8:
        yield f"link rate of {program.domain}: found {program.link_rate_bps} bit/s, expected at least 8"
    yield from _repetitions(program)
    for rule in program.rules:
        subject = f"tenant {rule.tenant}"
        yield from _identity_problems(subject, rule)
        yield from _queue_problems(subject, rule.queue)
        if rule.meter is not None:
            yield from _meter_problems(subject, rule.meter)
        yield from _path_problems(program, rule)
    queues = {rule.queue.minor: rule.queue for rule in program.rules}.values()
    reserved = sum(queue.rate_bps for queue in queues if queue.rate_bps == queue.ceil_bps)
    if reserved > program.link_rate_bps:
        yield (
            f"reservations of {program.domain}: found {reserved} bit/s together, expected at most the link's "
            f"{program.link_rate_bps}; HTB would not keep leaf classes to it"
        )


def _repetitions(program: DomainProgram) -> Iterator[str]:
    yield from _repeated("bridge", (hop.bridge for hop in program.hops))
    yield from _repeated("datapath id", (hop.dpid for hop in program.hops))
    yield from _repeated("queued port", (port for hop in program.hops for port in hop.queued_ports))
    yield from _repeated("tenant", (rule.tenant for rule in program.rules))
    yield from _repeated("rule number", (rule.number for rule in program.rules))
    yield from _repeated("client address", (rule.client for rule in program.rules))
    yield from _unshareable(program.rules)
    yield from _repeated("meter", (rule.meter.meter_id for rule in program.rules if rule.meter))


def _unshareable(rules: Iterable[Rule]) -> Iterator[str]:
    """A class may serve several tenants who agree on what it is and have no guardrails of their own."""
    by_minor: dict[int, list[Rule]] = {}
    for rule in rules:
        by_minor.setdefault(rule.queue.minor, []).append(rule)
    for minor, sharing in by_minor.items():
        alike = len({rule.queue for rule in sharing}) == 1 and all(rule.meter is None for rule in sharing)
        if len(sharing) > 1 and not alike:
            yield f"class {minor}: found {len(sharing)} times, expected once, or one queue for tenants without meters"


def _repeated(what: str, names: Iterable[object]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{what} {name}: found {count} times, expected once"


def _identity_problems(subject: str, rule: Rule) -> Iterator[str]:
    if rule.number < 1:
        yield f"{subject} number: found {rule.number}, expected 1 or more"
    for role, address in (("client", rule.client), ("server", rule.server)):
        if not _is_address(address):
            yield f"{subject} {role} address: found {address!r}, expected a dotted IPv4 address"


def _is_address(text: str) -> bool:
    try:
        return str(IPv4Address(text)) == text
    except AddressValueError:
        return False


def _queue_problems(subject: str, queue: Queue) -> Iterator[str]:
    yield from _outside(f"{subject} class minor", queue.minor, FIRST_TENANT_MINOR, LAST_TENANT_MINOR)
    for name in ("burst_bytes", "quantum_bytes", "limit_packets"):
        yield from _outside(f"{subject} queue {name}", getattr(queue, name), 1, _LARGEST_U32)
    if not 8 <= queue.rate_bps <= queue.ceil_bps:
        yield f"{subject} queue rate: found {queue.rate_bps} bit/s, expected 8 to its ceil {queue.ceil_bps}"
    elif burst_ticks(queue.burst_bytes, queue.rate_bps // 8) > _LARGEST_U32:
        yield f"{subject} queue burst: found {queue.burst_bytes} bytes, expected at most 274 s at its rate"


def _meter_problems(subject: str, meter: Meter) -> Iterator[str]:
    yield from _outside(f"{subject} meter id", meter.meter_id, 1, _LARGEST_METER_ID)
    for name in ("rate_kbps", "burst_kbit"):
        yield from _outside(f"{subject} meter {name}", getattr(meter, name), 1, _LARGEST_U32)


def _outside(what: str, value: int, smallest: int, largest: int) -> Iterator[str]:
    if not smallest <= value <= largest:
        yield f"{what}: found {value}, expected {smallest} to {largest}"


def _path_problems(program: DomainProgram, rule: Rule) -> Iterator[str]:
    for hop in program.hops:
        for role in ("client", "server"):
            try:
                port_towards(hop, role, rule)
            except ProgramError as error:
                yield str(error)
