"""What a tenant offered in a run, and how punctually that reached the wire, for the run's record.

Burstiness is that of the intended times, which an open-loop sender keeps whatever becomes of earlier arrivals; lateness
is measured against them. Nothing is judged here: the gates on lateness are `testbed.telemetry.fidelity`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from testbed.report.tenant_record import OfferedRecord
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.samples import TenantSamples
from testbed.traffic.dispersion import SCALES_S, dispersion

FloatArray = npt.NDArray[np.float64]


def offered(windows: Sequence[tuple[TenantSamples | RequestSamples, float]]) -> OfferedRecord | None:
    """Burstiness and lateness of one tenant's arrivals over all windows, laid one after the other.

    Args:
        windows: What was due in each, and its length in s.

    Returns:
        None where nothing was due.
    """
    intended, handed, wire = [np.empty(0)], [np.empty(0)], [np.empty(0)]
    start_s = 0.0
    for samples, duration_s in windows:
        intended.append(start_s + samples.intended_s)
        handed.append(samples.sent_s - samples.intended_s)
        first_s = samples.first_s if isinstance(samples, RequestSamples) else samples.border_s[:, 0]
        wire.append(first_s - samples.intended_s)
        start_s += duration_s
    time_s = np.concatenate(intended)
    if not time_s.size:
        return None
    seen = dispersion(time_s, start_s)
    return OfferedRecord(
        arrivals=seen.arrivals,
        rate_per_s=seen.rate_per_s,
        gap_cv2=_known(seen.gap_cv2),
        dispersion=tuple((scale_s, _known(index)) for scale_s, index in zip(SCALES_S, seen.index, strict=True)),
        peak_to_mean=_known(seen.peak_to_mean),
        handed_late_p999_s=_p999(np.concatenate(handed)),
        wire_late_p999_s=_p999(np.concatenate(wire)),
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _p999(late_s: FloatArray) -> float | None:
    known = late_s[np.isfinite(late_s)]
    return float(np.quantile(known, 0.999, method="higher")) if known.size else None
