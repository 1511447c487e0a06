"""One domain driven with traffic at its own border: every tenant's meter, every queue, and which queue packets choose.

Three drives, all tenants together. Through the switches, client to server: floods that full meters cut to their bucket,
then an overload that shows their rate; classes must count exactly what the meter let through.
Through the switches, server to client: a few frames each, counted in their classes. And straight into each egress port,
where no meter polices: every class kept backlogged, and its bytes timed. Frames of that last drive have an address that
no flow knows, so the next switch drops them. What is right is decided in `testbed.emulation.probe_checks`.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from controller import traffic_control
from controller.counters import MeterCounters
from controller.plan import UNCLASSIFIED_MINOR, sharers
from controller.program import DomainProgram, Meter, Queue, Rule
from testbed.emulation import namespace, probe_checks
from testbed.emulation.network import TandemNetwork
from testbed.emulation.probe_bucket import BucketBounds, bucket_bounds
from testbed.emulation.probe_checks import ProbeResult, judge
from testbed.emulation.probe_effort import Effort, is_reserved, reserved_bps
from testbed.emulation.probe_readings import Classes, Rest, Stretch, flood_and_look, watch
from testbed.emulation.probe_traffic import SMALLEST_FRAME_BYTES, Injector, Pacer, Sent, Stream, flood, frame
from testbed.errors import ReservationError
from testbed.scenario.model import FULL_FRAME_BITS, Datapath

_STRANGER = "10.255.255.254"
_UNMETERED_FRAMES = 50
_REVERSE_FRAMES = 20
_LOOK_EVERY_S = 0.005
_QUIET_S = 0.015
_SETTLED_WITHIN_S = 10.0
_NOTHING_MET = MeterCounters(0, 0, 0, 0)


class DomainProbe:
    """Probes one domain of an open network in which its program is installed.

    Args:
        network: The network; the calling thread is inside its fabric.
        index: Position of the domain, from 0.
        program: What its controller installed.
        stretch: Factor on the length of the timed drives.
        untouched_since_s: Moment of CLOCK_MONOTONIC since which nothing has come to the meters; None means now.
    """

    def __init__(
        self,
        network: TandemNetwork,
        index: int,
        program: DomainProgram,
        *,
        stretch: float = 1.0,
        untouched_since_s: float | None = None,
    ) -> None:
        self._network = network
        self._number = index + 1
        self._program = program
        behind, slow_down = network.layout.behind(self._number), network.scenario.slow_down
        self._effort = Effort(program, behind, stretch, slow_down)
        self._ports = [port for hop in program.hops for port in hop.queued_ports]
        self._entry = network.layout.entry(self._number).upstream
        self._results: list[ProbeResult] = []
        since_s = time.monotonic() if untouched_since_s is None else untouched_since_s
        self._full_s = {rule.number: since_s + _refill_s(rule.meter) for rule in program.rules if rule.meter}
        """From when on each meter's bucket is full, if nothing more is sent through it."""

    def run(self) -> tuple[ProbeResult, ...]:
        """Drive everything once.

        Raises:
            ReservationError: Traffic of the probe does not come to rest, so nothing can be counted.
        """
        if self._program.rules:
            if self._network.datapath is Datapath.KERNEL:
                self._find_flows()
            self._drive_forward()
            self._drive_reverse()
            self._drive_ports()
        return tuple(self._results)

    def _find_flows(self) -> None:
        """One frame of every kind, and nothing that comes in numbers until all of them are through.

        A packet that finds no flow in the kernel's datapath waits for the switch's process to make one, in a socket's
        buffer: with it wait, or are lost, all that follow. The userspace datapath is that process. On a busy host the
        process may be away for longer than a network at rest is watched, so they are counted.
        """
        before, expected = traffic_control.counters(self._ports), Counter[str]()
        with Injector(self._entry, bypass=True) as entry:
            for rule in self._program.rules:
                flood(entry, frame(*_forward(rule), SMALLEST_FRAME_BYTES), 1)
                if rule.meter is not None:
                    back_s = 8 * SMALLEST_FRAME_BYTES / (1000 * rule.meter.rate_kbps)
                    self._full_s[rule.number] = max(self._full_s[rule.number], time.monotonic()) + back_s
                self._flood_back(rule, 1)
                expected.update((*_ports_to_server(self._program, rule), *_ports_to_client(self._program, rule)))
        for port in self._ports:
            with ExitStack() as stack:
                into = self._into(port, stack)
                for rule in self._program.rules:
                    data = frame(rule.number, *self._ends(port, rule), SMALLEST_FRAME_BYTES)
                    expected[port] += flood(into[rule.number], data, 1).packets
        minors = {rule.queue.minor for rule in self._program.rules} | {UNCLASSIFIED_MINOR}
        deadline = time.monotonic() + _SETTLED_WITHIN_S
        while time.monotonic() < deadline:
            after = traffic_control.counters(self._ports)
            missing = expected - Counter(
                {port: sum(_arrived(before, after, port, minor) for minor in minors) for port in expected}
            )
            if not missing:
                return
            time.sleep(_LOOK_EVERY_S)

    # Client to server, through the meters.

    def _drive_forward(self) -> None:
        metered = [(rule, rule.meter) for rule in self._program.rules if rule.meter is not None]
        start, met_start = self._settled(), self._met()
        with Injector(self._entry, bypass=True) as entry:
            self._flood_meters(entry, metered)
            met_flooded = self._met()
            sent = self._overload_meters(entry)
        end, met_end = self._settled(), self._met()
        for rule, _ in metered:
            arrived = met_end[rule.number].in_packets - met_flooded[rule.number].in_packets
            self._exactly(rule.tenant, "frames that reached the meter", arrived, sent[rule.number].packets)
        entered = {number: part.packets for number, part in sent.items()}
        entered |= {rule.number: _let_through(met_start, met_end, rule.number) for rule, _ in metered}
        self._check_classes(start, end, entered, [_ports_to_server(self._program, r) for r in self._program.rules])

    def _flood_meters(self, entry: Injector, metered: Sequence[tuple[Rule, Meter]]) -> None:
        """Offer every full meter, one after the other, more than its bucket at once, until enough is known of each."""
        known = {rule.number: BucketBounds() for rule, _ in metered}
        results: dict[int, ProbeResult] = {}
        for _ in range(self._effort.most_floods):
            for rule, meter in metered:
                time.sleep(max(0.0, self._full_s[rule.number] - time.monotonic()))
                bounds = known[rule.number].and_also(self._flood(entry, rule, meter))
                self._full_s[rule.number] = time.monotonic() + _refill_s(meter)
                size, count = self._effort.flood(meter)
                who, bits = (self._program.domain, rule.tenant, meter), 8 * size
                known[rule.number], results[rule.number] = (
                    bounds,
                    probe_checks.meter_burst(*who, bounds=bounds, frame_bits=bits, offered_bits=bits * count),
                )
            if any(len(tenants) > 1 for tenants in sharers(self._program.rules).values()):
                # A queue that drops some of it does not say whose, so it is to have room for all of it.
                self._settled()
            metered = [(rule, meter) for rule, meter in metered if results[rule.number].blunt]
            if not metered:
                break
        self._results += results.values()

    def _flood(self, entry: Injector, rule: Rule, meter: Meter) -> BucketBounds:
        """What one flood says of a meter's bucket."""
        size, count = self._effort.flood(meter)
        (bridge,) = (hop.bridge for hop in self._program.hops if hop.ingress)
        with self._network.ovs.asked_for_meters(bridge) as switch:
            looks = flood_and_look(
                lambda: switch.read(meter.meter_id).get(meter.meter_id, _NOTHING_MET),
                entry,
                frame(*_forward(rule), size),
                count,
                within_s=_SETTLED_WITHIN_S,
            )
        return bucket_bounds(looks, rate_bps=1000 * meter.rate_kbps, frame_bits=8 * size)

    def _overload_meters(self, entry: Injector) -> dict[int, Sent]:
        """Keep every meter empty and time what passes, as it comes to the classes behind; unmetered: a few frames."""
        rules, effort = self._program.rules, self._effort
        streams = []
        for rule in rules:
            size, per_s = SMALLEST_FRAME_BYTES, _UNMETERED_FRAMES / (effort.emptying_s + effort.rate_drive_s)
            bucket = tokens_per_s = 0.0
            if rule.meter is not None:
                size, per_s = effort.overload(rule.meter)
                bucket, tokens_per_s = (125 * kbit / size for kbit in (rule.meter.burst_kbit, rule.meter.rate_kbps))
            data = frame(*_forward(rule), size)
            streams.append(Stream(entry, data, per_s, bucket=bucket, tokens_per_s=tokens_per_s))
        ports = [_ports_to_server(self._program, rule)[0] for rule in rules]
        pacer = Pacer(streams)
        watched = watch(pacer, set(ports), effort.emptying_s, effort.rate_drive_s)
        for rule, port in zip(rules, ports, strict=True):
            if rule.meter is not None:
                bits, stretch = 8 * effort.overload(rule.meter)[0], watched[port]
                arrived = _arrived(stretch.first.classes, stretch.last.classes, port, rule.queue.minor)
                passed = stretch.passed(bits * arrived, rule.meter.burst_kbit / rule.meter.rate_kbps)
                who = (self._program.domain, rule.tenant, rule.meter)
                self._results.append(probe_checks.meter_rate(*who, passed=passed, frame_bits=bits))
        return {rule.number: sent for rule, sent in zip(rules, pacer.sent(), strict=True)}

    # Server to client.

    def _drive_reverse(self) -> None:
        before = self._settled()
        sent: dict[int, int] = {}
        for rule in self._program.rules:
            sent[rule.number] = self._flood_back(rule, _REVERSE_FRAMES)
        after = self._settled()
        self._check_classes(before, after, sent, [_ports_to_client(self._program, r) for r in self._program.rules])

    def _flood_back(self, rule: Rule, count: int) -> int:
        """How many frames went out towards a tenant's client, of so many."""
        path = self._network.layout.path_of(rule.tenant)
        border = self._network.layout.crossed(path)[path.way.index(self._number) + 1]
        with ExitStack() as stack:
            stack.enter_context(namespace.entered(self._network.namespace_of(border)))
            far = stack.enter_context(Injector(border.interface, bypass=True))
            return flood(far, frame(rule.number, rule.server, rule.client, SMALLEST_FRAME_BYTES), count).packets

    # Straight into the egress ports.

    def _drive_ports(self) -> None:
        """Keep every class of every port backlogged and time its bytes: busy ports alone, the others together."""
        before = after = self._settled()
        for ports in self._effort.ports_together(self._ports):
            self._drive_some_ports(ports)
            after = self._settled()
        for port in self._ports:
            found = _arrived(before, after, port, UNCLASSIFIED_MINOR)
            self._exactly("(all)", f"own packets in the default class at {port}", found, 0)

    def _drive_some_ports(self, ports: Sequence[str]) -> None:
        busy_bps, shared = self._effort.busy_bps(), sharers(self._program.rules)
        with ExitStack() as stack:
            streams = []
            for port in ports:
                into = self._into(port, stack)
                for rule in self._program.rules:
                    size, per_s = self._effort.busy(busy_bps[rule.number])
                    # Spends the burst of a class that was idle, and leaves it with a backlog.
                    bucket = rule.queue.burst_bytes / len(shared[rule.queue]) / size
                    head = int(self._effort.ahead_s * per_s + bucket) + 2
                    data = frame(rule.number, *self._ends(port, rule), size)
                    # Nothing is told from how much of the rest of the link somebody without a rate of its own takes.
                    tokens_per_s = busy_bps[rule.number] / (8 * size) if is_reserved(rule.queue) else 0.0
                    streams.append(Stream(into[rule.number], data, per_s, head, bucket, tokens_per_s))
            watched = watch(Pacer(streams), ports, self._effort.lead_s, self._effort.queue_drive_s)
        for port, stretch in watched.items():
            self._check_rates(port, stretch)

    def _into(self, port: str, stack: ExitStack) -> dict[int, Injector]:
        """What sends into the class of each rule at a port; on the kernel's datapath the sender chooses it."""
        rules = self._program.rules
        if self._network.datapath is not Datapath.KERNEL:
            return dict.fromkeys((rule.number for rule in rules), stack.enter_context(Injector(port, bypass=False)))
        return {
            rule.number: stack.enter_context(Injector(port, bypass=False, priority=0x1_0000 | rule.queue.minor))
            for rule in rules
        }

    def _ends(self, port: str, rule: Rule) -> tuple[str, str]:
        """Addresses by which a port's filters know a tenant and the switch behind the port knows nobody."""
        return (_STRANGER, rule.client) if self._leads_to_client(port) else (rule.client, _STRANGER)

    def _check_rates(self, port: str, stretch: Stretch) -> None:
        busy_bps = self._effort.busy_bps()
        left_over: dict[str, Queue] = {}
        left_over_bits, largest_bits = 0, 0
        shared = sharers(self._program.rules)
        of_class = {rule.queue: rule for rule in self._program.rules}
        for queue, tenants in shared.items():
            # Tenants of a class bring the same.
            frame_bits = 8 * self._effort.busy(busy_bps[of_class[queue].number])[0]
            before, after = (reading.classes[port][queue.minor].sent_bytes for reading in (stretch.first, stretch.last))
            sent_bits = 8 * (after - before)
            if is_reserved(queue):
                passed = stretch.passed(sent_bits, 8 * queue.burst_bytes / queue.rate_bps)
                who = (self._program.domain, ", ".join(tenants), port, queue)
                self._results.append(probe_checks.queue_rate(*who, passed=passed, frame_bits=frame_bits))
            else:
                left_over[", ".join(tenants)] = queue
                left_over_bits += sent_bits
                largest_bits = max(largest_bits, frame_bits)
        if left_over:
            result = probe_checks.left_over_rate(
                self._program.domain,
                left_over,
                port,
                link_rate_bps=self._program.link_rate_bps,
                reserved_bps=reserved_bps(self._program.rules),
                passed=stretch.passed(left_over_bits),
                frame_bits=largest_bits,
            )
            self._results.append(result)

    def _leads_to_client(self, port: str) -> bool:
        return any(port == hop.towards_client or port in dict(hop.client_ports).values() for hop in self._program.hops)

    # Counters.

    def _check_classes(
        self, before: Classes, after: Classes, entered: Mapping[int, int], routes: Sequence[tuple[str, str]]
    ) -> None:
        """Every packet in its tenant's class on its route, and nowhere else."""
        expected: dict[Queue, Counter[str]] = defaultdict(Counter)
        shared = sharers(self._program.rules)
        for rule, route in zip(self._program.rules, routes, strict=True):
            first, second = route
            minor, sent_on = rule.queue.minor, entered[rule.number]
            if len(shared[rule.queue]) == 1:
                # What a meter lets through at once may be more than the queue behind it holds.
                sent_on = after[first][minor].sent_packets - before[first][minor].sent_packets
            expected[rule.queue].update({first: entered[rule.number], second: sent_on})
        for queue, tenants in shared.items():
            for port in self._ports:
                found = _arrived(before, after, port, queue.minor)
                self._exactly(", ".join(tenants), f"packets in its class at {port}", found, expected[queue][port])
        for port in self._ports:
            found = _arrived(before, after, port, UNCLASSIFIED_MINOR)
            self._exactly("(all)", f"packets in the default class at {port}", found, 0)

    def _settled(self) -> Classes:
        """Counters once nothing is under way: queues empty, and nothing moving for as long as a link can hold a packet.

        Raises:
            ReservationError: Packets wait where none belongs, or something does not come to rest.
        """
        deadline = time.monotonic() + _SETTLED_WITHIN_S + self._longest_drain_s
        rest = Rest(_QUIET_S + max(self._network.link_delays_s))
        while True:
            time.sleep(_LOOK_EVERY_S)
            looked_s = time.monotonic()
            found = (traffic_control.counters(self._ports), self._met())
            waiting = {
                (port, minor): counters.backlog_packets
                for port, classes in found[0].items()
                for minor, counters in classes.items()
                if counters.backlog_packets
            }
            self._require_classified(waiting)
            if time.monotonic() > deadline:
                where = ", ".join(
                    f"{count} packets in 1:{minor:x} at {port}" for (port, minor), count in waiting.items()
                )
                raise ReservationError(
                    f"probe of {self._program.domain}: queues still move long after the last packet "
                    f"({where or 'none holds any'}); stop whatever else sends into this network"
                )
            if rest.reached(found, looked_s, time.monotonic(), moving=bool(waiting)):
                return found[0]

    @property
    def _longest_drain_s(self) -> float:
        """How long the slowest of the queues takes to empty when it is full."""
        queues = [rule.queue for rule in self._program.rules]
        return max((queue.limit_packets * FULL_FRAME_BITS / queue.ceil_bps for queue in queues), default=0.0)

    def _require_classified(self, waiting: Mapping[tuple[str, int], int]) -> None:
        """Not left to be counted in the end: the default class is so slow that there would be no end."""
        stray = [
            f"probe of {self._program.domain}, (all): {count} packets wait in the default class at {port}, expected 0; "
            "what chooses the class there (filters on the userspace datapath, set_queue on the kernel's) does nothing"
            for (port, minor), count in waiting.items()
            if minor == UNCLASSIFIED_MINOR
        ]
        if stray:
            raise ReservationError(stray)

    def _met(self) -> dict[int, MeterCounters]:
        """Counters of the ingress hop's meters, by rule number."""
        numbers = {rule.meter.meter_id: rule.number for rule in self._program.rules if rule.meter is not None}
        found = dict.fromkeys(numbers.values(), _NOTHING_MET)
        for hop in self._program.hops:
            if hop.ingress:
                met = self._network.ovs.meters(hop.bridge)
                found |= {numbers[meter_id]: counters for meter_id, counters in met.items() if meter_id in numbers}
        return found

    def _exactly(self, tenant: str, what: str, found: int, expected: int) -> None:
        self._results.append(judge(self._program.domain, tenant, what, found=found, expected=expected, tolerance=0))


def _refill_s(meter: Meter) -> float:
    """How long an empty bucket takes to be full, seconds."""
    return meter.burst_kbit / meter.rate_kbps + probe_checks.METER_GRAIN_S


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


def _forward(rule: Rule) -> tuple[int, str, str]:
    return rule.number, rule.client, rule.server


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
