"""The gates every measured window must pass before it may say anything about a promise.

Each function turns one kind of evidence into gates: what was found, the limit, and whether it held. One breach makes
the window INVALID. Two of them, `replay` and `tail shift`, judge the measured delays themselves, so whatever the host
did is caught there if it mattered. The limits on the host's own noise can therefore be generous: they catch a host that
is plainly unfit and explain what the two found, and a hiccup that moved nothing invalidates nothing. Everything here is
pure; nothing here knows a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from testbed.telemetry.capture import CaptureCounts
from testbed.telemetry.host import Change
from testbed.telemetry.idle_path import FENCE, IdlePath
from testbed.telemetry.match import Match
from testbed.telemetry.samples import FloatArray, Replay, TenantSamples
from testbed.telemetry.stalls import StallRecord

LONGEST_STALL_S = 0.1
"""A core away for this long is no place to measure milliseconds; shorter absences are judged by what they moved."""
STALLED_SHARE = 0.05
"""Share of a window that a core may be late in. Ordinary scheduling on two busy cores was seen to take 2 %."""
IDLE_SHARE = 0.03
"""A core with less idle time than this has a queue of its own, which no envelope describes."""
STEAL_SHARE = 0.02
"""Steal comes in slices of milliseconds; beyond 2 % there are many of them in every second."""
THROTTLED_SHARE = 0.001
"""A throttled group stands still; a thousandth of the window is all that a p99.9 may not see."""
PRESSURE_SHARE = {"cpu": 0.6, "memory": 0.01, "io": 0.3}
"""Share in which tasks waited: some task for the CPU (a wait of microseconds counts, hence so much), all tasks for
memory (reclaim stops senders and switch alike) or for the disk (only captures write)."""
LATENESS_P999_S = 0.002
"""Lateness counts as latency, so it must be small beside any deadline that two busy cores can be asked to show."""
LATENESS_MAX_S = 0.1
"""As `LONGEST_STALL_S`: one late packet moves no p99.9, and a shorter stall is judged by what it moved."""
CLOCK_STEP_S = 0.0005
"""Send times and stamps are compared across the two clocks; half a millisecond is the error that may bring in."""
RESIDUAL_S = 1e-6
"""Parts of a latency come from the same stamps, so they add up to rounding; a microsecond is a mistake."""
REPLAY_SHARE = 0.03
"""Measured and ideal p99.9 may differ by this part of the ideal one."""
REPLAY_RESOLVED_S = 0.001
"""A difference that a software switch's own forwarding can be told from. Where 3 % of the ideal is less (a p99.9 below
some 33 ms), the measured one is held to the latency that the queues on the path declared, of which an idle path has
taken its part; a stall there is the tail shift's to find."""
SHIFT_SHARE = 0.02
"""Part of a p99.9 by which outliers may have moved it. A move of 3 % must never pass; the rest is for the estimate."""
SHIFT_RESOLVED_S = 0.0004
"""A smaller move cannot be told from what a software switch does by itself. So tenants with a p99.9 above some 13 ms
are protected against a move of 3 %, all others against a move of this much."""

_LEVEL = 0.999
_EXAMPLES = 3


@dataclass(frozen=True)
class Gate:
    """One thing that had to hold for the window to count.

    Attributes:
        name: Which gate, and of what (core, tenant, domain).
        value: What was found.
        limit: The largest (or, where the detail says so, smallest) value that holds.
        ok: Whether it held; never true of a value that is not a number.
        detail: One sentence for who asks why.
        unit: Unit of value and limit, empty for counts and shares.
    """

    name: str
    value: float
    limit: float
    ok: bool
    detail: str
    unit: str = ""

    @classmethod
    def at_most(cls, name: str, value: float, limit: float, detail: str, unit: str = "") -> Self:
        """A gate that holds up to its limit."""
        return cls(name, float(value), float(limit), bool(value <= limit), detail, unit)

    @classmethod
    def at_least(cls, name: str, value: float, limit: float, detail: str, unit: str = "") -> Self:
        """A gate that holds from its limit on."""
        return cls(name, float(value), float(limit), bool(value >= limit), detail, unit)


@dataclass(frozen=True)
class Ledger:
    """A number of packets that two witnesses must agree on."""

    what: str
    expected: int
    found: int


# Evidence about the host.


