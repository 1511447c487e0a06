"""A network namespace with an Open vSwitch of its own and a controller process, for tests that change both by hand.

Bridges are `d0i` and `d0e`, each with a port towards clients (`-up`) and one towards servers (`-dn`). The far end of
port P is the interface `x-P` in the same namespace: frames are injected and received there.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

from controller.client import ControllerClient
from controller.program import DomainProgram, Hop, Meter, Queue, Rule
from testbed.emulation import processes

BRIDGES = {"d0i": 0x11, "d0e": 0x12}
SERVER = "10.2.0.1"
PAYLOAD_BYTES = 958
FRAME_BYTES = PAYLOAD_BYTES + 42
DEADLINE_S = 30.0
_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
_CLONE_NEWNET = 0x40000000
_SO_RCVBUFFORCE = 33


def wait_for(condition: Callable[[], bool], what: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Poll until `condition` holds; what was waited for is the failure's message."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {deadline_s:g} s in vain for: {what}")
        time.sleep(0.02)


def wait_for_end(pid: int, who: str) -> None:
    """Wait until a process has ended; when whoever has to reap it gets to that is nobody's business here."""
    started = processes.start_ticks(pid)
    wait_for(lambda: started is None or not processes.is_alive(pid, started), f"the end of {who}")


@dataclass
class Lab:
    """The namespace and what runs in it."""

    namespace: str
    directory: Path
    _daemons: list[Path] = field(default_factory=list)

    def run(self, *command: str) -> str:
        """Output of a command inside the namespace; it must succeed."""
        environment = {**os.environ, "OVS_RUNDIR": str(self.directory)}
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def vsctl(self, *arguments: str) -> str:
        return self.run("ovs-vsctl", f"--db=unix:{self.directory}/db.sock", *arguments)

    def ofctl(self, *arguments: str) -> str:
        return self.run("ovs-ofctl", "-O", "OpenFlow13", *arguments)

    def tc(self, command: str) -> str:
        return self.run("tc", *command.split())

    def start(self) -> None:
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ovsdb-tool", "create", str(self.directory / "conf.db"), _SCHEMA)
        self._daemon("ovsdb-server", str(self.directory / "conf.db"), f"--remote=punix:{self.directory}/db.sock")
        self.vsctl("--no-wait", "init")
        self._daemon("ovs-vswitchd", f"unix:{self.directory}/db.sock")
        for bridge, dpid in BRIDGES.items():
            self.add_bridge(bridge, dpid)
            for port in (f"{bridge}-up", f"{bridge}-dn"):
                self.run("ip", "link", "add", port, "type", "veth", "peer", "name", f"x-{port}")
                for end in (port, f"x-{port}"):
                    self.run("sysctl", "-qw", f"net.ipv6.conf.{end}.disable_ipv6=1")
                    self.run("ip", "link", "set", end, "up")
                self.vsctl("add-port", bridge, port)

    def add_bridge(self, bridge: str, dpid: int) -> None:
        settings = ("datapath_type=netdev", "fail_mode=secure", "protocols=OpenFlow13")
        identity = (f"other_config:datapath-id={dpid:016x}", "other_config:disable-in-band=true")
        self.vsctl("add-br", bridge, "--", "set", "bridge", bridge, *settings, *identity)

    def _daemon(self, name: str, *arguments: str) -> None:
        pid_file = self.directory / f"{name}.pid"
        log, control = f"--log-file={self.directory}/{name}.log", f"--unixctl={self.directory}/{name}.ctl"
        self.run(name, *arguments, f"--pidfile={pid_file}", log, control, "-vconsole:off", "--detach")
        self._daemons.append(pid_file)

    def stop(self) -> None:
        for pid_file in reversed(self._daemons):
            pid = int(pid_file.read_text())
            os.kill(pid, 15)
            wait_for_end(pid, f"process {pid}")
        subprocess.run(["ip", "netns", "del", self.namespace], check=True)

    def restart_switch(self) -> None:
        """Start ovs-vswitchd again after somebody killed it; its database remembers bridges and ports, and no flow."""
        self._daemons.remove(self.directory / "ovs-vswitchd.pid")
        (self.directory / "ovs-vswitchd.pid").unlink()
        self._daemon("ovs-vswitchd", f"unix:{self.directory}/db.sock")

    def clear(self) -> None:
        """Leave nothing of a test on switches and ports."""
        for bridge in BRIDGES:
            self.vsctl("del-controller", bridge)
            self.ofctl("del-flows", bridge)
            self.ofctl("del-meters", bridge)
            for port in (f"{bridge}-up", f"{bridge}-dn"):
                with contextlib.suppress(AssertionError):
                    self.tc(f"qdisc del dev {port} root")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Be in the namespace for as long as sockets are made; they stay in it."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{self.namespace}").open() as there:
            assert libc.setns(there.fileno(), _CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert libc.setns(home.fileno(), _CLONE_NEWNET) == 0

    def send(self, port: str, source: str, destination: str, count: int, pause_s: float = 0.0) -> None:
        """Inject UDP frames of `FRAME_BYTES` into a switch's port."""
        self.send_mixed(port, [(source, destination)] * count, pause_s)

    def send_mixed(self, port: str, packets: Sequence[tuple[str, str]], pause_s: float = 0.0) -> None:
        """Inject one frame for each (source, destination), once the datapath's flow cache follows the flow tables.

        A barrier answers for the tables only; packets go on hitting cached decisions until they are revalidated.
        """
        self.run("ovs-appctl", "-t", str(self.directory / "ovs-vswitchd.ctl"), "revalidator/wait")
        with self.inside():
            link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        frames = [frame(*packet) for packet in packets]
        with link:
            link.bind((f"x-{port}", 0))
            for data in frames:
                link.send(data)
                time.sleep(pause_s)

    @contextlib.contextmanager
    def listening(self, port: str) -> Iterator[socket.socket]:
        """A socket that receives what leaves a switch's port, with room for a whole test."""
        with self.inside():
            link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        with link:
            link.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 * 1024 * 1024)
            link.bind((f"x-{port}", 0x0800))
            link.setblocking(False)
            yield link


