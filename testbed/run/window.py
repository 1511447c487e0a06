"""One window of traffic on an installed network: every tenant's schedule sent open-loop, every border captured.

It gathers evidence and judges none of it. Captures run before the first packet and until every queue is empty again;
nothing here is specific to warm-up or measurement.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controller.client import ControllerClient
from testbed.emulation.layout import Border
from testbed.emulation.network import TandemNetwork
from testbed.emulation.ovs import DatapathCounters
from testbed.emulation.placement import Role
from testbed.emulation.supervisor import Child
from testbed.errors import FidelityError
from testbed.report.record import ImpairmentRecord
from testbed.run import requests
from testbed.run.faults import Injector, Occurrence
from testbed.run.impairments import impairments
from testbed.run.progress import Step
from testbed.run.requests import RequestOutcome
from testbed.telemetry import host, pcap, stalls
from testbed.telemetry.capture import Capture, CaptureCounts
from testbed.telemetry.match import Match, SentPackets, match
from testbed.traffic.arrivals import schedules
from testbed.traffic.records import NOT_ATTEMPTED, SenderSpec, SendRecord
from testbed.traffic.request_records import RequestRecord

START_IN_NS = 300_000_000
"""Between the last sender's being ready and the first packet: enough to tell every sender."""

MARGIN_S = 30.0
"""How long a sender may overrun its window, or queues hold packets, before something must be wrong."""

_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Switches:
    """What the switches had counted at one moment.

    Attributes:
        domains: Per domain, the controller's counters of meters and queues.
        packet_ins: Packets that reached a controller, all domains.
        datapath: Flow hits and misses.
    """

    domains: Mapping[str, Mapping[str, Any]]
    packet_ins: int
    datapath: DatapathCounters


@dataclass(frozen=True)
class Shaper:
    """The smallest rate and the smallest token bucket of a tenant's queues."""

    rate_bps: int
    burst_bits: int


@dataclass(frozen=True)
class Counted:
    """Packets of one tenant in one domain.

    Attributes:
        metered: That reached its meter; 0 where it has none.
        meter_dropped: That the meter dropped.
        queued: That reached the first of its queues, with those of whoever shares it.
        queue_dropped: That any of its queues dropped, of whoever shares it.
    """

    metered: int
    meter_dropped: int
    queued: int
    queue_dropped: int


@dataclass(frozen=True)
class Window:
    """Everything one window left behind.

    Attributes:
        index: Number of the window in the run.
        seed: Root of its random streams.
        duration_s: Length of its schedules.
        start_ns: CLOCK_REALTIME of its start.
        complete: Whether every sender sent its whole schedule.
        matches: Packet by packet, by tenant that sends packets.
        requests: Request by request, by tenant that sends requests.
        sent: What each sender did, by tenant.
        captures: What each border's capture counted, by interface.
        switches_before: Counters when no packet had been sent.
        switches_after: Counters when every queue was empty again.
        host_before: The host before.
        host_after: The host after.
        stalls: What the ticker of each core saw.
        isolated: Whether the processes of the run had places of their own.
        awake: Whether something else kept the cores from sleeping.
        misplaced: Those that no longer had them in the end.
        faults: What was broken in it on purpose.
        impairments: What inference servers were made to suffer in it.
    """

    index: int
    seed: int
    duration_s: float
    start_ns: int
    complete: bool
    matches: Mapping[str, Match]
    requests: Mapping[str, RequestOutcome]
    sent: Mapping[str, SendRecord | RequestRecord]
    captures: Mapping[str, CaptureCounts]
    switches_before: Switches
    switches_after: Switches
    host_before: host.Snapshot
    host_after: host.Snapshot
    stalls: Sequence[stalls.StallRecord]
    isolated: bool = False
    awake: bool = False
    misplaced: Sequence[str] = ()
    faults: Sequence[Occurrence] = ()
    impairments: Sequence[ImpairmentRecord] = ()

    @property
    def everyone_sent(self) -> bool:
        """Whether every tenant sent something."""
        attempted = [outcome.record.attempted.any() for outcome in self.requests.values()]
        return all(len(match.samples) for match in self.matches.values()) and all(attempted)

    def grown(self, domain: str, tenant: str) -> Counted:
        """What the counters of one tenant in one domain grew by within the window."""
        before = self._counted(self.switches_before, domain, tenant)
        after = self._counted(self.switches_after, domain, tenant)
        # A counter that is smaller than before has begun anew.
        return Counted(*(new - old * (new >= old) for new, old in zip(astuple(after), astuple(before), strict=True)))

    @staticmethod
    def _counted(switches: Switches, domain: str, tenant: str) -> Counted:
        """Totals so far.

        Traffic towards the server crosses its queues one after the other: the first one counts all that came in, and a
        drop in any of them is a drop.
        """
        state = switches.domains[domain]["tenants"][tenant]
        meters, queues = state["meters"].values(), state["queues"].values()
        return Counted(
            metered=sum(meter["in_packets"] for meter in meters),
            meter_dropped=sum(meter["dropped_packets"] for meter in meters),
            queued=max((queue["sent_packets"] + queue["dropped_packets"] for queue in queues), default=0),
            queue_dropped=sum(queue["dropped_packets"] for queue in queues),
        )


