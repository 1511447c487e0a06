"""Where everything of a scenario sits in the network: names, addresses, ports, borders and the flows nobody else owns.

Pure: it derives one immutable `Layout` from a scenario and touches nothing. The names themselves come from
`topologies.tandem`; rates and rules of the domains come from their controllers' programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.program import DomainProgram, Hop
from testbed.scenario.model import Datapath, Domain, Scenario
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
        way: Numbers of the domains its packets cross, from 1, in order.
    """

    tenant: str
    number: int
    client: Endpoint
    server: Endpoint
    way: tuple[int, ...]


@dataclass(frozen=True)
class Border:
    """A place where packets from clients are seen on their way into what comes next.

    Attributes:
        domain: Number of the domain that begins there, or, in front of a compute host, of the one that ends there.
        interface: Where it is captured, inbound.
        host: Mininet host the interface is in, None for the fabric.
        upstream: Interface of the fabric at the other end of the link: what is sent there arrives at the border
            without crossing a queue.
    """

    domain: int
    interface: str
    host: str | None
    upstream: str


@dataclass(frozen=True)
class Wire:
    """A long link: both interfaces of its switch carry netem, which delays what leaves through them.

    Attributes:
        domain: Domain the link leaves, towards the next one or its compute host, counted from 1.
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
class Exchange:
    """A switch between operators that belongs to none of them: it hands each tenant to the domain that it chose.

    Attributes:
        bridge: Its switch.
        flows: (port it enters, source, destination, port it leaves), for each tenant and direction.
    """

    bridge: str
    flows: tuple[tuple[str, str, str, str], ...]


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
        exchanges: Where there is a choice of operators.
        borders: All capture points.
        segments: Numbers of the domains by the part of the path that they carry.
    """

    paths: tuple[TenantPath, ...]
    skeletons: tuple[DomainProgram, ...]
    dpids: Mapping[str, int]
    controllers: Mapping[str, str]
    servers: Mapping[int, Endpoint]
    wires: tuple[Wire, ...]
    exchanges: tuple[Exchange, ...]
    borders: tuple[Border, ...]
    segments: tuple[tuple[int, ...], ...]

    def entry(self, domain: int) -> Border:
        """Where packets enter the domain with this number."""
        return next(b for b in self.borders if b.domain == domain and b.host is None)

    def crossed(self, path: TenantPath) -> tuple[Border, ...]:
        """Borders of a path, one before each domain and one in front of the compute host."""
        return (*(self.entry(domain) for domain in path.way), self._door(path.server.host))

    def path(self, number: int) -> TenantPath:
        """Path of the tenant with this number."""
        return self.paths[number - 1]

    def path_of(self, tenant: str) -> TenantPath:
        """Path of the tenant with this name."""
        return next(path for path in self.paths if path.tenant == tenant)

    def behind(self, domain: int) -> int:
        """How many segments lie behind the one of a domain."""
        position = next(k for k, part in enumerate(self.segments) if domain in part)
        return len(self.segments) - 1 - position

    def _door(self, host: str) -> Border:
        return next(b for b in self.borders if b.host == host)


def layout_of(scenario: Scenario, datapath: Datapath, *, delays: bool = True) -> Layout:
    """Lay out a scenario.

    Args:
        scenario: What is wanted.
        datapath: Put into the programs.
        delays: False where links cannot be delayed and the scenario allows zero: there are no wires then.
    """
    segments = scenario.segments
    final = set(segments[-1])
    servers = {i: _endpoint(tandem.server_name(i), tandem.server_address(i)) for i in _offering(scenario)}
    delayed = {i: domain for i, domain in enumerate(scenario.domains, 1) if delays and domain.link_delay_s > 0}
    wires = (
        *(_wire(i, tandem.wire_name(i), domain) for i, domain in delayed.items() if i not in final or i in servers),
        *(
            _wire(i, tandem.host_wire_name(i), domain)
            for i, domain in delayed.items()
            if i in servers and i not in final
        ),
    )
    skeletons = tuple(
        DomainProgram(domain.name, datapath.value, domain.link_rate_bps, _hops(i, servers, last=i in final), ())
        for i, domain in enumerate(scenario.domains, 1)
    )
    dpids = {hop.bridge: hop.dpid for program in skeletons for hop in program.hops}
    dpids |= {tandem.EDGE: tandem.EDGE_DPID} | {wire.bridge: _wire_dpid(wire) for wire in wires}
    dpids |= {tandem.exchange_name(k): tandem.exchange_dpid(k) for k in _choices(segments)}
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
            tuple(names.index(domain.name) + 1 for domain in scenario.path(tenant)),
        )
        for number, tenant in enumerate(scenario.tenants, 1)
    )
    exchanges = tuple(_exchange(k, paths) for k in _choices(segments))
    borders = _borders(segments, servers, {wire.bridge for wire in wires})
    return Layout(paths, skeletons, dpids, controllers, servers, wires, exchanges, borders, segments)


def controller_port(index: int) -> int:
    """TCP port, on the fabric's loopback, of the controller of the domain at `index` (from 0)."""
    return FIRST_CONTROLLER_PORT + index


