"""The whole run, in order: build, offer, reserve, calibrate, probe, measure, judge, write, leave nothing behind.

Each step is a function of another module; here is only their order, and what happens when the user interrupts: with
something measured the run is judged as it is and marked partial, else there is nothing to show and no folder stays.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from controller.client import CallError, ControllerClient
from testbed.emulation.huge_pages import small_pages
from testbed.emulation.layout import controller_port
from testbed.emulation.network import TandemNetwork
from testbed.emulation.placement import Placement, require_limited
from testbed.errors import FidelityError, PreflightError, ReservationError, TestbedError
from testbed.management.domain import HOST_ALLOWANCE_CAP_S
from testbed.management.federation import Federation, found
from testbed.report.html import write_report
from testbed.report.junit import JUNIT_NAME, write_junit
from testbed.report.record import ProbeRecord, write_record
from testbed.run import faults, room
from testbed.run.assemble import assemble
from testbed.run.keepsakes import discard_captures, keep_captures
from testbed.run.measurement import Evidence, Steps, gather
from testbed.run.preflight import (
    choose_datapath,
    require_few,
    require_memory,
    require_room,
    require_root,
    require_sender,
    require_unimpaired,
)
from testbed.run.progress import Progress
from testbed.run.requests import require_warm_up
from testbed.run.reservations import Reservations
from testbed.run.undoing import noted
from testbed.run.window import Stage
from testbed.scenario.model import Scenario
from testbed.telemetry import host


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
    steps = Steps(progress, options.stop)
    evidence = Evidence()
    left: list[str] = []
    with small_pages(), ExitStack() as outer, ExitStack() as stack:
        with steps.step("building the network"):
            built = TandemNetwork(scenario, datapath, placement=placement, awake=options.keep_awake)
            network = stack.enter_context(noted(built, left))
            folder = outer.enter_context(_new_folder(options.out, scenario.name, network.journal.runid))
            fill_disk = outer.enter_context(room.filling(folder))
            controllers = {
                domain.name: stack.enter_context(noted(start_controller(network, index, domain.name), left))
                for index, domain in enumerate(scenario.domains)
            }
        with steps.step("reserving"):
            reservations = stack.enter_context(noted(reserving(network, controllers), left))
        try:
            gather(evidence, Stage(network, controllers, folder, fill_disk), reservations, options.seeds, steps)
        except (FidelityError, ReservationError, CallError) as error:
            evidence.failure = room.why(folder, error.problems)
        except PreflightError as error:
            # What was measured before is not lost by a window that cannot begin.
            if not evidence.measured:
                raise
            evidence.failure = room.why(folder, error.problems)
        except OSError as error:
            if not evidence.measured and not room.is_full(error):
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
                not_undone=left,
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
    except (TestbedError, CallError):
        shutil.rmtree(folder)
        raise
