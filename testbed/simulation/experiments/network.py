"""Carries planned points out on the emulated network, one measured run each, beside the same packets in the simulator.

A point's run goes through the same code as `testbed run`, and its folder is the point: what is finished is found again
and never run twice, and a run that its gates call INVALID stays a point that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from testbed.audit.clusters import as_series, measure_dependence
from testbed.audit.compliance import judge
from testbed.audit.quantile import quantiles
from testbed.errors import InterruptedRunError, PreflightError
from testbed.management.sizing import shared_class
from testbed.report.record import RECORD_NAME, RunRecord, read_record
from testbed.report.stalls import Stalled
from testbed.report.timeline import load_stalls, starts
from testbed.run.pipeline import Options, run
from testbed.run.progress import Progress
from testbed.scenario.dictionary import from_dict
from testbed.scenario.model import Scenario, Tenant
from testbed.simulation.choices import Choices
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.experiments.point import CONFIDENCE, ExperimentPoint, Fates, Interval, keeping, share_limits
from testbed.simulation.experiments.scenarios import PointPlan
from testbed.simulation.experiments.windows import point_folder
from testbed.simulation.network import network
from testbed.simulation.window import Plan, simulate
from testbed.telemetry import samples

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Runner = Callable[[Scenario, Options, Progress], Path]

ON_NETWORK = "network"


@dataclass(frozen=True)
class Packets:
    """What became of the packets that a point is about.

    Attributes:
        intended_s: When each was to be sent, float64[n].
        latency_s: How long each took from then on, NaN or inf where it was lost, float64[n].
        tenant: Whose each is, int64[n]: one number for each tenant, and for each visit of those who come and go.
    """

    intended_s: FloatArray
    latency_s: FloatArray
    tenant: IntArray


def on_network(
    plans: Sequence[PointPlan],
    out: Path,
    progress: Progress,
    *,
    at_most: int | None = None,
    isolate: bool = False,
    keep_awake: bool = False,
    stop: Callable[[], bool] = lambda: False,
    command: tuple[str, ...] = (),
    runner: Runner = run,
) -> list[ExperimentPoint]:
    """Run what has not been run, and give every point that is finished.

    Args:
        plans: The points.
        out: Receives a folder a point, and is where finished ones are found again.
        progress: Told how far it has come.
        at_most: New runs to make; None for as many as are missing.
        isolate: Whether a run's processes get cores and priorities before everything else on the host.
        keep_awake: Whether idle cores are kept from sleeping.
        stop: Asked whether to end early, with what is finished by then.
        command: What to type to go on.
        runner: Carries a scenario out.

    Raises:
        PreflightError: This host cannot run it, or the folder holds another experiment.
    """
    folders = [finished(plan, out) for plan in plans]
    missing = [k for k, folder in enumerate(folders) if folder is None][:at_most]
    for k in missing:
        if stop():
            break
        options = Options(out=_place(plans[k], out), isolate=isolate, keep_awake=keep_awake, command=command, stop=stop)
        try:
            folder = runner(plans[k].scenario, options, progress)
        except InterruptedRunError:
            break
        if not read_record(folder).partial:
            folders[k] = folder
    return [measured(plan, folder) for plan, folder in zip(plans, folders, strict=True) if folder is not None]


def finished(plan: PointPlan, out: Path) -> Path | None:
    """The folder of a point's run that went to its end, the latest if there are several.

    Raises:
        PreflightError: It is another point's.
    """
    for record_path in sorted(_place(plan, out).glob(f"*/{RECORD_NAME}"), reverse=True):
        folder = record_path.parent
        record = read_record(folder)
        if from_dict(record.scenario) != plan.scenario:
            raise PreflightError(
                f"{folder}: holds a point of another experiment (other tenants, duration or seed); "
                "choose another folder with --out"
            )
        if not record.partial:
            return folder
    return None


def measured(plan: PointPlan, folder: Path) -> ExperimentPoint:
    """The point that a finished run is."""
    record = read_record(folder)
    found = [
        (tenant, start_s, samples.read(folder / window.samples[tenant.name])[0])
        for start_s, window in starts(record)
        for tenant in _judged(plan)
        if tenant.name in window.samples
    ]
    packets = _packets(plan, [(tenant, one.intended_s, one.latency_s) for tenant, _, one in found])
    time_s = np.concatenate([np.empty(0), *(start_s + one.intended_s for _, start_s, one in found)])
    latency_s = np.concatenate([np.empty(0), *(one.latency_s for _, _, one in found)])
    away_s, slowest = _stalled(Stalled.of(time_s, latency_s, load_stalls(record)))
    bounds = [tenant.bound_s for tenant in record.tenants if tenant.name in plan.judged and tenant.bound_s is not None]
    point = _point(plan, packets, max(bounds, default=plan.shared_bound_s))
    return replace(
        point, on=ON_NETWORK, invalid=_failed(record), run=str(folder), away_s=away_s, slowest_stalled=slowest
    )


def simulated(plan: PointPlan) -> ExperimentPoint:
    """The very packets of a point's run in the simulator, where no host delays anything."""
    scenario = plan.scenario
    ready = network(scenario, Choices())
    outcome = simulate(ready.system, Plan(scenario.seed, 1, scenario.duration_s, scenario.duration_s))
    found = []
    for tenant in _judged(plan):
        for passage in outcome.passages:
            own = passage.tenant == scenario.tenants.index(tenant)
            born_ps, last_ps = passage.born_ps[own], passage.border_ps[own, -1]
            latency_s = np.where(last_ps >= 0, (last_ps - born_ps) / PS_PER_S, np.inf)
            found.append((tenant, born_ps / PS_PER_S, latency_s))
    bounds = [ready.bounds[name].bound_s for name in plan.judged if name in ready.bounds]
    return _point(plan, _packets(plan, found), max(bounds, default=plan.shared_bound_s))


