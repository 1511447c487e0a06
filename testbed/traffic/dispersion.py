"""How bursty a sequence of arrivals is, in a few figures that can be put beside those of a published trace.

Figures only: nothing is drawn and nothing is judged here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

SCALES_S = (0.1, 1.0, 10.0)


@dataclass(frozen=True, slots=True)
class Dispersion:
    """Burstiness of arrivals over a span.

    Attributes:
        arrivals: How many there were.
        rate_per_s: Mean rate.
        index: Index of dispersion for counts, variance over mean, in windows of 0.1, 1 and 10 s: 1 at every scale
            for a Poisson process. NaN where fewer than two windows fit.
        gap_cv2: Squared coefficient of variation of the gaps, 1 for a Poisson process; NaN without two gaps.
        peak_to_mean: Largest count in one second over the mean, NaN where no second fits.
        autocorrelation: Correlation of the counts of neighbouring seconds, NaN where they do not vary.
        empty_share: Fraction of seconds without any arrival.
    """

    arrivals: int
    rate_per_s: float
    index: tuple[float, float, float]
    gap_cv2: float
    peak_to_mean: float
    autocorrelation: float
    empty_share: float


def dispersion(time_s: FloatArray, span_s: float) -> Dispersion:
    """Summarise arrivals at `time_s` within [0, span_s); a last window that does not fit is left out.

    Args:
        time_s: Arrival times, float64[n], in any order.
        span_s: Length of the observation.
    """
    fine, second, coarse = (_counts(time_s, span_s, scale) for scale in SCALES_S)
    seconds = second.astype(np.float64)
    mean = seconds.mean() if seconds.size else np.nan
    return Dispersion(
        arrivals=int(time_s.size),
        rate_per_s=time_s.size / float(span_s),
        index=(_index(fine), _index(second), _index(coarse)),
        gap_cv2=_gap_cv2(time_s),
        peak_to_mean=float(seconds.max() / mean) if seconds.size and mean > 0 else float("nan"),
        autocorrelation=_autocorrelation(seconds),
        empty_share=float(np.mean(seconds == 0)) if seconds.size else float("nan"),
    )


def _counts(time_s: FloatArray, span_s: float, scale_s: float) -> npt.NDArray[np.int64]:
    windows = int(span_s / scale_s + 1e-9)
    numbers = np.floor(time_s / scale_s).astype(np.int64)
    return np.bincount(numbers[(numbers >= 0) & (numbers < windows)], minlength=windows)


def _index(counts: npt.NDArray[np.int64]) -> float:
    return float(counts.var(ddof=1) / counts.mean()) if counts.size > 1 and counts.any() else float("nan")


def _gap_cv2(time_s: FloatArray) -> float:
    gaps_s = np.diff(np.sort(time_s))
    return float(gaps_s.var(ddof=1) / gaps_s.mean() ** 2) if gaps_s.size > 1 and gaps_s.any() else float("nan")


def _autocorrelation(counts: FloatArray) -> float:
    if counts.size < 3 or counts[:-1].std() == 0 or counts[1:].std() == 0:
        return float("nan")
    return float(np.corrcoef(counts[:-1], counts[1:])[0, 1])
