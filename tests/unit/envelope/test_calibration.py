"""Signed limits lie above the truth, on series whose truth is known, however strongly the samples cling together."""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from testbed.audit.known import mm1
from testbed.envelope import ExcessTail, Stochastic
from testbed.envelope.calibration import LEVELS, calibrate, digest, no_impairment
from testbed.envelope.errors import CalibrationError
from testbed.envelope.heldout import holds

from .samples import envelope, guardrails

RATE_BPS = 10_000_000

FloatArray = NDArray[np.float64]


def excess(load: float, shift_ms: float, n: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Excess over T and lag before T of a queue: P(Y > x) = exp(-(1 - load)(x + shift)), times in milliseconds."""
    lag_ms = mm1(load).draw(n, np.random.default_rng(seed))
    return np.maximum(0.0, lag_ms - shift_ms) * 1e-3, lag_ms * 1e-3


def truth(load: float, shift_ms: float, x_s: float) -> float:
    return math.exp(-(1 - load) * (x_s * 1e3 + shift_ms))


def promised(tail: ExcessTail) -> Stochastic:
    return Stochastic(tail, loss_ppb=0, error_ppb=0)


@pytest.mark.parametrize(
    ("load", "shift_ms", "n"),
    [
        pytest.param(0.3, 0.0, 20_000, id="light load, every packet in excess"),
        pytest.param(0.5, 3.0, 20_000, id="one packet in five in excess"),
        pytest.param(0.7, 10.0, 40_000, id="one packet in twenty, in clusters"),
        pytest.param(0.9, 20.0, 100_000, id="heavy load, long clusters"),
    ],
)
def test_the_signed_tail_lies_above_the_truth_all_along(load: float, shift_ms: float, n: int) -> None:
    for seed in range(10):
        y_s, lag_s = excess(load, shift_ms, n, seed)
        tail = calibrate(y_s, rate_bps=RATE_BPS, lag_s=lag_s).stochastic
        assert tail is not None
        for x_s in np.linspace(tail.tail.x_min_s, 3 * tail.tail.x_max_s, 60):
            assert tail.tail.exceedance(x_s) >= truth(load, shift_ms, x_s)


def test_taking_clustered_samples_for_independent_ones_would_break_the_promise() -> None:
    broken = {"as they are": 0, "shuffled": 0}
    for seed in range(30):
        y_s, _ = excess(0.9, 20.0, 20_000, seed)
        for name, series in (("as they are", y_s), ("shuffled", np.random.default_rng(seed).permutation(y_s))):
            stochastic = calibrate(series, rate_bps=RATE_BPS).stochastic
            assert stochastic is not None
            tail = stochastic.tail
            grid = np.linspace(tail.x_min_s, tail.x_max_s, 60)
            broken[name] += any(tail.exceedance(x_s) < truth(0.9, 20.0, x_s) for x_s in grid)
    assert broken["as they are"] == 0
    assert broken["shuffled"] >= 3


def test_the_tail_is_not_much_larger_than_it_has_to_be() -> None:
    y_s, lag_s = excess(0.5, 3.0, 200_000, 1)
    stochastic = calibrate(y_s, rate_bps=RATE_BPS, lag_s=lag_s, target=1e-3).stochastic
    assert stochastic is not None
    tail = stochastic.tail
    at_target = (tail.log_multiplier - math.log(1e-3)) / tail.decay_per_s
    assert at_target < 2 * (math.log(1e3) / 0.5 - 3.0) * 1e-3


def test_a_calibrated_promise_is_not_contradicted_by_a_run_it_was_not_fitted_on() -> None:
    for seed in range(10):
        y_s, lag_s = excess(0.7, 5.0, 30_000, seed)
        stochastic = calibrate(y_s, rate_bps=RATE_BPS, lag_s=lag_s).stochastic
        other, other_lag = excess(0.7, 5.0, 30_000, 100 + seed)
        promise = envelope(stochastic=stochastic, guardrails=guardrails(delay_cap_ns=10**12))
        assert holds(promise, other, lag_s=other_lag) == []


@pytest.mark.parametrize(("factor", "found"), [(1.0, False), (0.5, True)])
def test_half_the_truth_is_contradicted_and_the_truth_is_not(factor: float, found: bool) -> None:
    level = math.floor(factor * truth(0.5, 3.0, 0.0) * 1e9)
    tail = ExcessTail(RATE_BPS, level, 500 * 10**6, x_min_ns=0, x_max_ns=10**10)
    promise = envelope(stochastic=promised(tail), guardrails=guardrails(delay_cap_ns=10**12))
    contradicted = 0
    for seed in range(20):
        y_s, lag_s = excess(0.5, 3.0, 30_000, seed)
        contradicted += bool(holds(promise, y_s, lag_s=lag_s))
    assert contradicted == (20 if found else 0)


def test_the_signed_tail_lies_above_a_truth_that_falls_in_steps() -> None:
    sizes_s, shares = np.array([0.0, 1e-3, 2e-3, 5e-3, 9e-3]), np.array([0.5, 0.3, 0.15, 0.04, 0.01])
    for seed in range(10):
        y_s = np.random.default_rng(seed).choice(sizes_s, 20_000, p=shares)
        stochastic = calibrate(y_s, rate_bps=RATE_BPS).stochastic
        assert stochastic is not None
        for step, beyond in zip(sizes_s[1:], np.cumsum(shares[::-1])[::-1][1:], strict=True):
            assert stochastic.tail.exceedance(step * (1 - 1e-6)) >= beyond


def test_the_target_says_where_the_tail_is_tightest() -> None:
    y_s = np.random.default_rng(1).rayleigh(1e-3, 100_000)  # falls faster and faster, so that tangents differ

    def quantile_ms(target: float, at: float) -> float:
        stochastic = calibrate(y_s, rate_bps=RATE_BPS, target=target).stochastic
        assert stochastic is not None
        return (stochastic.tail.log_multiplier - math.log(at)) / stochastic.tail.decay_per_s * 1e3

    assert quantile_ms(1e-4, at=1e-4) < quantile_ms(0.5, at=1e-4)
    assert quantile_ms(0.5, at=0.5) < quantile_ms(1e-4, at=0.5)


def test_without_any_exceedance_the_tail_is_level_at_the_rule_of_three_on_effective_samples() -> None:
    y_s, lag_s = excess(0.5, 1e6, 30_000, 3)
    calibration = calibrate(y_s, rate_bps=RATE_BPS, lag_s=lag_s, confidence=0.95)
    assert calibration.stochastic is not None
    tail = calibration.stochastic.tail
    effective = calibration.evidence.n_effective
    assert tail.x_min_ns == tail.x_max_ns == 0
    assert tail.exceedance(0.0) == tail.exceedance(1.0)
    assert tail.multiplier * math.exp(-tail.decay_per_s * 1.0) == pytest.approx(tail.floor, rel=1e-5)
    # Three limits share the five percent: excess, loss and error.
    assert tail.exceedance(0.0) == pytest.approx(-math.log(0.05 / 3) / effective, rel=0.01)
    assert effective < 30_000 / 2


def test_without_exceedance_and_without_lags_nothing_is_known() -> None:
    with pytest.raises(CalibrationError, match="pass lag_s"):
        calibrate(np.zeros(10_000), rate_bps=RATE_BPS)


def test_a_domain_without_impairment_signs_no_stochastic_part() -> None:
    y_s, lag_s = excess(0.5, 1e6, 30_000, 3)
    calibration = no_impairment(y_s, lag_s=lag_s)
    assert calibration.stochastic is None
    assert "declared without impairment" in calibration.evidence.method
    assert calibration.evidence.digest == digest(y_s)


def test_one_late_packet_makes_the_declaration_false() -> None:
    y_s = np.zeros(10_000)
    y_s[77] = 1e-4
    with pytest.raises(CalibrationError, match=r"0\.0001 s beyond T"):
        no_impairment(y_s)


def test_the_worst_pattern_counts_at_every_level() -> None:
    calm, calm_lag = excess(0.3, 3.0, 30_000, 1)
    busy, busy_lag = excess(0.8, 3.0, 30_000, 2)
    both = calibrate([calm, busy], rate_bps=RATE_BPS, lag_s=[calm_lag, busy_lag])
    assert both.stochastic is not None
    for x_s in np.linspace(both.stochastic.tail.x_min_s, both.stochastic.tail.x_max_s, 40):
        assert both.stochastic.tail.exceedance(x_s) >= truth(0.8, 3.0, x_s)
    assert both.evidence.n == 60_000
    assert "2 patterns" in both.evidence.method


def test_beyond_the_largest_excess_the_tail_is_level_unless_extrapolation_is_asked_for_and_named() -> None:
    y_s, lag_s = excess(0.5, 3.0, 30_000, 1)
    plain = calibrate(y_s, rate_bps=RATE_BPS, lag_s=lag_s)
    further = calibrate(y_s, rate_bps=RATE_BPS, lag_s=lag_s, extrapolate_to_s=1.0)
    assert plain.stochastic is not None
    assert further.stochastic is not None
    assert plain.stochastic.tail.exceedance(1.0) == plain.stochastic.tail.floor > 1e-6
    assert further.stochastic.tail.exceedance(1.0) < 1e-12
    assert "level beyond the evidence" in plain.evidence.method
    assert "extrapolated to 1 s" in further.evidence.method


def test_losses_and_errors_are_limited_above_their_share() -> None:
    y_s, lag_s = excess(0.5, 3.0, 30_000, 1)
    stochastic = calibrate(y_s, rate_bps=RATE_BPS, lag_s=lag_s, lost=30, errors=3).stochastic
    assert stochastic is not None
    assert stochastic.loss_ppb > 30 / 30_030 * 1e9
    assert stochastic.loss_ppb > stochastic.error_ppb > 3 / 30_030 * 1e9


def test_equal_excesses_give_a_level_tail_above_all_of_them() -> None:
    y_s = np.zeros(50_000)
    y_s[::500] = 2e-3
    stochastic = calibrate(y_s, rate_bps=RATE_BPS).stochastic
    assert stochastic is not None
    assert stochastic.tail.x_min_ns == stochastic.tail.x_max_ns == 2_000_000
    assert stochastic.tail.floor < 1e-3


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(np.zeros((2, 3)), id="a matrix"),
        pytest.param(np.zeros(0), id="nothing"),
        pytest.param(np.array([0.0, np.nan]), id="a packet that never left"),
        pytest.param(np.array([0.0, -1e-6]), id="a negative excess"),
        pytest.param([], id="no pattern"),
    ],
)
def test_what_is_no_series_of_excesses_is_refused(series: FloatArray) -> None:
    with pytest.raises(CalibrationError):
        calibrate(series, rate_bps=RATE_BPS)
    if isinstance(series, np.ndarray):
        with pytest.raises(CalibrationError):
            holds(envelope(), series)


def test_lags_of_another_length_are_refused() -> None:
    with pytest.raises(CalibrationError, match="one value for each excess"):
        calibrate(np.zeros(10), rate_bps=RATE_BPS, lag_s=np.zeros(9))


def test_the_digest_is_what_its_description_says() -> None:
    expected = hashlib.sha256(struct.pack("<Qdd", 2, 0.0, 1.5) + struct.pack("<Qd", 1, 2.5)).hexdigest()
    assert digest([np.array([0.0, 1.5]), np.array([2.5])]) == expected
    assert digest(np.array([0.0, 1.5])) != digest(np.array([1.5, 0.0]))


def test_one_packet_beyond_the_delay_cap_is_a_finding() -> None:
    y_s = np.zeros(1_000)
    y_s[5] = 0.051
    findings = holds(envelope(), y_s)
    assert findings[0].what == "delay-cap"
    assert "east: delay-cap: 0.001 of the packets exceed 50 ms" in str(findings[0])


def test_any_excess_is_a_finding_where_none_was_promised_possible() -> None:
    y_s = np.zeros(1_000)
    assert holds(envelope(stochastic=None), y_s) == []
    y_s[5] = 1e-9
    assert [finding.what for finding in holds(envelope(stochastic=None), y_s)] == ["no-impairment"]


def test_a_handful_of_exceedances_in_one_clump_counts_as_one() -> None:
    y_s = np.zeros(2_000)
    y_s[500:506] = 2e-3
    rare = envelope(stochastic=promised(ExcessTail(RATE_BPS, 1_000_000, 10**9, 0, 10**9)))
    assert holds(rare, y_s) == []
    impossible = envelope(stochastic=promised(ExcessTail(RATE_BPS, 1, 10**9, 0, 10**9)))
    assert holds(impossible, y_s)


def test_the_number_of_levels_is_bounded() -> None:
    y_s, lag_s = excess(0.5, 0.0, 50_000, 1)
    assert f"{LEVELS} binomial limits" in calibrate(y_s, rate_bps=RATE_BPS, lag_s=lag_s).evidence.method
