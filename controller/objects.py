"""What switches and kernel hold, as plain values: keys name objects, values describe them, `compare` finds differences.

Both what a program asks for and what is read back are a mapping from key to value, so installing, removing, verifying
and restoring a switch are all one comparison. Values are in the granularity of whoever holds them (whole bytes per
second and 64 ns ticks in the kernel, kbit/s in a meter); nothing is compared with a tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

TICKS_PER_S = 15_625_000
"""The kernel keeps HTB bursts as time, in ticks of 64 ns (PSCHED_SHIFT 6)."""


@dataclass(frozen=True)
class FlowKey:
    """A flow of table 0 unless said otherwise; ports are named, addresses dotted, `match` is sorted by field."""

    bridge: str
    priority: int
    match: tuple[tuple[str, str], ...]
    table: int = 0

    def __str__(self) -> str:
        match = ",".join(f"{name}={value}" for name, value in self.match) or "everything"
        return f"flow of {self.bridge} priority {self.priority} {match}"


@dataclass(frozen=True)
class FlowValue:
    """What a flow does: steps are ("meter", 3), ("set_queue", 16), ("output", "d0i-dn"), in order; none means drop."""

    cookie: int
    steps: tuple[tuple[str, int | str], ...]


@dataclass(frozen=True)
class MeterKey:
    """A meter of a bridge."""

    bridge: str
    meter_id: int

    def __str__(self) -> str:
        return f"meter {self.meter_id} of {self.bridge}"


@dataclass(frozen=True)
class MeterValue:
    """Flags by name, sorted, and one (type, rate_kbps, burst_kbit) a band."""

    flags: tuple[str, ...]
    bands: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class RootKey:
    """The root queueing discipline of a port."""

    port: str

    def __str__(self) -> str:
        return f"root qdisc of {self.port}"


@dataclass(frozen=True)
class RootValue:
    """Kind, handle (major number) and, for HTB, the minor number of the class for unclassified packets."""

    kind: str
    major: int
    default_minor: int | None = None


@dataclass(frozen=True)
class ClassKey:
    """HTB class 1:minor of a port."""

    port: str
    minor: int

    def __str__(self) -> str:
        return f"class 1:{self.minor:x} of {self.port}"


@dataclass(frozen=True)
class ClassValue:
    """Parameters of an HTB class as the kernel keeps them; parent_minor 0 is the qdisc itself."""

    parent_minor: int
    rate_bytes_per_s: int
    ceil_bytes_per_s: int
    burst_ticks: int
    cburst_ticks: int
    quantum_bytes: int
    prio: int


@dataclass(frozen=True)
class LeafKey:
    """The queueing discipline below HTB class 1:minor of a port."""

    port: str
    minor: int

    def __str__(self) -> str:
        return f"leaf of class 1:{self.minor:x} of {self.port}"


@dataclass(frozen=True)
class LeafValue:
    """Kind of a queueing discipline, and its limit if it is a FIFO of packets."""

    kind: str
    limit_packets: int | None


@dataclass(frozen=True)
class ClassifierKey:
    """The `u32` hash table of a port that holds one filter for each tenant."""

    port: str

    def __str__(self) -> str:
        return f"classifier of {self.port}"


@dataclass(frozen=True)
class ClassifierValue:
    """Which address tenants are told apart by (`source` or `destination`) and whether packets reach the table."""

    address: str
    linked: bool


@dataclass(frozen=True)
class FilterKey:
    """One tenant's filter in the classifier of a port; a filter that is not ours is named by its handle."""

    port: str
    client: str

    def __str__(self) -> str:
        return f"filter for {self.client} of {self.port}"


@dataclass(frozen=True)
class FilterValue:
    """The class 1:minor a filter selects, and on which address it matches."""

    minor: int
    address: str


SwitchKey: TypeAlias = FlowKey | MeterKey
PortKey: TypeAlias = RootKey | ClassKey | LeafKey | ClassifierKey | FilterKey
Key: TypeAlias = SwitchKey | PortKey
Value: TypeAlias = FlowValue | MeterValue | RootValue | ClassValue | LeafValue | ClassifierValue | FilterValue
Objects: TypeAlias = Mapping[Key, Value]


@dataclass(frozen=True)
class Change:
    """One object that is not what it should be: absent (found None), superfluous (expected None) or different."""

    key: Key
    found: Value | None
    expected: Value | None


def compare(found: Objects, expected: Objects) -> list[Change]:
    """Every difference, in the order of `expected`, superfluous objects last."""
    changes = [Change(key, found.get(key), value) for key, value in expected.items() if found.get(key) != value]
    changes += [Change(key, value, None) for key, value in found.items() if key not in expected]
    return changes


def describe(value: Value | None, other: Value | None = None) -> str:
    """Fields of `value` as text, only those that differ from `other` when both exist; `absent` for None."""
    if value is None:
        return "absent"
    names = [field.name for field in fields(value)]
    if type(other) is type(value):
        names = [name for name in names if getattr(value, name) != getattr(other, name)]
    return ", ".join(f"{name} {_text(name, getattr(value, name))}" for name in names)


def _text(name: str, value: Any) -> str:
    """A field as a person reads it: the kernel's bytes per second also as bits per second."""
    if name.endswith("_bytes_per_s"):
        return f"{value} ({value * 8} bit/s)"
    if isinstance(value, tuple):
        return " ".join(":".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value) or "none"
    return str(value)


def as_json(value: Value) -> dict[str, Any]:
    """JSON form of a value (tuples become lists on the wire)."""
    return asdict(value)


def burst_ticks(burst_bytes: int, rate_bytes_per_s: int) -> int:
    """Ticks that `burst_bytes` last at a rate, rounded up: the kernel's bucket is never smaller than asked."""
    return -(-burst_bytes * TICKS_PER_S // rate_bytes_per_s)


def burst_bytes(ticks: int, rate_bytes_per_s: int) -> int:
    """Whole bytes that a burst kept as ticks lets through."""
    return ticks * rate_bytes_per_s // TICKS_PER_S
