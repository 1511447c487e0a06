"""Names, addresses, borders and static flows that follow from a scenario, and the topology that has the same names."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.emulation.layout import Layout, edge_flows, exchange_flows, layout_of, wire_flows
from testbed.scenario.model import Datapath, Scenario
from tests.unit.emulation.scenarios import scenario
from topologies.tandem import TandemTopo


def laid_out(wanted: Scenario, *, delays: bool = True) -> Layout:
    return layout_of(wanted, Datapath.USERSPACE, delays=delays)


def interfaces_of(topology: TandemTopo) -> set[str]:
    return {
        name for *_, info in topology.links(withInfo=True) for key, name in info.items() if key.startswith("intfName")
    }


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    count = draw(st.integers(1, 8))
    numbers = st.integers(1, count)
    compute = tuple(sorted(draw(st.sets(numbers, min_size=1))))
    delays = tuple(draw(st.lists(st.sampled_from([0.0, 2e-3]), min_size=count, max_size=count)))
    sites = tuple(draw(st.lists(st.sampled_from(compute), min_size=1, max_size=5)))
    parts: tuple[int, ...] = ()
    if draw(st.booleans()):
        steps = [draw(st.sampled_from([0, 1])) for _ in range(count - 1)]
        parts = tuple(itertools.accumulate(steps, initial=1))
    choices = tuple(draw(st.lists(numbers, min_size=1, max_size=5)))
    return scenario(count, compute=compute, delays_s=delays, sites=sites, parts=parts, choices=choices)


def topology_of(layout: Layout) -> TandemTopo:
    return TandemTopo(
        len(layout.skeletons),
        len(layout.paths),
        compute=tuple(layout.servers),
        delayed=tuple(wire.domain for wire in layout.wires),
        segments=layout.segments,
    )


@given(scenarios(), st.booleans())
def test_every_interface_of_a_layout_is_one_that_the_topology_makes(wanted: Scenario, delays: bool) -> None:
    layout = laid_out(wanted, delays=delays)
    topology = topology_of(layout)
    named = {port for program in layout.skeletons for hop in program.hops for port in hop.queued_ports}
    named |= {border.interface for border in layout.borders} | {border.upstream for border in layout.borders}
    named |= {interface for wire in layout.wires for interface in wire.interfaces}
    named |= {endpoint.interface for path in layout.paths for endpoint in (path.client, path.server)}
    assert named <= interfaces_of(topology)
    assert set(layout.dpids) == set(topology.switches())
    assert {int(topology.nodeInfo(name)["dpid"], 16) for name in layout.dpids} == set(layout.dpids.values())


@given(scenarios())
def test_what_enters_at_the_upstream_end_of_a_border_is_what_the_topology_connects_to_it(wanted: Scenario) -> None:
    layout = laid_out(wanted)
    topology = topology_of(layout)
    pairs = [{info["intfName1"], info["intfName2"]} for *_, info in topology.links(withInfo=True)]
    assert all({border.interface, border.upstream} in pairs for border in layout.borders)


@given(scenarios())
def test_every_tenant_has_an_address_of_its_own_and_a_border_before_and_after_each_domain(wanted: Scenario) -> None:
    layout = laid_out(wanted)
    addresses = [path.client.address for path in layout.paths]
    assert len(set(addresses)) == len(addresses)
    names = [domain.name for domain in wanted.domains]
    for path, tenant in zip(layout.paths, wanted.tenants, strict=True):
        *entries, door = layout.crossed(path)
        assert [names[border.domain - 1] for border in entries] == [domain.name for domain in wanted.path(tenant)]
        assert (door.domain, door.host) == (path.way[-1], path.server.host)
        assert layout.path(path.number) == layout.path_of(tenant.name) == path


@given(scenarios())
def test_a_packet_that_every_switch_hands_on_as_told_comes_to_its_server_and_its_answer_back(wanted: Scenario) -> None:
    """Over the links of the topology, by the static flows and the ports that each domain's program leads to."""
    layout = laid_out(wanted)
    topology = topology_of(layout)
    peers: dict[str, tuple[str, str]] = {}
    for first, second, info in topology.links(withInfo=True):
        ends = {info["node1"]: info["intfName1"], info["node2"]: info["intfName2"]}
        peers[ends[first]], peers[ends[second]] = (second, ends[second]), (first, ends[first])
    hops = {hop.bridge: hop for program in layout.skeletons for hop in program.hops}
    names = sorted(peers)
    ports = {interface: number for number, interface in enumerate(names, 1)}
    static = {"ce": edge_flows(layout, ports)}
    static |= {exchange.bridge: exchange_flows(exchange, ports) for exchange in layout.exchanges}
    static |= {wire.bridge: wire_flows(wire, ports) for wire in layout.wires}

    def leaves(switch: str, enters: str, source: str, destination: str, *, forward: bool) -> str:
        if switch in hops:
            hop = hops[switch]
            onward = dict(hop.server_ports).get(destination, hop.towards_server) if forward else hop.towards_client
            assert onward is not None
            return onward
        wants = {f"in_port={ports[enters]}", "ip", f"nw_src={source}", f"nw_dst={destination}", "priority=10"}
        (flow,) = [flow for flow in static[switch] if set(flow.rsplit(",actions=", 1)[0].split(",")) <= wants]
        return names[int(flow.rsplit(":", 1)[1]) - 1]

    def walk(start: str, source: str, destination: str, *, forward: bool) -> tuple[str, list[str]]:
        seen: list[str] = []
        switch, enters = peers[start]
        while switch in hops or switch in static:
            seen.append(switch)
            switch, enters = peers[leaves(switch, enters, source, destination, forward=forward)]
        return switch, seen

    for path in layout.paths:
        host, seen = walk(path.client.interface, path.client.address, path.server.address, forward=True)
        assert host == path.server.host
        assert [name for name in seen if name in hops] == [f"d{i}{end}" for i in path.way for end in "ie"]
        host, back = walk(path.server.interface, path.server.address, path.client.address, forward=False)
        assert (host, back) == (path.client.host, seen[::-1])