def edge_flows(layout: Layout, ports: Mapping[str, int]) -> tuple[str, ...]:
    """Static flows of the customer edge: each client's own address up, each client's packets down, nothing else.

    Args:
        layout: The network.
        ports: OpenFlow number of each interface.
    """
    flows = []
    for path in layout.paths:
        out = ports[edge_port(layout.segments, path.way[0])]
        port, address = ports[f"{tandem.EDGE}-{path.client.host}"], path.client.address
        flows.append(f"priority=10,in_port={port},ip,nw_src={address},actions=output:{out}")
        flows.append(f"priority=10,in_port={out},ip,nw_dst={address},actions=output:{port}")
    return tuple(flows)


def edge_port(segments: Sequence[Sequence[int]], domain: int) -> str:
    """Port of the customer edge that leads to a domain of the first segment."""
    return f"{tandem.EDGE}-dn" if len(segments[0]) == 1 else tandem.exchange_port(tandem.EDGE, domain)


def exchange_flows(exchange: Exchange, ports: Mapping[str, int]) -> tuple[str, ...]:
    """Static flows of an exchange: each tenant's own packets to the domain it chose, and back; nothing else."""
    return tuple(
        f"priority=10,in_port={ports[enters]},ip,nw_src={source},nw_dst={destination},actions=output:{ports[leaves]}"
        for enters, source, destination, leaves in exchange.flows
    )


def wire_flows(wire: Wire, ports: Mapping[str, int]) -> tuple[str, ...]:
    """Static flows of a long link's switch: what comes in at one end leaves at the other."""
    up, down = (ports[interface] for interface in wire.interfaces)
    return tuple(f"priority=10,in_port={a},actions=output:{b}" for a, b in ((up, down), (down, up)))


def _offering(scenario: Scenario) -> list[int]:
    return [i for i, domain in enumerate(scenario.domains, 1) if domain.compute]


def _endpoint(host: str, address: str) -> Endpoint:
    return Endpoint(host, tandem.host_interface(host), address, tandem.mac_of(address))


def _choices(segments: Sequence[Sequence[int]]) -> list[int]:
    """Segments, from 2, that packets enter through an exchange."""
    return [k for k in range(2, len(segments) + 1) if len(segments[k - 2]) > 1 or len(segments[k - 1]) > 1]


def _exchange(k: int, paths: Sequence[TenantPath]) -> Exchange:
    name = tandem.exchange_name(k)
    flows = []
    for path in paths:
        if len(path.way) >= k:
            near, far = (tandem.exchange_port(name, domain) for domain in path.way[k - 2 : k])
            flows.append((near, path.client.address, path.server.address, far))
            flows.append((far, path.server.address, path.client.address, near))
    return Exchange(name, tuple(flows))


def _hops(i: int, servers: Mapping[int, Endpoint], *, last: bool) -> tuple[Hop, Hop]:
    ingress, egress = tandem.ingress_name(i), tandem.egress_name(i)
    local = ((servers[i].address, f"{egress}-h"),) if i in servers else ()
    onward = None if last else f"{egress}-dn"
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
    second = Hop(
        bridge=egress,
        dpid=tandem.egress_dpid(i),
        ingress=False,
        towards_client=f"{egress}-up",
        towards_server=onward,
        client_ports=(),
        server_ports=local,
        queued_ports=(f"{egress}-up", *((onward,) if onward else ()), *(port for _, port in local)),
    )
    return first, second


def _wire(i: int, bridge: str, domain: Domain) -> Wire:
    ends = (f"{bridge}-up", f"{bridge}-dn")
    under_way = 2 * int(domain.link_delay_s * domain.link_rate_bps / _SMALLEST_FRAME_BITS)
    return Wire(i, bridge, ends, domain.link_delay_s, under_way + 100)


def _wire_dpid(wire: Wire) -> int:
    onward = wire.bridge == tandem.wire_name(wire.domain)
    return (tandem.wire_dpid if onward else tandem.host_wire_dpid)(wire.domain)


def _borders(segments: Sequence[Sequence[int]], servers: Mapping[int, Endpoint], wires: set[str]) -> tuple[Border, ...]:
    def leaving(wire: str, port: str) -> str:
        return f"{wire}-dn" if wire in wires else port

    def upstream(k: int, i: int) -> str:
        if k == 1:
            return edge_port(segments, i)
        if k in choices:
            return tandem.exchange_port(tandem.exchange_name(k), i)
        (before,) = segments[k - 2]
        return leaving(tandem.wire_name(before), f"{tandem.egress_name(before)}-dn")

    choices = _choices(segments)
    entries = [
        Border(i, f"{tandem.ingress_name(i)}-up", None, upstream(k, i))
        for k, part in enumerate(segments, 1)
        for i in part
    ]
    final = set(segments[-1])
    doors = [
        Border(
            i,
            server.interface,
            server.host,
            leaving((tandem.wire_name if i in final else tandem.host_wire_name)(i), f"{tandem.egress_name(i)}-h"),
        )
        for i, server in servers.items()
    ]
    return (*entries, *doors)
