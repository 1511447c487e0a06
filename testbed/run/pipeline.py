"""The whole run, in order: build, offer, reserve, calibrate, probe, measure, judge, write, leave nothing behind.

Each step is a function of another module; here is only their order, and what happens when the user interrupts: with
something measured the run is judged as it is and marked partial, else there is nothing to show and no folder stays.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from controller.client import ControllerClient
from testbed.emulation.layout import controller_port
from testbed.emulation.network import TandemNetwork
from testbed.emulation.placement import Placement, require_limited
from testbed.emulation.probe import probe
from testbed.emulation.probe_checks import ProbeResult
from testbed.errors import FidelityError, InterruptedRunError, PreflightError, ReservationError
from testbed.management.bounds import Bounds
from testbed.management.domain import HOST_ALLOWANCE_CAP_S
from testbed.management.federation import Federation, found
from testbed.report.html import write_report
from testbed.report.junit import write_junit
from testbed.report.record import ProbeRecord, write_record
from testbed.run import faults, room
from testbed.run.assemble import Measured, assemble
from testbed.run.bounds import bounds_of
from testbed.run.calibrate import PATH_FLOOR_S, bracketed, calibrate
from testbed.run.faults import Injector, Occurrence, Site
from testbed.run.gates import gates_of
from testbed.run.keepsakes import discard_captures, keep_captures
from testbed.run.preflight import (
    choose_datapath,
    require_few,
    require_memory,
    require_room,
    require_root,
    require_sender,
    require_unimpaired,
)
from testbed.run.progress import Progress, Step
from testbed.run.request_terms import Granted, calibrate_requests
from testbed.run.requests import asking, require_warm_up, start_servers
from testbed.run.reservations import Reservations
from testbed.run.serving import computations
from testbed.run.terms import terms_of
from testbed.run.window import Stage
from testbed.scenario.model import Scenario
from testbed.telemetry import host
from testbed.telemetry.idle_path import IdlePath

JUNIT_NAME = "junit.xml"


@dataclass(frozen=True)
class Options:
    """How a scenario is to be run.

    Attributes:
        out: Folder that receives the run folder.
        seeds: How many measured windows, each with a root seed of its own, are pooled.
        keep_captures: Whether the captures stay in the run folder, with one that shows them together.
        isolate: Whether the run's processes get cores and priorities before everything else on the host.
        keep_awake: Whether no core may sleep; the hypervisor of a virtual machine takes its time to wake one.
        command: What to type to repeat the run.
        stop: Asked now and then whether the run must end early, with what it has.
    """

    out: Path
    seeds: int = 1
    keep_captures: bool = False
    isolate: bool = False
    keep_awake: bool = False
    command: tuple[str, ...] = ()
    stop: Callable[[], bool] = lambda: False


Reserving = Callable[[TandemNetwork, Mapping[str, ControllerClient]], AbstractContextManager[Reservations]]
"""Reserves for a network whose controllers run, and gives everything back in the end."""


def run(scenario: Scenario, options: Options, progress: Progress) -> Path:
    """Run a scenario whose domains agree in this process; as `run_reserved`."""
    return run_reserved(scenario, options, progress, reserving)


def run_reserved(scenario: Scenario, options: Options, progress: Progress, reserving: Reserving) -> Path:
    """Run a scenario and write its folder.

    Args:
        scenario: What is to be run.
        options: How.
        progress: Told how far it has come.
        reserving: Who reserves for it.

    Returns:
        The run folder; its record holds the verdict, INVALID if the host did not let the run go on, or if what was
        installed does not act as it should.

    Raises:
        PreflightError: This host cannot run it; nothing was changed.
        ReservationError: A domain refused.
        InterruptedRunError: The user ended it before anything was measured.
    """
    require_root()
    require_limited()
    datapath = choose_datapath(scenario.datapath)
    faults.require(scenario, datapath, options.out)
    require_sender(scenario)
    require_few(scenario)
    require_unimpaired(scenario)
    require_room(options.out, scenario, options.seeds)
    require_memory(scenario)
    require_warm_up(scenario)
    placement = Placement.on(os.sched_getaffinity(0)) if options.isolate else None
    steps = _Steps(progress, options.stop)
    evidence = _Evidence()
    with ExitStack() as outer, ExitStack() as stack:
        with steps.step("building the network"):
            network = stack.enter_context(
                TandemNetwork(scenario, datapath, placement=placement, awake=options.keep_awake)
            )
            folder = outer.enter_context(_new_folder(options.out, scenario.name, network.journal.runid))
            fill_disk = outer.enter_context(room.filling(folder))
            controllers = {
                domain.name: stack.enter_context(start_controller(network, index, domain.name))
                for index, domain in enumerate(scenario.domains)
            }
        with steps.step("reserving"):
            reservations = stack.enter_context(reserving(network, controllers))
        try:
            _gather(evidence, Stage(network, controllers, folder, fill_disk), reservations, options, steps)
        except (FidelityError, ReservationError) as error:
            evidence.failure = room.why(folder, error.problems)
        except PreflightError as error:
            # What was measured before is not lost by a window that cannot begin.
            if not evidence.measured:
                raise
            evidence.failure = room.why(folder, error.problems)
        except OSError as error:
            if not room.is_full(error):
                raise
            evidence.failure = room.why(folder, [str(error)])
        fingerprint = host.fingerprint()
    with room.written_or_nothing(folder):
        with steps.step("judging"):
            record = assemble(
                scenario,
                folder,
                evidence.measured,
                evidence.bounds,
                reservations,
                failure=evidence.failure,
                broken=evidence.broken,
            )
        record = record.model_copy(
            update={
                "run_id": network.journal.runid,
                "command": options.command,
                "datapath": datapath.value,
                "host": fingerprint,
                "isolated": options.isolate,
                "kept_awake": options.keep_awake,
                "probes": tuple(ProbeRecord(**asdict(result)) for result in evidence.probes),
                "installed": evidence.installed,
                "timings_s": steps.timings_s,
                "partial": record.partial or (not evidence.failure and len(evidence.measured) < options.seeds),
            }
        )
        write_record(folder, record)
        write_junit(record, folder / JUNIT_NAME)
        write_report(folder)
    if options.keep_captures:
        keep_captures(folder, scenario, network.layout)
    else:
        discard_captures(folder)
    return folder


@contextmanager
def reserving(network: TandemNetwork, controllers: Mapping[str, ControllerClient]) -> Iterator[Reservations]:
    """Have the domains of a network agree in this process."""
    federation = found_federation(network, controllers)
    federation.collect_offers()
    federation.reserve()
    with ExitStack() as stack:
        stack.callback(federation.release)
        yield federation


def controller_socket(network: TandemNetwork, index: int) -> Path:
    """Northbound of the controller of the domain at place `index`."""
    return network.journal.directory / f"controller-{index + 1}.sock"


def start_controller(network: TandemNetwork, index: int, domain: str) -> ControllerClient:
    """Start the controller process of the domain at place `index`, whose switches connect to it."""
    socket = controller_socket(network, index)
    listen = f"127.0.0.1:{controller_port(index)}"
    command = [sys.executable, "-m", "controller", "--domain", domain, "--listen", listen, "--socket", str(socket)]
    network.start(f"controller-{domain}", command)
    return ControllerClient(socket)


def found_federation(network: TandemNetwork, controllers: Mapping[str, ControllerClient]) -> Federation:
    """The domains of a network as they agree with each other, nothing offered yet."""
    return found(
        network.in_force,
        {path.tenant: (path.client.address, path.server.address) for path in network.layout.paths},
        {skeleton.domain: (controllers[skeleton.domain], skeleton) for skeleton in network.layout.skeletons},
        host_allowance_s=network.in_force.slow_down * HOST_ALLOWANCE_CAP_S,
    )


@dataclass(frozen=True)
class _Granted:
    """What a warm-up supports.

    Attributes:
        host_s: What the host may add to packets on a path.
        idle: What packets take of an idle path, by tenant.
        requests: Request tenants' terms, by tenant.
    """

    host_s: float
    idle: Mapping[str, IdlePath]
    requests: Mapping[str, Granted]


@dataclass
class _Evidence:
    """What a run has gathered so far, so that one which cannot go on still says how far it came.

    Attributes:
        granted: What the warm-up supports.
        failure: Why it could not go on; empty if it could.
        broken: Faults that were done in the window that could not be ended.
    """

    bounds: Bounds = field(default_factory=Bounds)
    probes: Sequence[ProbeResult] = ()
    measured: list[Measured] = field(default_factory=list)
    installed: dict[str, Any] = field(default_factory=dict)
    granted: _Granted = field(default_factory=lambda: _Granted(PATH_FLOOR_S, {}, {}))
    failure: tuple[str, ...] = ()
    broken: tuple[Occurrence, ...] = ()


def _gather(evidence: _Evidence, stage: Stage, reservations: Reservations, options: Options, steps: _Steps) -> None:
    """Calibrate, probe and measure a network whose domains have reserved.

    Raises:
        FidelityError: The host does not let it go on.
        ReservationError: Something does not act as installed.
    """
    network = stage.network
    if asking(network.scenario):
        with steps.step("starting inference servers"):
            start_servers(network)
    with steps.step("calibrating") as step:
        evidence.granted = _calibrate(stage, reservations, step, options.stop)
        steps.require_wanted()
    with steps.step("probing"):
        evidence.probes = probe(network, reservations.programs, before_each=steps.require_wanted)
        network.enlarge_buffers()
    evidence.installed = {name: client.read_back() for name, client in stage.controllers.items()}
    evidence.bounds = bounds_of(reservations, evidence.granted.host_s, evidence.granted.requests)
    for measured in _measure(evidence, stage, reservations, options, steps):
        evidence.measured.append(measured)


class _Steps:
    """Announces steps, remembers how long each took, and starts none that the user no longer wants."""

    def __init__(self, progress: Progress, stop: Callable[[], bool]) -> None:
        self._progress = progress
        self._stop = stop
        self.measured = False
        self.timings_s: dict[str, float] = {}

    def require_wanted(self) -> None:
        """Go on unless the user wants to stop and nothing is lost by it."""
        if self._stop() and not self.measured:
            raise InterruptedRunError("interrupted before anything was measured; nothing is left behind")

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        self.require_wanted()
        began = time.monotonic()
        with self._progress.step(name) as step:
            yield step
        self.timings_s[name] = time.monotonic() - began


@contextmanager
def _new_folder(out: Path, name: str, runid: str) -> Iterator[Path]:
    """A folder for the run, taken away again if the user or a refusal ends it before anything was measured."""
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = out / f"{stamp}-{name}-{runid}"
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise PreflightError(
            f"{folder}: cannot be made ({error.strerror}); choose another folder with --out"
        ) from error
    try:
        with room.held(folder):
            yield folder
    except (InterruptedRunError, PreflightError):
        shutil.rmtree(folder)
        raise
    except ReservationError:
        # A refusal comes before anything is in it.
        with suppress(OSError):
            folder.rmdir()
        raise


def _calibrate(stage: Stage, reservations: Reservations, step: Step, stop: Callable[[], bool]) -> _Granted:
    """Have every domain sign what a warm-up supports."""
    scenario = stage.network.scenario
    warm_up = stage.play(
        0,
        seed=scenario.seed,
        duration_s=scenario.warmup_s,
        conforming=True,
        step=step,
        stop=stop,
        faults=Injector(_site(stage, reservations), []),
    )
    if not warm_up.complete:
        return _Granted(PATH_FLOOR_S, {}, {})
    allowances = calibrate(scenario, reservations, warm_up, terms_of(scenario, reservations, stage.shapers(), 0.0, {}))
    reservations.calibrated(allowances.domains_s, warm_up)
    reservations.serve(computations(scenario, reservations, warm_up.requests))
    requests = calibrate_requests(scenario, reservations, warm_up.requests, stage.shapers())
    return _Granted(allowances.path_s, allowances.idle, requests)


def _cool_down(
    stage: Stage,
    reservations: Reservations,
    granted: _Granted,
    index: int,
    *,
    step: Step,
    stop: Callable[[], bool],
) -> _Granted:
    """What a window was granted, with what idle paths take behind it; the same if the user ends it early."""
    scenario, shapers = stage.network.scenario, stage.shapers()
    cool_down = stage.play(
        index,
        seed=scenario.seed,
        duration_s=scenario.cooldown_s,
        conforming=True,
        step=step,
        stop=stop,
        faults=Injector(_site(stage, reservations), []),
    )
    if not cool_down.complete:
        return granted
    terms = terms_of(scenario, reservations, shapers, granted.host_s, granted.idle)
    requests = {
        name: own.bracketed(cool_down.requests[name], shapers[name], scenario.duration_s)
        for name, own in granted.requests.items()
    }
    return replace(granted, idle=bracketed(granted.idle, cool_down, terms, scenario.duration_s), requests=requests)


def _site(stage: Stage, reservations: Reservations) -> Site:
    return Site(stage.network, stage.controllers, lambda: reservations.programs, stage.fill_disk)


def _measure(
    evidence: _Evidence, stage: Stage, reservations: Reservations, options: Options, steps: _Steps
) -> Iterator[Measured]:
    scenario, granted = stage.network.scenario, evidence.granted
    for index in range(1, options.seeds + 1):
        with steps.step(f"measuring {index} of {options.seeds}") as step:
            drift = reservations.drift()
            shapers = stage.shapers()
            seed = scenario.seed + index - 1
            injector = Injector.of(_site(stage, reservations), seed, index, last=index == options.seeds)
            try:
                window = stage.play(
                    index,
                    seed=seed,
                    duration_s=scenario.duration_s,
                    conforming=False,
                    step=step,
                    stop=options.stop,
                    faults=injector,
                )
            except (FidelityError, OSError):
                evidence.broken = injector.done
                raise
            if not window.complete and not window.everyone_sent:
                # Cut off before every tenant had sent a packet: there is nothing in it to judge.
                steps.require_wanted()
                return
            drift = (*drift, *reservations.drift())
        steps.measured = True
        failure, own = None, granted
        if scenario.cooldown_s and not options.stop():
            with steps.step(f"cooling down {index} of {options.seeds}") as step:
                try:
                    own = _cool_down(stage, reservations, granted, options.seeds + index, step=step, stop=options.stop)
                except FidelityError as error:
                    failure = error
        terms = terms_of(scenario, reservations, shapers, own.host_s, own.idle)
        yield Measured(window, gates_of(scenario, window, terms, own.requests, drift), terms, own.requests)
        if failure:
            # What was measured before is judged all the same.
            raise failure
        if options.stop():
            return