def _judged(plan: PointPlan) -> list[Tenant]:
    return [tenant for tenant in plan.scenario.tenants if tenant.name in plan.judged]


def _packets(plan: PointPlan, found: Sequence[tuple[Tenant, FloatArray, FloatArray]]) -> Packets:
    """Packets of some tenants in the order of sending, from each one's intended times and latencies."""
    first, numbers = 0, {}
    for tenant in _judged(plan):
        numbers[tenant.name] = first
        first += len(tenant.present_s or (None,))
    intended_s = np.concatenate([np.empty(0), *(sent for _, sent, _ in found)])
    latency_s = np.concatenate([np.empty(0), *(took for _, _, took in found)])
    own = [numbers[tenant.name] + _visit(tenant, sent) for tenant, sent, _ in found]
    order = np.argsort(intended_s, kind="stable")
    return Packets(intended_s[order], latency_s[order], np.concatenate([np.empty(0, np.int64), *own])[order])


def _visit(tenant: Tenant, intended_s: FloatArray) -> IntArray:
    """On which of its visits each packet was sent, from 0."""
    begins_s = [begin_s for begin_s, _ in tenant.present_s or ()]
    return np.maximum(np.searchsorted(begins_s, intended_s, side="right") - 1, 0)


def _fates(plan: PointPlan, packets: Packets) -> Fates:
    own = [packets.latency_s[packets.tenant == tenant] for tenant in np.unique(packets.tenant)]
    missed = [np.count_nonzero(~(latency_s <= plan.deadline_s)) for latency_s in own]
    seen = [measure_dependence(as_series(latency_s), plan.deadline_s) for latency_s in own]
    sizes = [latency_s.size for latency_s in own]
    effect = [float(n) if one is None else one.design_effect for n, one in zip(sizes, seen, strict=True)]
    return Fates(np.array(sizes, np.int64), np.array(missed, np.int64), np.array(effect))


def _admitted_limits(plan: PointPlan) -> tuple[float, float]:
    """Limits of the share admitted.

    Refusals cling together as misses do; where too few of them tell how, all who asked are worth one observation.
    """
    refused = np.array(plan.refused, dtype=np.float64)
    if not refused.size:
        return 1.0, 1.0
    dependence = measure_dependence(refused, 0.5)
    effect = float(refused.size) if dependence is None else dependence.design_effect
    return share_limits(int(refused.sum()), refused.size, effect)


def _point(plan: PointPlan, packets: Packets, bound_s: float | None) -> ExperimentPoint:
    series = packets.latency_s
    p999_s: float | None = None
    interval: Interval = (None, None)
    compliance, limits = float("nan"), (0.0, 1.0)
    if series.size:
        (found,) = quantiles(series, (0.999,), CONFIDENCE)
        p999_s, interval = _finite(found.estimate_s), (_finite(found.lower_s), _finite(found.upper_s))
        kept = judge(series, plan.deadline_s, plan.epsilon, (1 + CONFIDENCE) / 2)
        compliance = 1 - kept.misses / kept.n
        limits = (1 - kept.miss_rate_upper, 1 - kept.miss_rate_lower)
    size_bits = max(tenant.arrivals.size_bits for tenant in plan.scenario.tenants)
    within = packets.intended_s + series < plan.scenario.duration_s
    carried_bits = float(np.count_nonzero(within)) * size_bits
    return ExperimentPoint(
        varied=plan.varied,
        value=plan.value,
        contender=plan.contender,
        name=plan.name,
        p999_s=p999_s,
        p999_interval_s=interval,
        compliance=compliance,
        compliance_interval=limits,
        kept=keeping([_fates(plan, packets)], plan.epsilon, apart=all(tenant.reservation for tenant in _judged(plan))),
        admitted=plan.admitted,
        admitted_interval=_admitted_limits(plan),
        utilisation=carried_bits / _room_bits(plan.scenario, size_bits),
        bound_s=bound_s,
        packets=series.size,
    )


def _room_bits(scenario: Scenario, size_bits: int) -> float:
    """What the slowest link can carry within the window.

    A queue that all share begins with a full token bucket, and sends a packet as long as that is not overdrawn.
    """
    link = min(scenario.domains, key=lambda domain: domain.link_rate_bps)
    room_bits = link.link_rate_bps * scenario.duration_s
    if link.shared_queue_bits is not None:
        room_bits += 8 * shared_class(link.link_rate_bps, size_bits, link.shared_queue_bits).burst_bytes + size_bits
    return room_bits


def _stalled(found: Stalled | None) -> tuple[float, float]:
    """How long cores were away, and of which share of the slowest packets that may be the reason."""
    if found is None:
        return 0.0, 0.0
    return found.away_s, np.count_nonzero(found.slowest & found.touched) / np.count_nonzero(found.slowest)


def _failed(record: RunRecord) -> tuple[str, ...]:
    """Gates that say that the host, not the network, made these latencies."""
    return tuple(dict.fromkeys(gate.name for gate in record.gates if not gate.ok))


def _place(plan: PointPlan, out: Path) -> Path:
    return point_folder(out, plan.varied, plan.value, plan.name)


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
