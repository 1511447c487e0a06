"""A whole simulation, in order: offer, plan, simulate every window, judge, and leave the folder that a run leaves."""

from __future__ import annotations

import datetime as dt
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import testbed
from testbed.errors import PreflightError, ScenarioError
from testbed.report.html import write_report
from testbed.report.junit import JUNIT_NAME, write_junit
from testbed.report.record import RECORD_NAME, RunRecord, WindowRecord, read_record, write_record
from testbed.report.tenant_record import TenantRecord
from testbed.run.assemble import envelope_records
from testbed.run.judge import judge_tenant, run_verdict, unmeasured
from testbed.run.judge_requests import judge_requests
from testbed.run.offered import offered
from testbed.run.progress import Progress
from testbed.run.window import Shaper
from testbed.scenario.dictionary import to_dict
from testbed.scenario.model import Scenario, Tenant
from testbed.simulation import crossing
from testbed.simulation.choices import Choices
from testbed.simulation.crossing import Asked, Crossing
from testbed.simulation.judge import is_broken, judge_tally
from testbed.simulation.known import known, sources
from testbed.simulation.network import Network, network, promises
from testbed.simulation.tally import Tally, merge
from testbed.simulation.wave import IndexArray
from testbed.simulation.window import Plan
from testbed.simulation.windows import Finished, Task, make_folder, perform, samples_path, tally_of
from testbed.simulation.workers import carry_out
from testbed.telemetry import host
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.samples import TenantSamples

RECORDED_PACKETS = 1_000_000


@dataclass(frozen=True)
class Options:
    """How a scenario is to be simulated.

    Attributes:
        out: Folder that receives the folder of the simulation.
        packets: Packets to send in each window, about; None: as many as the scenario's duration holds.
        replications: Windows, each an independent sample.
        recorded_packets: Packets of all windows together to record one by one, about; all others are counted.
        workers: Processes.
        choices: What is done differently from a run.
        measured: Folder of a run that counted and measured the requests of some tenants; None: all as declared.
        command: What to type to repeat it.
        page: Whether to draw the report; `testbed report` draws it later.
        resume: Folder of an interrupted simulation to go on with.
        stop: Asked now and then whether to end early, with what there is.
    """

    out: Path
    packets: int | None = None
    replications: int = 1
    recorded_packets: int = RECORDED_PACKETS
    workers: int = 1
    choices: Choices = field(default_factory=Choices)
    measured: Path | None = None
    command: tuple[str, ...] = ()
    page: bool = True
    resume: Path | None = None
    stop: Callable[[], bool] = lambda: False


def simulate_scenario(scenario: Scenario, options: Options, progress: Progress) -> Path:
    """Simulate a scenario and write its folder.

    Returns:
        The folder; its record holds the verdict.

    Raises:
        ScenarioError: A trace that cannot be read, a window too long for the simulator's clock, or requests of which
            nothing says how long they are computed.
        ReservationError: A domain cannot carry what the scenario reserves.
        PreflightError: The folder cannot be made, or nothing was simulated before the interruption.
    """
    began = time.monotonic()
    ready = network(scenario, options.choices, known(scenario, options.measured))
    folder = _folder(options, scenario.name)
    tasks = _tasks(ready, options, folder)
    with progress.step("simulating") as step:
        done = list(carry_out(perform, tasks, workers=options.workers, advance=step.advance, stop=options.stop))
    done = sorted((one for one in done if one.packets), key=lambda one: one.window)
    if not done:
        raise PreflightError(f"{folder}: interrupted before the first packet; start again")
    with progress.step("judging"):
        record = _record(ready, options, folder, done, time.monotonic() - began)
        write_record(folder, record)
        write_junit(record, folder / JUNIT_NAME)
        if options.page:
            write_report(folder)
    return folder


def _folder(options: Options, name: str) -> Path:
    if options.resume is not None:
        _require_simulation(options.resume)
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = options.resume or options.out / f"{stamp}-{name}-{secrets.token_hex(3)}"
    make_folder(folder, exist_ok=options.resume is not None)
    return folder