@dataclass
class Controlled:
    """A controller process and its client."""

    lab: Lab
    client: ControllerClient
    process: subprocess.Popen[str]
    ready: dict[str, object]
    expected_packet_ins: bool = False

    def connect(self, *bridges: str) -> None:
        host, port = self.ready["listen"]  # type: ignore[misc]
        for bridge in bridges:
            self.lab.vsctl("set-controller", bridge, f"tcp:{host}:{port}")

    def connected(self, bridge: str) -> bool:
        return bool(self.client.health()["switches"][bridge]["connected"])

    def queue(self, tenant: str, port: str) -> dict[str, int]:
        return dict(self.client.counters()["tenants"][tenant]["queues"][port])

    def meter(self, tenant: str, bridge: str) -> dict[str, int]:
        return dict(self.client.counters()["tenants"][tenant]["meters"][bridge])

    def unclassified(self, port: str) -> dict[str, int]:
        return dict(self.client.counters()["unclassified"][port])


def folder(what: str) -> Path:
    """A new folder for a switch's files, named after this process as well, by which other tests know whose it is."""
    return Path(tempfile.mkdtemp(prefix=f"tlt-{what}-", suffix=f"-{os.getpid()}", dir="/run"))


@contextlib.contextmanager
def laboratory() -> Iterator[Lab]:
    """The namespace and its switches for as long as the context lasts."""
    lab = Lab(f"tlt-ctl{os.getpid()}", folder("ctl"))
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()
        shutil.rmtree(lab.directory)


@contextlib.contextmanager
def controller(lab: Lab, python: str = sys.executable, *, ended_by_the_test: bool = False) -> Iterator[Controlled]:
    """A controller of domain `d0`, with the bridge `d0i` told to connect to it.

    At the end it must have seen no error and no packet (unless the test said that it would), and ends when told to.
    """
    path = lab.directory / "northbound.sock"
    command = [python, "-m", "controller", "--domain", "d0", "--listen", "127.0.0.1:0", "--socket", str(path)]
    process = subprocess.Popen(
        ["ip", "netns", "exec", lab.namespace, *command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        with ControllerClient(path) as client:
            controlled = Controlled(lab, client, process, ready)
            controlled.connect("d0i")
            yield controlled
            if not ended_by_the_test:
                health = client.health()
                assert health["errors"] == []
                assert controlled.expected_packet_ins or not health["packet_ins"]
                client.shutdown()
        assert process.wait(DEADLINE_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        path.unlink(missing_ok=True)
        lab.clear()


def frame(source: str, destination: str) -> bytes:
    """An Ethernet frame with a UDP packet."""
    total = 28 + PAYLOAD_BYTES
    header = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0, 64, 17, 0)
    header += IPv4Address(source).packed + IPv4Address(destination).packed
    checksum = sum(struct.unpack("!10H", header))
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    header = header[:10] + struct.pack("!H", ~checksum & 0xFFFF) + header[12:]
    udp = struct.pack("!HHHH", 40000, 9000, 8 + PAYLOAD_BYTES, 0)
    return bytes.fromhex("0200000000020200000000010800") + header + udp + bytes(PAYLOAD_BYTES)


def address(number: int) -> str:
    """The client address of tenant `number`."""
    return f"10.1.{number >> 8}.{number & 255}"


def rule(number: int, rate_bps: int = 10_000_000, *, limit_packets: int = 100, meter: Meter | None = None) -> Rule:
    """A tenant with a reservation; its meter is out of the way unless given."""
    queue = Queue(0x10 + number, rate_bps, rate_bps, 5000, 3000, limit_packets)
    meter = meter or Meter(number, 900_000, 80_000)
    return Rule(f"tenant-{number}", number, address(number), SERVER, meter, queue)


def hop(bridge: str, *, ingress: bool = True) -> Hop:
    up, down = f"{bridge}-up", f"{bridge}-dn"
    return Hop(bridge, BRIDGES[bridge], ingress, up, down, (), (), (up, down))


def program(*rules: Rule, datapath: str = "userspace", bridges: tuple[str, ...] = ("d0i",)) -> DomainProgram:
    """A program of domain `d0`; only the first bridge is an ingress."""
    hops = tuple(hop(bridge, ingress=index == 0) for index, bridge in enumerate(bridges))
    return DomainProgram("d0", datapath, 1_000_000_000, hops, rules)


def with_rate(rule_: Rule, rate_bps: int) -> Rule:
    return replace(rule_, queue=replace(rule_.queue, rate_bps=rate_bps, ceil_bps=rate_bps))
