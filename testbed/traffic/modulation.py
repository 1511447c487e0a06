"""The hidden state that makes traffic bursty: when a source is on, and how fast it is in each state.

A path of the state is drawn apart from the packets, because tenants that misbehave together share one. Paths start in
equilibrium, so a window that opens at time zero sees the process as it always is, and a longer window begins with the
shorter one. Packets are cut from a path by `testbed.traffic.arrivals`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class OnOffPath:
    """The on periods of a source that begin within a window.

    Attributes:
        start_s: Start of each on period; the first is 0 where the window opens during a burst. float64[n].
        end_s: End of each on period; the last may lie beyond the window. float64[n].
        mean_on_s: Mean on period of the process the path was drawn from.
        mean_off_s: Mean off period of that process.
    """

    start_s: FloatArray
    end_s: FloatArray
    mean_on_s: float
    mean_off_s: float


@dataclass(frozen=True, slots=True, eq=False)
class RatePath:
    """A rate that is constant between the instants at which it changes.

    Attributes:
        edges_s: Instants of change, from 0 to the end of the window or beyond, float64[n + 1].
        rate_per_s: Rate between them, float64[n].
    """

    edges_s: FloatArray
    rate_per_s: FloatArray


def on_off_path(mean_on_s: float, mean_off_s: float, *, rng: np.random.Generator, duration_s: float) -> OnOffPath:
    """Draw a stationary path of a two-state Markov process with exponential periods."""
    starts_on = rng.random() < mean_on_s / (mean_on_s + mean_off_s)
    means = np.array([mean_on_s, mean_off_s] if starts_on else [mean_off_s, mean_on_s])
    block = 2 * (int(duration_s / (mean_on_s + mean_off_s)) + 8)
    periods = np.empty(0)
    edges = np.zeros(1)
    while edges[-1] < duration_s:
        drawn = rng.standard_exponential(block).reshape(-1, 2) * means
        periods = np.concatenate((periods, drawn.ravel()))
        edges = np.concatenate(([0.0], np.cumsum(periods)))
    first = 0 if starts_on else 1
    start_s, end_s = edges[first:-1:2], edges[first + 1 :: 2]
    within = start_s[: end_s.size] < duration_s
    return OnOffPath(start_s[: end_s.size][within], end_s[within], mean_on_s, mean_off_s)


def stationary(switch_per_s: tuple[tuple[float, ...], ...]) -> FloatArray:
    """Long-run share of time that a Markov chain spends in each state.

    Args:
        switch_per_s: Transition rates, k rows of k; the diagonal is ignored.

    Raises:
        ScenarioError: No square table of rates, a negative rate, or a state that can never be left or reached again.
    """
    rates = np.array(switch_per_s, dtype=np.float64) if _is_square(switch_per_s) else np.empty((0, 0))
    if rates.size == 0 or np.any(rates < 0):
        raise ScenarioError(f"switching rates: found {switch_per_s}, expected k rows of k rates of at least 0")
    states = len(rates)
    generator = rates.copy()
    np.fill_diagonal(generator, 0.0)
    linked = np.linalg.matrix_power(np.eye(states) + (generator > 0), states) > 0
    if not linked.all():
        raise ScenarioError(
            f"switching rates: found {switch_per_s}, in which not every state can be reached from every other; "
            "a chain that gets stuck has no mean rate"
        )
    np.fill_diagonal(generator, -generator.sum(axis=1))
    equations = np.vstack((generator.T, np.ones(states)))
    share, *_ = np.linalg.lstsq(equations, np.append(np.zeros(states), 1.0), rcond=None)
    return np.asarray(share)


def rate_path(
    rates_per_s: tuple[float, ...],
    switch_per_s: tuple[tuple[float, ...], ...],
    *,
    rng: np.random.Generator,
    duration_s: float,
) -> RatePath:
    """Draw a stationary path of a rate that follows a Markov chain.

    Raises:
        ScenarioError: The rates do not describe such a chain.
    """
    share = stationary(switch_per_s)
    if len(rates_per_s) != share.size or min(rates_per_s) < 0:
        raise ScenarioError(
            f"rates: found {rates_per_s}, expected {share.size} rates of at least 0, one for each state"
        )
    leave_per_s = np.array(switch_per_s, dtype=np.float64)
    np.fill_diagonal(leave_per_s, 0.0)
    exit_per_s = leave_per_s.sum(axis=1)
    if share.size == 1:
        return RatePath(np.array([0.0, duration_s]), np.array(rates_per_s))
    jumps = (np.cumsum(leave_per_s, axis=1) / exit_per_s[:, None]).tolist()
    stays, moves = rng.spawn(2)
    states = [min(bisect_right(np.cumsum(share).tolist(), moves.random()), share.size - 1)]
    edges_s = np.zeros(1)
    times = np.empty(0)
    block = int(duration_s * float(share @ exit_per_s)) + 16
    while edges_s[-1] < duration_s:
        for chance in moves.random(block).tolist():
            states.append(min(bisect_right(jumps[states[-1]], chance), share.size - 1))
        times = np.concatenate((times, stays.standard_exponential(block)))
        edges_s = np.concatenate(([0.0], np.cumsum(times / exit_per_s[states[: times.size]])))
    return RatePath(edges_s, np.array(rates_per_s)[states[: times.size]])


def _is_square(table: tuple[tuple[float, ...], ...]) -> bool:
    return len(table) > 0 and all(len(row) == len(table) for row in table)


def reached_at(start_s: FloatArray, end_s: FloatArray, rate_per_s: FloatArray, amount: FloatArray) -> FloatArray:
    """When the integral of a piecewise constant rate reaches given amounts.

    Args:
        start_s: Starts of the pieces, in order, float64[n].
        end_s: Their ends; the rate is 0 between one piece's end and the next one's start. float64[n].
        rate_per_s: Rate in each piece, float64[n].
        amount: Increasing amounts, not above the whole integral, float64[m].

    Returns:
        Non-decreasing times, float64[m].
    """
    produced = np.concatenate(([0.0], np.cumsum((end_s - start_s) * rate_per_s)))
    piece = np.minimum(np.searchsorted(produced[1:], amount), max(end_s.size - 1, 0))
    # Rounding must not let the last arrival of a piece overtake the first of the next.
    return np.asarray(np.minimum(start_s[piece] + (amount - produced[piece]) / rate_per_s[piece], end_s[piece]))
