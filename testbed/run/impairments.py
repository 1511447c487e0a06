"""What the inference servers of a run wrote down of how they were made worse on purpose, held against one window.

A server appends the beginning and the end of each impairment to a file of JSON lines, with the clock of its stamps
(`inference_server.impairments`). What each answer says of itself is in the samples; this is who did what to whom, and
when, and all that is left of a server that crashed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from testbed.emulation.network import TandemNetwork
from testbed.errors import FidelityError
from testbed.report.record import ImpairmentRecord


def file_of(network: TandemNetwork, server: str) -> Path:
    """Where the server of a compute host writes it down."""
    return network.journal.directory / f"server-{server}.impairments"


def impairments(network: TandemNetwork, start_ns: int, duration_s: float) -> tuple[ImpairmentRecord, ...]:
    """What was in force in a window, in the order of the beginnings.

    Args:
        network: The network, whose servers run.
        start_ns: Start of the window, CLOCK_MONOTONIC.
        duration_s: Its length.

    Raises:
        FidelityError: A server's record cannot be read.
    """
    sites: dict[str, list[str]] = {}
    for path, tenant in zip(network.layout.paths, network.scenario.tenants, strict=True):
        if tenant.requests is not None:
            sites.setdefault(path.server.host, []).append(tenant.name)
    found = [
        each
        for server, tenants in sites.items()
        for each in read(file_of(network, server), server, tuple(tenants), start_ns)
        if each.begin_s < duration_s and (each.end_s is None or each.end_s > 0)
    ]
    return tuple(sorted(found, key=lambda each: each.begin_s))


def read(path: Path, server: str, tenants: tuple[str, ...], start_ns: int) -> Iterator[ImpairmentRecord]:
    """Every impairment of one server's record, whenever it was.

    Args:
        path: The record.
        server: Its compute host.
        tenants: Who sends requests there.
        start_ns: What times are counted from, CLOCK_MONOTONIC.

    Raises:
        FidelityError: It cannot be read, or is no such record.
    """
    try:
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        # An end is that of the latest beginning: what a server that was killed had begun has none.
        unended: dict[tuple[object, ...], list[int]] = {}
        ended_ns: dict[int, int] = {}
        for number, event in enumerate(events):
            alike = unended.setdefault((event["kind"], event["amount"], event["seed"]), [])
            if event["event"] == "begin":
                alike.append(number)
            elif event["event"] == "end" and alike:
                ended_ns[alike.pop()] = event["at_ns"]
        for number, event in enumerate(events):
            if event["event"] == "begin":
                yield ImpairmentRecord(
                    server=server,
                    tenants=tenants,
                    kind=event["kind"],
                    amount=event["amount"],
                    seed=event["seed"],
                    begin_s=(event["at_ns"] - start_ns) / 1e9,
                    end_s=(ended_ns[number] - start_ns) / 1e9 if number in ended_ns else None,
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FidelityError(f"{path}: no record of a server's impairments ({error})") from error
