"""What the controller answers: JSON-ready dictionaries made from programs, objects and counters; it asks nobody.

Rates are given in bits per second as the kernel keeps them (whole bytes per second), bursts in bytes (the kernel keeps
them as ticks of 64 ns), meters in the switch's own kbit/s and kbit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from controller.checks import USERSPACE
from controller.counters import ClassCounters, MeterCounters
from controller.objects import (
    Change,
    ClassKey,
    ClassValue,
    FilterKey,
    FilterValue,
    Key,
    LeafKey,
    LeafValue,
    MeterKey,
    MeterValue,
    Value,
    as_json,
    burst_bytes,
    describe,
)
from controller.plan import UNCLASSIFIED_MINOR
from controller.program import DomainProgram, Rule


def differences(changes: Iterable[Change], tenants: Mapping[Key, str]) -> list[dict[str, str]]:
    """One entry an object that is not as expected, with the tenant it belongs to (empty: nobody's)."""
    return [
        {
            "object": str(change.key),
            "tenant": tenants.get(change.key, ""),
            "found": describe(change.found, change.expected),
            "expected": describe(change.expected, change.found),
        }
        for change in changes
    ]


def sentence(difference: Mapping[str, str]) -> str:
    """A difference as one line."""
    owner = f" (tenant {difference['tenant']})" if difference["tenant"] else ""
    return f"{difference['object']}{owner}: found {difference['found']}, expected {difference['expected']}"


def installed(changes: Iterable[Change], tenants: Mapping[Key, str], sent: Mapping[str, int]) -> dict[str, Any]:
    """What an installation did: objects added, changed and removed, tenants concerned, messages sent."""
    changes = list(changes)
    return {
        "added": [str(change.key) for change in changes if change.found is None],
        "changed": [str(change.key) for change in changes if change.found and change.expected],
        "removed": [str(change.key) for change in changes if change.expected is None],
        "tenants": sorted({tenants[change.key] for change in changes if change.key in tenants}),
        "sent": dict(sent),
    }


def read_back(program: DomainProgram, found: Mapping[Key, Value]) -> dict[str, Any]:
    """Everything found, by object name, and the same seen from each tenant of the program."""
    return {
        "domain": program.domain,
        "datapath": program.datapath,
        "objects": dict(sorted((str(key), as_json(value)) for key, value in found.items())),
        "tenants": {rule.tenant: _tenant(program, rule, found) for rule in program.rules},
    }


def counters(
    program: DomainProgram,
    meters: Mapping[str, Mapping[int, MeterCounters]],
    classes: Mapping[str, Mapping[int, ClassCounters]],
) -> dict[str, Any]:
    """Meter and class counters of each tenant, and what no tenant's class took on each port.

    Args:
        program: The program that names tenants, meters and classes.
        meters: For each ingress bridge, counters by meter id.
        classes: For each queued port, counters by class minor.
    """
    return {
        "domain": program.domain,
        "tenants": {
            rule.tenant: {
                "number": rule.number,
                "meters": {
                    bridge: asdict(found[rule.meter.meter_id])
                    for bridge, found in meters.items()
                    if rule.meter is not None and rule.meter.meter_id in found
                },
                "queues": {
                    port: asdict(found[rule.queue.minor])
                    for port, found in classes.items()
                    if rule.queue.minor in found
                },
            }
            for rule in program.rules
        },
        "unclassified": {
            port: asdict(found[UNCLASSIFIED_MINOR]) for port, found in classes.items() if UNCLASSIFIED_MINOR in found
        },
    }


def _tenant(program: DomainProgram, rule: Rule, found: Mapping[Key, Value]) -> dict[str, Any]:
    queues = {
        port: queue
        for hop in program.hops
        for port in hop.queued_ports
        if (queue := _queue(program, port, rule, found)) is not None
    }
    meters = {
        hop.bridge: _meter(value)
        for hop in program.hops
        if rule.meter is not None
        and isinstance(value := found.get(MeterKey(hop.bridge, rule.meter.meter_id)), MeterValue)
    }
    return {
        "number": rule.number,
        "meters": meters,
        "queues": queues,
        "smallest_rate_bps": min((queue["rate_bps"] for queue in queues.values()), default=None),
    }


def _queue(program: DomainProgram, port: str, rule: Rule, found: Mapping[Key, Value]) -> dict[str, Any] | None:
    """The class that the tenant's packets are put in on a port, which need not be the one it was given."""
    minor = rule.queue.minor
    if program.datapath == USERSPACE:
        chosen = found.get(FilterKey(port, rule.client))
        minor = chosen.minor if isinstance(chosen, FilterValue) else UNCLASSIFIED_MINOR
    value = found.get(ClassKey(port, minor))
    if not isinstance(value, ClassValue):
        return None
    leaf = found.get(LeafKey(port, minor))
    return {
        "minor": minor,
        "rate_bps": value.rate_bytes_per_s * 8,
        "ceil_bps": value.ceil_bytes_per_s * 8,
        "burst_bytes": burst_bytes(value.burst_ticks, value.rate_bytes_per_s),
        "quantum_bytes": value.quantum_bytes,
        "limit_packets": leaf.limit_packets if isinstance(leaf, LeafValue) else None,
    }


def _meter(value: MeterValue) -> dict[str, Any]:
    kind, rate_kbps, burst_kbit = value.bands[0] if value.bands else ("none", 0, 0)
    return {"flags": list(value.flags), "band": kind, "rate_kbps": rate_kbps, "burst_kbit": burst_kbit}
