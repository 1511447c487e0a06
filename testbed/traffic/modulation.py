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
IntArray = npt.NDArray[np.int64]


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


_PAIR = 2
STIFFEST = 10_000
"""A group's chain is followed move by move, those of states that are hardly ever visited included."""


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Every move of a Markov chain from one state to another; m moves.

    Attributes:
        source: State it leaves, int64[m].
        target: State it leads to, int64[m].
        below: Share of this move and those before it in the rate of all, float64[m].
        rate_per_s: Of all moves together.
        states: How many states there are.
    """

    source: IntArray
    target: IntArray
    below: FloatArray
    rate_per_s: float
    states: int

    @classmethod
    def of(cls, switch_per_s: tuple[tuple[float, ...], ...]) -> Moves:
        """Those of a chain with these transition rates, k rows of k; the diagonal is ignored.

        Raises:
            ScenarioError: The rates describe no chain that moves, or one whose states last too differently.
        """
        states = stationary(switch_per_s).size
        rates = np.array(switch_per_s, dtype=np.float64)
        np.fill_diagonal(rates, 0.0)
        exits = rates.sum(axis=1)
        if states == 1 or (states > _PAIR and exits.max() > STIFFEST * exits.min()):
            raise ScenarioError(
                f"switching rates of correlated bursts: found {switch_per_s}, expected at least two states, none of "
                f"which, where there are more, lasts {STIFFEST:,} times as long as another; declare fewer"
            )
        source, target = np.nonzero(rates)
        each = rates[source, target]
        return cls(source, target, np.cumsum(each) / each.sum(), float(each.sum()), states)

    @classmethod
    def on_off(cls, mean_on_s: float, mean_off_s: float) -> Moves:
        """Those of a source that is off, state 0, or on, state 1."""
        return cls.of(((0.0, 1 / mean_off_s), (1 / mean_on_s, 0.0)))

    def drawn(self, rng: np.random.Generator, n: int) -> IntArray:
        """Numbers of n independent moves, each as often as its rate says."""
        return np.minimum(np.searchsorted(self.below, rng.random(n), side="right"), self.source.size - 1)

    def visited(self, state: int, moves: IntArray) -> IntArray:
        """States after each of some moves, of which a chain makes those that leave the state it is in, int64[n]."""
        if self.states == _PAIR:
            # From wherever it is, a move leads to its target or finds the chain there.
            return self.target[moves]
        source, target = self.source.tolist(), self.target.tolist()
        found = []
        for move in moves.tolist():
            if source[move] == state:
                state = target[move]
            found.append(state)
        return np.array(found, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class StatePath:
    """States that a chain is in, one after the other; neighbours may be the same.

    Attributes:
        edges_s: Instants between them, from 0 to the end of the window, float64[n + 1].
        states: int64[n].
    """

    edges_s: FloatArray
    states: IntArray


def correlated_states(
    moves: Moves, strength: float, *, common: np.random.Generator, own: np.random.Generator, duration_s: float
) -> StatePath:
    """Draw a stationary Markov path that follows a common process to some strength.

    A chain with rates q_ij is one that at the points of independent Poisson processes, one of rate q_ij for each pair,
    goes from i to j if it is in i and stays where it is otherwise. So let the points be common to a group, let a tenant
    follow each of them with probability s, and have points of its own at rate (1-s) q_ij. What it follows are again
    independent Poisson processes of the rates q_ij (thinning and superposition), so that its own law is exactly the
    declared one whatever s; s = 0 makes tenants independent, s = 1 makes them the same. Of a chain of two states each
    point is a redraw: with rates a (to on) and b (to off), on with probability a/(a+b).

    Args:
        moves: The chain.
        strength: s, 0 to 1.
        common: Draws the common points; everyone who follows them gives a generator in the same state.
        own: Draws this tenant's choices and own points.
        duration_s: Length of the window.

    Raises:
        ScenarioError: A strength outside its range.
    """
    if not 0 <= strength <= 1:
        raise ScenarioError(f"correlation: found {strength}, expected 0 (independent) to 1 (together); choose one")
    shared, (choices, alone) = common.spawn(2), own.spawn(2)
    first = state_before(moves, strength, common=common, own=own)
    times_s, made = _points(shared[0], shared[1], moves, moves.rate_per_s, duration_s)
    follows = choices.random(times_s.size) < strength
    times_s, made = times_s[follows], made[follows]
    if strength < 1:
        own_s, own_made = _points(alone, alone, moves, (1 - strength) * moves.rate_per_s, duration_s)
        times_s, made = np.concatenate((times_s, own_s)), np.concatenate((made, own_made))
    order = np.argsort(times_s, kind="stable")
    order = order[: np.searchsorted(times_s[order], duration_s)]
    states = np.concatenate(([first], moves.visited(first, made[order])))
    return StatePath(np.concatenate(([0.0], times_s[order], [duration_s])), states)


def correlated_path(
    mean_on_s: float,
    mean_off_s: float,
    strength: float,
    *,
    common: np.random.Generator,
    own: np.random.Generator,
    duration_s: float,
) -> OnOffPath:
    """Draw the on periods of a source that follows a group; arguments and errors as `correlated_states`."""
    path = correlated_states(
        Moves.on_off(mean_on_s, mean_off_s), strength, common=common, own=own, duration_s=duration_s
    )
    on = path.states == 1
    return OnOffPath(path.edges_s[:-1][on], path.edges_s[1:][on], mean_on_s, mean_off_s)


def correlated_rate_path(
    rates_per_s: tuple[float, ...],
    switch_per_s: tuple[tuple[float, ...], ...],
    strength: float,
    *,
    common: np.random.Generator,
    own: np.random.Generator,
    duration_s: float,
) -> RatePath:
    """Draw a rate whose chain follows a group; arguments and errors as `correlated_states` and `rate_path`."""
    moves = Moves.of(switch_per_s)
    _require_rates(rates_per_s, moves.states)
    path = correlated_states(moves, strength, common=common, own=own, duration_s=duration_s)
    return RatePath(path.edges_s, np.array(rates_per_s)[path.states])


def state_before(moves: Moves, strength: float, *, common: np.random.Generator, own: np.random.Generator) -> int:
    """The state at time 0 of a chain that follows a common process and has run forever.

    Points before 0 are drawn, the latest first, until they lead from every state to the same one, which is then the
    state at 0 exactly (coupling from the past: Propp & Wilson, "Exact sampling with coupled Markov chains", 1996).
    Everyone who follows the common points sees the same ones, so tenants are in equilibrium together.
    """
    leads_to = list(range(moves.states))
    theirs, mine = _Past(common, moves), _Past(own, moves)

    def followed() -> tuple[float, int]:
        while strength > 0:
            point = theirs.earlier(1.0)
            if own.random() < strength:
                return point
        return np.inf, 0

    def alone() -> tuple[float, int]:
        return mine.earlier(1 - strength) if strength < 1 else (np.inf, 0)

    ahead = [followed(), alone()]
    while len(set(leads_to)) > 1:
        latest = 0 if ahead[0][0] < ahead[1][0] else 1
        move = ahead[latest][1]
        leads_to[int(moves.source[move])] = leads_to[int(moves.target[move])]
        ahead[latest] = followed() if latest == 0 else alone()
    return leads_to[0]


class _Past:
    """Points of a Poisson process before time 0, the latest first."""

    def __init__(self, rng: np.random.Generator, moves: Moves) -> None:
        self._rng, self._moves = rng, moves
        self._age = 0.0

    def earlier(self, share: float) -> tuple[float, int]:
        """Age of the next point and its move, where points come at a share of the chain's rate."""
        self._age += self._rng.standard_exponential() / share
        return self._age, int(self._moves.drawn(self._rng, 1)[0])


POINTS = 512
"""Points come in blocks of so many, gaps before moves; whoever draws the same path keeps to that."""


def _points(
    gaps: np.random.Generator, draws: np.random.Generator, moves: Moves, rate_per_s: float, duration_s: float
) -> tuple[FloatArray, IntArray]:
    """Instants of points, to the end of a window or beyond, and the move of each."""
    times: list[FloatArray] = []
    made: list[IntArray] = []
    last_s = 0.0
    while last_s < duration_s:
        times.append(last_s + np.cumsum(gaps.standard_exponential(POINTS) / rate_per_s))
        made.append(moves.drawn(draws, POINTS))
        last_s = float(times[-1][-1])
    return np.concatenate(times), np.concatenate(made)


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
    _require_rates(rates_per_s, share.size)
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


def _require_rates(rates_per_s: tuple[float, ...], states: int) -> None:
    if len(rates_per_s) != states or min(rates_per_s) < 0:
        raise ScenarioError(f"rates: found {rates_per_s}, expected {states} rates of at least 0, one for each state")


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
