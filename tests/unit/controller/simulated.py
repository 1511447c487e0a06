"""A switch in memory that speaks OpenFlow 1.3 bytes, for tests without a network.

It keeps flows and meters as the bytes it was sent, answers queries from them in several parts, and refuses what a test
tells it to. It forwards nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from os_ken.ofproto import ofproto_protocol

from controller.ryu_api import ofproto_v1_3 as ofp
from controller.ryu_api import ofproto_v1_3_parser as parser

_HEADER = struct.Struct("!BBHI")


class SimulatedSwitch(ofproto_protocol.ProtocolDesc):  # type: ignore[misc]
    """Stands in for the framework's connection of one switch, which gives nobody transaction ids.

    Attributes:
        id: Datapath id.
        deliver: Where answers and errors go, as (event name, message).
        sent: Every message received, parsed, in order.
        refuse: Says for a message received whether to answer it with an error (type, code).
        silent: Whether to answer nothing at all.
    """

    def __init__(self, dpid: int, ports: tuple[str, ...]) -> None:
        super().__init__(ofp.OFP_VERSION)
        self.id = dpid
        self.ports = ports
        self.flows: dict[bytes, Any] = {}
        self.meters: dict[int, Any] = {}
        self.sent: list[Any] = []
        self.deliver: Callable[[str, Any], None] = lambda _name, _message: None
        self.refuse: Callable[[Any], tuple[int, int] | None] = lambda _message: None
        self.silent = False
        self.closed = False

    def send(self, data: bytes) -> bool:
        if self.closed:
            return False
        while data:
            _, kind, length, xid = _HEADER.unpack_from(data)
            self._receive(kind, xid, data[:length])
            data = data[length:]
        return True

    def close(self) -> None:
        self.closed = True

    def modifications(self) -> list[Any]:
        """Flow and meter modifications received, in order."""
        return [message for message in self.sent if message[0] in {ofp.OFPT_FLOW_MOD, ofp.OFPT_METER_MOD}]

    def _receive(self, kind: int, xid: int, data: bytes) -> None:
        self.sent.append((kind, data))
        if self.silent:
            return
        refusal = self.refuse((kind, data))
        if refusal is not None:
            message = SimpleNamespace(datapath=self, xid=xid, type=refusal[0], code=refusal[1])
            self.deliver("error", message)
        elif kind == ofp.OFPT_BARRIER_REQUEST:
            self.deliver("answer", SimpleNamespace(datapath=self, xid=xid))
        elif kind == ofp.OFPT_FLOW_MOD:
            self._flow(data)
        elif kind == ofp.OFPT_METER_MOD:
            self._meter(data)
        elif kind == ofp.OFPT_MULTIPART_REQUEST:
            self._multipart(xid, struct.unpack_from("!H", data, 8)[0])

    def _flow(self, data: bytes) -> None:
        cookie, _, table, command = struct.unpack_from("!QQBB", data, 8)
        priority = struct.unpack_from("!H", data, 30)[0]
        match = parser.OFPMatch.parser(data, 48)
        key = struct.pack("!BH", table, priority) + data[48 : 48 + match.length]
        if command == ofp.OFPFC_DELETE_STRICT:
            self.flows.pop(key, None)
            return
        offset, instructions = 48 + -(-match.length // 8) * 8, []
        while offset < len(data):
            instructions.append(parser.OFPInstruction.parser(data, offset))
            offset += instructions[-1].len
        self.flows[key] = parser.OFPFlowStats(table, 0, 0, priority, 0, 0, 0, cookie, 0, 0, match, instructions)

    def _meter(self, data: bytes) -> None:
        command, flags, meter_id = struct.unpack_from("!HHI", data, 8)
        if command == ofp.OFPMC_DELETE:
            self.meters.pop(meter_id, None)
            return
        band = parser.OFPMeterBandHeader.parser(data, 16)
        self.meters[meter_id] = parser.OFPMeterConfigStats(flags, meter_id, [band])

    def _multipart(self, xid: int, kind: int) -> None:
        bodies: dict[int, list[Any]] = {
            ofp.OFPMP_FLOW: list(self.flows.values()),
            ofp.OFPMP_METER_CONFIG: list(self.meters.values()),
            ofp.OFPMP_METER: [self._counters(meter_id) for meter_id in self.meters],
            ofp.OFPMP_PORT_DESC: [
                SimpleNamespace(port_no=number, name=name.encode()) for number, name in enumerate(self.ports, 1)
            ],
        }
        parts = [bodies[kind][start : start + 2] for start in range(0, len(bodies[kind]), 2)] or [[]]
        for index, body in enumerate(parts):
            flags = ofp.OFPMPF_REPLY_MORE if index < len(parts) - 1 else 0
            self.deliver("answer", SimpleNamespace(datapath=self, xid=xid, body=body, flags=flags))

    def _counters(self, meter_id: int) -> Any:
        bands = [SimpleNamespace(packet_band_count=2, byte_band_count=2000)]
        return SimpleNamespace(meter_id=meter_id, packet_in_count=5, byte_in_count=5000, band_stats=bands)
