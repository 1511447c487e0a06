"""The hidden state of bursty sources, drawn piece by piece: on periods, and rates that follow a Markov chain.

The pieces are those that `testbed.traffic.modulation` draws for a whole window from the same seed; what correlates two
sources is explained there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from testbed.scenario.model import MmppArrivals
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.wave import IndexArray, TimeArray
from testbed.traffic.modulation import POINTS, Moves, state_before, stationary

_BLOCK = 512


class Pieces(NamedTuple):
    """Consecutive stretches of time in which a source produces.

    Attributes:
        start_ps: Their starts, in order, int64[n].
        end_ps: Their ends, each at most the next start, int64[n].
        rate: What is produced per picosecond, float64[n]; 1 while an on-off source is on.
        known_ps: There is no further piece that begins before this.
    """

    start_ps: TimeArray
    end_ps: TimeArray
    rate: npt.NDArray[np.float64]
    known_ps: int


class Path(Protocol):
    """A hidden state."""

    def more(self) -> Pieces:
        """The next pieces."""


class OnOffPath:
    """A stationary two-state Markov path.

    Args:
        mean_on_s: Mean on period.
        mean_off_s: Mean off period.
        rng: Draws what `testbed.traffic.modulation.on_off_path` draws.
    """

    def __init__(self, mean_on_s: float, mean_off_s: float, rng: np.random.Generator) -> None:
        self._starts_on = rng.random() < mean_on_s / (mean_on_s + mean_off_s)
        means_s = (mean_on_s, mean_off_s) if self._starts_on else (mean_off_s, mean_on_s)
        self._means_ps = np.array(means_s) * PS_PER_S
        self._rng = rng
        self._edge_ps = 0

    def more(self) -> Pieces:
        """The next on periods."""
        drawn = self._rng.standard_exponential(2 * _BLOCK).reshape(-1, 2) * self._means_ps
        edges = self._edge_ps + np.rint(np.concatenate(([0.0], np.cumsum(drawn)))).astype(np.int64)
        self._edge_ps = int(edges[-1])
        first = 0 if self._starts_on else 1
        return Pieces(edges[first:-1:2], edges[first + 1 :: 2], np.ones(_BLOCK), self._edge_ps)


class CorrelatedPath:
    """A Markov path that follows a common one to some strength, as `testbed.traffic.modulation.correlated_states`.

    Args:
        moves: The chain.
        rate_per_ps: What is produced in each state, float64[states].
        strength: Share of the common points that it follows, 0 to 1.
        common: Draws the common points; everyone who follows them gives a generator in the same state.
        own: Draws this tenant's choices and own points.
    """

    def __init__(
        self,
        moves: Moves,
        rate_per_ps: npt.NDArray[np.float64],
        strength: float,
        *,
        common: np.random.Generator,
        own: np.random.Generator,
    ) -> None:
        self._moves, self._rate_per_ps, self._strength = moves, rate_per_ps, strength
        self._common, self._choice = common.spawn(2), own.spawn(2)
        self._own_ps, self._common_ps = 0, 0
        self._state = state_before(moves, strength, common=common, own=own)
        self._since_ps = 0
        self._ahead: tuple[TimeArray, IndexArray] = (np.empty(0, np.int64), np.empty(0, np.int64))

    def more(self) -> Pieces:
        """The next stretches in which it produces, after a number of points."""
        common_ps, common_moves = self._points(self._common, self._moves.rate_per_s, "_common_ps")
        follows = self._choice[0].random(common_ps.size) < self._strength
        times, made = [self._ahead[0], common_ps[follows]], [self._ahead[1], common_moves[follows]]
        while self._strength < 1 and self._own_ps < self._common_ps:
            rate_per_s = (1 - self._strength) * self._moves.rate_per_s
            own_ps, own_moves = self._points([self._choice[1]] * 2, rate_per_s, "_own_ps")
            times.append(own_ps)
            made.append(own_moves)
        all_ps, all_moves = np.concatenate(times), np.concatenate(made)
        order = np.argsort(all_ps, kind="stable")
        all_ps, all_moves = all_ps[order], all_moves[order]
        now = int(np.searchsorted(all_ps, self._common_ps))
        self._ahead = (all_ps[now:], all_moves[now:])
        return self._pieces(all_ps[:now], all_moves[:now])

    def _points(self, rngs: list[np.random.Generator], rate_per_s: float, clock: str) -> tuple[TimeArray, IndexArray]:
        gaps = rngs[0].standard_exponential(POINTS) / rate_per_s * PS_PER_S
        times_ps = getattr(self, clock) + np.rint(np.cumsum(gaps)).astype(np.int64)
        setattr(self, clock, int(times_ps[-1]))
        return times_ps, self._moves.drawn(rngs[1], POINTS)

    def _pieces(self, times_ps: TimeArray, moves: IndexArray) -> Pieces:
        """From points to stretches that are over, and the beginning of the one that is not."""
        states = np.concatenate(([self._state], self._moves.visited(self._state, moves)))
        edges = np.concatenate(([self._since_ps], times_ps, [self._common_ps]))
        rate = self._rate_per_ps[states]
        busy = rate > 0
        self._state, self._since_ps = int(states[-1]), self._common_ps
        return Pieces(edges[:-1][busy], edges[1:][busy], rate[busy], self._common_ps)


class RatePath:
    """A stationary rate that follows a Markov chain, as `testbed.traffic.modulation.rate_path` draws it.

    Args:
        arrivals: Rates and transitions.
        rng: Draws the chain.

    Raises:
        ScenarioError: The rates do not describe such a chain.
    """

    def __init__(self, arrivals: MmppArrivals, rng: np.random.Generator) -> None:
        share = stationary(arrivals.switch_per_s)
        leave_per_s = np.array(arrivals.switch_per_s, dtype=np.float64)
        np.fill_diagonal(leave_per_s, 0.0)
        self._exit_per_ps = leave_per_s.sum(axis=1) / PS_PER_S
        self._rate_per_ps = np.array(arrivals.rates_per_s) / PS_PER_S
        self._edge_ps = 0
        self._alone = share.size == 1
        if not self._alone:
            self._jumps = np.cumsum(leave_per_s, axis=1) / leave_per_s.sum(axis=1)[:, None]
            self._stays, moves = rng.spawn(2)
            self._states = self._walk(share, moves)

    def more(self) -> Pieces:
        """The next sojourns."""
        if self._alone:
            start, self._edge_ps = self._edge_ps, self._edge_ps + PS_PER_S
            return Pieces(np.array([start]), np.array([self._edge_ps]), self._rate_per_ps, self._edge_ps)
        states = np.fromiter(self._states, np.int64, _BLOCK)
        stays = self._stays.standard_exponential(_BLOCK) / self._exit_per_ps[states]
        edges = self._edge_ps + np.rint(np.concatenate(([0.0], np.cumsum(stays)))).astype(np.int64)
        self._edge_ps = int(edges[-1])
        return Pieces(edges[:-1], edges[1:], self._rate_per_ps[states], self._edge_ps)

    def _walk(self, share: npt.NDArray[np.float64], moves: np.random.Generator) -> Iterator[int]:
        last = share.size - 1
        state = min(int(np.searchsorted(np.cumsum(share), moves.random(), side="right")), last)
        while True:
            for chance in moves.random(_BLOCK).tolist():
                yield state
                state = min(int(np.searchsorted(self._jumps[state], chance, side="right")), last)