def stalls(
    records: Sequence[StallRecord], *, longest_s: float = LONGEST_STALL_S, share: float = STALLED_SHARE
) -> list[Gate]:
    """Two gates per core: its longest absence, and the share of the window it was late in."""
    gates = []
    for record in records:
        seen = f"{record.at_ns.size} late of {record.ticks} ticks, longest {record.longest_s * 1e3:.2f} ms"
        stalled = record.stalled_s / record.duration_s if record.duration_s > 0 and not record.unrecorded else np.inf
        gates += [
            Gate.at_most(f"longest stall, core {record.core}", record.longest_s, longest_s, seen, "s"),
            Gate.at_most(f"stalled share, core {record.core}", stalled, share, seen),
        ]
    return gates


def host(
    change: Change,
    *,
    idle: float = IDLE_SHARE,
    steal: float = STEAL_SHARE,
    throttled: float = THROTTLED_SHARE,
    pressure: Mapping[str, float] | None = None,
    isolated: bool = False,
    awake: bool = False,
) -> list[Gate]:
    """Gates on what the kernel counted between the two snapshots around the window.

    A host is asked for idle time and for a CPU that nobody waits for, unless the run is `isolated`: then others may
    use up what the run leaves, and that they did not get before it is judged by stalls, lateness and the delays. Where
    the cores are kept `awake`, what does that waits for the CPU all the time, so the latter is not asked either.
    """
    busiest = min(change.idle_share, key=lambda core: change.idle_share[core], default=0)
    waited = {"cpu": change.some_share, "memory": change.full_share, "io": change.full_share}
    limits = PRESSURE_SHARE if pressure is None else pressure
    shares = ", ".join(f"core {core} {share:.0%}" for core, share in change.idle_share.items())
    least = Gate.at_least("CPU idle", change.idle_share.get(busiest, 0.0), idle, f"least that holds; idle: {shares}")
    return [
        *([] if isolated else [least]),
        Gate.at_most("CPU steal", change.steal_share, steal, "share of all cores' time given to other machines"),
        Gate.at_most("CPU throttling", change.throttled_share, throttled, "share in which our control group stood"),
        *(
            Gate.at_most(
                f"{name} pressure",
                waited[name].get(name, 0.0),
                limit,
                f"share in which {'some task' if name == 'cpu' else 'all tasks'} waited for {name}",
            )
            for name, limit in limits.items()
            if not ((isolated or awake) and name == "cpu")
        ),
        Gate.at_most("backlog drops", change.backlog_drops, 0, "packets dropped at a core's full input queue"),
        _none("socket drops", change.socket_drops),
        configuration("host settings", change.settings),
    ]


def clock(step_s: float, records: Sequence[StallRecord], *, limit_s: float = CLOCK_STEP_S) -> Gate:
    """The two clocks kept together, from beginning to end and, by the tickers that looked all along, in between.

    Args:
        step_s: How much CLOCK_REALTIME had moved against CLOCK_MONOTONIC in the end.
        records: What each core's ticker saw.
        limit_s: How much it may.
    """
    between_s = max((record.clock_moved_s for record in records), default=np.inf)
    blind = ", ".join(str(record.core) for record in records if not np.isfinite(record.clock_moved_s)) or "any"
    between = (
        f"up to {between_s * 1e3:.3f} ms in between"
        if np.isfinite(between_s)
        else f"in between never compared on core {blind}, where every reading of both was interrupted"
    )
    detail = f"CLOCK_REALTIME against CLOCK_MONOTONIC: {abs(step_s) * 1e3:.3f} ms in the end, {between}"
    return Gate.at_most("clock step", max(abs(step_s), between_s), limit_s, detail, "s")


# Evidence about the instruments.


def lateness(
    tenant: str,
    lateness_s: FloatArray,
    *,
    p999_s: float = LATENESS_P999_S,
    longest_s: float = LATENESS_MAX_S,
) -> list[Gate]:
    """Whether a sender kept to its schedule: the p99.9 and the largest lateness of what it sent.

    Args:
        tenant: Whose.
        lateness_s: Of each packet or request, NaN where it was not sent, [n].
        p999_s: Limit on the p99.9.
        longest_s: Limit on the largest.
    """
    late = lateness_s[np.isfinite(lateness_s)]
    detail = f"{late.size} sent of {lateness_s.size} intended"
    return [
        Gate.at_most(f"sender lateness p99.9, {tenant}", quantile(late), p999_s, detail, "s"),
        Gate.at_most(f"sender lateness, largest, {tenant}", float(late.max(initial=0.0)), longest_s, detail, "s"),
    ]