def _require_simulation(folder: Path) -> None:
    """Refuse to go on with what no simulation began; a measured run's record would be lost."""
    if not folder.is_dir():
        raise PreflightError(
            f"{folder}: found no such folder, expected that of an interrupted simulation; correct the name, or leave "
            "--resume out to begin"
        )
    if (folder / RECORD_NAME).is_file() and (kind := read_record(folder).kind) != "simulation":
        raise PreflightError(
            f"{folder}: found a run of the kind {kind}, expected the folder of a simulation; leave --resume out"
        )


def _tasks(ready: Network, options: Options, folder: Path) -> list[Task]:
    scenario = ready.scenario
    rate_per_s = sum(source.packets_per_s for source in ready.system.sources)
    duration_s = scenario.duration_s if options.packets is None else options.packets / rate_per_s
    if not duration_s > 0:
        raise ScenarioError(f"packets: found {options.packets}, expected at least 1; ask for more")
    recorded_s = _recorded_s(ready, options)
    crossings = tuple(_crossing(ready, index) for index in range(len(ready.tenants)))
    return [
        Task(
            system=ready.system,
            plan=Plan(scenario.seed + window - 1, window, duration_s, min(recorded_s, duration_s)),
            crossings=crossings,
            folder=folder / f"window-{window}",
        )
        for window in range(1, options.replications + 1)
    ]


def _recorded_s(ready: Network, options: Options) -> float:
    """How much of each window is recorded packet by packet, if it is that long."""
    rate_per_s = sum(source.packets_per_s for source in ready.system.sources)
    return options.recorded_packets / options.replications / rate_per_s


def _crossing(ready: Network, index: int) -> Crossing:
    tenant = ready.tenants[index]
    path = ready.scenario.path(tenant)
    latencies_s = tuple(envelope.latency_s for envelope in ready.envelopes(tenant))
    narrowest = ready.system.hops[0].classes[index]
    asking, asked = ready.system.sources[index].asking, tenant.requests
    return Crossing(
        tenant=tenant.name,
        number=ready.system.sources[index].number,
        domains=tuple(domain.name for domain in path),
        latencies_s=latencies_s,
        rate_bps=narrowest.rate_bps if latencies_s else None,
        burst_bits=narrowest.burst_bits,
        links_s=sum(domain.link_delay_s for domain in path),
        asked=Asked(asked.images, asking, ready.known[tenant.name].accuracy) if asked and asking else None,
    )


def _record(ready: Network, options: Options, folder: Path, done: Sequence[Finished], spent_s: float) -> RunRecord:
    scenario = ready.scenario
    serving_s = sum(one.serving_s for one in done)
    partial = len(done) < options.replications or not all(one.complete for one in done)
    windows = tuple(_window(ready.tenants, one) for one in done)
    left = _Windows.read(done, folder, _recorded_s(ready, options))
    tenants = tuple(_judge(ready, left, index) for index in range(len(ready.tenants)))
    given = "".join(f"; {said}" for said in [sources(ready.known)] if said)
    return RunRecord(
        run_id=folder.name.rsplit("-", 1)[-1],
        name=scenario.name,
        kind="simulation",
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        testbed_version=testbed.__version__,
        command=options.command,
        datapath=f"simulated, scheduler {options.choices.scheduler}{given}",
        partial=partial,
        verdict=run_verdict(tenants),
        scenario=to_dict(scenario),
        host=host.fingerprint(),
        public_keys={name: key.raw.hex() for name, key in ready.federation.public_keys.items()},
        envelopes=envelope_records(ready.federation.signed()) if promises(options.choices.scheduler) else (),
        tenants=tenants,
        windows=windows,
        timings_s={
            "drawing arrivals": sum(one.generating_s for one in done),
            "serving": serving_s,
            "everything, elapsed": spent_s,
        },
        packets=sum(one.packets for one in done),
        packet_hops_per_s=sum(one.packet_hops for one in done) / serving_s,
    )


def _window(tenants: Sequence[Tenant], one: Finished) -> WindowRecord:
    return WindowRecord(
        index=one.window,
        seed=one.seed,
        duration_s=one.duration_s,
        valid=True,
        samples=_files(one.window, [tenant for tenant in tenants if tenant.requests is None]),
        requests=_files(one.window, [tenant for tenant in tenants if tenant.requests is not None]),
    )


