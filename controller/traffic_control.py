"""HTB trees, FIFO leaves and `u32` classifiers of a domain's ports, to and from the kernel's messages.

`observe` reads everything the kernel holds on some ports into plain objects, `apply` makes the kernel follow a list of
changes, `counters` reads what each class sent, dropped and still holds. Rates are compared in the kernel's own unit,
whole bytes per second, and bursts in its ticks of 64 ns, so a comparison is exact. The legacy rate tables are not sent:
kernels since 3.8 compute transmission times from the rate itself once a class says it runs on Ethernet.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from controller import netlink
from controller.counters import ClassCounters
from controller.errors import KernelError
from controller.netlink import Request, RouteSocket, attribute, attributes
from controller.objects import (
    Change,
    ClassifierKey,
    ClassifierValue,
    ClassKey,
    ClassValue,
    FilterKey,
    FilterValue,
    Key,
    LeafKey,
    LeafValue,
    PortKey,
    RootKey,
    RootValue,
    Value,
)
from controller.plan import OWN_ROOT

NEW_QDISC, DELETE_QDISC, GET_QDISC = 36, 37, 38
NEW_CLASS, DELETE_CLASS, GET_CLASS = 40, 41, 42
NEW_FILTER, DELETE_FILTER, GET_FILTER = 44, 45, 46
KIND, OPTIONS, STATS2 = 1, 2, 7
HTB_PARMS, HTB_INIT, HTB_RATE64, HTB_CEIL64 = 1, 2, 6, 7
U32_CLASSID, U32_HASH, U32_LINK, U32_DIVISOR, U32_SELECTOR = 1, 2, 3, 4, 5
STATS_BASIC, STATS_QUEUE = 1, 3

ROOT_PARENT = 0xFFFFFFFF
HANDLE = 0x10000
FILTER_PRIORITY = 1
FILTER_INFO = FILTER_PRIORITY << 16 | socket.htons(0x0800)
TABLE = 0x00100000
BUCKETS = 256
TERMINAL = 1
ADDRESS_OFFSET = {"source": 12, "destination": 16}

_TCMSG = struct.Struct("=BxxxiIII")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_RATESPEC = struct.Struct("=BBHhHI")
_HTB_PARMS = struct.Struct("=12s12sIIIII")
_HTB_GLOBAL = struct.Struct("=IIIII")
_SELECTOR = struct.Struct(">BBBxHHHHI")
_SELECTOR_KEY = struct.Struct("=4s4sii")
_BASIC = struct.Struct("=QI")
_QUEUE = struct.Struct("=IIIII")
_HTB_VERSION = 3
_ETHERNET = 1
_SATURATED = 0xFFFFFFFF
_PACKET_FIFOS = frozenset({"pfifo", "pfifo_head_drop"})
_DEFAULT_KINDS = frozenset({"noqueue", "pfifo_fast", "fq_codel", "mq", "fq", "pfifo"})


@dataclass
class Observation:
    """What the kernel holds on some ports.

    Attributes:
        objects: Every object, by key.
        handles: (info, handle) of each filter, needed to delete it.
    """

    objects: dict[Key, Value] = field(default_factory=dict)
    handles: dict[FilterKey, tuple[int, int]] = field(default_factory=dict)


def observe(ports: Sequence[str]) -> Observation:
    """Everything on `ports`, root qdisc, classes, leaves and filters.

    Raises:
        KernelError: A port does not exist here, or the kernel does not answer.
    """
    observation = Observation()
    indexes = _indexes(ports)
    names = {index: port for port, index in indexes.items()}
    with RouteSocket() as route:
        for index, handle, parent, _, attrs in _dump(route, GET_QDISC, 0, 0):
            if index in names:
                _read_qdisc(observation, names[index], handle, parent, attrs)
        for port, index in indexes.items():
            if observation.objects.get(RootKey(port)) != OWN_ROOT:
                continue
            for _, handle, parent, _, attrs in _dump(route, GET_CLASS, index, 0):
                _read_class(observation, port, handle, parent, attrs)
            _read_filters(observation, port, list(_dump(route, GET_FILTER, index, HANDLE)))
    return observation


def counters(ports: Sequence[str]) -> dict[str, dict[int, ClassCounters]]:
    """For each port, counters of each HTB class by minor number."""
    found: dict[str, dict[int, ClassCounters]] = {}
    with RouteSocket() as route:
        for port, index in _indexes(ports).items():
            classes = _dump(route, GET_CLASS, index, 0)
            found[port] = {handle & 0xFFFF: _read_counters(attrs) for _, handle, _, _, attrs in classes}
    return found


def apply(changes: Iterable[Change], observation: Observation) -> int:
    """Make the kernel hold what `changes` expect; returns how many requests that took.

    Filters go before the classes they select and classes before their roots; creation runs the other way, so no
    packet is ever sent to a class that is not there. Changing a class or a leaf keeps its queue.

    Raises:
        KernelError: The kernel refused a request, or a port's root belongs to somebody else.
    """
    ordered = sorted(_without_orphans(changes), key=_order)
    _refuse_foreign_roots(ordered)
    indexes = _indexes({change.key.port for change in ordered if isinstance(change.key, PortKey)})
    requests = [request for change in ordered for request in _requests(change, observation, indexes)]
    with RouteSocket() as route:
        route.execute(requests)
    return len(requests)


def _order(change: Change) -> tuple[int, int]:
    ranks: dict[type[Key], int] = {RootKey: 0, ClassKey: 1, LeafKey: 2, ClassifierKey: 3, FilterKey: 4}
    rank = ranks[type(change.key)]
    return (0, -rank) if change.expected is None else (1, rank)


def _without_orphans(changes: Iterable[Change]) -> list[Change]:
    """Removing a root removes everything below it; asking for that again would be an error."""
    changes = list(changes)
    gone = {change.key.port for change in changes if isinstance(change.key, RootKey) and change.expected is None}
    return [
        change
        for change in changes
        if isinstance(change.key, RootKey) or not (isinstance(change.key, PortKey) and change.key.port in gone)
    ]


def _refuse_foreign_roots(changes: Iterable[Change]) -> None:
    problems = [
        f"{change.key}: found {change.found.kind} {change.found.major:x}: of somebody else, expected none; "
        "remove it or take the port out of the queued ports"
        for change in changes
        if isinstance(change.found, RootValue) and (change.found.kind, change.found.major) != ("htb", OWN_ROOT.major)
    ]
    if problems:
        raise KernelError(problems)


def _requests(change: Change, observation: Observation, indexes: dict[str, int]) -> Iterator[Request]:
    key, value = change.key, change.expected
    match key, value:
        case RootKey(port), _:
            yield from _root_requests(change, indexes[port])
        case ClassKey(port, minor), ClassValue():
            body = _body(
                indexes[port], HANDLE | minor, HANDLE | value.parent_minor, b"htb", options=_htb_options(value)
            )
            yield Request(NEW_CLASS, netlink.CREATE, body, str(key))
        case ClassKey(port, minor), None:
            yield Request(DELETE_CLASS, 0, _body(indexes[port], HANDLE | minor, HANDLE, b"htb"), str(key))
        case LeafKey(port, minor), LeafValue(kind, int(limit)):
            body = _body(indexes[port], minor << 16, HANDLE | minor, kind.encode(), options=_U32.pack(limit))
            yield Request(NEW_QDISC, netlink.CREATE | netlink.REPLACE, body, str(key))
        case ClassifierKey(port), ClassifierValue():
            yield from _classifier_requests(change, indexes[port], value)
        case ClassifierKey(port), None:
            yield Request(DELETE_FILTER, 0, _body(indexes[port], 0, HANDLE, b"u32", info=FILTER_INFO), str(key))
        case FilterKey(port, client), FilterValue():
            if change.found is not None:
                yield _delete_filter(key, indexes[port], observation)
            yield _new_filter(key, indexes[port], client, value)
        case FilterKey(port), None:
            yield _delete_filter(key, indexes[port], observation)


def _root_requests(change: Change, index: int) -> Iterator[Request]:
    if change.found is not None:
        yield Request(DELETE_QDISC, 0, _body(index, HANDLE, ROOT_PARENT, b"htb"), str(change.key))
    if isinstance(change.expected, RootValue):
        init = _HTB_GLOBAL.pack(_HTB_VERSION, 10, change.expected.default_minor or 0, 0, 0)
        body = _body(index, HANDLE, ROOT_PARENT, b"htb", options=attribute(HTB_INIT, init))
        yield Request(NEW_QDISC, netlink.CREATE | netlink.REPLACE, body, str(change.key))


def _classifier_requests(change: Change, index: int, value: ClassifierValue) -> Iterator[Request]:
    """A table of 256 buckets, and one link that hashes every packet's address on its last byte into it."""
    if change.found is not None:
        yield Request(DELETE_FILTER, 0, _body(index, 0, HANDLE, b"u32", info=FILTER_INFO), str(change.key))
    table = attribute(U32_DIVISOR, _U32.pack(BUCKETS))
    yield Request(
        NEW_FILTER,
        netlink.CREATE | netlink.EXCLUSIVE,
        _body(index, TABLE, HANDLE, b"u32", info=FILTER_INFO, options=table),
        str(change.key),
    )
    hashed = _SELECTOR.pack(0, 0, 1, 0, 0, 0, 0, 0xFF)
    hashed = hashed[:10] + struct.pack("=h", ADDRESS_OFFSET[value.address]) + hashed[12:]
    everything = _SELECTOR_KEY.pack(bytes(4), bytes(4), 0, 0)
    link = attribute(U32_LINK, _U32.pack(TABLE)) + attribute(U32_SELECTOR, hashed + everything)
    yield Request(
        NEW_FILTER,
        netlink.CREATE | netlink.EXCLUSIVE,
        _body(index, 0, HANDLE, b"u32", info=FILTER_INFO, options=link),
        str(change.key),
    )


