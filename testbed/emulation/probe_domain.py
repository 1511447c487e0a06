"""One domain driven with traffic at its own border: every tenant's meter, every queue, and which queue packets choose.

Three drives, all tenants together. Through the switches, client to server: an overload that empties every meter's full
bucket, then one that shows its rate; classes must count exactly what the meter let through.
Through the switches, server to client: a few frames each, counted in their classes. And straight into each egress port,
where no meter polices: every class kept backlogged, and its bytes timed. Frames of that last drive have an address that
no flow knows, so the next switch drops them. What is right is decided in `testbed.emulation.probe_checks`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from controller import traffic_control
from controller.counters import ClassCounters, MeterCounters
from controller.plan import UNCLASSIFIED_MINOR
from controller.program import DomainProgram, Meter, Queue, Rule
from testbed.emulation import namespace, probe_checks
from testbed.emulation.network import TandemNetwork
from testbed.emulation.probe_checks import Passed, ProbeResult, judge
from testbed.emulation.probe_traffic import (
    LARGEST_FRAME_BYTES,
    SMALLEST_FRAME_BYTES,
    Injector,
    Pacer,
    Sent,
    Stream,
    flood,
    frame,
)
from testbed.errors import ReservationError
from testbed.scenario.model import Datapath

_STRANGER = "10.255.255.254"
_RATE_DRIVE_S = 0.5
_QUEUE_DRIVE_S = 0.3
_EMPTYING_S = 0.4
_FRAMES_OF_A_BUCKET = 64
_FRAMES_OF_A_RATE = 300
_UNMETERED_FRAMES = 50
_REVERSE_FRAMES = 20
_BUSY_PORT_PER_S = 40_000
_OVERLOAD = 1.1
_LOOK_EVERY_S = 0.005
_QUIET_LOOKS = 3
_SETTLED_WITHIN_S = 10.0

Classes = Mapping[str, Mapping[int, ClassCounters]]


class DomainProbe:
    """Probes one domain of an open network in which its program is installed.

    Args:
        network: The network; the calling thread is inside its fabric.
        index: Position of the domain, from 0.
        program: What its controller installed. Its meters are full: nothing has crossed them for burst / rate.
        stretch: Factor on the length of the timed drives.
    """

    def __init__(self, network: TandemNetwork, index: int, program: DomainProgram, *, stretch: float = 1.0) -> None:
        self._network = network
        self._position = index + 1
        self._program = program
        self._stretch = stretch
        self._ports = [port for hop in program.hops for port in hop.queued_ports]
        self._entry = network.layout.border(index).upstream
        self._results: list[ProbeResult] = []

    def run(self) -> tuple[ProbeResult, ...]:
        """Drive everything once.

        Raises:
            ReservationError: Traffic of the probe does not come to rest, so nothing can be counted.
        """
        if self._program.rules:
            self._drive_forward()
            self._drive_reverse()
            self._drive_ports()
        return tuple(self._results)

    # Client to server, through the meters.

    def _drive_forward(self) -> None:
        """Empty every full bucket, then keep it empty: what passes is first the bucket, and then the rate alone."""
        metered = [(rule, rule.meter) for rule in self._program.rules if rule.meter is not None]
        start, met_start = self._settled(), self._met()
        with Injector(self._entry, bypass=True) as entry:
            emptied, met_emptied = self._overload(entry, _EMPTYING_S, unmetered=0)
            timed, met_timed = self._overload(entry, self._duration_s, unmetered=_UNMETERED_FRAMES)
        end = self._settled()
        for rule, meter in metered:
            number, bits = rule.number, 8 * _meter_frame_bytes(meter)
            bucket = Passed(bits * _let_through(met_start, met_emptied, number), emptied[number].elapsed_s)
            # From the last packet of one overload to the last of the next one: the bucket is empty at both ends.
            rate = Passed(
                bits * _let_through(met_emptied, met_timed, number), timed[number].last_s - emptied[number].last_s
            )
            self._results.append(
                probe_checks.meter_burst(self._program.domain, rule.tenant, meter, passed=bucket, frame_bits=bits)
            )
            self._results.append(
                probe_checks.meter_rate(self._program.domain, rule.tenant, meter, passed=rate, frame_bits=bits)
            )
            arrived = met_timed[number].in_packets - met_start[number].in_packets
            sent = emptied[number].packets + timed[number].packets
            self._exactly(rule.tenant, "frames that reached the meter", arrived, sent)
        entered = {number: sent.packets for number, sent in timed.items()}
        entered |= {rule.number: _let_through(met_start, met_timed, rule.number) for rule, _ in metered}
        self._check_classes(start, end, entered, [_ports_to_server(self._program, r) for r in self._program.rules])

    @property
    def _duration_s(self) -> float:
        return _RATE_DRIVE_S * self._stretch

    def _overload(
        self, entry: Injector, duration_s: float, *, unmetered: int
    ) -> tuple[dict[int, Sent], Mapping[int, MeterCounters]]:
        """Offer every meter enough to empty its bucket within the emptying time; counters once all have arrived."""
        streams = []
        for rule in self._program.rules:
            if rule.meter is None:
                size, per_s = SMALLEST_FRAME_BYTES, unmetered / duration_s
            else:
                size = _meter_frame_bytes(rule.meter)
                rate, bucket = rule.meter.rate_kbps * 1000, rule.meter.burst_kbit * 1000
                per_s = (1.5 * rate + 1.3 * bucket / _EMPTYING_S) / (8 * size)
            streams.append(Stream(entry, frame(rule.number, rule.client, rule.server, size), per_s))
        pacer = Pacer(streams)
        pacer.run(time.monotonic() + duration_s)
        sent = {rule.number: part for rule, part in zip(self._program.rules, pacer.sent(), strict=True)}
        return sent, self._met_when_still()

    def _met_when_still(self) -> Mapping[int, MeterCounters]:
        """Meter counters once no frame is on its way to a meter any more."""
        previous: Mapping[int, MeterCounters] | None = None
        while (found := self._met()) != previous:
            previous = found
        return found

    # Server to client.

    def _drive_reverse(self) -> None:
        before = self._settled()
        sent: dict[int, int] = {}
        for rule in self._program.rules:
            path = self._network.layout.path(rule.number)
            ends_here = path.domains == self._position
            border = self._network.layout.border(self._position, path.server.host if ends_here else None)
            with ExitStack() as stack:
                stack.enter_context(namespace.entered(self._network.namespace_of(border)))
                far = stack.enter_context(Injector(border.interface, bypass=True))
                data = frame(rule.number, rule.server, rule.client, SMALLEST_FRAME_BYTES)
                sent[rule.number] = flood(far, data, _REVERSE_FRAMES).packets
        after = self._settled()
        self._check_classes(before, after, sent, [_ports_to_client(self._program, r) for r in self._program.rules])

    # Straight into the egress ports.

    def _drive_ports(self) -> None:
        """Keep every class of every port backlogged and time its bytes: busy ports alone, the others together."""
        before = self._settled()
        per_port_s = sum(_OVERLOAD * rate / (8 * _queue_frame_bytes(rate)) for rate in self._offered_bps().values())
        together = max(1, int(_BUSY_PORT_PER_S / per_port_s))
        for start in range(0, len(self._ports), together):
            self._drive_some_ports(self._ports[start : start + together])
        after = self._settled()
        for port in self._ports:
            found = _arrived(before, after, port, UNCLASSIFIED_MINOR)
            self._exactly("(all)", f"own packets in the default class at {port}", found, 0)

    def _drive_some_ports(self, ports: Sequence[str]) -> None:
        offered = self._offered_bps()
        with ExitStack() as stack:
            streams = []
            for port in ports:
                shared = stack.enter_context(Injector(port, bypass=False))
                for rule in self._program.rules:
                    injector = shared
                    if self._network.datapath is Datapath.KERNEL:
                        chosen = 0x1_0000 | rule.queue.minor
                        injector = stack.enter_context(Injector(port, bypass=False, priority=chosen))
                    rate = offered[rule.number]
                    size = _queue_frame_bytes(rate)
                    ends = (_STRANGER, rule.client) if self._leads_to_client(port) else (rule.client, _STRANGER)
                    per_s = _OVERLOAD * rate / (8 * size)
                    head = int(0.02 * per_s + rule.queue.burst_bytes / size) + 2
                    streams.append(Stream(injector, frame(rule.number, *ends, size), per_s, head))
            pacer = Pacer(streams)
            now = time.monotonic()
            pacer.run(now + 0.03)
            first, first_s = traffic_control.counters(ports), time.monotonic()
            pacer.run(now + 0.03 + _QUEUE_DRIVE_S * self._stretch)
            last, last_s = traffic_control.counters(ports), time.monotonic()
        for port in ports:
            self._check_rates(port, first, last, last_s - first_s)

    def _check_rates(self, port: str, first: Classes, last: Classes, elapsed_s: float) -> None:
        offered = self._offered_bps()
        left_over: dict[str, Queue] = {}
        left_over_bits, largest = 0, 0
        for rule in self._program.rules:
            queue = rule.queue
            size = _queue_frame_bytes(offered[rule.number])
            sent_bits = 8 * (last[port][queue.minor].sent_bytes - first[port][queue.minor].sent_bytes)
            if _is_reserved(queue):
                result = probe_checks.queue_rate(
                    self._program.domain,
                    rule.tenant,
                    port,
                    queue,
                    sent_bits=sent_bits,
                    elapsed_s=elapsed_s,
                    frame_bits=8 * size,
                )
                self._results.append(result)
            else:
                left_over[rule.tenant] = queue
                left_over_bits += sent_bits
                largest = max(largest, size)
        if left_over:
            result = probe_checks.left_over_rate(
                self._program.domain,
                left_over,
                port,
                link_rate_bps=self._program.link_rate_bps,
                reserved_bps=self._reserved_bps(),
                sent_bits=left_over_bits,
                elapsed_s=elapsed_s,
                frame_bits=8 * largest,
            )
            self._results.append(result)

    def _offered_bps(self) -> dict[int, float]:
        """What keeps each class busy: its own rate, or for best effort an even share of what is left, and more."""
        rest = [rule for rule in self._program.rules if not _is_reserved(rule.queue)]
        left = self._program.link_rate_bps - self._reserved_bps()
        return {
            rule.number: float(rule.queue.rate_bps)
            if _is_reserved(rule.queue)
            else max(rule.queue.rate_bps, min(rule.queue.ceil_bps, 1.3 * left / len(rest)))
            for rule in self._program.rules
        }

    def _reserved_bps(self) -> int:
        return sum(rule.queue.rate_bps for rule in self._program.rules if _is_reserved(rule.queue))

    def _leads_to_client(self, port: str) -> bool:
        return any(port == hop.towards_client or port in dict(hop.client_ports).values() for hop in self._program.hops)

    # Counters.

    def _check_classes(
        self, before: Classes, after: Classes, entered: Mapping[int, int], routes: Sequence[tuple[str, str]]
    ) -> None:
        """Every packet in its tenant's class on its route, and nowhere else."""
        for rule, route in zip(self._program.rules, routes, strict=True):
            minor = rule.queue.minor
            sent_on = after[route[0]][minor].sent_packets - before[route[0]][minor].sent_packets
            expected = {route[0]: entered[rule.number], route[1]: sent_on}
            for port in self._ports:
                found = _arrived(before, after, port, minor)
                self._exactly(rule.tenant, f"packets in its class at {port}", found, expected.get(port, 0))
        for port in self._ports:
            found = _arrived(before, after, port, UNCLASSIFIED_MINOR)
            self._exactly("(all)", f"packets in the default class at {port}", found, 0)

    def _settled(self) -> Classes:
        """Counters once nothing is under way: queues empty and nothing moving over several looks."""
        deadline = time.monotonic() + _SETTLED_WITHIN_S
        previous, quiet = None, 0
        while quiet < _QUIET_LOOKS:
            if time.monotonic() > deadline:
                raise ReservationError(
                    f"{self._program.domain}: queues still move {_SETTLED_WITHIN_S:g} s after the probe's last packet; "
                    "stop whatever else sends into this network"
                )
            time.sleep(_LOOK_EVERY_S)
            found = (traffic_control.counters(self._ports), self._met())
            busy = any(c.backlog_packets for classes in found[0].values() for c in classes.values())
            quiet = quiet + 1 if found == previous and not busy else 0
            previous = found
        return found[0]

    def _met(self) -> dict[int, MeterCounters]:
        """Counters of the ingress hop's meters, by rule number."""
        numbers = {rule.meter.meter_id: rule.number for rule in self._program.rules if rule.meter is not None}
        found = dict.fromkeys(numbers.values(), MeterCounters(0, 0, 0, 0))
        for hop in self._program.hops:
            if hop.ingress:
                text = self._network.ovs.ofctl("meter-stats", hop.bridge)
                for entry in re.split(r"\bmeter:", text)[1:]:
                    meter_id = int(entry.split()[0])
                    if meter_id in numbers:
                        found[numbers[meter_id]] = _meter_counters(entry)
        return found

    def _exactly(self, tenant: str, what: str, found: int, expected: int) -> None:
        self._results.append(judge(self._program.domain, tenant, what, found=found, expected=expected, tolerance=0))