@dataclass(frozen=True)
class Stage:
    """Where windows are played.

    Attributes:
        network: The network, installed.
        controllers: One client per domain, by name.
        folder: Where captures and records of the windows go.
        fill_disk: Takes all room that is left beside them.
    """

    network: TandemNetwork
    controllers: Mapping[str, ControllerClient]
    folder: Path
    fill_disk: Callable[[], None]

    def play(
        self,
        index: int,
        *,
        seed: int,
        duration_s: float,
        conforming: bool,
        step: Step,
        stop: Callable[[], bool],
        faults: Injector,
    ) -> Window:
        """Play one window.

        Args:
            index: Number of the window in the run; part of every random stream.
            seed: Root of the random streams.
            duration_s: Length of the schedules.
            conforming: Whether tenants keep to what they declared even if they are to misbehave.
            step: Told how much is done.
            stop: Asked now and then whether the window must end early.
            faults: What is to be broken in it.

        Raises:
            FidelityError: A sender, a capture or a queue did not end in time, a process died, or a fault could not be
                done.
        """
        folder = self.folder / f"window-{index}"
        folder.mkdir(mode=0o700)
        senders = self._prepare(folder, index, seed, duration_s, conforming=conforming)
        ports = [
            port for skeleton in self.network.layout.skeletons for hop in skeleton.hops for port in hop.queued_ports
        ]
        tickers = stalls.start(self.network.supervisor, folder)
        captures = self._capture(folder)
        sinks = self._sinks()
        captures |= requests.capture_clients(self.network, folder)
        senders |= requests.start_senders(self.network, folder, index, seed, duration_s)
        before, host_before = self._switches(), host.snapshot(ports)
        start_ns = time.monotonic_ns() + START_IN_NS
        for child in senders.values():
            child.tell({"start_monotonic_ns": start_ns})
        faults.begin(start_ns)
        try:
            complete = self._wait(senders, duration_s, step, stop, faults)
            occurred = faults.finish()
        except BaseException as error:
            faults.abandon(error)
            raise
        self._drain()
        misplaced = self.network.supervisor.misplaced()
        counts = {interface: capture.finish() for interface, capture in captures.items()}
        seen_stalls = tickers.finish()
        after, host_after = self._switches(), host.snapshot(ports)
        for sink in sinks:
            self.network.supervisor.end(sink)
        self.network.supervisor.check()
        asked = {tenant.name for tenant, _ in requests.asking(self.network.scenario)}
        packets = {name: SendRecord.load(folder / f"{name}.sent.npz") for name in senders if name not in asked}
        records = {name: RequestRecord.load(requests.record_path(folder, name)) for name in asked}
        sent: dict[str, SendRecord | RequestRecord] = {**packets, **records}
        epoch_ns = next(iter(sent.values())).start_realtime_ns
        return Window(
            index=index,
            seed=seed,
            duration_s=duration_s,
            start_ns=epoch_ns,
            complete=complete,
            matches=self._match(folder, packets, epoch_ns),
            requests=requests.find(self.network, folder, records),
            sent=sent,
            captures=counts,
            switches_before=before,
            switches_after=after,
            host_before=host_before,
            host_after=host_after,
            stalls=seen_stalls,
            isolated=bool(self.network.supervisor.placement),
            awake=self.network.awake,
            misplaced=misplaced,
            faults=occurred,
            impairments=impairments(self.network, start_ns, duration_s),
        )

    def shapers(self) -> dict[str, Shaper]:
        """Each tenant's narrowest queue towards its server on its path, as read back from the kernel now."""
        found: dict[str, Shaper] = {}
        for client in self.controllers.values():
            for tenant, state in client.read_back()["tenants"].items():
                for queue in state["queues"].values():
                    known = found.get(tenant, Shaper(queue["rate_bps"], 8 * queue["burst_bytes"]))
                    found[tenant] = Shaper(
                        min(known.rate_bps, queue["rate_bps"]), min(known.burst_bits, 8 * queue["burst_bytes"])
                    )
        return found

    @property
    def _borders(self) -> list[Border]:
        """The borders that some tenant crosses."""
        layout = self.network.layout
        crossed = {border.interface for path in layout.paths for border in layout.crossed(path)}
        return [border for border in layout.borders if border.interface in crossed]

    def _prepare(self, folder: Path, index: int, seed: int, duration_s: float, *, conforming: bool) -> dict[str, Child]:
        drawn = schedules(self.network.scenario, window=index, duration_s=duration_s, seed=seed, conforming=conforming)
        offset_ns = host.clock_offset_ns()
        children = {}
        for path, tenant in zip(self.network.layout.paths, self.network.scenario.tenants, strict=True):
            if tenant.requests is not None:
                continue
            name = path.tenant
            drawn[path.number].save(folder / f"{name}.schedule.npz")
            spec = SenderSpec(
                tenant=path.number,
                source=path.client.address,
                destination=path.server.address,
                schedule=str(folder / f"{name}.schedule.npz"),
                result=str(folder / f"{name}.sent.npz"),
                clock_offset_ns=offset_ns,
            )
            spec.save(folder / f"{name}.spec.json")
            children[name] = self.network.supervisor.start(
                f"sender-{index}-{name}",
                [sys.executable, "-m", "testbed.traffic.sender", str(folder / f"{name}.spec.json")],
                host_pid=self.network.hosts[path.client.host].pid,
                listens=True,
                role=Role.SENDER,
            )
        return children

    def _sinks(self) -> list[Child]:
        used = {path.server.host: path.server.address for path in self.network.layout.paths}
        return [
            self.network.start(f"sink-{name}", [sys.executable, "-m", "testbed.traffic.sink", address], host=name)
            for name, address in used.items()
        ]

    def _capture(self, folder: Path) -> dict[str, Capture]:
        answered = bool(requests.asking(self.network.scenario))

        def options(border: Border) -> dict[str, Any]:
            if not answered:
                return {}
            if border.host is None:
                return {"expression": requests.TO_SERVERS}
            return {"expression": requests.AT_SERVERS, "both_ways": True}

        return {
            border.interface: Capture.start(
                self.network.supervisor,
                border.interface,
                folder / f"{border.interface}.pcap",
                host_pid=None if border.host is None else self.network.hosts[border.host].pid,
                **options(border),
            )
            for border in self._borders
        }

    def _switches(self) -> Switches:
        health = [client.health() for client in self.controllers.values()]
        return Switches(
            domains={name: client.counters() for name, client in self.controllers.items()},
            packet_ins=sum(state["packet_ins"] for state in health),
            datapath=self.network.ovs.counters(),
        )

    def _wait(
        self,
        senders: Mapping[str, Child],
        duration_s: float,
        step: Step,
        stop: Callable[[], bool],
        faults: Injector,
    ) -> bool:
        waits_s = [asked.timeout_s + requests.LAST_ANSWERS_S for _, asked in requests.asking(self.network.scenario)]
        deadline_s = START_IN_NS / 1e9 + duration_s + max(waits_s, default=0.0) + MARGIN_S
        told = False
        while any(child.process.poll() is None for child in senders.values()):
            elapsed_s = faults.now_s
            step.advance(min(1.0, max(0.0, elapsed_s / duration_s)))
            if stop() and not told:
                # Once: a second signal would find the sender past its handler, and kill it.
                told = True
                for child in senders.values():
                    if child.process.poll() is None:
                        child.process.terminate()
            if elapsed_s > deadline_s:
                break
            if told:
                time.sleep(_LOOK_EVERY_S)
                continue
            faults.look()
            time.sleep(min(_LOOK_EVERY_S, faults.next_in_s()))
        statuses = {name: child.wait(1.0) for name, child in senders.items()}
        # One that had just finished may have met the signal on its way out, with its record written.
        fine = {0, -signal.SIGTERM} if told else {0}
        failed = [name for name, status in statuses.items() if status not in fine]
        if failed:
            raise FidelityError(
                [f"sender of {name} ended with {statuses[name]}: {senders[name].tail()}" for name in failed]
            )
        return not told

    def _drain(self) -> None:
        """Wait until no queue of any domain holds a packet."""
        scenario = self.network.scenario
        own_s = [t.reservation.queue_bits / t.reservation.rate_bps for t in scenario.tenants if t.reservation]
        shared_s = [(d.shared_queue_bits or 0) / d.link_rate_bps for d in scenario.domains]
        longest_s = max((*own_s, *shared_s))
        deadline = time.monotonic() + longest_s * len(self.controllers) + MARGIN_S
        while self._backlog():
            if time.monotonic() > deadline:
                raise FidelityError(
                    f"queues still hold {self._backlog()} packets {longest_s * len(self.controllers) + MARGIN_S:.0f} s "
                    "after the last one was sent; a class is slower than it was read back"
                )
            time.sleep(_LOOK_EVERY_S)

    def _backlog(self) -> int:
        return sum(
            queue["backlog_packets"]
            for client in self.controllers.values()
            for tenant in client.counters()["tenants"].values()
            for queue in tenant["queues"].values()
        )

    def _match(self, folder: Path, sent: Mapping[str, SendRecord], epoch_ns: int) -> dict[str, Match]:
        layout = self.network.layout
        tables = {b.interface: pcap.read(folder / f"{b.interface}.pcap").packets for b in self._borders}
        by_tenant = {interface: table.by_tenant() for interface, table in tables.items()}
        found = {}
        for path, tenant in zip(layout.paths, self.network.scenario.tenants, strict=True):
            if path.tenant not in sent:
                continue
            borders = layout.crossed(path)
            empty = {
                b.interface: tables[b.interface].take(np.zeros(len(tables[b.interface]), np.bool_)) for b in borders
            }
            found[path.tenant] = match(
                _sent_packets(path.tenant, sent[path.tenant]),
                [by_tenant[b.interface].get(path.number, empty[b.interface]) for b in borders],
                domains=[domain.name for domain in self.network.scenario.path(tenant)],
                window_start_ns=epoch_ns,
            )
        return found


def _sent_packets(name: str, record: SendRecord) -> SentPackets:
    """The packets a sender attempted; one that the kernel refused was due, is seen nowhere and so counts as lost."""
    attempted = np.flatnonzero(record.error != NOT_ATTEMPTED)
    intended_s = record.schedule.time_s[attempted]
    sent_s = np.where(np.isfinite(record.sent_s[attempted]), record.sent_s[attempted], intended_s)
    return SentPackets(
        tenant=name,
        number=record.tenant,
        sequence=attempted.astype(np.int64),
        intended_ns=record.start_realtime_ns + np.rint(intended_s * 1e9).astype(np.int64),
        sent_ns=record.start_realtime_ns + np.rint(sent_s * 1e9).astype(np.int64),
        size_bits=record.schedule.size_bits[attempted],
        last_of_request=record.schedule.last_of_request[attempted],
    )