def _new_filter(key: FilterKey, index: int, client: str, value: FilterValue) -> Request:
    address = IPv4Address(client).packed
    selector = _SELECTOR.pack(TERMINAL, 0, 1, 0, 0, 0, 0, 0)
    selector += _SELECTOR_KEY.pack(b"\xff" * 4, address, ADDRESS_OFFSET[value.address], 0)
    options = (
        attribute(U32_CLASSID, _U32.pack(HANDLE | value.minor))
        + attribute(U32_HASH, _U32.pack(TABLE | address[3] << 12))
        + attribute(U32_SELECTOR, selector)
    )
    body = _body(index, 0, HANDLE, b"u32", info=FILTER_INFO, options=options)
    return Request(NEW_FILTER, netlink.CREATE | netlink.EXCLUSIVE, body, str(key))


def _delete_filter(key: FilterKey, index: int, observation: Observation) -> Request:
    info, handle = observation.handles[key]
    return Request(DELETE_FILTER, 0, _body(index, handle, HANDLE, b"u32", info=info), str(key))


def _htb_options(value: ClassValue) -> bytes:
    parameters = _HTB_PARMS.pack(
        _ratespec(value.rate_bytes_per_s),
        _ratespec(value.ceil_bytes_per_s),
        value.burst_ticks,
        value.cburst_ticks,
        value.quantum_bytes,
        0,
        value.prio,
    )
    options = attribute(HTB_PARMS, parameters)
    for kind, rate in ((HTB_RATE64, value.rate_bytes_per_s), (HTB_CEIL64, value.ceil_bytes_per_s)):
        if rate > _SATURATED:
            options += attribute(kind, _U64.pack(rate))
    return options


