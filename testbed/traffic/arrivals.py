"""Draws the packets of a whole window ahead of time, for every arrival process a scenario can declare.

Each process starts in equilibrium, so nothing depends on where in its life a window opens, and each tenant has random
streams of its own: adding a tenant or a window changes no other. Nothing is sent here, and nothing here knows of a
network; the same schedule feeds the senders, the simulation and the ideal replay.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError
from testbed.scenario.model import (
    Arrivals,
    Interval,
    Misbehaviour,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    Scenario,
    Tenant,
    TraceArrivals,
)
from testbed.traffic.modulation import (
    OnOffPath,
    RatePath,
    correlated_path,
    correlated_rate_path,
    on_off_path,
    rate_path,
    reached_at,
)
from testbed.traffic.renewal import EXPONENTIAL, gap_law, points
from testbed.traffic.schedules import Schedule
from testbed.traffic.traces import Requests
from testbed.traffic.workloads import read_requests

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

Seed = int | np.random.SeedSequence

_GROUPS = 0
"""First spawn key of streams shared by a group; tenants' numbers, the other first keys, start at 1."""


def tenant_seed(root: int, number: int, window: int) -> np.random.SeedSequence:
    """Seed of one tenant's stream in one window (0 the first) of the run with seed `root`."""
    return np.random.SeedSequence(root, spawn_key=(number, window))


def group_seed(root: int, group: str, window: int) -> np.random.SeedSequence:
    """Seed of the modulating process that tenants of `group` share in one window."""
    digest = hashlib.sha256(group.encode()).digest()
    return np.random.SeedSequence(root, spawn_key=(_GROUPS, window, int.from_bytes(digest[:4], "big")))


def schedules(
    scenario: Scenario, *, window: int, duration_s: float, seed: int | None = None, conforming: bool = False
) -> dict[int, Schedule]:
    """Draw one window of every tenant.

    Args:
        scenario: Where the tenants and the seed come from.
        window: Number of the window within the run; every window has streams of its own.
        duration_s: Length of the window.
        seed: Root seed, where it is not the scenario's (one of several runs).
        conforming: Draw the declared processes, as if nobody misbehaved or ever left.

    Returns:
        Schedules by tenant number.

    Raises:
        ScenarioError: A trace that cannot be read, or arrivals that contradict themselves.
    """
    root = scenario.seed if seed is None else seed
    shared = {} if conforming else modulators(scenario, window=window, duration_s=duration_s, seed=root)

    def drawn(number: int, tenant: Tenant) -> Schedule:
        present = None if conforming else tenant.present_s
        breach = tenant.misbehaviour
        packets = schedule(
            tenant.arrivals,
            seed=tenant_seed(root, number, window),
            duration_s=duration_s if present is None else _stay_s(present, duration_s),
            misbehaviour=breach,
            conforming=conforming,
            modulators=shared,
            group=None if breach is None or breach.group is None else group_seed(root, breach.group, window),
        )
        return packets if present is None else _while_present(packets, present)

    return {number: drawn(number, tenant) for number, tenant in enumerate(scenario.tenants, start=1)}


def modulators(scenario: Scenario, *, window: int, duration_s: float, seed: int) -> dict[str, OnOffPath]:
    """Draw the paths that on-off tenants of a group share who are on and off at the very same times, by group name.

    Raises:
        ScenarioError: A tenant of a group sends packets that no hidden state modulates.
    """
    paths: dict[str, OnOffPath] = {}
    for tenant in scenario.tenants:
        group = None if tenant.misbehaviour is None else tenant.misbehaviour.group
        if group is None:
            continue
        if not isinstance(tenant.arrivals, OnOffArrivals | MmppArrivals):
            raise ScenarioError(
                f"tenant {tenant.name}: found correlated bursts of {type(tenant.arrivals).__name__}, expected arrivals "
                f"that a hidden state modulates, on-off or mmpp; declare such or take it out of group {group}"
            )
        shares = tenant.misbehaviour is not None and tenant.misbehaviour.strength is None
        if shares and group not in paths and isinstance(tenant.arrivals, OnOffArrivals):
            rng = np.random.default_rng(group_seed(seed, group, window))
            arrivals = tenant.arrivals
            paths[group] = on_off_path(arrivals.mean_on_s, arrivals.mean_off_s, rng=rng, duration_s=duration_s)
    return paths


