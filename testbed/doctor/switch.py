"""Probes of Open vSwitch, on either datapath: an instance of our own, a bridge, and traffic that must obey it.

A switch that accepts a meter or a queue has proved nothing; what leaves it does. Each probe has an instance and a
namespace of its own and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from testbed.doctor import sandbox
from testbed.doctor.host import ProbeError
from testbed.doctor.sandbox import Host
from testbed.emulation import links
from testbed.emulation.ovs import Bridge, OpenVSwitch, Port
from testbed.errors import PreflightError
from testbed.scenario.model import Datapath

_BRIDGE = "br0"
_FRAME_BYTES = 1000
_FRAMES = 60
_BUCKET_KBIT = 100
_METER_KBPS = 8
_QUEUE_BPS = 4_000_000
_QUEUE_BURST_FRAMES = 4
_QUEUE_MINOR = 0x11
_TCP_BYTES = 1_000_000
_TCP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Lab:
    """A bridge with a sender at port 1 (`p1`) and a receiver at port 2 (`p2`)."""

    datapath: Datapath
    ovs: OpenVSwitch
    sender: Host
    receiver: Host

    def forward(self, towards_receiver: str) -> None:
        """Install flows: `towards_receiver` on what the sender sends, everything back."""
        self.ovs.add_flows(_BRIDGE, [f"in_port=1,actions={towards_receiver}", "in_port=2,actions=output:1"])

    def send(self) -> list[int]:
        """Send the probe's frames at once and return the stamps of those that arrived."""
        return sandbox.send(self.sender, self.receiver, count=_FRAMES, size_bytes=_FRAME_BYTES)


@contextmanager
def opened(datapath: Datapath) -> Iterator[Lab]:
    """Start Open vSwitch with one bridge and connect two hosts to it; the bridge drops everything.

    Raises:
        PreflightError: It does not start.
        ProbeError: It makes no bridge, with the reason from its log.
    """
    with sandbox.opened() as box, sandbox.sender_and_receiver() as (sender, receiver):
        ovs = OpenVSwitch.start(box.supervisor, box.journal.directory / "ovs", datapath)
        try:
            ovs.add_bridges([Bridge(_BRIDGE, 1, (Port("p1", 1), Port("p2", 2)))])
        except PreflightError as error:
            raise ProbeError(_first_error(ovs) or str(error)) from error
        yield Lab(datapath, ovs, sender, receiver)


def forwarding(datapath: Datapath) -> str:
    """Whether a flow forwards frames, and only a flow."""
    with opened(datapath) as lab:
        uninvited = len(sandbox.send(lab.sender, lab.receiver, count=1, size_bytes=_FRAME_BYTES))
        lab.forward("output:2")
        arrived = len(lab.send())
    seen = f"a flow forwarded {arrived} of {_FRAMES} frames, no flow {uninvited} of 1"
    if arrived != _FRAMES or uninvited:
        raise ProbeError(seen)
    return seen


def meter(datapath: Datapath) -> str:
    """Whether a meter with the BURST flag lets through exactly its bucket when it is offered far more."""
    with opened(datapath) as lab:
        band = f"band=type=drop,rate={_METER_KBPS},burst_size={_BUCKET_KBIT}"
        lab.ovs.ofctl("add-meter", _BRIDGE, f"meter=1,kbps,burst,{band}")
        lab.forward("meter:1,output:2")
        passed = len(lab.send())
    frame_bits = 8 * _FRAME_BYTES
    expected = _BUCKET_KBIT * 1000 // frame_bits
    # While the burst is served the meter refills by less than one frame; some kernels add one second of rate.
    most = (_BUCKET_KBIT + 2 * _METER_KBPS) * 1000 // frame_bits
    seen = f"{passed} of {_FRAMES} frames passed a bucket of {expected}"
    if not expected <= passed <= most:
        raise ProbeError(seen)
    return seen


