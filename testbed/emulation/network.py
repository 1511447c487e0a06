"""The network of one run, from nothing to "controllers may connect", and back to nothing.

`TandemNetwork` makes the fabric namespace, starts our Open vSwitch in it, has Mininet build `topologies.tandem` there,
and configures what belongs to no operator: addresses, static ARP, the customer edge, long links. What it leaves to the
domains' controllers is everything per tenant. While it is open the calling thread is inside the fabric namespace.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from mininet.net import Mininet
from mininet.node import Switch

from testbed.emulation import links, namespace, packet_filter
from testbed.emulation.awake import keep_awake
from testbed.emulation.journal import RUNS, Journal
from testbed.emulation.layout import (
    Border,
    Endpoint,
    Layout,
    edge_flows,
    edge_port,
    exchange_flows,
    layout_of,
    wire_flows,
)
from testbed.emulation.ovs import Bridge, OpenVSwitch, Port, SocketBuffers, environment_of
from testbed.emulation.placement import Placement, Role
from testbed.emulation.supervisor import READY_WITHIN_S, Child, Readiness, Supervisor
from testbed.errors import PreflightError
from testbed.scenario.model import Datapath, Scenario
from testbed.scenario.slow_down import least_resend_s
from topologies import tandem

SOCKET_BUFFER_BYTES = 64 * 1024 * 1024

HOST_SETTINGS: Mapping[str, str] = {
    # A pause must not make TCP forget its window: a tenant's request after a pause is a request like others.
    "net/ipv4/tcp_slow_start_after_idle": "0",
    # Whatever the machine's default: an algorithm that paces (BBR) spreads a request over several round trips, which
    # no queue of the path explains. Every kernel has this one.
    "net/ipv4/tcp_congestion_control": "reno",
    # A queue that is deep on purpose answers late, and a probe for a lost tail would send its last packet twice.
    "net/ipv4/tcp_early_retrans": "0",
}
"""Settings of each host's own network namespace, below /proc/sys."""
_TOOLS = {
    "mnexec": "mininet",
    "ifconfig": "net-tools",
    "ethtool": "ethtool",
    "sysctl": "procps",
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ovs-vswitchd": "openvswitch-switch",
    "ovs-ofctl": "openvswitch-switch",
}
# A frame of a private-use EtherType that no flow matches; the next switch drops it.
_UNWANTED_FRAME = "ffffffffffff" + "020000000000" + "88b5" + "00" * 46


@dataclass(frozen=True)
class HostHandle:
    """A running Mininet host.

    Attributes:
        endpoint: Its interface and addresses.
        pid: Of its shell: whoever enters this process's network namespace is in the host.
    """

    endpoint: Endpoint
    pid: int

    @property
    def namespace(self) -> Path:
        """Its network namespace."""
        return namespace.of_process(self.pid)


