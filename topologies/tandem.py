"""Operator domains in tandem, for Mininet: `mn --custom topologies/tandem.py --topo tandem,3`.

    c1 .. cN - ce - d1i - d1e - [w1] - d2i - d2e - [w2] - ... - dDe - [wD] - sD
                           |                  |
                          s1                 s2

Every domain `i` has an ingress switch `d<i>i`, an egress switch `d<i>e` and, if it offers compute, a host `s<i>`.
Clients hang on a customer edge switch `ce` that belongs to no operator. A link with propagation delay passes through a
switch `w<i>` of its own, so that delay is never an affair of a port that has queues. Where several domains sell the
same segment of the path they stand beside each other, between exchanges `x<k>` that belong to no operator either.
Names, addresses and ports are decided here and nowhere else; rates, queues and flows are not decided here. The file
needs nothing but Mininet, because `mn` runs it outside this project's environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from mininet.link import Link
from mininet.node import Host
from mininet.topo import Topo

EDGE = "ce"
EDGE_DPID = 1
PREFIX_LENGTH = 8
MAX_DOMAINS = 8
MAX_CLIENTS = 1000
_OFFLOADS = ("tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off")
_NO_IPV6 = ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")


def client_name(number: int) -> str:
    """Host of the client with this number, from 1."""
    return f"c{number}"


def server_name(domain: int) -> str:
    """Compute host of domain `domain`, from 1."""
    return f"s{domain}"


def ingress_name(domain: int) -> str:
    """Switch at which traffic from the clients enters domain `domain`."""
    return f"d{domain}i"


def egress_name(domain: int) -> str:
    """Switch at which traffic from the clients leaves domain `domain`."""
    return f"d{domain}e"


def wire_name(domain: int) -> str:
    """Switch that stands for the long link behind domain `domain`."""
    return f"w{domain}"


def host_wire_name(domain: int) -> str:
    """Switch that stands for the long link between domain `domain` and its compute host, where another leads on."""
    return f"w{domain}h"


def exchange_name(segment: int) -> str:
    """Switch at which traffic enters segment `segment`, from 2, where there is a choice before or behind it."""
    return f"x{segment}"


def exchange_port(exchange: str, domain: int) -> str:
    """Port of an exchange, or of the customer edge, that leads to one domain among others."""
    return f"{exchange}-d{domain}"


def exchange_dpid(segment: int) -> int:
    """Datapath id of an exchange."""
    return 16 * segment + 4


def ingress_dpid(domain: int) -> int:
    """Datapath id of a domain's ingress switch."""
    return 16 * domain + 1


def egress_dpid(domain: int) -> int:
    """Datapath id of a domain's egress switch."""
    return 16 * domain + 2


def wire_dpid(domain: int) -> int:
    """Datapath id of the switch of the long link behind a domain."""
    return 16 * domain + 3


def host_wire_dpid(domain: int) -> int:
    """Datapath id of the switch of the long link towards a domain's compute host."""
    return 16 * domain + 5


def host_interface(host: str) -> str:
    """The only interface of a host."""
    return f"{host}-eth0"


def client_address(number: int) -> str:
    """IPv4 address of a client."""
    return f"10.1.{number >> 8}.{number & 255}"


def server_address(domain: int) -> str:
    """IPv4 address of a compute host."""
    return f"10.2.0.{domain}"


def mac_of(address: str) -> str:
    """MAC address of the host with this IPv4 address: locally administered, and readable."""
    return "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))


class QuietHost(Host):  # type: ignore[misc]
    """A host that sends nothing by itself: no IPv6, whose router and neighbour discovery would cross the queues."""

    def __init__(self, name: str, **params: Any) -> None:
        super().__init__(name, **params)
        self.cmd("sysctl", "-qew", *_NO_IPV6)


class PlainLink(Link):  # type: ignore[misc]
    """A veth pair without offloads.

    The userspace datapath forwards a packet whose checksum was left to the hardware just as it is, so the receiver
    drops it: TCP hangs, and ping works.
    """

    def __init__(self, node1: Any, node2: Any, **params: Any) -> None:
        super().__init__(node1, node2, **params)
        for interface in (self.intf1, self.intf2):
            complaint = interface.cmd("ethtool", "-K", interface.name, *_OFFLOADS)
            # Some features are fixed on some kernels; whether all are off in the end is read back, not assumed.
            if re.search("not found|No such device", complaint):
                raise RuntimeError(f"{interface.name}: ethtool -K: {complaint.strip()}")


