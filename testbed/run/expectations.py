"""Whether a fault did to each tenant what the scenario says it does: who failed, who did not, how soon it was over.

Pure: from moments and delays to sentences. While a fault and the recovery from it last, the packets of a tenant that is
to fail belong to the fault and not to the tenant's promise; they are judged here and left out there. Nobody else's are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from testbed.audit import spared
from testbed.report.record import ExpectationRecord, GateRecord
from testbed.run.faults import CAUGHT, UNFINISHED, Occurrence
from testbed.scenario.faults import FaultKind
from testbed.scenario.model import Promise, Tenant
from testbed.telemetry.samples import BoolArray, FloatArray
from testbed.traffic.request_records import RequestRecord


@dataclass(frozen=True)
class Packets:
    """A tenant's packets, or requests, of one window.

    Attributes:
        intended_s: When each was to be sent, seconds from the window's start, ascending; [n].
        latency_s: How long it took, NaN where it was lost or not answered; [n].
        wrong: Part of the answer to each that is wrong, NaN where that is not known; None of packets.
    """

    intended_s: FloatArray
    latency_s: FloatArray
    wrong: FloatArray | None = None

    @classmethod
    def asked(cls, record: RequestRecord) -> Self:
        """The requests of a window that were due."""
        due = record.attempted
        known = due & record.answered & (record.correct >= 0)
        wrong = np.where(known, 1.0 - record.correct / max(1, record.images), np.nan)
        return cls(record.schedule.time_s[due], record.latency_s[due], wrong[due])

    @property
    def kind(self) -> str:
        """What they are."""
        return "packets" if self.wrong is None else "requests"


def left_out_s(occurrence: Occurrence, tenant: Tenant) -> tuple[float, float] | None:
    """The first and the last intended time that a fault takes out of a tenant's promise; None if it takes nothing.

    Left out are packets that could still be on their way when a fault the tenant is to fail by began, and those sent
    before the recovery from it had to be over. A wrong answer comes in time, so none is left out for it.
    """
    fault = occurrence.fault
    if fault.kind is FaultKind.SERVER_WRONG or tenant.name not in fault.fails or tenant.promise is None:
        return None
    return occurrence.begin_s - tenant.promise.deadline_s, occurrence.end_s + fault.recovery_s


def outside(occurrences: Sequence[Occurrence], tenant: Tenant, intended_s: FloatArray) -> BoolArray:
    """Which packets the tenant's promise is judged by; [n]."""
    stretches = [left_out_s(each, tenant) for each in occurrences]
    return spared.outside([stretch for stretch in stretches if stretch is not None], intended_s)


def expectations(
    occurrence: Occurrence,
    tenants: Sequence[Tenant],
    packets: Mapping[str, Packets],
    gates: Sequence[GateRecord] = (),
) -> Iterator[ExpectationRecord]:
    """What is expected of each tenant with a promise, and what was found.

    Of a fault after which nothing can be believed only one thing is expected: that its gate says so.

    A tenant fails if more than epsilon of the packets that the fault could touch miss their deadline. It has recovered
    at the last moment at which misses were ahead of epsilon, counted from the fault's end. It keeps its promise if at
    most epsilon of its packets miss from the fault's beginning until a recovery would have to be over.

    Args:
        occurrence: The fault as it was done.
        tenants: All of the scenario; those that break their own contract are held to nothing.
        packets: Theirs, by name.
        gates: Of the window.
    """
    if occurrence.fault.kind in CAUGHT:
        yield _caught(*CAUGHT[occurrence.fault.kind], gates)
        return
    if occurrence.fault.ready_s is not None:
        yield ExpectationRecord(
            tenant="all",
            expected=f"is ready again within {occurrence.fault.ready_s:g} s",
            found=f"after {occurrence.mended_s:.3f} s",
            met=occurrence.mended_s <= occurrence.fault.ready_s,
        )
    for tenant in tenants:
        if tenant.promise is None or tenant.misbehaviour is not None or tenant.name not in packets:
            continue
        if occurrence.fault.kind is FaultKind.SERVER_WRONG:
            yield _keeps(occurrence, tenant.name, tenant.promise, packets[tenant.name])
            if tenant.name in occurrence.fault.fails:
                yield from _wrongly(occurrence, tenant.name, packets[tenant.name])
        elif tenant.name in occurrence.fault.fails:
            yield _fails(occurrence, tenant.name, tenant.promise, packets[tenant.name])
            yield _recovers(occurrence, tenant.name, tenant.promise, packets[tenant.name])
        else:
            yield _keeps(occurrence, tenant.name, tenant.promise, packets[tenant.name])


def ended_by(occurrence: Occurrence, gates: Sequence[GateRecord]) -> Iterator[ExpectationRecord]:
    """What is expected of a fault in a window that the run could not end, and what was found: only of one that ends it.

    Args:
        occurrence: The fault as it was done.
        gates: Of the run, which say why it could not go on.
    """
    if CAUGHT.get(occurrence.fault.kind, ("", ""))[0] == UNFINISHED:
        yield from expectations(occurrence, (), {}, gates)


