"""Where everything of a scenario sits in the network: names, addresses, ports, borders and the flows nobody else owns.

Pure: it derives one immutable `Layout` from a scenario and touches nothing. The names themselves come from
`topologies.tandem`; rates and rules of the domains come from their controllers' programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.program import DomainProgram, Hop
from testbed.scenario.model import Datapath, Scenario
from topologies import tandem

FIRST_CONTROLLER_PORT = 6653
_SMALLEST_FRAME_BITS = 8 * 60


@dataclass(frozen=True)
class Endpoint:
    """A host: a tenant's client or a domain's compute host."""

    host: str
    interface: str
    address: str
    mac: str


@dataclass(frozen=True)
class TenantPath:
    """Where a tenant's packets start and end.

    Attributes:
        tenant: Name.
        number: 1-based position in the scenario.
        client: Its client host.
        server: The compute host it talks to.
        domains: How many domains its packets cross, from the first one on.
    """

    tenant: str
    number: int
    client: Endpoint
    server: Endpoint
    domains: int


@dataclass(frozen=True)
class Border:
    """A place where packets from clients are seen on their way into what comes next.

    Attributes:
        position: How many domains are behind the packet: 0 where it enters the first one.
        interface: Where it is captured, inbound.
        host: Mininet host the interface is in, None for the fabric.
        upstream: Interface of the fabric at the other end of the link: what is sent there arrives at the border
            without crossing a queue.
    """

    position: int
    interface: str
    host: str | None
    upstream: str


@dataclass(frozen=True)
class Wire:
    """A long link: both interfaces of its switch carry netem, which delays what leaves through them.

    Attributes:
        domain: Domain the link leaves, counted from 1.
        bridge: Its switch.
        interfaces: The end towards the clients and the end away from them.
        delay_s: One-way propagation delay.
        limit_packets: Packets netem must be able to hold: twice what the link's rate puts into the delay.
    """

    domain: int
    bridge: str
    interfaces: tuple[str, str]
    delay_s: float
    limit_packets: int


@dataclass(frozen=True)
class Layout:
    """The whole network of a scenario.

    Attributes:
        paths: One for each tenant, in the scenario's order.
        skeletons: One program for each domain, with its hops and without rules.
        dpids: Datapath id of every bridge.
        controllers: OpenFlow target of every bridge that has a controller.
        servers: Compute hosts by the number of their domain, counted from 1.
        wires: Long links.
        borders: All capture points.
    """

    paths: tuple[TenantPath, ...]
    skeletons: tuple[DomainProgram, ...]
    dpids: Mapping[str, int]
    controllers: Mapping[str, str]
    servers: Mapping[int, Endpoint]
    wires: tuple[Wire, ...]
    borders: tuple[Border, ...]

    def border(self, position: int, host: str | None = None) -> Border:
        """The border with this many domains behind it: between domains, or in front of compute host `host`."""
        return next(b for b in self.borders if b.position == position and b.host == host)

    def path(self, number: int) -> TenantPath:
        """Path of the tenant with this number."""
        return self.paths[number - 1]


def layout_of(scenario: Scenario, datapath: Datapath, *, delays: bool = True) -> Layout:
    """Lay out a scenario.

    Args:
        scenario: What is wanted.
        datapath: Put into the programs.
        delays: False where links cannot be delayed and the scenario allows zero: there are no wires then.
    """
    count = len(scenario.domains)
    servers = {i: _endpoint(tandem.server_name(i), tandem.server_address(i)) for i in _offering(scenario)}
    wires = tuple(
        Wire(
            i,
            tandem.wire_name(i),
            (f"{tandem.wire_name(i)}-up", f"{tandem.wire_name(i)}-dn"),
            domain.link_delay_s,
            2 * int(domain.link_delay_s * domain.link_rate_bps / _SMALLEST_FRAME_BITS) + 100,
        )
        for i, domain in enumerate(scenario.domains, 1)
        if delays and domain.link_delay_s > 0 and (i < count or i in servers)
    )
    skeletons = tuple(
        DomainProgram(domain.name, datapath.value, domain.link_rate_bps, _hops(i, count, servers), ())
        for i, domain in enumerate(scenario.domains, 1)
    )
    dpids = {hop.bridge: hop.dpid for program in skeletons for hop in program.hops}
    dpids |= {tandem.EDGE: tandem.EDGE_DPID} | {wire.bridge: tandem.wire_dpid(wire.domain) for wire in wires}
    controllers = {
        hop.bridge: f"tcp:127.0.0.1:{controller_port(index)}"
        for index, program in enumerate(skeletons)
        for hop in program.hops
    }
    names = [domain.name for domain in scenario.domains]
    paths = tuple(
        TenantPath(
            tenant.name,
            number,
            _endpoint(tandem.client_name(number), tandem.client_address(number)),
            servers[names.index(tenant.site) + 1],
            names.index(tenant.site) + 1,
        )
        for number, tenant in enumerate(scenario.tenants, 1)
    )
    borders = _borders(count, servers, {wire.domain for wire in wires})
    return Layout(paths, skeletons, dpids, controllers, servers, wires, borders)


def controller_port(index: int) -> int:
    """TCP port, on the fabric's loopback, of the controller of the domain at `index` (from 0)."""
    return FIRST_CONTROLLER_PORT + index


