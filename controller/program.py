"""What one domain's controller is told to install, as data.

A `DomainProgram` is complete: the controller derives nothing but OpenFlow and netlink messages from it, so comparing
what is read back with the program is the whole of verification. It is plain JSON on the wire (`to_dict`/`from_dict`,
unknown keys refused). Integers only: a float rate written to a switch is silently read as zero, which means unlimited.
It knows nothing of promises, envelopes or tenants' traffic.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeVar

T = TypeVar("T")


class ProgramError(ValueError):
    """A program that no switch could be asked to install."""


@dataclass(frozen=True)
class Meter:
    """Token bucket that drops: OpenFlow 1.3 meter with KBPS and BURST flags."""

    meter_id: int
    rate_kbps: int
    burst_kbit: int


@dataclass(frozen=True)
class Queue:
    """One HTB class with a bounded FIFO leaf.

    `minor` is the class 1:minor on every port of the program that carries queues. A reservation has
    rate = ceil; best effort has a small rate and the link's rate as ceil. Rules with equal queues share one class.
    """

    minor: int
    rate_bps: int
    ceil_bps: int
    burst_bytes: int
    quantum_bytes: int
    limit_packets: int


@dataclass(frozen=True)
class Rule:
    """One tenant in one domain.

    Attributes:
        tenant: Name, for messages and counters.
        number: 1.. unique in the run; also the flow cookie.
        client: IPv4 address of the tenant's client host (unique per tenant: it identifies the tenant).
        server: IPv4 address of the host it talks to.
        meter: At the domain's ingress, direction client to server; None for best effort without a guardrail.
        queue: At every egress port of the domain on the tenant's path, both directions.
    """

    tenant: str
    number: int
    client: str
    server: str
    meter: Meter | None
    queue: Queue


@dataclass(frozen=True)
class Hop:
    """One switch of the domain on the path and the ports a packet of a given direction leaves through.

    Attributes:
        bridge: OVS bridge name.
        dpid: Datapath id.
        ingress: Whether meters are applied here to packets that arrive from `towards_client`.
        towards_client: Interface name of the port that leads to client hosts (one entry of `client_ports` may
            override it per client where clients attach directly).
        towards_server: Interface name of the port that leads to the next switch or domain.
        client_ports: (client address, interface) for clients attached to this switch itself.
        server_ports: (server address, interface) for compute hosts attached to this switch itself.
        queued_ports: Interfaces whose root qdisc this domain owns and on which every rule's queue exists.
    """

    bridge: str
    dpid: int
    ingress: bool
    towards_client: str | None
    towards_server: str | None
    client_ports: tuple[tuple[str, str], ...]
    server_ports: tuple[tuple[str, str], ...]
    queued_ports: tuple[str, ...]


@dataclass(frozen=True)
class DomainProgram:
    """Everything one domain's switches must hold for the tenants that reserved it."""

    domain: str
    datapath: str
    link_rate_bps: int
    hops: tuple[Hop, ...]
    rules: tuple[Rule, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_dict`; raises `ProgramError` on unknown or missing keys and on values of another type."""
        data = _object("DomainProgram", data)
        hops = tuple(_hop(item) for item in _list("DomainProgram.hops", data.get("hops", ())))
        rules = tuple(_rule(item) for item in _list("DomainProgram.rules", data.get("rules", ())))
        return _build(cls, {**data, "hops": hops, "rules": rules})


def _hop(item: Any) -> Hop:
    item = _object("Hop", item)
    pairs = {
        key: tuple(_pair(f"Hop.{key}", pair) for pair in _list(f"Hop.{key}", item.get(key, ())))
        for key in ("client_ports", "server_ports")
    }
    ports = tuple(_list("Hop.queued_ports", item.get("queued_ports", ())))
    return _build(Hop, {**item, **pairs, "queued_ports": ports})


def _rule(item: Any) -> Rule:
    item = _object("Rule", item)
    meter = None if item.get("meter") is None else _build(Meter, _object("Meter", item["meter"]))
    queue = _build(Queue, _object("Queue", item.get("queue")))
    return _build(Rule, {**item, "meter": meter, "queue": queue})


def _object(name: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ProgramError(f"{name}: found {item!r}, expected an object")
    return item


def _list(name: str, items: Any) -> list[Any]:
    if not isinstance(items, (list, tuple)):
        raise ProgramError(f"{name}: found {items!r}, expected a list")
    return list(items)


def _pair(name: str, item: Any) -> tuple[str, str]:
    pair = tuple(_list(name, item))
    if len(pair) != 2:
        raise ProgramError(f"{name}: found {item!r}, expected an address and a port")
    return pair


def _build(kind: type[T], data: dict[str, Any]) -> T:
    wanted = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    if set(data) != set(wanted):
        unknown, missing = sorted(set(data) - set(wanted)), sorted(set(wanted) - set(data))
        raise ProgramError(f"{kind.__name__}: unknown keys {unknown}, missing keys {missing}")
    for name, type_name in wanted.items():
        _check_type(f"{kind.__name__}.{name}", type_name, data[name])
    return kind(**data)


def _check_type(name: str, type_name: str, value: Any) -> None:
    if type_name == "int" and type(value) is not int:
        raise ProgramError(f"{name}: {value!r} is not an integer; switches read anything else as 0")
    if type_name == "bool" and not isinstance(value, bool):
        raise ProgramError(f"{name}: {value!r} is not true or false")
    if type_name == "str" and not isinstance(value, str):
        raise ProgramError(f"{name}: {value!r} is not text")
    if type_name == "str | None" and not (value is None or isinstance(value, str)):
        raise ProgramError(f"{name}: {value!r} is neither text nor nothing")
    if type_name.startswith("tuple[") and "str" in type_name:
        strings = [part for item in value for part in (item if isinstance(item, tuple) else (item,))]
        if not all(isinstance(part, str) for part in strings):
            raise ProgramError(f"{name}: {value!r} holds something that is not text")
