"""The request tenants of a window: servers in the compute hosts, senders in the clients', and each request found again.

Servers live as long as the network; senders and captures as long as a window. Captures of the clients' interfaces must
run before the senders, which connect and probe before they say that they are ready. What the requests are held against
is `testbed.run.request_terms`'.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.emulation.layout import TenantPath
from testbed.emulation.network import TandemNetwork
from testbed.emulation.placement import Role
from testbed.emulation.supervisor import Child
from testbed.errors import PreflightError
from testbed.run.impairments import file_of
from testbed.scenario.faults import IMPAIRED_KINDS
from testbed.scenario.model import Requests, Scenario, Tenant
from testbed.scenario.ranges import LARGEST_REQUEST_BYTES
from testbed.scenario.tenant_fields import MOST_IMAGES
from testbed.telemetry import host, pcap
from testbed.telemetry.capture import TENANT_TRAFFIC, Capture
from testbed.telemetry.requests import RequestCaptures, RequestMatch, match_requests
from testbed.traffic.arrivals import group_seed, modulators, tenant_seed
from testbed.traffic.modulation import OnOffPath
from testbed.traffic.request_makers import maker_of
from testbed.traffic.request_records import BoolArray, RequestRecord, RequestSpec
from testbed.traffic.request_schedules import RequestSchedule, request_schedule
from testbed.traffic.request_wire import Maker, TextMaker
from testbed.traffic.schedules import save_arrays

SERVER_PORT = 8001
WORKERS = 1
"""Of each server: a machine that emulates a whole network has no cores to spare."""

LAST_ANSWERS_S = 2.0
"""How long after the last deadline a sender waits for calls to end."""

TO_SERVERS = f"{TENANT_TRAFFIC} or tcp dst port {SERVER_PORT}"
AT_SERVERS = f"{TENANT_TRAFFIC} or tcp port {SERVER_PORT}"
AT_CLIENTS = f"tcp port {SERVER_PORT}"

SERVER_START_S = 120.0
"""PyTorch takes seconds to load, and on a busy host many."""


@dataclass(frozen=True)
class RequestOutcome:
    """One request tenant in one window.

    Attributes:
        record: What its sender recorded.
        match: The same requests, found in the captures.
    """

    record: RequestRecord
    match: RequestMatch

    def take(self, chosen: BoolArray) -> RequestOutcome:
        """Some of the requests, [n]; what is known of the whole connection stays."""
        match = replace(self.match, samples=self.match.samples.take(chosen), last_bits=self.match.last_bits[chosen])
        return RequestOutcome(self.record.take(chosen), match)


def asking(scenario: Scenario) -> list[tuple[Tenant, Requests]]:
    """Tenants that send requests, with what they ask."""
    return [(tenant, tenant.requests) for tenant in scenario.tenants if tenant.requests is not None]


def start_servers(network: TandemNetwork) -> None:
    """Start one inference server in each compute host that requests go to; returns when all are ready.

    Raises:
        PreflightError: One did not become ready.
    """
    paths = {path.tenant: path for path in network.layout.paths}
    sites: dict[str, list[tuple[Tenant, Requests]]] = {}
    for tenant, asked in asking(network.scenario):
        sites.setdefault(paths[tenant.name].server.host, []).append((tenant, asked))
    for name, tenants in sites.items():
        address = network.hosts[name].endpoint.address
        command = [
            sys.executable, "-m", "inference_server", "--listen", f"{address}:{SERVER_PORT}",
            "--models", ",".join(sorted({asked.model for _, asked in tenants})),
            # Where there is an accelerator, too: what is measured must not depend on that.
            "--device", "cpu", "--workers", str(WORKERS), "--max-message-bytes", str(LARGEST_REQUEST_BYTES),
            "--max-rows", str(MOST_IMAGES), "--queue-limit", str(max(asked.in_flight for _, asked in tenants)),
            "--impairment-record", str(file_of(network, name)),
            # What a request waits for is to be the network's and the queue's, and never the client's.
            "--calls-per-connection", "any",
        ]  # fmt: skip
        for tenant, asked in tenants:
            command += ["--share", f"{tenant.name}={asked.compute_share!r}"]
        if any(fault.kind in IMPAIRED_KINDS for fault in network.scenario.faults):
            command += ["--impairment-socket", str(impairment_socket(network, name))]
        network.start(f"server-{name}", command, host=name, role=Role.SERVER, timeout_s=SERVER_START_S)


def impairment_socket(network: TandemNetwork, host: str) -> Path:
    """Where the server in a compute host is told to be worse than it is."""
    return network.journal.directory / f"server-{host}.sock"


def capture_clients(network: TandemNetwork, folder: Path) -> dict[str, Capture]:
    """Whole packets in both directions on each request tenant's own interface, by interface."""
    clients = [path.client for path, _, _ in _members(network)]
    return {
        client.interface: Capture.start(
            network.supervisor,
            client.interface,
            folder / f"{client.interface}.pcap",
            host_pid=network.hosts[client.host].pid,
            expression=AT_CLIENTS,
            snap_bytes=0,
            both_ways=True,
        )
        for client in clients
    }