def _caught(name: str, says: str, gates: Sequence[GateRecord]) -> ExpectationRecord:
    seen = [gate for gate in gates if gate.name == name]
    return ExpectationRecord(
        tenant="all",
        expected=f"INVALID: the gate {name} sees it",
        found="; ".join(gate.detail for gate in seen) or "nothing",
        met=any(not gate.holds and says in gate.detail for gate in seen),
    )


def _fails(occurrence: Occurrence, tenant: str, promise: Promise, packets: Packets) -> ExpectationRecord:
    touched = _between(packets, occurrence.begin_s - promise.deadline_s, occurrence.end_s)
    misses, n = _missed(packets, promise, touched)
    return ExpectationRecord(
        tenant=tenant,
        expected=f"fails: more than {promise.epsilon:g} of its {packets.kind} miss {promise.deadline_s * 1e3:g} ms",
        found=_of(misses, n),
        met=misses > promise.epsilon * n,
    )


def _keeps(occurrence: Occurrence, tenant: str, promise: Promise, packets: Packets) -> ExpectationRecord:
    until_s = occurrence.end_s + occurrence.fault.recovery_s
    touched = _between(packets, occurrence.begin_s - promise.deadline_s, until_s)
    misses, n = _missed(packets, promise, touched)
    return ExpectationRecord(
        tenant=tenant,
        expected=(
            f"keeps its promise: at most {promise.epsilon:g} of its {packets.kind} miss {promise.deadline_s * 1e3:g} ms"
        ),
        found=_of(misses, n),
        met=n > 0 and misses <= promise.epsilon * n,
    )


def _recovers(occurrence: Occurrence, tenant: str, promise: Promise, packets: Packets) -> ExpectationRecord:
    late = ~(packets.latency_s <= promise.deadline_s)
    return _over(occurrence, tenant, packets, what="recovers", bad=late.astype(np.float64), share=promise.epsilon)


def _wrongly(occurrence: Occurrence, tenant: str, packets: Packets) -> Iterator[ExpectationRecord]:
    """That answers are wrong as often as they are to be, and rightly given again soon after.

    As often means nearer to the stated share of what would have been right than to what is wrong anyway.
    """
    if packets.wrong is None:
        raise ValueError(f"{tenant}: packets are neither right nor wrong, expected requests")
    fault = occurrence.fault
    known = np.isfinite(packets.wrong)
    touched = known & _between(packets, occurrence.begin_s, occurrence.end_s)
    others = known & ~_between(packets, occurrence.begin_s, occurrence.end_s + fault.recovery_s)
    usual = float(packets.wrong[others].mean()) if others.any() else 0.0
    found = float(packets.wrong[touched].mean()) if touched.any() else 0.0
    halfway = usual + (fault.share or 0.0) * (1.0 - usual) / 2.0
    yield ExpectationRecord(
        tenant=tenant,
        expected=f"answered wrongly: more than {halfway:.1%}, otherwise {usual:.1%}",
        found=f"{found:.1%} of {np.count_nonzero(touched):,} answers",
        met=found > halfway,
    )
    answered = Packets(packets.intended_s[known], packets.latency_s[known])
    yield _over(occurrence, tenant, answered, what="answered rightly again", bad=packets.wrong[known], share=halfway)


def _over(
    occurrence: Occurrence, tenant: str, packets: Packets, *, what: str, bad: FloatArray, share: float
) -> ExpectationRecord:
    """That the bad ones among packets were last ahead of their share before the recovery had to be over."""
    limit_s = occurrence.fault.recovery_s
    after = _between(packets, occurrence.end_s, occurrence.end_s + limit_s)
    ahead = np.cumsum(bad[after] - share)
    last = int(np.argmax(ahead)) if ahead.size and ahead.max() > 0 else -1
    recovered_s = max(0.0, float(packets.intended_s[after][last]) - occurrence.end_s) if last >= 0 else 0.0
    # If the last packet looked at put the misses further ahead than ever, the fault was not over yet.
    met = last < ahead.size - 1
    return ExpectationRecord(
        tenant=tenant,
        expected=f"{what} within {limit_s:g} s",
        found=f"after {recovered_s:.3f} s" if met else f"not within {limit_s:g} s",
        met=met,
        seconds=recovered_s if met else None,
    )


def _between(packets: Packets, first_s: float, last_s: float) -> BoolArray:
    return (packets.intended_s >= first_s) & (packets.intended_s <= last_s)


def _missed(packets: Packets, promise: Promise, chosen: BoolArray) -> tuple[int, int]:
    late = ~(packets.latency_s[chosen] <= promise.deadline_s)
    return int(np.count_nonzero(late)), int(late.size)


def _of(misses: int, n: int) -> str:
    return f"{misses:,} of {n:,} missed" + (f" ({misses / n:.1%})" if n else "")