def captures(counts: Mapping[str, CaptureCounts]) -> Gate:
    """No capture missed a packet; `counts` by border."""
    return _none("capture drops", {f"{border} ({count})": count.missed for border, count in counts.items()})


def matching(tenant: str, match: Match, *, residual_s: float = RESIDUAL_S) -> list[Gate]:
    """Every border tells the same story: no packet unseen, doubled, changed, overtaken or from nowhere."""
    odd: dict[str, int] = {}
    for k, border in enumerate(match.borders):
        for what in ("unseen", "duplicates", "resized", "strangers"):
            odd[f"{what} at border {k}"] = getattr(border, what)
    overtaken = {f"border {k}": border.reordered for k, border in enumerate(match.borders)}
    return [
        _none(f"borders agree, {tenant}", odd),
        _none(f"first in, first out, {tenant}", overtaken),
        Gate.at_most(
            f"residual, {tenant}", match.residual_s, residual_s, "latency minus the sum of its parts, largest", "s"
        ),
    ]


# Evidence about the switches.


def packet_ins(count: int) -> Gate:
    """No packet of the window went to a controller."""
    return Gate.at_most("packet-ins", count, 0, "packets that reached a controller within the window")


def upcalls(misses: int, lost: int) -> Gate:
    """No packet of the window left the datapath for want of a flow."""
    return Gate.at_most("upcalls", misses + lost, 0, f"{misses} flow misses, {lost} of them lost, within the window")


def configuration(name: str, differences: Sequence[str]) -> Gate:
    """Nothing changed; `differences` are sentences, as a controller's verification gives them."""
    return Gate.at_most(name, len(differences), 0, "; ".join(differences[:_EXAMPLES]) or "as it was")


def ledger(name: str, rows: Sequence[Ledger]) -> Gate:
    """Both witnesses agree on every row, to the packet; the value is the packets they disagree on."""
    apart = sorted((row for row in rows if row.found != row.expected), key=lambda row: -abs(row.found - row.expected))
    worst = [f"{row.what}: found {row.found}, expected {row.expected}" for row in apart[:_EXAMPLES]]
    value = sum(abs(row.found - row.expected) for row in rows)
    return Gate.at_most(name, value, 0, "; ".join(worst) or f"{len(rows)} counters agree")


# Evidence in the delays themselves.


def host_lateness(samples: TenantSamples, replayed: Replay, queues_s: float) -> FloatArray:
    """How much later than its queues alone would make it each packet arrived; seconds, [n], NaN where it did not.

    That is its latency, less its wait in one ideal queue fed the packets as they were meant to be sent, less the
    latency `queues_s` that the queues and links of the path declare. So a pause counts once, wherever it struck.
    """
    return samples.latency_s - replayed.ideal_intended_s - queues_s


def host_allowance(
    tenant: str, samples: TenantSamples, replayed: Replay, *, queues_s: float, host_s: float, share: float
) -> Gate:
    """The share of packets that the host made later than it may, on the whole path.

    The bound holds whatever the host does to as many packets as `share`, and counts `host_s` for all others.
    """
    late_s = host_lateness(samples, replayed, queues_s)
    found, delivered = np.count_nonzero(late_s > host_s), np.count_nonzero(np.isfinite(late_s))
    detail = f"{found} of {delivered} packets more than {host_s * 1e3:.1f} ms later than queues alone explain"
    if found:
        held_s = np.column_stack((samples.border_s[:, 0] - samples.intended_s, replayed.lag_s))[late_s > host_s]
        places = np.bincount(np.nanargmax(held_s, axis=1), minlength=held_s.shape[1])
        named = zip(("before the first domain", *(f"in {name}" for name in samples.domains)), places, strict=True)
        detail += f", held up most {', '.join(f'{place} ({count})' for place, count in named if count)}"
    return Gate.at_most(f"host allowance, {tenant}", found / delivered if delivered else 0.0, share, detail)