def _meter_counters(entry: str) -> MeterCounters:
    packets, size = (int(re.findall(rf"{name}_in_count:(\d+)", entry)[0]) for name in ("packet", "byte"))
    bands = re.findall(r"\b\d+: packet_count:(\d+) byte_count:(\d+)", entry)
    return MeterCounters(packets, size, sum(int(band[0]) for band in bands), sum(int(band[1]) for band in bands))


def _let_through(before: Mapping[int, MeterCounters], after: Mapping[int, MeterCounters], number: int) -> int:
    """Packets that passed the meter of a rule between two readings."""
    first, last = before[number], after[number]
    return (last.in_packets - last.dropped_packets) - (first.in_packets - first.dropped_packets)


def _arrived(before: Classes, after: Classes, port: str, minor: int) -> int:
    """Packets that came to a class between two readings, whatever became of them."""
    first, last = before[port][minor], after[port][minor]
    return sum(
        getattr(last, name) - getattr(first, name) for name in ("sent_packets", "dropped_packets", "backlog_packets")
    )


def _is_reserved(queue: Queue) -> bool:
    return queue.rate_bps == queue.ceil_bps


def _frame_bytes(bits: float) -> int:
    """The frame size nearest to `bits` that a probe can send."""
    return max(SMALLEST_FRAME_BYTES, min(LARGEST_FRAME_BYTES, int(bits / 8)))


