"""One switch over OpenFlow 1.3: its flows and meters as plain objects, and messages in batches that end in a barrier.

A batch is one write to the socket; the barrier's answer says that the switch has handled all of it, and every error it
sent in between belongs to a message of that batch and fails the call. Requests and answers are matched by transaction
id, counted here: the framework's threads count its own without a lock, so what it gives may not be what it wrote into
the message. Which objects a switch should hold is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from controller.counters import MeterCounters
from controller.errors import SwitchError
from controller.objects import Change, FlowKey, FlowValue, Key, MeterKey, MeterValue, Value
from controller.ryu_api import hub
from controller.ryu_api import ofproto_v1_3 as ofp
from controller.ryu_api import ofproto_v1_3_parser as parser

ANSWER_TIMEOUT_S = 20.0
_FLUSH_BYTES = 64 * 1024
_METER_FLAGS = {"KBPS": ofp.OFPMF_KBPS, "PKTPS": ofp.OFPMF_PKTPS, "BURST": ofp.OFPMF_BURST, "STATS": ofp.OFPMF_STATS}
_BAND_TYPES = {ofp.OFPMBT_DROP: "drop", ofp.OFPMBT_DSCP_REMARK: "dscp_remark"}
_RESERVED_PORTS = {
    ofp.OFPP_IN_PORT: "IN_PORT",
    ofp.OFPP_TABLE: "TABLE",
    ofp.OFPP_NORMAL: "NORMAL",
    ofp.OFPP_FLOOD: "FLOOD",
    ofp.OFPP_ALL: "ALL",
    ofp.OFPP_CONTROLLER: "CONTROLLER",
    ofp.OFPP_LOCAL: "LOCAL",
}


class Switch:
    """A connected switch.

    Attributes:
        datapath: The framework's connection.
        dpid: Datapath id.
        stray_errors: Errors that belong to no batch under way.
    """

    def __init__(self, datapath: Any, bridge: str) -> None:
        self.datapath = datapath
        self.dpid: int = datapath.id
        self.bridge = bridge
        self.stray_errors: list[str] = []
        self._numbers = count(1)
        self._answers: Any = hub.Queue()
        self._awaited = 0
        self._batch: dict[int, str] = {}
        self._errors: list[str] = []

    def observe(self) -> dict[Key, Value]:
        """Flows of every table and meters, as the switch reports them.

        Raises:
            SwitchError: The switch does not answer.
        """
        names = self.port_names()
        observed: dict[Key, Value] = {}
        for meter in self._query(parser.OFPMeterConfigStatsRequest(self.datapath, 0, ofp.OFPM_ALL)):
            observed[MeterKey(self.bridge, meter.meter_id)] = _meter_value(meter)
        for flow in self._query(parser.OFPFlowStatsRequest(self.datapath)):
            match = tuple(sorted(_match_text(flow.match, names)))
            observed[FlowKey(self.bridge, flow.priority, match, flow.table_id)] = _flow_value(flow, names)
        return observed

    def port_names(self) -> dict[int, str]:
        """Interface name of each port number."""
        ports = self._query(parser.OFPPortDescStatsRequest(self.datapath, 0))
        return {port.port_no: port.name.rstrip(b"\0").decode() for port in ports}

    def meter_counters(self) -> dict[int, MeterCounters]:
        """Counters of each meter, by id."""
        found = {}
        for meter in self._query(parser.OFPMeterStatsRequest(self.datapath, 0, ofp.OFPM_ALL)):
            found[meter.meter_id] = MeterCounters(
                meter.packet_in_count,
                meter.byte_in_count,
                sum(band.packet_band_count for band in meter.band_stats),
                sum(band.byte_band_count for band in meter.band_stats),
            )
        return found

    def apply(self, changes: Iterable[Change]) -> int:
        """Make the switch hold what `changes` expect; returns the number of messages, without the barrier.

        A meter is there before the flow that names it and goes after it.

        Raises:
            SwitchError: The switch refused something or did not answer; one problem for each message refused.
        """
        ordered = sorted(changes, key=_order)
        if not ordered:
            return 0
        numbers = {name: number for number, name in self.port_names().items()}
        self._send_batch([message for change in ordered for message in self._messages(change, numbers)])
        return len(ordered)

    def close(self) -> None:
        """End the connection."""
        self.datapath.close()

    def receive(self, message: Any) -> None:
        """An answer from the switch (called by the framework's event thread)."""
        if message.xid == self._awaited:
            self._answers.put((message.xid, message))

    def receive_error(self, message: Any) -> None:
        """An OpenFlow error from the switch (called by the framework's event thread)."""
        text = f"{ofp.ofp_error_type_to_str(message.type)} {ofp.ofp_error_code_to_str(message.type, message.code)}"
        if message.xid in self._batch:
            self._errors.append(f"{self._batch[message.xid]}: the switch answered {text}")
        elif message.xid == self._awaited:
            self._answers.put((message.xid, SwitchError(f"switch {self.bridge}: a query was answered {text}")))
        else:
            self.stray_errors.append(f"switch {self.bridge}: {text}")

    def _send_batch(self, messages: Sequence[tuple[str, Any]]) -> None:
        self._errors = []
        self._batch = {}
        pending = bytearray()
        for subject, message in messages:
            self._batch[self._numbered(message)] = subject
        for _, message in messages:
            message.serialize()
            pending += message.buf
            if len(pending) >= _FLUSH_BYTES:
                self._send(pending)
                pending = bytearray()
        if pending:
            self._send(pending)
        for _ in self._replies(parser.OFPBarrierRequest(self.datapath)):
            pass
        self._batch = {}
        if self._errors:
            raise SwitchError(self._errors)

    def _numbered(self, message: Any) -> int:
        """Give a message its transaction id."""
        number = next(self._numbers)
        message.set_xid(number)
        return number

    def _send(self, data: bytes | bytearray) -> None:
        if not self.datapath.send(bytes(data)):
            raise SwitchError(f"switch {self.bridge}: the connection is closed; expected it to be up")

    def _query(self, request: Any) -> Iterator[Any]:
        for reply in self._replies(request):
            yield from reply.body

    def _replies(self, request: Any) -> Iterator[Any]:
        """Answers to `request`, all parts of it."""
        self._awaited = self._numbered(request)
        request.serialize()
        self._send(request.buf)
        while True:
            try:
                xid, reply = self._answers.get(timeout=ANSWER_TIMEOUT_S)
            except hub.QueueEmpty:
                raise SwitchError(
                    f"switch {self.bridge}: no answer to {type(request).__name__} within {ANSWER_TIMEOUT_S:g} s"
                ) from None
            if xid != self._awaited:
                continue
            if isinstance(reply, SwitchError):
                raise reply
            yield reply
            if not getattr(reply, "flags", 0) & ofp.OFPMPF_REPLY_MORE:
                return

    def _messages(self, change: Change, numbers: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
        key = change.key
        if isinstance(key, MeterKey):
            yield str(key), self._meter_message(key, change)
        elif isinstance(key, FlowKey):
            yield str(key), self._flow_message(key, change.expected, numbers)

    def _meter_message(self, key: MeterKey, change: Change) -> Any:
        if not isinstance(change.expected, MeterValue):
            return parser.OFPMeterMod(self.datapath, ofp.OFPMC_DELETE, 0, key.meter_id, [])
        command = ofp.OFPMC_ADD if change.found is None else ofp.OFPMC_MODIFY
        flags = sum(_METER_FLAGS[name] for name in change.expected.flags)
        bands = [parser.OFPMeterBandDrop(rate=rate, burst_size=burst) for _, rate, burst in change.expected.bands]
        return parser.OFPMeterMod(self.datapath, command, flags, key.meter_id, bands)

    def _flow_message(self, key: FlowKey, expected: Value | None, numbers: Mapping[str, int]) -> Any:
        common = {
            "table_id": key.table,
            "priority": key.priority,
            "match": self._match(key, numbers),
            "out_port": ofp.OFPP_ANY,
            "out_group": ofp.OFPG_ANY,
        }
        if not isinstance(expected, FlowValue):
            return parser.OFPFlowMod(self.datapath, command=ofp.OFPFC_DELETE_STRICT, **common)
        instructions, actions = [], []
        for verb, argument in expected.steps:
            match verb:
                case "meter":
                    instructions.append(parser.OFPInstructionMeter(argument, ofp.OFPIT_METER))
                case "set_queue":
                    actions.append(parser.OFPActionSetQueue(argument))
                case _:
                    actions.append(parser.OFPActionOutput(self._number(str(argument), numbers)))
        if actions:
            instructions.append(parser.OFPInstructionActions(ofp.OFPIT_APPLY_ACTIONS, actions))
        return parser.OFPFlowMod(
            self.datapath, command=ofp.OFPFC_ADD, cookie=expected.cookie, instructions=instructions, **common
        )

    def _match(self, key: FlowKey, numbers: Mapping[str, int]) -> Any:
        fields: dict[str, Any] = {}
        for name, text in key.match:
            if name == "in_port":
                fields[name] = self._number(text, numbers)
            elif "/" in text:
                value, mask = text.split("/")
                fields[name] = (_number_or_text(value), _number_or_text(mask))
            else:
                fields[name] = _number_or_text(text)
        return parser.OFPMatch(**fields)

    def _number(self, port: str, numbers: Mapping[str, int]) -> int:
        if port in numbers:
            return numbers[port]
        if port.isdecimal():
            return int(port)
        raise SwitchError(f"port {port}: not found on switch {self.bridge}; it has {', '.join(sorted(numbers))}")


def _order(change: Change) -> int:
    """Meters that appear or change, then flows that go, flows that come, then meters that go."""
    if isinstance(change.key, MeterKey):
        return 0 if change.expected is not None else 3
    return 1 if change.expected is None else 2


def _match_text(match: Any, names: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    for name, value in match.items():
        if name == "in_port":
            yield name, names.get(value, str(value))
        elif isinstance(value, tuple):
            yield name, "/".join(_text(part) for part in value)
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    return hex(value) if isinstance(value, int) else str(value)


def _number_or_text(text: str) -> int | str:
    return int(text, 16) if text.startswith("0x") else text


def _flow_value(flow: Any, names: Mapping[int, str]) -> FlowValue:
    steps: list[tuple[str, int | str]] = []
    for instruction in flow.instructions:
        if isinstance(instruction, parser.OFPInstructionMeter):
            steps.append(("meter", instruction.meter_id))
        elif isinstance(instruction, parser.OFPInstructionActions):
            steps.extend(_action_step(action, names) for action in instruction.actions)
        else:
            steps.append(("instruction", type(instruction).__name__))
    timeouts = (("idle_timeout", flow.idle_timeout), ("hard_timeout", flow.hard_timeout))
    steps.extend(timeout for timeout in timeouts if timeout[1])
    return FlowValue(flow.cookie, tuple(steps))


def _action_step(action: Any, names: Mapping[int, str]) -> tuple[str, int | str]:
    if isinstance(action, parser.OFPActionSetQueue):
        return ("set_queue", action.queue_id)
    if isinstance(action, parser.OFPActionOutput):
        number = action.port
        return ("output", names.get(number) or _RESERVED_PORTS.get(number) or str(number))
    return ("action", type(action).__name__)


def _meter_value(meter: Any) -> MeterValue:
    flags = tuple(sorted(name for name, bit in _METER_FLAGS.items() if meter.flags & bit))
    bands = tuple(
        (_BAND_TYPES.get(band.type, str(band.type)), int(band.rate), int(band.burst_size)) for band in meter.bands
    )
    return MeterValue(flags, bands)