@given(scenarios())
def test_every_domain_has_a_controller_of_its_own(wanted: Scenario) -> None:
    layout = laid_out(wanted)
    targets = [{layout.controllers[hop.bridge] for hop in program.hops} for program in layout.skeletons]
    assert all(len(target) == 1 for target in targets)
    assert len(set.union(*targets)) == len(targets)
    assert "ce" not in layout.controllers


def test_a_domain_meters_where_clients_enter_and_queues_wherever_packets_leave() -> None:
    (first, second) = laid_out(scenario(2, compute=(1, 2))).skeletons
    assert [hop.ingress for hop in first.hops] == [True, False]
    assert [hop.queued_ports for hop in first.hops] == [("d1i-up", "d1i-dn"), ("d1e-up", "d1e-dn", "d1e-h")]
    assert [hop.queued_ports for hop in second.hops] == [("d2i-up", "d2i-dn"), ("d2e-up", "d2e-h")]
    assert first.hops[1].server_ports == (("10.2.0.1", "d1e-h"),)


def test_a_long_link_has_a_switch_of_its_own_with_room_for_what_is_under_way() -> None:
    layout = laid_out(scenario(2, delays_s=(5e-3, 0.0)))
    (wire,) = layout.wires
    assert (wire.bridge, wire.interfaces, wire.delay_s) == ("w1", ("w1-up", "w1-dn"), 5e-3)
    assert wire.limit_packets * 480 > 2 * 5e-3 * 40_000_000
    assert layout.entry(2).upstream == "w1-dn"


def test_who_is_served_half_way_crosses_a_link_as_long_as_the_one_that_leads_on() -> None:
    layout = laid_out(scenario(2, compute=(1, 2), delays_s=(5e-3, 3e-3)))
    assert {wire.bridge: wire.delay_s for wire in layout.wires} == {"w1": 5e-3, "w1h": 5e-3, "w2": 3e-3}
    doors = {border.domain: border.upstream for border in layout.borders if border.host is not None}
    assert doors == {1: "w1h-dn", 2: "w2-dn"}


def test_links_that_cannot_be_delayed_have_no_switch() -> None:
    layout = laid_out(scenario(2, delays_s=(5e-3, 5e-3)), delays=False)
    assert layout.wires == ()
    assert layout.entry(2).upstream == "d1e-dn"


def test_the_edge_lets_each_client_send_from_its_own_address_only() -> None:
    layout = laid_out(scenario(1))
    flows = edge_flows(layout, {"ce-c1": 1, "ce-c2": 2, "ce-dn": 3})
    assert "priority=10,in_port=1,ip,nw_src=10.1.0.1,actions=output:3" in flows
    assert "priority=10,in_port=3,ip,nw_dst=10.1.0.2,actions=output:2" in flows
    assert len(flows) == 4


def test_a_wire_lets_everything_through_both_ways() -> None:
    (wire,) = laid_out(scenario(2, delays_s=(5e-3, 0.0))).wires
    assert wire_flows(wire, {"w1-up": 7, "w1-dn": 9}) == (
        "priority=10,in_port=7,actions=output:9",
        "priority=10,in_port=9,actions=output:7",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domains": 0}, "0 domains and 2 clients: 1 to 8 domains, 1 to 1000 clients"),
        ({"domains": 9}, "9 domains and 2 clients: 1 to 8 domains"),
        ({"domains": -3}, "-3 domains"),
        ({"clients": 0}, "0 clients"),
        ({"clients": 1001}, "1001 clients"),
        ({"domains": 2, "compute": {3}}, r"compute \[3\], delayed \[\]: domains are 1 to 2"),
        ({"domains": 2, "compute": set()}, r"compute \[\]"),
        ({"domains": 2, "delayed": {0}}, r"delayed \[0\]: domains are 1 to 2"),
        ({"domains": 2, "segments": [[1]]}, r"segments \[\[1\]\]: expected each of the domains 1 to 2 once"),
        ({"domains": 2, "segments": [[1, 2], []]}, "segments"),
        ({"domains": "three"}, "domains: found 'three', expected a whole number"),
        ({"domains": 2.5}, "domains: found 2.5, expected a whole number"),
    ],
)
def test_a_topology_that_cannot_be_is_refused_in_one_sentence(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TandemTopo(**arguments)


def test_interface_names_fit_the_kernel_even_in_the_largest_network() -> None:
    names = interfaces_of(TandemTopo(8, 1000, compute=range(1, 9), delayed=range(1, 9)))
    assert max(map(len, names)) <= 15
