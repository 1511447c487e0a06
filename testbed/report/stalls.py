"""Which packets or requests were on their way while the host stood still, for pictures to mark and pages to name.

A stall may explain that one was late; it excuses nothing. Whether the host spoilt a run is for its gates to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SLOWEST = 1e-3
"""Share of the answered ones that counts as the slowest, at least one."""


@dataclass(frozen=True, eq=False)
class Stalled:
    """What stalls of the host had to do with one tenant's delays.

    Attributes:
        times: In how many spans at least one core was away.
        away_s: How long these are together.
        longest_s: The longest of them.
        touched: Whether each packet or request was on its way in one of them; bool [n].
        slowest: Whether each is among the slowest; bool [n].
    """

    times: int
    away_s: float
    longest_s: float
    touched: BoolArray
    slowest: BoolArray

    @classmethod
    def of(cls, time_s: FloatArray, latency_s: FloatArray, stalls_s: FloatArray) -> Stalled | None:
        """Hold a tenant's delays against the stalls of a run.

        Args:
            time_s: Intended send times, [n].
            latency_s: NaN where lost or never answered, which counts at its intended time only; [n].
            stalls_s: When a core was away and for how long, on the axis of `time_s`; [m, 2].

        Returns:
            None where no core was away, or nothing was sent.
        """
        if not len(stalls_s) or not time_s.size:
            return None
        begin_s, end_s = _spans(stalls_s)
        # The first span that ends after sending touches whatever was not back before it began.
        after = np.searchsorted(end_s, time_s)
        touched = np.append(begin_s, np.inf)[after] <= time_s + np.nan_to_num(latency_s)
        return cls(
            times=begin_s.size,
            away_s=float((end_s - begin_s).sum()),
            longest_s=float((end_s - begin_s).max()),
            touched=touched,
            slowest=_slowest(latency_s),
        )

    def sentence(self, what: str) -> str:
        """The finding in words, `what` being packets or requests."""
        n, touched = self.touched.size, int(self.touched.sum())
        slowest, both = int(self.slowest.sum()), int((self.slowest & self.touched).sum())
        times = "once" if self.times == 1 else f"{self.times:,} times"
        whole = "" if self.times == 1 else f" in all, {self.longest_s * 1e3:.1f} ms at the longest"
        return (
            f"A core of the host was away {times}, {self.away_s * 1e3:.1f} ms{whole}; on their way meanwhile were "
            f"{touched:,} of {n:,} {what} ({100 * touched / n:.1f} %), {both:,} of the slowest {slowest:,} among them."
        )


def _spans(stalls_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Beginnings and ends of the spans in which any core was away, apart from each other and in order."""
    order = np.argsort(stalls_s[:, 0], kind="stable")
    begin_s = stalls_s[order, 0]
    end_s = np.maximum.accumulate(begin_s + stalls_s[order, 1])
    apart = np.flatnonzero(np.append(True, begin_s[1:] > end_s[:-1]))
    return begin_s[apart], end_s[np.append(apart[1:], order.size) - 1]


def _slowest(latency_s: FloatArray) -> BoolArray:
    answered = np.flatnonzero(np.isfinite(latency_s))
    count = max(1, round(SLOWEST * answered.size))
    chosen = np.zeros(latency_s.size, dtype=np.bool_)
    chosen[answered[np.argsort(-latency_s[answered], kind="stable")[:count]]] = True
    return chosen
