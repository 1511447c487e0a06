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


def correlated_path(
    mean_on_s: float,
    mean_off_s: float,
    strength: float,
    *,
    common: np.random.Generator,
    own: np.random.Generator,
    duration_s: float,
) -> OnOffPath:
    """Draw a two-state Markov path that follows a common one to some strength.

    A two-state chain with rates a (to on) and b (to off) is one that is drawn afresh, on with probability a/(a+b), at
    the points of a Poisson process of rate a+b: from off it then goes on at rate (a+b) a/(a+b) = a, and from on it goes
    off at rate b. So let a tenant follow each redraw of a common process with probability s, and have redraws of its
    own at rate (1-s)(a+b). Whatever s, its own law is exactly the declared one; s = 0 makes tenants independent, s = 1
    makes them the same.

    Args:
        mean_on_s: Mean on period.
        mean_off_s: Mean off period.
        strength: s, 0 to 1.
        common: Draws the common redraws; everyone who follows them gives a generator in the same state.
        own: Draws this tenant's choices and own redraws.
        duration_s: Length of the window.

    Raises:
        ScenarioError: A strength outside its range.
    """
    if not 0 <= strength <= 1:
        raise ScenarioError(f"correlation: found {strength}, expected 0 (independent) to 1 (together); choose one")
    rate_per_s, share = 1 / mean_on_s + 1 / mean_off_s, mean_on_s / (mean_on_s + mean_off_s)
    shared, (choices, alone) = common.spawn(2), own.spawn(2)
    on = redrawn_before(share, strength, common=common, own=own)
    common_s, common_on = _redraws(shared[0], shared[1], rate_per_s, share, duration_s)
    follows = choices.random(common_s.size) < strength
    times_s, states = common_s[follows], common_on[follows]
    if strength < 1:
        own_s, own_on = _redraws(alone, alone, (1 - strength) * rate_per_s, share, duration_s)
        times_s, states = np.concatenate((times_s, own_s)), np.concatenate((states, own_on))
    order = np.argsort(times_s, kind="stable")
    edges_s = np.concatenate(([0.0], times_s[order], [np.inf]))
    states = np.concatenate(([on], states[order]))
    within = states & (edges_s[:-1] < duration_s)
    return OnOffPath(edges_s[:-1][within], np.minimum(edges_s[1:][within], duration_s), mean_on_s, mean_off_s)


def redrawn_before(share: float, strength: float, *, common: np.random.Generator, own: np.random.Generator) -> bool:
    """The state at time 0 of a chain that follows a common one and has run forever: whatever it was last redrawn to."""
    # Ages of the last common redraws, newest first, in their mean gaps: the first one that was followed counts.
    age, followed = 0.0, False
    common_on = False
    while strength > 0 and not followed:
        age += common.standard_exponential()
        common_on = bool(common.random() < share)
        followed = bool(own.random() < strength)
    own_age = own.standard_exponential() / (1 - strength) if strength < 1 else np.inf
    own_on = bool(own.random() < share)
    return common_on if followed and age < own_age else own_on


REDRAWS = 512
"""Redraws come in blocks of so many, gaps before states; whoever draws the same path keeps to that."""


def _redraws(
    gaps: np.random.Generator, draws: np.random.Generator, rate_per_s: float, share: float, duration_s: float
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Instants of redraws, to the end of a window or beyond, and what each of them gives."""
    times: list[FloatArray] = []
    states: list[npt.NDArray[np.bool_]] = []
    last_s = 0.0
    while last_s < duration_s:
        times.append(last_s + np.cumsum(gaps.standard_exponential(REDRAWS) / rate_per_s))
        states.append(draws.random(REDRAWS) < share)
        last_s = float(times[-1][-1])
    return np.concatenate(times), np.concatenate(states)


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