def schedule(
    arrivals: Arrivals,
    *,
    seed: Seed,
    duration_s: float,
    misbehaviour: Misbehaviour | None = None,
    conforming: bool = False,
    modulators: Mapping[str, OnOffPath] | None = None,
    group: np.random.SeedSequence | None = None,
) -> Schedule:
    """Draw the packets of one tenant in the window [0, duration_s).

    Args:
        arrivals: The declared process.
        seed: Seed of this tenant in this window, see `tenant_seed`.
        duration_s: Length of the window.
        misbehaviour: How the tenant departs from the declared process.
        conforming: Ignore `misbehaviour`.
        modulators: Paths shared by correlated tenants, by group name, see `modulators`.
        group: Seed of the process that a tenant follows to some strength, see `group_seed`.

    Returns:
        The packets, in the order they leave.

    Raises:
        ScenarioError: A trace that cannot be read, or arrivals that contradict themselves.
    """
    rng = np.random.default_rng(seed)
    breach = None if conforming else misbehaviour
    if breach is not None and breach.kind == "flood":
        return _flood(arrivals, breach, rng, duration_s)
    if breach is not None and isinstance(arrivals, MmppArrivals):
        # A whole group without strengths is one of strength 1.
        strength = 1.0 if breach.strength is None else breach.strength
        return _following(arrivals, rng, duration_s, strength, group)
    if breach is not None and breach.strength is not None:
        return _following(arrivals, rng, duration_s, breach.strength, group)
    if breach is not None and breach.kind == "correlated":
        return _on_off(arrivals, rng, duration_s, _shared_path(arrivals, breach, modulators or {}))
    return _conforming(arrivals, rng, duration_s)