def _ratespec(rate_bytes_per_s: int) -> bytes:
    return _RATESPEC.pack(0, _ETHERNET, 0, 0, 0, min(rate_bytes_per_s, _SATURATED))


def _body(index: int, handle: int, parent: int, kind: bytes, *, info: int = 0, options: bytes = b"") -> bytes:
    header = _TCMSG.pack(socket.AF_UNSPEC, index, handle, parent, info)
    return header + attribute(KIND, kind + b"\0") + (attribute(OPTIONS, options) if options else b"")


def _dump(
    route: RouteSocket, kind: int, index: int, parent: int
) -> Iterator[tuple[int, int, int, int, dict[int, bytes]]]:
    """(interface index, handle, parent, info, attributes) of every object of a type."""
    for body in route.dump(kind, _TCMSG.pack(socket.AF_UNSPEC, index, 0, parent, 0)):
        _, found, handle, above, info = _TCMSG.unpack_from(body)
        yield found, handle, above, info, attributes(body[_TCMSG.size :])


def _indexes(ports: Iterable[str]) -> dict[str, int]:
    indexes, problems = {}, []
    for port in ports:
        try:
            indexes[port] = socket.if_nametoindex(port)
        except OSError:
            problems.append(f"port {port}: not found in this network namespace")
    if problems:
        raise KernelError(problems)
    return indexes


def _kind(attrs: dict[int, bytes]) -> str:
    return attrs[KIND].rstrip(b"\0").decode()


def _read_qdisc(observation: Observation, port: str, handle: int, parent: int, attrs: dict[int, bytes]) -> None:
    kind = _kind(attrs)
    if parent == ROOT_PARENT:
        default = None
        if kind == "htb":
            default = _HTB_GLOBAL.unpack(attributes(attrs[OPTIONS])[HTB_INIT])[2]
        if handle or kind not in _DEFAULT_KINDS:
            observation.objects[RootKey(port)] = RootValue(kind, handle >> 16, default)
    elif parent & 0xFFFF0000 == HANDLE:
        limit = _U32.unpack_from(attrs[OPTIONS])[0] if kind in _PACKET_FIFOS else None
        observation.objects[LeafKey(port, parent & 0xFFFF)] = LeafValue(kind, limit)


