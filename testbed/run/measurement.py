"""What a run measures on a network whose domains have reserved: a warm-up that promises rest on, then its windows.

Nothing is judged here, and nothing written. What was gathered before something went wrong is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from controller.client import CallError
from testbed.emulation.probe import probe
from testbed.emulation.probe_checks import ProbeResult
from testbed.errors import FidelityError, InterruptedRunError, PreflightError
from testbed.management.bounds import Bounds
from testbed.run.assemble import Measured
from testbed.run.bounds import bounds_of
from testbed.run.calibrate import PATH_FLOOR_S, bracketed, calibrate
from testbed.run.faults import Injector, Occurrence, Site
from testbed.run.gates import gates_of
from testbed.run.progress import Progress, Step
from testbed.run.request_terms import Granted, calibrate_requests
from testbed.run.requests import asking, start_servers
from testbed.run.reservations import Reservations
from testbed.run.serving import computations
from testbed.run.terms import terms_of
from testbed.run.window import Stage, Window
from testbed.telemetry.idle_path import IdlePath


class Steps:
    """Announces steps, remembers how long each took, and starts none that the user no longer wants.

    Attributes:
        stop: Asked now and then whether the run must end early, with what it has.
        measured: Whether there is something to judge.
        timings_s: How long each step took, by its name.
    """

    def __init__(self, progress: Progress, stop: Callable[[], bool]) -> None:
        self._progress = progress
        self.stop = stop
        self.measured = False
        self.timings_s: dict[str, float] = {}

    def require_wanted(self) -> None:
        """Go on unless the user wants to stop and nothing is lost by it.

        Raises:
            InterruptedRunError: The user does.
        """
        if self.stop() and not self.measured:
            raise InterruptedRunError("interrupted before anything was measured; nothing is left behind")

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Announce a step; raises as `require_wanted` before it begins."""
        self.require_wanted()
        began = time.monotonic()
        with self._progress.step(name) as step:
            yield step
        self.timings_s[name] = time.monotonic() - began


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
class Evidence:
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


def gather(evidence: Evidence, stage: Stage, reservations: Reservations, seeds: int, steps: Steps) -> None:
    """Calibrate, probe and measure a network whose domains have reserved.

    Args:
        evidence: Takes up whatever was gathered, also where this raises.
        stage: The network.
        reservations: What the domains of it agreed upon.
        seeds: How many windows, each with a root seed of its own.
        steps: Told how far it has come.

    Raises:
        FidelityError: The host does not let it go on.
        InterruptedRunError: The user ended it before anything was measured.
        ReservationError: Something does not act as installed.
    """
    network = stage.network
    if asking(network.scenario):
        with steps.step("starting inference servers"):
            start_servers(network)
    with steps.step("calibrating") as step:
        evidence.granted = _calibrate(stage, reservations, step, steps.stop)
        steps.require_wanted()
    with steps.step("probing"):
        evidence.probes = probe(network, reservations.programs, before_each=steps.require_wanted)
        network.enlarge_buffers()
    evidence.installed = {name: client.read_back() for name, client in stage.controllers.items()}
    evidence.bounds = bounds_of(reservations, evidence.granted.host_s, evidence.granted.requests)
    for measured in _measure(evidence, stage, reservations, seeds, steps):
        evidence.measured.append(measured)


def _measure(
    evidence: Evidence, stage: Stage, reservations: Reservations, seeds: int, steps: Steps
) -> Iterator[Measured]:
    scenario, granted = stage.network.scenario, evidence.granted
    for index in range(1, seeds + 1):
        with steps.step(f"measuring {index} of {seeds}") as step:
            drift = reservations.drift()
            shapers = stage.shapers()
            seed = scenario.seed + index - 1
            injector = Injector.of(_site(stage, reservations), seed, index, last=index == seeds)
            try:
                window = stage.play(
                    index,
                    seed=seed,
                    duration_s=scenario.duration_s,
                    conforming=False,
                    step=step,
                    stop=steps.stop,
                    faults=injector,
                )
            except (FidelityError, CallError, OSError):
                evidence.broken = injector.done
                raise
            if not window.complete and not window.everyone_sent:
                # Cut off before every tenant had sent a packet: there is nothing in it to judge.
                steps.require_wanted()
                return
            drift = (*drift, *reservations.drift())
        steps.measured = True
        failure: Exception | None = None
        own = granted
        if scenario.cooldown_s and not steps.stop():
            with steps.step(f"cooling down {index} of {seeds}") as step:
                try:
                    own = _cool_down(stage, reservations, granted, seeds + index, step=step, stop=steps.stop)
                except (FidelityError, PreflightError, CallError, OSError) as error:
                    failure = error
        terms = terms_of(scenario, reservations, shapers, own.host_s, own.idle)
        yield Measured(window, gates_of(scenario, window, terms, own.requests, drift), terms, own.requests)
        if failure:
            # What was measured before is judged all the same.
            raise failure
        if steps.stop():
            return


def _calibrate(stage: Stage, reservations: Reservations, step: Step, stop: Callable[[], bool]) -> _Granted:
    """Have every domain sign what a warm-up supports."""
    scenario = stage.network.scenario
    warm_up = _played_unbroken(stage, reservations, 0, scenario.warmup_s, step=step, stop=stop)
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
    cool_down = _played_unbroken(stage, reservations, index, scenario.cooldown_s, step=step, stop=stop)
    if not cool_down.complete:
        return granted
    terms = terms_of(scenario, reservations, shapers, granted.host_s, granted.idle)
    requests = {
        name: own.bracketed(cool_down.requests[name], shapers[name], scenario.duration_s)
        for name, own in granted.requests.items()
    }
    return replace(granted, idle=bracketed(granted.idle, cool_down, terms, scenario.duration_s), requests=requests)


def _played_unbroken(
    stage: Stage, reservations: Reservations, index: int, duration_s: float, *, step: Step, stop: Callable[[], bool]
) -> Window:
    """Traffic to calibrate by: everybody keeps the contract, and nothing is broken."""
    return stage.play(
        index,
        seed=stage.network.scenario.seed,
        duration_s=duration_s,
        conforming=True,
        step=step,
        stop=stop,
        faults=Injector(_site(stage, reservations), []),
    )


def _site(stage: Stage, reservations: Reservations) -> Site:
    return Site(stage.network, stage.controllers, lambda: reservations.programs, stage.fill_disk)