def start_senders(network: TandemNetwork, folder: Path, index: int, seed: int, duration_s: float) -> dict[str, Child]:
    """Draw each request tenant's window and start its sender; returns when all have probed their servers.

    Raises:
        PreflightError: A server is not ready, does not have the model, or refuses the largest request.
    """
    offset_ns = host.clock_offset_ns()
    shared = modulators(network.scenario, window=index, duration_s=duration_s, seed=seed)
    children = {}
    for path, tenant, asked in _members(network):
        maker = maker_of(tenant.name, asked, tenant.arrivals)
        schedule = _drawn(path.number, tenant, asked, maker, shared, index=index, seed=seed, duration_s=duration_s)
        schedule.save(folder / f"{tenant.name}.schedule.npz")
        tokens = folder / f"{tenant.name}.tokens.npz"
        if isinstance(maker, TextMaker):
            save_arrays(tokens, {"tokens": maker.tokens})
        spec = RequestSpec(
            tenant=path.number,
            name=tenant.name,
            target=f"{path.server.address}:{SERVER_PORT}",
            model=asked.model,
            images=asked.images,
            schedule=str(folder / f"{tenant.name}.schedule.npz"),
            result=str(record_path(folder, tenant.name)),
            clock_offset_ns=offset_ns,
            deadline_s=asked.timeout_s,
            in_flight=asked.in_flight,
            tokens=str(tokens) if isinstance(maker, TextMaker) else None,
        )
        spec.save(folder / f"{tenant.name}.spec.json")
        children[tenant.name] = network.supervisor.start(
            f"sender-{index}-{tenant.name}",
            [sys.executable, "-m", "testbed.traffic.requests", str(folder / f"{tenant.name}.spec.json")],
            host_pid=network.hosts[path.client.host].pid,
            listens=True,
            role=Role.SENDER,
            timeout_s=SERVER_START_S,
        )
    return children


def record_path(folder: Path, tenant: str) -> Path:
    """Where the sender of a request tenant leaves its record."""
    return folder / f"{tenant}.requests.npz"


def require_warm_up(scenario: Scenario) -> None:
    """Check that every tenant that reserves sends a request in the warm-up, from which its server is calibrated.

    Raises:
        PreflightError: One sends none: a trace has lulls, and the seed chooses where in it a window begins.
    """
    shared = modulators(scenario, window=0, duration_s=scenario.warmup_s, seed=scenario.seed)
    for number, tenant in enumerate(scenario.tenants, 1):
        if tenant.requests is None or tenant.reservation is None:
            continue
        maker = maker_of(tenant.name, tenant.requests, tenant.arrivals)
        drawn = _drawn(
            number, tenant, tenant.requests, maker, shared, index=0, seed=scenario.seed, duration_s=scenario.warmup_s
        )
        if not len(drawn):
            raise PreflightError(
                f"tenant {tenant.name}: none of its requests is due in the warm-up of {scenario.warmup_s:g} s, "
                "expected one at least, from which its server is calibrated; let `warm-up` be longer, or choose "
                "another `seed`"
            )


def find(network: TandemNetwork, folder: Path, records: Mapping[str, RequestRecord]) -> dict[str, RequestOutcome]:
    """Find every request of a window in the captures of its path.

    Raises:
        FidelityError: The captures do not hold a tenant's connection, or not all of it.
    """
    layout = network.layout

    def captured(interface: str) -> pcap.Records:
        return pcap.read_records(folder / f"{interface}.pcap")

    found = {}
    for path, tenant, _ in _members(network):
        client = captured(path.client.interface)
        *borders, server = (captured(border.interface) for border in layout.crossed(path))
        match = match_requests(
            tenant.name,
            records[tenant.name],
            RequestCaptures(sent=client, received=client, out=[*borders, server], back=server),
            domains=[domain.name for domain in network.scenario.path(tenant)],
            server_port=SERVER_PORT,
        )
        found[tenant.name] = RequestOutcome(records[tenant.name], match)
    return found


def _drawn(
    number: int,
    tenant: Tenant,
    asked: Requests,
    maker: Maker,
    shared: Mapping[str, OnOffPath],
    *,
    index: int,
    seed: int,
    duration_s: float,
) -> RequestSchedule:
    """One tenant's requests of one window, the same whenever drawn."""
    breach = tenant.misbehaviour
    return request_schedule(
        tenant.arrivals,
        asked.size,
        maker,
        seed=tenant_seed(seed, number, index),
        duration_s=duration_s,
        misbehaviour=breach,
        modulators=shared,
        group=None if breach is None or breach.group is None else group_seed(seed, breach.group, index),
    )


def _members(network: TandemNetwork) -> list[tuple[TenantPath, Tenant, Requests]]:
    pairs = zip(network.layout.paths, network.scenario.tenants, strict=True)
    return [(path, tenant, tenant.requests) for path, tenant in pairs if tenant.requests is not None]
