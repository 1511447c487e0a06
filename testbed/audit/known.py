"""Latency series whose true quantiles are known, on which every statistic of the audit is tried out.

Each process is stationary from its first sample, so the truth holds for short series too. They are yardsticks for
tests, benchmarks and the tables of docs/audit.md; `testbed.simulation` simulates scenarios.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

FloatArray = npt.NDArray[np.float64]

_SETTLE = 20_000
"""Requests after which a tandem that starts empty is taken for stationary."""

_CHUNK, _CHUNKS, _KEPT = 2_000_000, 100, 50
"""Size and number of the simulations behind a truth without closed form, and the part of them whose tail is kept."""


@dataclass(frozen=True, slots=True)
class Known:
    """A stationary latency process and its truth.

    Attributes:
        name: What it is, as tables print it.
        draw: Draws n consecutive latencies in seconds.
        quantile_s: The latency that a given fraction of all samples does not exceed.
        independent: Whether samples say nothing about each other.
    """

    name: str
    draw: Callable[[int, np.random.Generator], FloatArray]
    quantile_s: Callable[[float], float]
    independent: bool = False


def exponential() -> Known:
    """Independent exponential latencies of mean 1 s."""
    return Known(
        "iid exponential",
        lambda n, rng: rng.standard_exponential(n),
        lambda q: -math.log1p(-q),
        independent=True,
    )


def lognormal(sigma: float = 1.0) -> Known:
    """Independent lognormal latencies of median 1 s."""
    return Known(
        "iid lognormal",
        lambda n, rng: rng.lognormal(0.0, sigma, n),
        lambda q: math.exp(sigma * float(ndtri(q))),
        independent=True,
    )


def pareto(shape: float = 3.0) -> Known:
    """Independent Pareto latencies from 1 s on."""
    return Known(
        f"iid Pareto({shape:g})",
        lambda n, rng: 1 + rng.pareto(shape, n),
        lambda q: (1 - q) ** (-1 / shape),
        independent=True,
    )


def hiccups(rate: float = 0.003, pause_s: float = 20.0) -> Known:
    """Independent exponential latencies of mean 1 s, of which a few wait through a pause of uniform length as well."""

    def draw(n: int, rng: np.random.Generator) -> FloatArray:
        return rng.standard_exponential(n) + np.where(rng.random(n) < rate, rng.uniform(0, pause_s, n), 0.0)

    def tail(x: float) -> float:
        """P(E + U > x), U uniform on [0, pause]: 1 - F by integrating the exponential over U."""
        covered = min(x, pause_s)
        late = (pause_s - covered) / pause_s + (math.exp(covered - x) - math.exp(-x)) / pause_s
        return (1 - rate) * math.exp(-x) + rate * late

    def quantile(q: float) -> float:
        low, high = 0.0, 4 * pause_s
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if tail(middle) > 1 - q else (low, middle)
        return high

    return Known(f"bimodal, {rate:.1%} hiccups", draw, quantile, independent=True)


def mm1(load: float) -> Known:
    """Sojourn times of an M/M/1 queue with mean service time 1 s, started in equilibrium."""

    def draw(n: int, rng: np.random.Generator) -> FloatArray:
        wait = 0.0 if rng.random() > load else float(rng.exponential(1 / (1 - load)))
        sojourn_s: FloatArray = lindley(rng.standard_exponential(n), rng.exponential(1 / load, n), wait)
        return sojourn_s

    return Known(f"M/M/1 load {load:g}", draw, lambda q: -math.log1p(-q) / (1 - load))


def arma_lognormal(phi: float = 0.95, theta: float = 0.3, sigma: float = 1.0) -> Known:
    """Lognormal latencies of median 1 s whose logarithm is a Gaussian ARMA(1, 1) series."""
    spread = math.sqrt((1 + 2 * phi * theta + theta**2) / (1 - phi**2))

    def draw(n: int, rng: np.random.Generator) -> FloatArray:
        noise = rng.standard_normal(n + 1)
        # Value and innovation before the first sample have covariance 1 and variances spread^2 and 1.
        before = noise[0] + math.sqrt(spread**2 - 1) * rng.standard_normal()
        log_s: FloatArray = _arma(noise, before, phi, theta)
        return np.exp(sigma / spread * log_s)

    return Known("ARMA-lognormal", draw, lambda q: math.exp(sigma * float(ndtri(q))))


def on_off_tandem(load: float = 0.7, servers: int = 3, burst: float = 20.0, peak: float = 2.0) -> Known:
    """Requests of an on-off source through FIFO servers with exponential service times of mean 1 s, one by one.

    A burst has a geometric number of requests, 1 / peak apart; exponential silences between bursts give the load. No
    closed form is known, so the truth is read off a long simulation: its rate of misses is right to about 2 %.
    """
    spacing_s = 1 / peak
    silence_s = burst * (1 / load - spacing_s)

    def gaps(n: int, rng: np.random.Generator) -> FloatArray:
        gap_s: FloatArray = np.full(n, spacing_s)
        ends = np.flatnonzero(rng.random(n) < 1 / burst)
        gap_s[ends] += rng.exponential(silence_s, ends.size)
        return gap_s

    def draw(n: int, rng: np.random.Generator) -> FloatArray:
        total = n + _SETTLE
        arrival_s = np.cumsum(gaps(total, rng))
        leave_s = arrival_s
        for _ in range(servers):
            leave_s = _fifo(leave_s, rng.standard_exponential(total))
        latency_s: FloatArray = (leave_s - arrival_s)[_SETTLE:]
        return latency_s

    @functools.cache
    def slowest() -> FloatArray:
        """The tail of a long simulation, increasing."""
        rng = np.random.default_rng(0)
        floor = float(np.quantile(draw(_CHUNK, rng), 1 - 2 / _KEPT))
        kept = [part[part > floor] for part in (draw(_CHUNK, rng) for _ in range(_CHUNKS))]
        return np.sort(np.concatenate(kept))

    def quantile(q: float) -> float:
        beyond = (1 - q) * _CHUNK * _CHUNKS
        if not 1 <= beyond <= slowest().size:
            raise ValueError(f"quantile {q}: the simulation behind this truth says nothing there")
        return float(slowest()[-round(beyond)])

    return Known(f"on-off tandem load {load:g}, bursts of {burst:g}", draw, quantile)


@numba.njit(cache=True)
def _fifo(arrival_s: FloatArray, service_s: FloatArray) -> FloatArray:
    """Departures from a FIFO server that starts empty."""
    leave = np.empty(arrival_s.size)
    free = 0.0
    for i in range(arrival_s.size):
        free = max(free, arrival_s[i]) + service_s[i]
        leave[i] = free
    return leave


@numba.njit(cache=True)
def lindley(service_s: FloatArray, gap_s: FloatArray, wait_s: float) -> FloatArray:
    """Sojourn times of a FIFO queue.

    Args:
        service_s: Service time of each request.
        gap_s: Time from each arrival to the next.
        wait_s: Wait of the first request.
    """
    sojourn = np.empty(service_s.size)
    for i in range(service_s.size):
        sojourn[i] = wait_s + service_s[i]
        wait_s = max(0.0, sojourn[i] - gap_s[i])
    return sojourn


@numba.njit(cache=True)
def _arma(noise: FloatArray, before: float, phi: float, theta: float) -> FloatArray:
    values = np.empty(noise.size - 1)
    for i in range(values.size):
        before = phi * before + noise[i + 1] + theta * noise[i]
        values[i] = before
    return values