def idle_path(tenant: str, known: IdlePath, declared_s: float) -> Gate:
    """What the switches of a path take of a packet that waits for nobody, within the latency that they declare.

    So the idle path that an ideal replay is granted can hide no queue.
    """
    where = "warm-up" if known.after_s is None else "warm-up or the cool-down"
    detail = f"what half of {known.size} packets of the {where} that waited for nobody took, against what is declared"
    return Gate.at_most(f"idle path, {tenant}", known.typical_s, declared_s, detail, "s")


def replay(
    tenant: str,
    samples: TenantSamples,
    replayed: Replay,
    *,
    queues_s: float,
    level: float = _LEVEL,
    share: float = REPLAY_SHARE,
    resolved_s: float = REPLAY_RESOLVED_S,
) -> Gate:
    """A quantile measured in the network, the promised one, beside that of an ideal token bucket fed the same arrivals.

    Its rate and burst are those read back; behind it lies an idle path. The limit is 3 % of the ideal. Where that is
    too little to be resolved, it is what an idle path leaves of the latency that the queues and links declare,
    `queues_s`.
    """
    delivered = samples.delivered & np.isfinite(replayed.ideal_s)
    measured, ideal = quantile(samples.network_s[delivered], level), quantile(replayed.shaped_s[delivered], level)
    # Links are not measured here: a long one must not hide a queue that is off.
    waited = ideal - replayed.links_s
    declared = queues_s - replayed.links_s - quantile(replayed.idle_s, 0.5)
    limit = share * waited if share * waited >= resolved_s else max(declared, resolved_s)
    part = f" ({measured / ideal - 1:+.2%})" if ideal > 0 else ""
    detail = f"{percentile(level)} measured {measured * 1e3:.3f} ms, ideal {ideal * 1e3:.3f} ms{part}"
    return Gate.at_most(f"replay, {tenant}", abs(measured - ideal), limit, detail, "s")


def tail_shift(
    tenant: str,
    samples: TenantSamples,
    replayed: Replay,
    *,
    level: float = _LEVEL,
    share: float = SHIFT_SHARE,
    resolved_s: float = SHIFT_RESOLVED_S,
) -> Gate:
    """How far outliers moved the promised quantile, whatever stalled: sender, edge, switch or the whole machine.

    A packet is an outlier if it was delayed, beyond the ideal wait of the schedule as it was *meant* to be sent, by
    more than Tukey's fence over the tenth of the packets that ideally wait longest. Its delay is put back to the usual
    one, and the quantile with and without this correction are compared.
    """
    delivered = samples.delivered & np.isfinite(replayed.ideal_intended_s)
    latency, ideal = samples.latency_s[delivered], replayed.shaped_intended_s[delivered]
    corrected, outliers = _without_outliers(latency, ideal)
    measured, usual = quantile(latency, level), quantile(corrected, level)
    detail = (
        f"{percentile(level)} {measured * 1e3:.3f} ms, {usual * 1e3:.3f} ms without the excess of {outliers} outliers "
        f"among {latency.size} packets"
    )
    limit = max(share * usual, resolved_s)
    return Gate.at_most(f"tail shift, {tenant}", abs(measured - usual), limit, detail, "s")


def _without_outliers(latency_s: FloatArray, ideal_s: FloatArray) -> tuple[FloatArray, int]:
    if latency_s.size == 0:
        return latency_s, 0
    excess = latency_s - ideal_s
    waiting = excess[ideal_s >= np.quantile(ideal_s, 0.9)]
    low, usual, high = np.quantile(waiting, [0.25, 0.5, 0.75])
    outliers = excess > high + FENCE * (high - low)
    return np.where(outliers, ideal_s + usual, latency_s), int(np.count_nonzero(outliers))


def percentile(level: float) -> str:
    """A quantile's level as its name."""
    return f"p{100 * level:.6g}"


def quantile(values: FloatArray, level: float = _LEVEL) -> float:
    """The smallest value that a share `level` of the values does not exceed; 0 if there are none."""
    return float(np.quantile(values, level, method="inverted_cdf")) if values.size else 0.0


def _none(name: str, counts: Mapping[str, int]) -> Gate:
    some = {what: count for what, count in counts.items() if count}
    return Gate.at_most(
        name, sum(some.values()), 0, ", ".join(f"{count} {what}" for what, count in some.items()) or "none"
    )
