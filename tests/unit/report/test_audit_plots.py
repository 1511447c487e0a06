"""What was measured is to be seen in the pictures of an audit, whatever a fit says."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from testbed.audit.record import Promise, audit_series
from testbed.report.audit_plots import HIGHER, quantile_plot


@pytest.mark.parametrize(("limit_s", "said"), [(0.012, False), (30.0, True)])
def test_a_limit_of_a_fit_that_is_far_away_does_not_flatten_what_was_measured(limit_s: float, said: bool) -> None:
    latency_s = np.random.default_rng(5).exponential(1e-3, 30_000)
    found = audit_series(latency_s, Promise(0.02, 1e-3))
    fitted = replace(found.tail[0], estimate_s=0.005, lower_s=0.004, upper_s=limit_s)
    picture = quantile_plot("alpha", replace(found, tail=(fitted,)), latency_s, None)
    ticks_ms = [float(tick) for tick in re.findall(r">([\d.]+)</text>", picture)]
    assert 15 < max(ticks_ms) < 25
    assert (HIGHER in picture) == said