def mean_bps(arrivals: Arrivals) -> float:
    """Mean L2 rate of the declared process; reads the file of a trace.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    match arrivals:
        case PoissonArrivals() | RenewalArrivals() | MmppArrivals():
            return arrivals.rate_per_s * arrivals.size_bits
        case OnOffArrivals():
            return arrivals.peak_bps * arrivals.mean_on_s / (arrivals.mean_on_s + arrivals.mean_off_s)
        case TraceArrivals():
            requests = read_requests(arrivals)
            return float(requests.size_bits.sum(dtype=np.int64)) / requests.period_s


def replay(requests: Requests, *, seed: Seed | np.random.Generator, duration_s: float) -> Schedule:
    """Repeat a trace endlessly, from a random point of it, as the packets of one window, see `replay_order`."""
    return requests.packets(*replay_order(requests.time_s, requests.period_s, seed=seed, duration_s=duration_s))


def replay_order(
    time_s: FloatArray, period_s: float, *, seed: Seed | np.random.Generator, duration_s: float
) -> tuple[IntArray, FloatArray]:
    """Repeat a trace endlessly, from a random point of it.

    A window then has the trace's statistics wherever it opens, seeds are different samples of it, and a window may
    be longer than the trace.

    Args:
        time_s: Arrival times of the trace, from 0 to less than `period_s`, float64[n].
        period_s: Length of the trace when it is repeated.
        seed: Decides the point.
        duration_s: Length of the window.

    Returns:
        Which row of the trace arrives, int64[m], and when, non-decreasing, float64[m].
    """
    rng = np.random.default_rng(seed)
    offset_s = rng.random() * period_s
    start = int(np.searchsorted(time_s, offset_s))
    once_s = np.concatenate((time_s[start:], time_s[:start] + period_s)) - offset_s
    rounds = math.ceil(duration_s / period_s)
    order = np.tile(np.roll(np.arange(time_s.size), -start), rounds)
    times_s = (once_s + np.arange(rounds)[:, None] * period_s).ravel()
    within = times_s < duration_s
    return order[within], times_s[within]


def _conforming(arrivals: Arrivals, rng: np.random.Generator, duration_s: float) -> Schedule:
    match arrivals:
        case PoissonArrivals():
            times_s = points(EXPONENTIAL, 1 / arrivals.rate_per_s, rng=rng, duration_s=duration_s)
            return _equal_sizes(times_s, arrivals.size_bits)
        case RenewalArrivals():
            law = gap_law(arrivals.gap, arrivals.cv)
            times_s = points(law, 1 / arrivals.rate_per_s, rng=rng, duration_s=duration_s)
            return _equal_sizes(times_s, arrivals.size_bits)
        case OnOffArrivals():
            return _on_off(arrivals, rng, duration_s, None)
        case MmppArrivals():
            return _equal_sizes(_mmpp_points(arrivals, rng, duration_s), arrivals.size_bits)
        case TraceArrivals():
            return replay(read_requests(arrivals), seed=rng, duration_s=duration_s)


def _flood(arrivals: Arrivals, breach: Misbehaviour, rng: np.random.Generator, duration_s: float) -> Schedule:
    """The declared process with its time compressed, so that a flood keeps the declared shape of its bursts."""
    if breach.offered_bps is None:
        raise ScenarioError("misbehaviour flood: found no offered rate, expected one; state what the tenant offers")
    speed_up = breach.offered_bps / mean_bps(arrivals)
    slow = _conforming(arrivals, rng, duration_s * speed_up)
    return _until(Schedule(slow.time_s / speed_up, slow.size_bits, slow.last_of_request), duration_s)


def _shared_path(arrivals: Arrivals, breach: Misbehaviour, shared: Mapping[str, OnOffPath]) -> OnOffPath:
    path = shared.get(breach.group or "")
    if path is None:
        raise ScenarioError(
            f"misbehaviour correlated: found no modulating process for group {breach.group!r}, expected one of "
            f"{sorted(shared)}; name the group that the tenants share"
        )
    if isinstance(arrivals, OnOffArrivals) and (arrivals.mean_on_s, arrivals.mean_off_s) != (
        path.mean_on_s,
        path.mean_off_s,
    ):
        raise ScenarioError(
            f"misbehaviour correlated: found mean periods {arrivals.mean_on_s} s on and {arrivals.mean_off_s} s off in "
            f"group {breach.group!r}, expected {path.mean_on_s} s and {path.mean_off_s} s like its first tenant; "
            "tenants that share bursts share their periods (peaks may differ)"
        )
    return path


def _following(
    arrivals: Arrivals,
    rng: np.random.Generator,
    duration_s: float,
    strength: float,
    group: np.random.SeedSequence | None,
) -> Schedule:
    if group is None:
        raise ScenarioError(
            "misbehaviour correlated: found no group, expected the seed of one; name the tenant's group"
        )
    common = np.random.default_rng(group)
    match arrivals:
        case OnOffArrivals(mean_on_s=on_s, mean_off_s=off_s):
            ready = rng.random()
            path = correlated_path(on_s, off_s, strength, common=common, own=rng, duration_s=duration_s)
            return _cut(arrivals, ready, duration_s, path)
        case MmppArrivals(rates_per_s=rates, switch_per_s=switch):
            states, packets = rng.spawn(2)
            rate = correlated_rate_path(rates, switch, strength, common=common, own=states, duration_s=duration_s)
            return _equal_sizes(_modulated_points(rate, packets, duration_s), arrivals.size_bits)
        case _:
            raise ScenarioError(
                f"misbehaviour correlated: found {type(arrivals).__name__}, expected arrivals that a hidden state "
                "modulates, on-off or mmpp; declare such, or delete the misbehaviour"
            )


def _on_off(arrivals: Arrivals, rng: np.random.Generator, duration_s: float, path: OnOffPath | None) -> Schedule:
    if not isinstance(arrivals, OnOffArrivals):
        raise ScenarioError("misbehaviour correlated: found arrivals without bursts, expected on-off arrivals")
    ready = rng.random()
    if path is None:
        path = on_off_path(arrivals.mean_on_s, arrivals.mean_off_s, rng=rng, duration_s=duration_s)
    return _cut(arrivals, ready, duration_s, path)


def _cut(arrivals: OnOffArrivals, ready: float, duration_s: float, path: OnOffPath) -> Schedule:
    """Cut the fluid of an on-off path into packets.

    A packet leaves when its last bit has been produced. What a burst leaves unfinished is finished by the next one,
    and a stationary source has some of its next packet already when the window opens. So with V(t) the fluid produced
    up to t and U uniform on [0, L), packets leave when V + U reaches L, 2 L, 3 L and so on.
    """
    ready_s = ready * arrivals.size_bits / arrivals.peak_bps
    spacing_s = arrivals.size_bits / arrivals.peak_bps
    packets = int((float(np.sum(path.end_s - path.start_s)) + ready_s) / spacing_s)
    needed_s = np.arange(1, packets + 1, dtype=np.float64) * spacing_s - ready_s
    times_s = reached_at(path.start_s, path.end_s, np.ones(path.start_s.size), needed_s)
    return _until(_equal_sizes(times_s, arrivals.size_bits), duration_s)


def _mmpp_points(arrivals: MmppArrivals, rng: np.random.Generator, duration_s: float) -> FloatArray:
    states, packets = rng.spawn(2)
    path = rate_path(arrivals.rates_per_s, arrivals.switch_per_s, rng=states, duration_s=duration_s)
    return _modulated_points(path, packets, duration_s)


def _modulated_points(path: RatePath, packets: np.random.Generator, duration_s: float) -> FloatArray:
    """A Poisson process of rate 1 in the time that runs as fast as the modulated rate."""
    expected = float(np.cumsum(np.diff(path.edges_s) * path.rate_per_s)[-1])
    amounts = points(EXPONENTIAL, 1.0, rng=packets, duration_s=expected)
    times_s = reached_at(path.edges_s[:-1], path.edges_s[1:], path.rate_per_s, amounts)
    return times_s[times_s < duration_s]


def _equal_sizes(times_s: FloatArray, size_bits: int) -> Schedule:
    n = times_s.size
    return Schedule(times_s, np.full(n, size_bits, dtype=np.int32), np.ones(n, dtype=np.bool_))


def _stay_s(present: Sequence[Interval], duration_s: float) -> float:
    """How long a tenant is there within a window."""
    return sum(max(0.0, min(end_s, duration_s) - begin_s) for begin_s, end_s in present)


def _while_present(packets: Schedule, present: Sequence[Interval]) -> Schedule:
    """Packets drawn in a tenant's own time, which stands still while it is away, in the time of the window."""
    begin_s, end_s = np.array(present).T
    own_s = np.concatenate(([0.0], np.cumsum(end_s - begin_s)[:-1]))
    visit = np.searchsorted(own_s, packets.time_s, side="right") - 1
    return replace(packets, time_s=packets.time_s - own_s[visit] + begin_s[visit])


def _until(packets: Schedule, duration_s: float) -> Schedule:
    within = packets.time_s < duration_s
    return Schedule(packets.time_s[within], packets.size_bits[within], packets.last_of_request[within])