def edge_flows(layout: Layout, ports: Mapping[str, int]) -> tuple[str, ...]:
    """Static flows of the customer edge: each client's own address up, each client's packets down, nothing else.

    Args:
        layout: The network.
        ports: OpenFlow number of each interface.
    """
    out = ports[f"{tandem.EDGE}-dn"]
    flows = []
    for path in layout.paths:
        port, address = ports[f"{tandem.EDGE}-{path.client.host}"], path.client.address
        flows.append(f"priority=10,in_port={port},ip,nw_src={address},actions=output:{out}")
        flows.append(f"priority=10,in_port={out},ip,nw_dst={address},actions=output:{port}")
    return tuple(flows)


def wire_flows(wire: Wire, ports: Mapping[str, int]) -> tuple[str, ...]:
    """Static flows of a long link's switch: what comes in at one end leaves at the other."""
    up, down = (ports[interface] for interface in wire.interfaces)
    return tuple(f"priority=10,in_port={a},actions=output:{b}" for a, b in ((up, down), (down, up)))


def _offering(scenario: Scenario) -> list[int]:
    return [i for i, domain in enumerate(scenario.domains, 1) if domain.compute]


def _endpoint(host: str, address: str) -> Endpoint:
    return Endpoint(host, tandem.host_interface(host), address, tandem.mac_of(address))


def _hops(i: int, count: int, servers: Mapping[int, Endpoint]) -> tuple[Hop, Hop]:
    ingress, egress = tandem.ingress_name(i), tandem.egress_name(i)
    local = ((servers[i].address, f"{egress}-h"),) if i in servers else ()
    onward = f"{egress}-dn" if i < count else None
    first = Hop(
        bridge=ingress,
        dpid=tandem.ingress_dpid(i),
        ingress=True,
        towards_client=f"{ingress}-up",
        towards_server=f"{ingress}-dn",
        client_ports=(),
        server_ports=(),
        queued_ports=(f"{ingress}-up", f"{ingress}-dn"),
    )
    last = Hop(
        bridge=egress,
        dpid=tandem.egress_dpid(i),
        ingress=False,
        towards_client=f"{egress}-up",
        towards_server=onward,
        client_ports=(),
        server_ports=local,
        queued_ports=(f"{egress}-up", *((onward,) if onward else ()), *(port for _, port in local)),
    )
    return first, last


def _borders(count: int, servers: Mapping[int, Endpoint], wired: set[int]) -> tuple[Border, ...]:
    def upstream(i: int, port: str) -> str:
        return f"{tandem.wire_name(i)}-dn" if i in wired else port

    between = [Border(0, f"{tandem.ingress_name(1)}-up", None, f"{tandem.EDGE}-dn")]
    between += [
        Border(i, f"{tandem.ingress_name(i + 1)}-up", None, upstream(i, f"{tandem.egress_name(i)}-dn"))
        for i in range(1, count)
    ]
    final = [
        Border(i, server.interface, server.host, upstream(i if i == count else 0, f"{tandem.egress_name(i)}-h"))
        for i, server in servers.items()
    ]
    return (*between, *final)