class _Journaled:
    """A Mininet node all of whose processes are in the run's journal."""

    def __init__(self, name: str, *, journal: Journal, **params: Any) -> None:
        self._journal = journal
        super().__init__(name, **params)  # type: ignore[call-arg]

    def _popen(self, cmd: Sequence[str], **params: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = super()._popen(cmd, **params)  # type: ignore[misc]
        self._journal.record_process(process.pid, " ".join(cmd))
        return process


class _JournaledHost(_Journaled, tandem.QuietHost):
    """A host of the run."""


class _FabricSwitch(_Journaled, Switch):
    """A switch to hang interfaces on; all bridges are made at once, by `OpenVSwitch.add_bridges`."""


class TandemNetwork:
    """The network of a scenario, as a context manager.

    Attributes:
        scenario: What it was built from.
        datapath: Userspace or kernel.
        layout: Names, addresses, borders and program skeletons.
        delays: Whether links have their propagation delay; False where netem is missing and zero is allowed, and then
            every bound must use zero too.
        journal: Undo of all changes to the host.
        supervisor: Owner of all child processes.
        ovs: Our switch.
        hosts: Clients and compute hosts by name.
        awake: Whether its cores are kept awake.
    """

    journal: Journal
    supervisor: Supervisor
    ovs: OpenVSwitch
    hosts: Mapping[str, HostHandle]

    def __init__(
        self,
        scenario: Scenario,
        datapath: Datapath,
        *,
        root: Path = RUNS,
        placement: Placement | None = None,
        awake: bool = False,
    ) -> None:
        """Check that the host can carry the scenario; nothing is changed yet.

        Args:
            scenario: What to build.
            datapath: Userspace or kernel.
            root: Where journals are kept.
            placement: Where its processes run; like any other process if None.
            awake: Whether cores are kept awake while the network stands.

        Raises:
            PreflightError: Tools are missing, or links need a delay that this kernel cannot give.
        """
        if datapath is Datapath.AUTO:
            raise ValueError("decide between the userspace and the kernel datapath first")
        require_tools()
        delayed = [domain.name for domain in scenario.domains if domain.link_delay_s > 0]
        self.delays = bool(delayed) and links.netem_available()
        if delayed and not self.delays and not scenario.allow_zero_delay:
            raise PreflightError(
                f"links of {', '.join(delayed)} have a propagation delay and this kernel has no netem; "
                "load sch_netem, or allow zero delays in the scenario (the bound then uses zero too)"
            )
        self.scenario = scenario
        self.datapath = datapath
        self.layout: Layout = layout_of(scenario, datapath, delays=self.delays)
        self._root = root
        self._placement = placement
        self.awake = awake
        self._stack = ExitStack()

    @property
    def link_delays_s(self) -> tuple[float, ...]:
        """One-way propagation delay of each domain's outgoing link as it is in this network."""
        wires = {wire.domain: wire.delay_s for wire in self.layout.wires}
        return tuple(wires.get(i, 0.0) for i in range(1, len(self.scenario.domains) + 1))

    @property
    def in_force(self) -> Scenario:
        """The scenario with the link delays that this network really has: what every promise must be made from."""
        domains = zip(self.scenario.domains, self.link_delays_s, strict=True)
        return replace(self.scenario, domains=tuple(replace(d, link_delay_s=delay) for d, delay in domains))

    @property
    def fabric(self) -> Path:
        """The fabric's network namespace."""
        return namespace.NAMES / f"tlt-{self.journal.runid}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.journal = Journal.create(self._root)
            stack.callback(self.journal.undo)
            stack.enter_context(_environment(self.journal.environment))
            fabric = namespace.create(self.journal)
            stack.enter_context(namespace.entered(fabric))
            links.disable_ipv6()
            links.run(["ip", "link", "set", "lo", "up"])
            self.supervisor = stack.enter_context(Supervisor(self.journal, self._placement, self.scenario.slow_down))
            if self.awake:
                keep_awake(self.supervisor)
            directory = self.journal.directory / "ovs"
            stack.enter_context(_environment(environment_of(directory)))
            self.ovs = OpenVSwitch.start(self.supervisor, directory, self.datapath)
            mininet = stack.enter_context(_mininet(self.layout, self.journal))
            self.hosts = self._handles(mininet)
            self._configure_hosts()
            self._configure_switches(mininet)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def namespace_of(self, border: Border) -> Path:
        """Network namespace the border's interface is in."""
        return self.fabric if border.host is None else self.hosts[border.host].namespace

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        host: str | None = None,
        environment: Mapping[str, str] | None = None,
        ready: Readiness = True,
        role: Role | None = None,
        timeout_s: float = READY_WITHIN_S,
    ) -> Child:
        """Start a supervised child in a host, or in the fabric if `host` is None; see `Supervisor.start`."""
        pid = None if host is None else self.hosts[host].pid
        return self.supervisor.start(
            name, argv, host_pid=pid, environment=environment, ready=ready, role=role, timeout_s=timeout_s
        )

    def enlarge_buffers(self) -> SocketBuffers:
        """Enlarge the switch's send buffers and read them back; call it again before the measured window.

        Raises:
            PreflightError: One is smaller than it should be, or there is not exactly one transmitting socket.
        """
        if self.datapath is not Datapath.USERSPACE:
            return SocketBuffers(0, 0, 0)
        found = self.ovs.enlarge_buffers(SOCKET_BUFFER_BYTES)
        if found.transmitting != 1 or found.smallest_bytes < SOCKET_BUFFER_BYTES:
            raise PreflightError(
                f"ovs-vswitchd has {found.transmitting} transmitting AF_PACKET sockets (expected 1), smallest send "
                f"buffer {found.smallest_bytes} bytes (expected {SOCKET_BUFFER_BYTES}); packets would be lost uncounted"
            )
        return found

    @contextmanager
    def filtering(self, port: str, program: packet_filter.Program) -> Iterator[None]:
        """Have a program drop some of what a switch would receive at a port; captures there still see everything.

        Raises:
            PreflightError: It cannot be put there.
        """
        if self.datapath is Datapath.KERNEL:
            with packet_filter.at_ingress(port, program):
                yield
        else:
            with self.ovs.receiving(port) as handle, packet_filter.in_front(handle, program):
                yield

    def _handles(self, mininet: Mininet) -> dict[str, HostHandle]:
        endpoints = [path.client for path in self.layout.paths] + list(self.layout.servers.values())
        return {endpoint.host: HostHandle(endpoint, mininet[endpoint.host].pid) for endpoint in endpoints}

    def _configure_hosts(self) -> None:
        links.require_no_offloads()
        for path in self.layout.paths:
            self._configure_host(path.client, [path.server])
        for server in self.layout.servers.values():
            self._configure_host(server, [path.client for path in self.layout.paths if path.server == server])

    def _configure_host(self, endpoint: Endpoint, peers: Sequence[Endpoint]) -> None:
        with namespace.entered(self.hosts[endpoint.host].namespace):
            links.require_no_offloads()
            links.set_neighbours(endpoint.interface, [(peer.address, peer.mac) for peer in peers])
            for name, value in HOST_SETTINGS.items():
                (Path("/proc/sys") / name).write_text(value)
            if self.scenario.slow_down != 1:
                links.resend_no_sooner(endpoint.interface, least_resend_s(self.scenario.slow_down))

    def _configure_switches(self, mininet: Mininet) -> None:
        bridges = [
            Bridge(
                name,
                dpid,
                tuple(
                    Port(interface.name, number)
                    for interface, number in mininet[name].ports.items()
                    if interface.name != "lo"
                ),
                self.layout.controllers.get(name),
            )
            for name, dpid in self.layout.dpids.items()
        ]
        self.ovs.add_bridges(bridges)
        for wire in self.layout.wires:
            links.delay(wire)
        self.configure_flows()

    def configure_flows(self) -> None:
        """Give the switches that no operator owns their flows, and every port's socket its buffer.

        Whatever started the daemon anew must do this again: its database holds no flow.
        """
        ports = self.ovs.port_numbers()
        self.ovs.add_flows(tandem.EDGE, edge_flows(self.layout, ports))
        for wire in self.layout.wires:
            self.ovs.add_flows(wire.bridge, wire_flows(wire, ports))
        for exchange in self.layout.exchanges:
            self.ovs.add_flows(exchange.bridge, exchange_flows(exchange, ports))
        first = edge_port(self.layout.segments, self.layout.segments[0][0])
        out = f"packet={_UNWANTED_FRAME} actions=output:{ports[first]}"
        self.ovs.ofctl("packet-out", tandem.EDGE, f"in_port=CONTROLLER {out}")
        self.enlarge_buffers()


def require_tools() -> None:
    """Fail if a program that building a network needs is missing.

    Raises:
        PreflightError: Naming each missing program and its Debian package.
    """
    missing = [
        f"{tool} is not installed; install {package}" for tool, package in _TOOLS.items() if shutil.which(tool) is None
    ]
    if missing:
        raise PreflightError(missing)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _mininet(layout: Layout, record: Journal) -> Iterator[Mininet]:
    # Mininet would raise limits of the whole host (file-max, ARP table, ptys) and never restore them.
    Mininet.inited = True
    topology = tandem.TandemTopo(
        len(layout.skeletons),
        len(layout.paths),
        compute=tuple(layout.servers),
        delayed=tuple(wire.domain for wire in layout.wires),
        segments=layout.segments,
        host=functools.partial(_JournaledHost, journal=record),
    )
    network = Mininet(
        topo=topology,
        switch=functools.partial(_FabricSwitch, journal=record),
        controller=None,
        build=False,
    )
    try:
        network.build()
        yield network
    finally:
        # Only the shells: links, bridges and qdiscs go with the namespaces, far faster than one by one.
        for node in (*network.hosts, *network.switches):
            node.terminate()