def _read_class(observation: Observation, port: str, handle: int, parent: int, attrs: dict[int, bytes]) -> None:
    options = attributes(attrs[OPTIONS])
    rate_spec, ceil_spec, burst, cburst, quantum, _, prio = _HTB_PARMS.unpack(options[HTB_PARMS])
    observation.objects[ClassKey(port, handle & 0xFFFF)] = ClassValue(
        parent_minor=0 if parent == ROOT_PARENT else parent & 0xFFFF,
        rate_bytes_per_s=_rate(rate_spec, options.get(HTB_RATE64)),
        ceil_bytes_per_s=_rate(ceil_spec, options.get(HTB_CEIL64)),
        burst_ticks=burst,
        cburst_ticks=cburst,
        quantum_bytes=quantum,
        prio=prio,
    )


def _rate(specification: bytes, wide: bytes | None) -> int:
    rate: int = _U64.unpack(wide)[0] if wide else _RATESPEC.unpack(specification)[-1]
    return rate


def _read_filters(
    observation: Observation, port: str, dumped: list[tuple[int, int, int, int, dict[int, bytes]]]
) -> None:
    table_present, hashed_address = False, None
    for _, handle, _, info, attrs in dumped:
        if OPTIONS not in attrs or _kind(attrs) != "u32":
            if handle:
                _keep_unknown(observation, port, info, handle, attrs)
            continue
        options = attributes(attrs[OPTIONS])
        if U32_DIVISOR in options:
            table_present |= handle == TABLE
        elif _links_to_table(options):
            hashed_address = _hashed_address(options[U32_SELECTOR])
        else:
            _read_filter(observation, port, info, handle, attrs)
    if table_present:
        value = ClassifierValue(hashed_address or "nothing", linked=hashed_address is not None)
        observation.objects[ClassifierKey(port)] = value


def _links_to_table(options: dict[int, bytes]) -> bool:
    return U32_LINK in options and U32_SELECTOR in options and _U32.unpack(options[U32_LINK])[0] == TABLE


def _hashed_address(selector: bytes) -> str | None:
    """Which address the link hashes, None unless it hashes exactly the last byte of one for every packet."""
    offset, mask = struct.unpack_from("=h", selector, 10)[0], struct.unpack_from(">I", selector, 12)[0]
    keys = selector[_SELECTOR.size :]
    unconditional = keys == _SELECTOR_KEY.pack(bytes(4), bytes(4), 0, 0)
    names = {value: name for name, value in ADDRESS_OFFSET.items()}
    return names.get(offset) if mask == 0xFF and unconditional else None


def _read_filter(observation: Observation, port: str, info: int, handle: int, attrs: dict[int, bytes]) -> None:
    options = attributes(attrs[OPTIONS])
    selector = options.get(U32_SELECTOR, b"")
    names = {value: name for name, value in ADDRESS_OFFSET.items()}
    if len(selector) == _SELECTOR.size + _SELECTOR_KEY.size and U32_CLASSID in options:
        mask, address, offset, _ = _SELECTOR_KEY.unpack_from(selector, _SELECTOR.size)
        in_place = handle & 0xFFFFF000 == TABLE | address[3] << 12 and info == FILTER_INFO
        key = FilterKey(port, str(IPv4Address(address)))
        if in_place and mask == b"\xff" * 4 and offset in names and key not in observation.objects:
            minor = _U32.unpack(options[U32_CLASSID])[0] & 0xFFFF
            observation.objects[key] = FilterValue(minor, names[offset])
            observation.handles[key] = (info, handle)
            return
    _keep_unknown(observation, port, info, handle, attrs)


def _keep_unknown(observation: Observation, port: str, info: int, handle: int, attrs: dict[int, bytes]) -> None:
    key = FilterKey(port, f"{_kind(attrs)} {handle:08x} priority {info >> 16}")
    observation.objects[key] = FilterValue(0, "unknown")
    observation.handles[key] = (info, handle)


def _read_counters(attrs: dict[int, bytes]) -> ClassCounters:
    statistics = attributes(attrs[STATS2])
    sent_bytes, sent_packets = _BASIC.unpack_from(statistics[STATS_BASIC])
    backlog_packets, backlog_bytes, dropped, _, _ = _QUEUE.unpack_from(statistics[STATS_QUEUE])
    return ClassCounters(sent_packets, sent_bytes, dropped, backlog_packets, backlog_bytes)