def queue(datapath: Datapath) -> str:
    """Whether an HTB class paces exactly the frames that were sent to it."""
    with opened(datapath) as lab:
        _add_htb("p2")
        if datapath is Datapath.KERNEL:
            lab.forward(f"set_queue:{_QUEUE_MINOR - 1},output:2")
        else:
            # The userspace datapath accepts set_queue and ignores it: the class is chosen by address.
            source = ["match", "ip", "src", f"{lab.sender.address}/32"]
            flow = ["flowid", f"1:{_QUEUE_MINOR:x}"]
            links.run(["tc", "filter", "add", "dev", "p2", "parent", "1:", "protocol", "ip", "u32", *source, *flow])
            lab.forward("output:2")
        stamps = lab.send()
        counted = _frames_of_class("p2", f"1:{_QUEUE_MINOR:x}")
    if len(stamps) != _FRAMES or counted != _FRAMES:
        raise ProbeError(f"{len(stamps)} of {_FRAMES} frames arrived, {counted} counted in their class")
    paced = stamps[_QUEUE_BURST_FRAMES:]
    rate_bps = (len(paced) - 1) * 8 * _FRAME_BYTES / ((paced[-1] - paced[0]) / 1e9)
    seen = f"{counted} frames left their class at {rate_bps / 1e6:.2f} Mbit/s, reserved {_QUEUE_BPS / 1e6:g}"
    if not 0.8 * _QUEUE_BPS <= rate_bps <= 1.15 * _QUEUE_BPS:
        raise ProbeError(seen)
    return seen


def tcp(datapath: Datapath) -> str:
    """Whether TCP, and not only ping, gets through the switch."""
    sent = bytes(range(256)) * (_TCP_BYTES // 256)
    with opened(datapath) as lab:
        lab.forward("output:2")
        with lab.receiver.socket(socket.SOCK_STREAM) as listener, lab.sender.socket(socket.SOCK_STREAM) as client:
            listener.bind((lab.receiver.address, 5001))
            listener.listen()
            client.settimeout(_TCP_TIMEOUT_S)
            listener.settimeout(_TCP_TIMEOUT_S)
            began_s = time.monotonic()
            try:
                client.connect((lab.receiver.address, 5001))
                with listener.accept()[0] as server:
                    server.settimeout(_TCP_TIMEOUT_S)
                    received = _transfer(client, server, sent)
            except TimeoutError as error:
                raise ProbeError(f"no {_TCP_BYTES // 1000} kB within {_TCP_TIMEOUT_S:g} s") from error
            took_s = time.monotonic() - began_s
    if hashlib.sha256(received).digest() != hashlib.sha256(sent).digest():
        raise ProbeError(f"{len(received)} bytes arrived, other than the {len(sent)} sent")
    return f"{len(received) // 1000} kB arrived intact in {took_s * 1e3:.0f} ms"


def _transfer(client: socket.socket, server: socket.socket, data: bytes) -> bytes:
    def give() -> None:
        try:
            client.sendall(data)
        except OSError:
            # The reader times out and says so.
            return
        client.shutdown(socket.SHUT_WR)

    giver = threading.Thread(target=give)
    giver.start()
    try:
        chunks = []
        while chunk := server.recv(65536):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        giver.join()


def _first_error(ovs: OpenVSwitch) -> str:
    """What the switch logged first as an error, without its stamp; empty if it logged none."""
    return next((line.split("|")[-1] for line in ovs.log_errors()), "")


def _add_htb(interface: str) -> None:
    burst = str(_QUEUE_BURST_FRAMES * _FRAME_BYTES)
    classes = {"1:1": "1gbit", f"1:{_QUEUE_MINOR:x}": f"{_QUEUE_BPS}bit"}
    links.run(["tc", "qdisc", "add", "dev", interface, "root", "handle", "1:", "htb", "default", "1"])
    for name, rate in classes.items():
        shape = ["htb", "rate", rate, "ceil", rate, "burst", burst, "cburst", burst, "quantum", "1514"]
        links.run(["tc", "class", "add", "dev", interface, "parent", "1:", "classid", name, *shape])


def _frames_of_class(interface: str, name: str) -> int:
    # iproute2's -j writes no JSON for classes.
    text = links.run(["tc", "-s", "class", "show", "dev", interface])
    found = re.search(rf"class htb {name} .*\n Sent \d+ bytes (\d+) pkt", text)
    return int(found[1]) if found else 0
