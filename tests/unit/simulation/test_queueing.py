"""The textbook queues: simulated quantiles lie within their own confidence limits of the closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from testbed.audit.quantile import quantiles
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.fifo import FifoLink
from testbed.simulation.wave import Wave
from tests.unit.simulation.references import wave_of

RATE = 10e6
MEAN_BITS = 8000
LOAD = 0.7
N = 2_000_000
CONFIDENCE = 0.999
LEVELS = (0.5, 0.99, 0.999)

SERVICE_S = MEAN_BITS / RATE


def exponential(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_exponential(n)


def constant(rng: np.random.Generator, n: int) -> np.ndarray:
    del rng
    return np.ones(n)


def arrivals(gap: Callable[[np.random.Generator, int], np.ndarray], rng: np.random.Generator) -> np.ndarray:
    return np.rint(np.cumsum(gap(rng, N)) * SERVICE_S / LOAD * PS_PER_S)


def sizes(size: Callable[[np.random.Generator, int], np.ndarray], rng: np.random.Generator) -> np.ndarray:
    return np.rint(size(rng, N) * MEAN_BITS)


def md1_wait_exceeds(wait_s: float) -> float:
    """Erlang's series for M/D/1, summed in exact enough arithmetic for small waits (Tijms, 2003, section 9.6)."""
    t = wait_s / SERVICE_S
    k = np.arange(math.floor(t) + 1)
    x = LOAD * (k - t)
    terms = [math.exp(-v) * v**i / math.factorial(int(i)) for i, v in zip(k, x, strict=True)]
    return 1 - (1 - LOAD) * math.fsum(terms)


def dm1_share() -> float:
    """The root of sigma = exp(-(1 - sigma)/load): a packet finds an idle server with probability 1 - sigma."""
    return brentq(lambda s: s - math.exp(-(1 - s) / LOAD), 1e-9, 1 - 1e-9)


def check(delay_s: np.ndarray, exact_s: Callable[[float], float]) -> None:
    warm = delay_s[N // 20 :]
    for found in quantiles(warm, LEVELS, CONFIDENCE):
        assert found.lower_s is not None
        assert found.upper_s is not None
        assert found.lower_s <= exact_s(found.level) <= found.upper_s, found
        assert found.upper_s - found.lower_s < 0.5 * exact_s(found.level)


def test_mm1_sojourn_times_are_exponential() -> None:
    rng = np.random.default_rng(1)
    wave = wave_of(arrivals(exponential, rng), sizes(exponential, rng))
    sojourn = (FifoLink(RATE).push(wave, 0).on.time_ps - wave.time_ps) / PS_PER_S
    check(sojourn, lambda level: -math.log(1 - level) * SERVICE_S / (1 - LOAD))


def test_md1_waits_follow_erlangs_series() -> None:
    rng = np.random.default_rng(2)
    wave = wave_of(arrivals(exponential, rng), sizes(constant, rng))
    wait = (FifoLink(RATE).push(wave, 0).on.time_ps - wave.time_ps) / PS_PER_S - SERVICE_S
    check(
        np.maximum(wait, 0.0),
        lambda level: brentq(lambda w: md1_wait_exceeds(w) - (1 - level), 0.0, 20 * SERVICE_S),
    )


def test_dm1_waits_are_exponential_beyond_an_atom_at_nothing() -> None:
    rng = np.random.default_rng(3)
    wave = wave_of(arrivals(constant, rng), sizes(exponential, rng))
    wait = (FifoLink(RATE).push(wave, 0).on.time_ps - wave.time_ps - wave.size_bits * (PS_PER_S / RATE)) / PS_PER_S
    sigma = dm1_share()
    sojourn = np.maximum(wait, 0.0) + wave.size_bits / RATE
    check(sojourn, lambda level: -math.log(1 - level) * SERVICE_S / (1 - sigma))


def test_a_jackson_tandems_sojourn_times_are_independent() -> None:
    rng = np.random.default_rng(4)
    wave = wave_of(arrivals(exponential, rng), sizes(exponential, rng))
    out = wave
    for _ in range(3):
        # Jackson's customers draw their service anew at every station.
        fresh = Wave(
            out.time_ps, out.born_ps, out.number, sizes(exponential, rng).astype(np.int32), out.tenant, out.ends
        )
        out = FifoLink(RATE).push(fresh, 0).on
    check(
        (out.time_ps - wave.time_ps) / PS_PER_S,
        lambda level: stats.gamma.ppf(level, 3, scale=SERVICE_S / (1 - LOAD)),
    )


@pytest.mark.parametrize("packets", [2_000, 200_000])
def test_rounding_to_picoseconds_stays_below_a_nanosecond_in_a_busy_period(packets: int) -> None:
    """A rate at which no packet takes whole picoseconds: the clock drifts by half a picosecond a packet at most."""
    rate, bits = 3e6, 800
    wave = wave_of(np.zeros(packets), np.full(packets, bits))
    out = FifoLink(rate).push(wave, 0).on.time_ps
    exact = np.array([(number * bits * PS_PER_S) / rate for number in range(1, packets + 1)])
    assert np.abs(out - exact).max() <= 0.5 * packets
