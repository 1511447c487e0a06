"""An Open vSwitch of our own: database, daemon and sockets in the run's directory, ports in the fabric's namespace.

The system's own Open vSwitch, if any, is neither used nor disturbed. This module starts and configures the instance,
enlarges the one buffer that would lose packets without a counter, and reads what the fidelity gates need (flow misses,
losses, log). Flows and meters of a domain belong to its controller.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from controller.counters import MeterCounters
from testbed.emulation import processes, syscalls
from testbed.emulation.meters import MeterConnection, connected
from testbed.emulation.placement import Role
from testbed.emulation.supervisor import Child, Supervisor
from testbed.errors import PreflightError
from testbed.scenario.model import Datapath

_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_TIMEOUT_S = 20
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_BUFFERS = (socket.SO_SNDBUF, socket.SO_RCVBUF)
_AF_PACKET_INODE_COLUMN = 8
# Flows must outlive the quietest tenant's pauses: a flow that idles out costs its next packet an upcall.
_MAX_IDLE_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class Port:
    """An existing interface and the OpenFlow port number it gets."""

    interface: str
    number: int


@dataclass(frozen=True)
class Bridge:
    """One switch: never forwards anything but what a flow says (fail_mode secure).

    Attributes:
        name: Of the bridge.
        dpid: Datapath id.
        ports: Its ports.
        controller: OpenFlow target such as `tcp:127.0.0.1:6653`, None for a switch with static flows only.
    """

    name: str
    dpid: int
    ports: tuple[Port, ...]
    controller: str | None = None


@dataclass(frozen=True)
class SocketBuffers:
    """AF_PACKET sockets of the switch after enlarging their buffers.

    Attributes:
        sockets: How many there are.
        transmitting: How many of them are bound to no interface: the ones every port sends through (one, once the
            first packet has left through a system port).
        smallest_bytes: The smallest buffer among them, as read back.
    """

    sockets: int
    transmitting: int
    smallest_bytes: int


@dataclass(frozen=True)
class DatapathCounters:
    """Totals since the datapath started, over all bridges.

    Attributes:
        hits: Packets that found their flow in the datapath.
        misses: Packets that did not: one upcall each.
        lost: Packets lost because an upcall failed.
    """

    hits: int
    misses: int
    lost: int


class OpenVSwitch:
    """One ovsdb-server and one ovs-vswitchd; made by `start`, ended by the supervisor.

    Attributes:
        directory: Database, sockets and log; also what OVS_RUNDIR must be for `ovs-ofctl BRIDGE` to find a bridge.
        daemon: The ovs-vswitchd process.
    """

    def __init__(self, directory: Path, datapath: Datapath, daemon: Child) -> None:
        self.directory = directory
        self.datapath = datapath
        self.daemon = daemon

    @classmethod
    def start(cls, supervisor: Supervisor, directory: Path, datapath: Datapath) -> OpenVSwitch:
        """Start the instance in the calling thread's network namespace and wait until it takes orders.

        Args:
            supervisor: Owns the two processes.
            directory: To be made; sockets and database live there.
            datapath: `USERSPACE` or `KERNEL`.

        Raises:
            PreflightError: Open vSwitch is missing or does not start, with its last words.
        """
        directory.mkdir(mode=0o700)
        database, listen = directory / "conf.db", directory / "db.sock"
        environment = environment_of(directory)
        _call(["ovsdb-tool", "create", str(database), str(_SCHEMA)], environment)
        supervisor.start(
            "ovsdb-server",
            ["ovsdb-server", str(database), f"--remote=punix:{listen}", f"--unixctl={directory / 'ovsdb-server.ctl'}"],
            environment=environment,
            ready=lambda: _listens(listen),
        )
        # Before the daemon looks at it: what it reads at its start only.
        _call(["ovs-vsctl", f"--db=unix:{listen}", "--no-wait", "init"], environment)
        settings = [f"other_config:max-idle={_MAX_IDLE_MS}", "other_config:n-revalidator-threads=1"]
        _call(["ovs-vsctl", f"--db=unix:{listen}", "--no-wait", "set", "Open_vSwitch", ".", *settings], environment)
        control = directory / "ovs-vswitchd.ctl"
        daemon = supervisor.start(
            "ovs-vswitchd",
            [
                "ovs-vswitchd",
                f"unix:{listen}",
                f"--unixctl={control}",
                f"--log-file={directory / 'ovs-vswitchd.log'}",
                "--verbose=console:warn",
            ],
            environment=environment,
            ready=lambda: _listens(control),
            role=Role.DATAPATH,
        )
        return cls(directory, datapath, daemon)

    def vsctl(self, *arguments: str) -> str:
        """Run one ovs-vsctl transaction, wait until the switch has carried it out, and return what it prints."""
        command = ["ovs-vsctl", f"--db=unix:{self.directory / 'db.sock'}", f"--timeout={_TIMEOUT_S}", *arguments]
        return self._call(command)

    def ofctl(self, *arguments: str, lines: Iterable[str] = ()) -> str:
        """Run ovs-ofctl with OpenFlow 1.3, giving it `lines` as standard input."""
        return self._call(["ovs-ofctl", "--protocols=OpenFlow13", *arguments], "".join(f"{line}\n" for line in lines))

    def appctl(self, *arguments: str) -> str:
        """Ask the running daemon."""
        return self._call(["ovs-appctl", f"--target={self.directory / 'ovs-vswitchd.ctl'}", *arguments])

    def add_bridges(self, bridges: Sequence[Bridge]) -> None:
        """Make all bridges with all their ports in one transaction, and see that every port came up.

        Raises:
            PreflightError: A port has no OpenFlow number because the switch could not open the interface.
        """
        kind = "netdev" if self.datapath is Datapath.USERSPACE else "system"
        command: list[str] = []
        for bridge in bridges:
            command += ["--", "add-br", bridge.name, "--", "set", "Bridge", bridge.name]
            command += [f"datapath_type={kind}", "fail_mode=secure", "protocols=OpenFlow13"]
            command += [f"other_config:datapath-id={bridge.dpid:016x}", "other_config:disable-in-band=true"]
            for port in bridge.ports:
                command += ["--", "add-port", bridge.name, port.interface]
                command += ["--", "set", "Interface", port.interface, f"ofport_request={port.number}"]
            if bridge.controller is not None:
                command += ["--", "set-controller", bridge.name, bridge.controller]
                # A controller that starts after the switch is found within a second, not after a long back-off.
                command += ["--", "set", "Controller", bridge.name, "max_backoff=1000", "inactivity_probe=0"]
        self.vsctl(*command)
        wanted = {port.interface: port.number for bridge in bridges for port in bridge.ports}
        found = self.port_numbers()
        wrong = [
            f"port {name}: OpenFlow number {found.get(name)} instead of {number}; see {self.directory}/ovs-vswitchd.log"
            for name, number in wanted.items()
            if found.get(name) != number
        ]
        if wrong:
            raise PreflightError(wrong)

    def port_numbers(self) -> dict[str, int]:
        """OpenFlow number of every interface of every bridge, -1 for one that could not be opened."""
        text = self.vsctl("--format=csv", "--no-headings", "--columns=name,ofport", "list", "Interface")
        rows = (line.split(",") for line in text.splitlines())
        return {name.strip('"'): int(number) for name, number in rows if number.lstrip("-").isdecimal()}

    def add_flows(self, bridge: str, flows: Sequence[str]) -> None:
        """Install static flows in one bundle, all or none; they are in force when this returns.

        A packet that came before them has left its decision in the datapath's cache, which outlives the tables it was
        made from until it is revalidated.
        """
        self.ofctl("--bundle", "add-flows", bridge, "-", lines=flows)
        self.appctl("revalidator/wait")

    def enlarge_buffers(self, size_bytes: int) -> SocketBuffers:
        """Enlarge both buffers of every AF_PACKET socket of the switch, and read them back.

        All ports of the userspace datapath send through one socket, whose buffer also holds what waits in the ports'
        queues: once it is full, packets of any tenant are lost uncounted. What arrives while the switch does not look
        waits in a port's own socket, some 90 frames by default, and is lost uncounted too. The sockets are duplicated
        out of the running switch, so no host-wide default changes. The sending one exists from the first packet on.
        """
        sizes: list[int] = []
        transmitting = 0
        for duplicate in self._packet_sockets():
            duplicate.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size_bytes)
            duplicate.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size_bytes)
            sizes += (duplicate.getsockopt(socket.SOL_SOCKET, kind) for kind in _BUFFERS)
            transmitting += duplicate.getsockname()[0] == ""
        return SocketBuffers(len(sizes) // len(_BUFFERS), transmitting, min(sizes, default=0))

    @contextmanager
    def receiving(self, interface: str) -> Iterator[socket.socket]:
        """A duplicate of the socket by which the switch receives what arrives at a port of the userspace datapath.

        Nothing may be done to it that changes whether it blocks (a timeout, Python's `dup`): the switch shares that.

        Raises:
            PreflightError: The switch has no such socket.
        """
        for duplicate in self._packet_sockets():
            if duplicate.getsockname()[0] == interface:
                yield duplicate
                return
        raise PreflightError(f"ovs-vswitchd: found no packet socket of {interface}, expected one")

    def _packet_sockets(self) -> Iterator[socket.socket]:
        """A duplicate of each of its packet sockets, closed when the next one is asked for."""
        pid = self.daemon.pid
        with processes.pidfd(pid, self.daemon.start_ticks) as pidfd:
            if pidfd is None:
                raise PreflightError(f"ovs-vswitchd has died; it last said:\n{self.daemon.tail()}")
            for descriptor in _packet_descriptors(pid):
                with socket.socket(fileno=syscalls.duplicate_descriptor(pidfd, descriptor)) as duplicate:
                    yield duplicate

    def restart(self, supervisor: Supervisor) -> None:
        """Start the daemon again after it was killed; its database remembers bridges and ports, and no flow."""
        self.daemon = supervisor.start(
            self.daemon.name,
            self.daemon.argv,
            environment=environment_of(self.directory),
            ready=lambda: _listens(self.directory / "ovs-vswitchd.ctl"),
            role=Role.DATAPATH,
        )
        # A change is waited for, and with it every bridge of the database; without one nothing would be.
        self.vsctl("set", "Open_vSwitch", ".", f"external_ids:daemon={self.daemon.pid}")

    def counters(self) -> DatapathCounters:
        """Flow hits, misses and losses of the datapath so far.

        Raises:
            PreflightError: The switch does not print them in the form known here.
        """
        text = self.appctl("dpctl/show", "--statistics")
        found = re.findall(r"lookups: hit:(\d+) missed:(\d+) lost:(\d+)", text)
        if not found:
            raise PreflightError(f"ovs-appctl dpctl/show: no line 'lookups: hit:.. missed:.. lost:..' in {text!r}")
        hits, misses, lost = (sum(int(row[column]) for row in found) for column in range(3))
        return DatapathCounters(hits, misses, lost)

    def meters(self, bridge: str) -> dict[int, MeterCounters]:
        """What each meter of a bridge has counted, by meter id."""
        with self.asked_for_meters(bridge) as connection:
            return connection.read()

    def asked_for_meters(self, bridge: str) -> AbstractContextManager[MeterConnection]:
        """A connection on which a bridge's meters can be read again and again."""
        return connected(self.directory / f"{bridge}.mgmt")

    def log_errors(self) -> tuple[str, ...]:
        """Lines of warning or worse that the daemon has logged."""
        log = (self.directory / "ovs-vswitchd.log").read_text(errors="replace")
        return tuple(line for line in log.splitlines() if re.search(r"\|(WARN|ERR|EMER)\|", line))

    def _call(self, command: Sequence[str], text: str = "") -> str:
        return _call(command, environment_of(self.directory), text)


def environment_of(directory: Path) -> dict[str, str]:
    """Environment in which Open vSwitch's tools, and Mininet, find the instance in `directory`."""
    return {"OVS_RUNDIR": str(directory), "OVS_DBDIR": str(directory), "OVS_LOGDIR": str(directory)}


def _call(command: Sequence[str], environment: dict[str, str], text: str = "") -> str:
    try:
        result = subprocess.run(
            command,
            env={**os.environ, **environment},
            input=text,
            capture_output=True,
            text=True,
            check=False,
            # Ctrl-C is for us to answer, not for a transaction half-way through.
            process_group=0,
        )
    except FileNotFoundError as error:
        raise PreflightError(f"{command[0]} is not installed; install openvswitch-switch") from error
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip()
        raise PreflightError(f"{' '.join(command)[:400]} failed with status {result.returncode}: {said}")
    return result.stdout


def _listens(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        return probe.connect_ex(str(path)) == 0


def _packet_descriptors(pid: int) -> list[int]:
    """Descriptors of process `pid` that are AF_PACKET sockets of its network namespace."""
    table = Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]
    inodes = {line.split()[_AF_PACKET_INODE_COLUMN] for line in table}
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = entry.readlink().name
        except FileNotFoundError:
            continue
        if target.startswith("socket:[") and target[8:-1] in inodes:
            found.append(int(entry.name))
    return found