class TandemTopo(Topo):  # type: ignore[misc]
    """The topology; `domains` is the one argument `--topo tandem,3` gives."""

    def build(
        self,
        domains: int = 3,
        clients: int = 2,
        *,
        compute: Collection[int] | None = None,
        delayed: Collection[int] = (),
        segments: Sequence[Sequence[int]] | None = None,
        host: Callable[..., Any] = QuietHost,
        link: Callable[..., Any] = PlainLink,
    ) -> None:
        """Lay out the network.

        Args:
            domains: Number of operator domains, 1 to 8.
            clients: Number of client hosts, 1 to 1000.
            compute: Domains with a compute host, counted from 1; None for the last domain only.
            delayed: Domains whose outgoing links, to the next domain and to the compute host, have switches of their
                own, for their propagation delay.
            segments: Domains by the part of the path that they carry; None for one after the other.
            host: Class of the hosts.
            link: Class of the links.

        Raises:
            ValueError: A number outside its range, or no whole number.
        """
        for name, value in (("domains", domains), ("clients", clients)):
            # Mininet hands over what it cannot read as a number as it stands.
            if not isinstance(value, int):
                raise ValueError(f"{name}: found {value!r}, expected a whole number, as in --topo tandem,3")  # noqa: TRY004
        offering = {domains} if compute is None else set(compute)
        if not 1 <= domains <= MAX_DOMAINS or not 1 <= clients <= MAX_CLIENTS:
            raise ValueError(
                f"{domains} domains and {clients} clients: 1 to {MAX_DOMAINS} domains, 1 to {MAX_CLIENTS} clients"
            )
        if not offering or not (offering | set(delayed)) <= set(range(1, domains + 1)):
            raise ValueError(f"compute {sorted(offering)}, delayed {sorted(delayed)}: domains are 1 to {domains}")
        parts = [[number] for number in range(1, domains + 1)] if segments is None else [list(s) for s in segments]
        if sorted(number for part in parts for number in part) != list(range(1, domains + 1)) or not all(parts):
            raise ValueError(f"segments {parts}: expected each of the domains 1 to {domains} once")
        self._host_class, self._link_class = host, link
        self._switch(EDGE, EDGE_DPID)
        for number in range(1, clients + 1):
            name = client_name(number)
            self._host(name, client_address(number))
            self._connect(EDGE, f"{EDGE}-{name}", name, host_interface(name))
        ends = [(EDGE, f"{EDGE}-dn")]
        for position, part in enumerate(parts, 1):
            upstream = self._meet(position, ends, part, parts[position - 2])
            last = position == len(parts)
            ends = [self._domain(d, upstream[d], d in offering, d in delayed, last) for d in part]

    def _meet(
        self, position: int, ends: Sequence[tuple[str, str]], part: Sequence[int], before: Sequence[int]
    ) -> dict[int, tuple[str, str]]:
        """What each domain of a segment hangs on: the end before it, the edge, or an exchange where there is a choice.

        Args:
            position: Of the segment, from 1.
            ends: Loose ends of the segment before it.
            part: Domains of the segment.
            before: Domains of the one before it.
        """
        if len(ends) == len(part) == 1:
            return {part[0]: ends[0]}
        if position == 1:
            return {domain: (EDGE, exchange_port(EDGE, domain)) for domain in part}
        exchange = exchange_name(position)
        self._switch(exchange, exchange_dpid(position))
        for domain, end in zip(before, ends, strict=True):
            self._connect(*end, exchange, exchange_port(exchange, domain))
        return {domain: (exchange, exchange_port(exchange, domain)) for domain in part}

    def _domain(
        self, domain: int, upstream: tuple[str, str], offers: bool, delayed: bool, last: bool
    ) -> tuple[str, str]:
        """Add one domain behind `upstream` (switch, interface) and return what the next one hangs on."""
        ingress, egress, wire, server = (name(domain) for name in (ingress_name, egress_name, wire_name, server_name))
        self._switch(ingress, ingress_dpid(domain))
        self._switch(egress, egress_dpid(domain))
        self._connect(*upstream, ingress, f"{ingress}-up")
        self._connect(ingress, f"{ingress}-dn", egress, f"{egress}-up")
        if delayed:
            self._switch(wire, wire_dpid(domain))
        if offers:
            self._host(server, server_address(domain))
            behind = wire if last else host_wire_name(domain)
            if delayed and not last:
                self._switch(behind, host_wire_dpid(domain))
            ends = self._through(behind if delayed else None, egress, f"{egress}-h")
            self._connect(*ends, server, host_interface(server))
        if last:
            return egress, ""
        return self._through(wire if delayed else None, egress, f"{egress}-dn")

    def _through(self, wire: str | None, switch: str, interface: str) -> tuple[str, str]:
        """Pass through the long link's switch, if there is one; what the next link hangs on."""
        if wire is None:
            return switch, interface
        self._connect(switch, interface, wire, f"{wire}-up")
        return wire, f"{wire}-dn"

    def _switch(self, name: str, dpid: int) -> None:
        # Standalone, so that `mn` without a controller still forwards: the tandem has no loops.
        self.addSwitch(name, dpid=f"{dpid:016x}", failMode="standalone")

    def _host(self, name: str, address: str) -> None:
        self.addHost(name, cls=self._host_class, ip=f"{address}/{PREFIX_LENGTH}", mac=mac_of(address))

    def _connect(self, first: str, first_interface: str, second: str, second_interface: str) -> None:
        names = {"intfName1": first_interface, "intfName2": second_interface}
        self.addLink(first, second, cls=self._link_class, **names)


topos = {"tandem": TandemTopo}