def _files(window: int, tenants: Sequence[Tenant]) -> dict[str, str]:
    return {tenant.name: f"window-{window}/{tenant.name}.parquet" for tenant in tenants}


@dataclass(frozen=True)
class _Windows:
    """What the finished windows left.

    Attributes:
        done: Each of them.
        folders: Where its files are.
        recorded_s: How much of each is recorded packet by packet, if it is that long.
        whole: What was counted in all of them together.
        lost: Packets that never arrived, by window, tenant and cause.
        nonconforming: Packets, or requests, that broke a contract, by window and tenant.
    """

    done: Sequence[Finished]
    folders: tuple[Path, ...]
    recorded_s: float
    whole: Tally
    lost: tuple[IndexArray, ...]
    nonconforming: tuple[IndexArray, ...]

    @classmethod
    def read(cls, done: Sequence[Finished], folder: Path, recorded_s: float) -> _Windows:
        """From the windows' folders, whose tallies are never all in memory at once."""
        folders = tuple(folder / f"window-{one.window}" for one in done)
        lost: list[IndexArray] = []
        nonconforming: list[IndexArray] = []

        def tallies() -> Iterator[Tally]:
            for path in folders:
                tally = tally_of(path)
                lost.append(tally.lost.copy())
                nonconforming.append(tally.nonconforming)
                yield tally

        return cls(done, folders, recorded_s, merge(tallies()), tuple(lost), tuple(nonconforming))


def _judge(ready: Network, windows: _Windows, index: int) -> TenantRecord:
    tenant, whole = ready.tenants[index], windows.whole
    unbound = ready.unbound.get(tenant.name, "")
    recorded = _judge_recorded(ready, windows, index).model_copy(update={"unbound": unbound})
    bound = ready.bounds.get(tenant.name)
    if recorded.n == whole.n[index] > 0:
        if tenant.requests is None or bound is None:
            return recorded
        # Here it is known which requests meters dropped, and none of them is sent again to hold up others, as in a run.
        return recorded.model_copy(update={"bound_broken": is_broken(tenant, index, whole, bound)})
    row = index if tenant.requests is None else ready.system.way_out(index)
    return judge_tally(tenant, index, whole, bound, recorded, way_out=row)


def _judge_recorded(ready: Network, windows: _Windows, index: int) -> TenantRecord:
    """Judge a tenant by what of it was recorded."""
    tenant, own = ready.tenants[index], _crossing(ready, index)
    bound = ready.bounds.get(tenant.name)
    done, recorded_s = windows.done, windows.recorded_s
    paths = [samples_path(path, tenant.name) for path in windows.folders]
    sent: Sequence[TenantSamples | RequestSamples]
    if tenant.requests is not None and own.asked is not None:
        outcomes = [crossing.outcome(path, own.asked) for path in paths]
        sent = [outcome.match.samples for outcome in outcomes]
        if not any(map(len, sent)):
            return unmeasured(tenant, bound)
        shaper = Shaper(round(own.rate_bps), round(own.burst_bits)) if own.rate_bps is not None else None
        found = judge_requests(
            tenant,
            tenant.requests,
            outcomes,
            bound,
            shaper,
            latencies_s=own.latencies_s,
            seconds=sum(min(recorded_s, one.duration_s) for one in done),
            valid=True,
            nonconforming=int(windows.whole.nonconforming[index]),
        )
    else:
        seen = [
            crossing.observed(path, lost[index], int(beyond[index]), one.duration_s)
            for path, lost, beyond, one in zip(paths, windows.lost, windows.nonconforming, done, strict=True)
        ]
        sent = [one.match.samples for one in seen]
        if not any(map(len, sent)):
            return unmeasured(tenant, bound)
        found = judge_tenant(tenant, seen, bound, valid=True)
    burstiness = offered([(s, min(recorded_s, one.duration_s)) for s, one in zip(sent, done, strict=True)])
    return found.model_copy(update={"offered": burstiness})