def _meter_frame_bytes(meter: Meter) -> int:
    """Small enough to resolve the bucket, large enough that few frames fill it."""
    return _frame_bytes(meter.burst_kbit * 1000 / _FRAMES_OF_A_BUCKET)


def _queue_frame_bytes(rate_bps: float) -> int:
    return _frame_bytes(rate_bps * _QUEUE_DRIVE_S / _FRAMES_OF_A_RATE)


def _ports_to_server(program: DomainProgram, rule: Rule) -> tuple[str, str]:
    """The egress ports a packet towards the server leaves through, ingress hop first."""
    ports = [dict(hop.server_ports).get(rule.server, hop.towards_server) for hop in program.hops]
    return _pair(ports, program, rule)


def _ports_to_client(program: DomainProgram, rule: Rule) -> tuple[str, str]:
    """The egress ports a packet towards the client leaves through, egress hop first."""
    ports = [dict(hop.client_ports).get(rule.client, hop.towards_client) for hop in reversed(program.hops)]
    return _pair(ports, program, rule)


def _pair(ports: Sequence[str | None], program: DomainProgram, rule: Rule) -> tuple[str, str]:
    first, second = ports
    if first is None or second is None:
        raise ReservationError(f"{program.domain}, {rule.tenant}: no way through the domain's two switches in {ports}")
    return first, second
