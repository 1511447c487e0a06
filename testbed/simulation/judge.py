"""From the tallies of all windows to one row of the verdict table, where not every packet was recorded.

Where every packet was, `testbed.run.judge` sees the packets themselves and decides as for a run; here the same
questions are put to counts.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from testbed.audit.compliance import lower_limit, upper_limit
from testbed.management.bounds import speaks_of_sent
from testbed.report.tenant_record import BoundRecord, ConformanceRecord, TenantRecord
from testbed.report.verdict import Verdict
from testbed.scenario.model import Promise, Tenant
from testbed.simulation.clock import to_ps
from testbed.simulation.estimate import beyond, design_effect, quantile
from testbed.simulation.tally import LATER_METER, METER, QUEUE, TIMEOUT, Tally


def spoken_of(tenant: Tenant, index: int, tally: Tally) -> Tally:
    """What a bound speaks of: one tenant's tally without what its first meter dropped.

    It says how late the others are and that no queue drops them, either of all that is sent or of all that passes.
    """
    return tally.unmetered(index, sent=speaks_of_sent(tenant))


def is_broken(tenant: Tenant, index: int, tally: Tally, bound: BoundRecord, confidence: float = 0.95) -> bool:
    """Whether counts show that more packets are later than a bound, or never arrive, than it says.

    The first meter's drops are left out (`spoken_of`). Of requests that their clients gave up no more is known than
    that they took longer than the timeout, which a bound above it does not deny.

    Args:
        tenant: Whose bound it is.
        index: Its place in the tally.
        tally: All windows together.
        bound: The bound.
        confidence: Of the lower limit of the share that is later.
    """
    own = spoken_of(tenant, index, tally)
    sizes = own.coarse[:, 0].sum(axis=1)
    if not sizes.any():
        return False
    effect = design_effect(replace(own, deadline_ps=np.array([to_ps(bound.bound_s)])), 0)
    if effect is None:
        # Where nearly none is late, or all are equally, each part of a window counts for no more than one packet.
        effect = max(1.0, own.n[0] / np.count_nonzero(sizes))
    later = beyond(own, 0, bound.bound_s)
    if tenant.requests is not None and bound.bound_s >= tenant.requests.timeout_s:
        later -= int(own.lost[0, TIMEOUT])
    lower = lower_limit(math.floor(later / effect), own.n[0] / effect, confidence)
    return lower > (tenant.promise.epsilon if tenant.promise else 1e-3)


def _held_lower_s(tenant: Tenant, index: int, tally: Tally) -> float | None:
    """The lower limit of the percentile that a bound is made for, of what it speaks of."""
    own = spoken_of(tenant, index, tally)
    level = 1.0 - (tenant.promise.epsilon if tenant.promise else 1e-3)
    return quantile(own, 0, level, design_effect(own, 0)).one_sided_lower_s if own.n[0] else None


def judge_tally(
    tenant: Tenant,
    index: int,
    tally: Tally,
    bound: BoundRecord | None,
    recorded: TenantRecord,
    *,
    way_out: int,
) -> TenantRecord:
    """Judge one tenant by its counts.

    Args:
        tenant: What it was promised.
        index: Its place in the tally.
        tally: All windows together.
        bound: Its analytical bound, None where nothing is promised.
        recorded: The row of the recorded packets or requests alone, which keeps what only they can say: delays per
            domain.
        way_out: Row of the tally that counts the network part: that of the tenant itself where it sends packets.
    """
    n, lost = int(tally.n[index]), int(tally.lost[index].sum())
    misses = lost + int(tally.late[index]) if tenant.promise else 0
    effect = design_effect(tally, index)
    promised_level = 1.0 - (tenant.promise.epsilon if tenant.promise else 1e-3)
    levels = (0.5, 0.99, 0.999, promised_level)
    median, p99, p999, promised = (quantile(tally, index, level, effect) for level in levels)
    dropped = int(tally.lost[index, METER])
    contract, requests = recorded.conformance, recorded.requests
    beyond = int(tally.nonconforming[index])
    verdict, reason, upper = _verdict(tenant, n, misses, effect, beyond)
    lower_s = promised.one_sided_lower_s
    return recorded.model_copy(
        update={
            "n": n,
            "misses": misses,
            "lost": lost,
            "p50_s": median.estimate_s,
            "p99_s": p99.estimate_s,
            "p999_s": p999.estimate_s,
            "p999_interval_s": (p999.lower_s, p999.upper_s),
            "p999_lower_s": p999.one_sided_lower_s,
            "promised_s": promised.estimate_s,
            "promised_interval_s": (promised.lower_s, promised.upper_s),
            "promised_lower_s": lower_s,
            "ideal_promised_s": None,
            "network_p999_s": quantile(tally, way_out, 0.999, None).estimate_s,
            "ideal_p999_s": None,
            "bound_broken": bound is not None and is_broken(tenant, index, tally, bound),
            "bound_held_s": None if bound is None else _held_lower_s(tenant, index, tally),
            "verdict": verdict,
            "reason": reason,
            "n_effective": None if effect is None else n / effect,
            "design_effect": effect,
            "miss_rate_upper": upper,
            "samples_needed": None,
            "seconds_needed": None,
            "conformance": contract
            and ConformanceRecord(
                offered=n,
                nonconforming=beyond,
                meter_dropped=dropped + int(tally.lost[index, LATER_METER]),
                queue_dropped=int(tally.lost[index, QUEUE]),
                delivered=n - lost,
            ),
            "requests": requests
            and requests.model_copy(
                update={"answered": n - lost, "timeouts": lost, "nonconforming": beyond},
            ),
        }
    )


def _verdict(
    tenant: Tenant, n: int, misses: int, effect: float | None, beyond: int
) -> tuple[Verdict, str, float | None]:
    what = "packets" if tenant.requests is None else "requests"
    if tenant.promise is None:
        return "NONE", "", None
    if beyond:
        return (
            "EXCUSED",
            f"the tenant broke its own contract: {beyond:,} of {n:,} {what} exceeded its token bucket",
            None,
        )
    if effect is None:
        return "UNDETERMINED", f"of {n:,} {what} too few are slow to tell how misses cluster; simulate more", None
    return _counted(tenant.promise, n, misses, effect, what)


def _counted(promise: Promise, n: int, misses: int, effect: float, what: str) -> tuple[Verdict, str, float]:
    upper = upper_limit(math.ceil(misses / effect), n / effect, promise.confidence)
    lower = lower_limit(math.floor(misses / effect), n / effect, promise.confidence)
    worth = (
        f"{misses:,} of {n:,} {what} missed {promise.deadline_s * 1e3:g} ms, worth {misses / effect:.3g} of "
        f"{n / effect:,.0f} independent ones"
    )
    said = f"with {promise.confidence:.0%} confidence, {promise.epsilon:g} was promised"
    if upper <= promise.epsilon:
        return "PASS", f"{worth}: the miss rate is at most {upper:.3g} {said}", upper
    if lower > promise.epsilon:
        return "FAIL", f"{worth}: the miss rate is at least {lower:.3g} {said}", upper
    return "UNDETERMINED", f"{worth}: the miss rate may lie anywhere from {lower:.3g} to {upper:.3g}; {said}", upper
