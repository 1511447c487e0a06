"""What of a tenant's traffic its promise is not judged by, because a fault was to touch it, and the rest.

A run records for each fault which stretch of its window it takes out of whose promise (`testbed.run.expectations`
decides). Here packets and requests are told apart by that stretch; whether the fault did what was expected of it is the
run's verdict, and what everything together says is told beside what the rest says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from testbed.audit.causes import Cause
from testbed.audit.clusters import FloatArray, IntArray
from testbed.audit.crossing import Crossing, endings_of
from testbed.envelope.descriptor import Envelope
from testbed.report.record import RunRecord
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.samples import BoolArray, TenantSamples
from testbed.traffic.request_records import Endings

_NAMED_CAUSES = frozenset(cause.value for cause in Cause)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a window that one fault takes out of one tenant's promise.

    Attributes:
        fault: Its name.
        done: What was done, in a few words.
        window: Number of the window.
        first_s: Intended time of the first that is left out, seconds from the window's start.
        last_s: Of the last.
        n: Packets or requests left out; those that two faults take out count for both.
    """

    fault: str
    done: str
    window: int
    first_s: float
    last_s: float
    n: int

    def sentence(self, what: str) -> str:
        """What is left out and why; `what` is `packets` or `requests`."""
        return (
            f"Left out are the {self.n:,} {what} that were due from {self.first_s:.2f} s to {self.last_s:.2f} s of "
            f"window {self.window}: the fault {self.fault} ({self.done}), or the recovery from it, was to touch them."
        )


@dataclass(frozen=True, slots=True)
class Spared:
    """What faults take out of one tenant's promise.

    Attributes:
        stretches: One for each fault and window, at least one.
        kept: Which of its packets or requests its promise is judged by, bool [n].
    """

    stretches: tuple[Stretch, ...]
    kept: BoolArray


def outside(stretches_s: Iterable[tuple[float, float]], intended_s: FloatArray) -> BoolArray:
    """Which intended times lie in none of some closed stretches of a window; seconds, bool [n]."""
    kept = np.ones(intended_s.size, dtype=np.bool_)
    for first_s, last_s in stretches_s:
        kept &= (intended_s < first_s) | (intended_s > last_s)
    return kept


def spared(record: RunRecord, tenant: str, crossing: Crossing) -> Spared | None:
    """What the faults of a run take out of a tenant's promise; None if nothing, or if nothing else would be left.

    Args:
        record: Of the run.
        tenant: Its name.
        crossing: All that it sent.
    """
    windows = [window.index for window in record.windows if tenant in window.samples | window.requests]
    stretches, kept = [], [np.ones(0, dtype=np.bool_)]
    for window, samples in zip(windows, crossing.samples, strict=True):
        faults = [fault for fault in record.faults if fault.window == window and tenant in fault.left_out]
        for fault in faults:
            first_s, last_s = fault.left_out[tenant]
            n = int(np.count_nonzero(~outside([(first_s, last_s)], samples.intended_s)))
            stretches.append(Stretch(fault.name, fault.what, window, first_s, last_s, n))
        kept.append(outside([fault.left_out[tenant] for fault in faults], samples.intended_s))
    rest = np.concatenate(kept)
    return Spared(tuple(stretches), rest) if rest.any() and not rest.all() else None


@dataclass(frozen=True, slots=True)
class Outside:
    """A tenant's crossing without what faults were to touch; see `testbed.audit.crossing.Crossing`.

    Ideal servers are fed everything, and what they made of the rest is selected: what is left out took its turn too.

    Attributes:
        whole: All that the tenant sent.
        kept: Which of it is left, bool [n].
    """

    whole: Crossing
    kept: BoolArray

    @property
    def what(self) -> str:
        """`packets` or `requests`."""
        return self.whole.what

    @property
    def samples(self) -> tuple[TenantSamples | RequestSamples, ...]:
        """Each window as measured, without what is left out."""
        ends = np.cumsum([len(window) for window in self.whole.samples])[:-1]
        parts = np.split(self.kept, ends)
        return tuple(window.take(part) for window, part in zip(self.whole.samples, parts, strict=True))

    @property
    def latency_s(self) -> FloatArray:
        """Seconds, NaN: lost or never answered."""
        return self.whole.latency_s[self.kept]

    @property
    def runs(self) -> IntArray:
        """Window of each."""
        return self.whole.runs[self.kept]

    @property
    def endings(self) -> Endings | None:
        """How requests ended; None for packets."""
        asked = [window for window in self.samples if isinstance(window, RequestSamples)]
        return endings_of(asked) if asked else None

    def places(self) -> dict[str, FloatArray]:
        """Seconds in each place."""
        return {name: seconds[self.kept] for name, seconds in self.whole.places().items()}

    def excess_s(self, envelope: Envelope) -> FloatArray:
        """How far each lagged behind an envelope of its path."""
        return self.whole.excess_s(envelope)[self.kept]

    def causes(self) -> dict[str, FloatArray] | None:
        """Seconds for each cause; without those that took time only in what is left out."""
        causes = self.whole.causes()
        if causes is None:
            return None
        chosen = np.isfinite(self.whole.latency_s) & self.kept
        return {
            name: seconds[self.kept]
            for name, seconds in causes.items()
            if name not in _NAMED_CAUSES or np.any(seconds[chosen] != 0)
        }
