"""What was offered is told by intended times, over all windows, and lateness by what the wire saw first."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.run.offered import offered
from testbed.scenario.model import MmppArrivals, PoissonArrivals
from testbed.telemetry.samples import TenantSamples
from testbed.traffic.arrivals import schedule

BITS = 800


def sent(time_s: np.ndarray, *, handed_s: float = 1e-4, wire_s: float = 3e-4) -> TenantSamples:
    """Packets that left and were seen after these times, the last one in a thousand a second later."""
    n = time_s.size
    late = np.zeros(n)
    late[: n // 200] = 1.0
    borders = np.stack([time_s + wire_s + late, np.full(n, np.nan)], axis=1)
    sizes = np.full(n, BITS, np.int32)
    return TenantSamples("t", 1, ("only",), 0, np.arange(n), time_s, time_s + handed_s, sizes, borders)


def test_a_poisson_tenant_offers_dispersion_one_and_a_modulated_one_that_of_its_chain() -> None:
    smooth = schedule(PoissonArrivals(500.0, BITS), seed=1, duration_s=400.0).time_s
    seen = offered([(sent(smooth), 400.0)])
    assert seen is not None
    assert seen.gap_cv2 == pytest.approx(1.0, rel=0.03)
    assert [scale for scale, _ in seen.dispersion] == [0.1, 1.0, 10.0]
    assert seen.dispersion[1][1] == pytest.approx(1.0, abs=0.3)
    # Rates 0 and 1000/s for 20 ms each: 1 + 2 variance / (mean decay) = 1 + 2 * 250,000 / (500 * 100).
    chain = MmppArrivals((0.0, 1000.0), ((0.0, 50.0), (50.0, 0.0)), BITS)
    bursty = offered([(sent(schedule(chain, seed=2, duration_s=400.0).time_s), 400.0)])
    assert bursty is not None
    assert bursty.dispersion[1][1] == pytest.approx(11.0, rel=0.25)


def test_windows_lie_one_after_the_other() -> None:
    regular = np.arange(1000) / 100 + 0.005
    seen = offered([(sent(regular), 10.0), (sent(regular), 10.0)])
    assert seen is not None
    assert (seen.arrivals, seen.rate_per_s) == (2000, 100.0)
    assert seen.gap_cv2 == pytest.approx(0.0, abs=1e-9)
    assert seen.dispersion[2] == (10.0, 0.0)


def test_lateness_is_told_for_the_hand_over_and_for_the_wire() -> None:
    seen = offered([(sent(np.arange(2000) / 100), 20.0)])
    assert seen is not None
    assert seen.handed_late_p999_s == pytest.approx(1e-4)
    assert seen.wire_late_p999_s == pytest.approx(1.0003)


def test_what_was_never_on_the_wire_has_no_lateness_and_nothing_due_no_record() -> None:
    silent = sent(np.arange(20) / 2, wire_s=float("nan"))
    seen = offered([(silent, 10.0)])
    assert seen is not None
    assert seen.wire_late_p999_s is None
    assert offered([(sent(np.empty(0)), 10.0)]) is None
