"""A promise watched live: an alarm that may be looked at after every sample and is seldom false though misses cluster.

The monitor bets against the promise, block by block; while the promise holds no betting plan is expected to gain, so
wealth beyond 1 / alpha at any time at all has probability at most alpha. What is tested, exactly, is the **block
promise**: given all that came before, the expected share of misses in the next block is at most epsilon. A promise
about the long-run share implies it only for blocks much longer than the memory of the process, so bets in several block
lengths run side by side and only those at least `MEMORY` times longer than the measured memory (the integrated
autocorrelation of slow samples and of misses, from the variance of sums over dyadic batches) count. The plain bet on
every single sample would alarm falsely in 22 to 100 % of streams from queues that keep their promise.

Memory is constant, whatever the length of the stream. No certificate is given here: that nothing was found live is not
proof (`testbed.audit.compliance`).

Sources: Ville (1939) for the guarantee; Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting", J. R. Stat. Soc. B 86 (2024), for bets on a bounded mean; Flegal and Jones, "Batch means and spectral variance
estimators in Markov chain Monte Carlo", Ann. Stat. 38 (2010), for the memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from testbed.audit.clusters import FloatArray

MEMORY = 16
"""A block at least so many times longer than the memory of the process counts."""

WARM_UP = 1024
"""Samples from which the level of slow samples is taken; no alarm comes earlier."""

_SLOW = 0.9
_BLOCK_LENGTHS = 4
_BLOCK_RATIO = 8
_BLOCK_WEIGHTS = np.array([0.6, 0.2, 0.1, 0.1])
_BETS = np.array([0.9, 0.45, 0.2, 0.1, 0.05, 0.02, 0.005])
_BET_WEIGHTS = np.array([0.1, 0.15, 0.25, 0.25, 0.15, 0.05, 0.05])
_SCALES = 40
_MIN_BATCHES = 8
_MEMORY_EVERY = 16


@dataclass(frozen=True, slots=True)
class Alarm:
    """The block promise is broken.

    Attributes:
        sample: Number of the sample, from 1, with which the alarm came.
        misses: Misses until then.
        evidence: Wealth of the bets; while the promise holds it ever reaches 1 / alpha with probability alpha.
        false_alarm_rate: Alpha.
        block: Length of the shortest block that counted, in samples.
        null: What was refuted, in one sentence.
    """

    sample: int
    misses: int
    evidence: float
    false_alarm_rate: float
    block: int
    null: str


class _Plan(NamedTuple):
    """What does not change once the warm-up is over."""

    deadline_s: float
    slow_s: float
    epsilon: float
    limit: float
    blocks: npt.NDArray[np.int64]
    bets: FloatArray


class _State(NamedTuple):
    """Everything that is remembered of the stream."""

    now: FloatArray
    """[4] samples, misses, memory in samples, evidence"""
    at_alarm: FloatArray
    """[4] the same when the alarm came; zeros until then"""
    log_wealth: FloatArray
    """[block lengths, bets] at the end of the last full block"""
    in_block: FloatArray
    """[block lengths] misses in the running block of each length"""
    partial: FloatArray
    """[2, scales] slow samples and misses in the running batch of 2^scale"""
    sums: FloatArray
    """[2, scales] of finished batches"""
    squares: FloatArray
    """[2, scales] of finished batches"""
    batches: FloatArray
    """[scales] finished"""


_SAMPLES, _MISSES, _MEMORY, _EVIDENCE = range(4)


class Monitor:
    """Watches one promise of one tenant.

    Attributes:
        deadline_s: Promised latency; a sample above it, or never answered, is a miss.
        epsilon: Promised largest rate of misses.
        false_alarm_rate: Largest probability of ever raising an alarm while the block promise holds.
        alarm: The first alarm, which stays; None until then.
    """

    def __init__(self, deadline_s: float, epsilon: float, false_alarm_rate: float = 0.05) -> None:
        """Start a watch.

        Raises:
            ValueError: An impossible promise or rate.
        """
        if not (deadline_s > 0 and 0 < epsilon <= 0.1 and 0 < false_alarm_rate < 1):
            raise ValueError(
                f"watch: found deadline {deadline_s} s, epsilon {epsilon}, false alarm rate {false_alarm_rate}; "
                "expected deadline > 0, 0 < epsilon <= 0.1, 0 < rate < 1"
            )
        self.deadline_s = deadline_s
        self.epsilon = epsilon
        self.false_alarm_rate = false_alarm_rate
        self.alarm: Alarm | None = None
        # Up to a quarter of a miss is expected in the shortest block: betting on blocks then costs little speed.
        shortest = max(16, 2 ** int(math.log2(1 / (4 * epsilon))))
        self._blocks = shortest * _BLOCK_RATIO ** np.arange(_BLOCK_LENGTHS, dtype=np.int64)
        self._plan: _Plan | None = None
        self._warm_up = np.empty(0)
        self._state = _State(
            now=np.zeros(4),
            at_alarm=np.zeros(4),
            log_wealth=np.zeros((_BLOCK_LENGTHS, _BETS.size)),
            in_block=np.zeros(_BLOCK_LENGTHS),
            partial=np.zeros((2, _SCALES)),
            sums=np.zeros((2, _SCALES)),
            squares=np.zeros((2, _SCALES)),
            batches=np.zeros(_SCALES),
        )

    @property
    def samples(self) -> int:
        """Samples seen."""
        return int(self._state.now[_SAMPLES]) + self._warm_up.size

    @property
    def evidence(self) -> float:
        """Present wealth of the bets that count; 0 during the warm-up."""
        return float(self._state.now[_EVIDENCE])

    @property
    def memory(self) -> float:
        """Memory of the process in samples, as measured so far; 0 during the warm-up."""
        return float(self._state.now[_MEMORY])

    def observe(self, latency_s: npt.ArrayLike) -> Alarm | None:
        """Take the next samples, one or many, in order of intended sending.

        Args:
            latency_s: Latencies in seconds; NaN or inf: never answered.

        Returns:
            The alarm, once there is one.
        """
        chunk = np.atleast_1d(np.asarray(latency_s, dtype=np.float64))
        if self._plan is None:
            self._warm_up = np.append(self._warm_up, chunk)
            if self._warm_up.size < WARM_UP:
                return None
            chunk, self._warm_up = self._warm_up, np.empty(0)
            slow_s = float(np.quantile(np.nan_to_num(chunk[:WARM_UP], nan=math.inf), _SLOW, method="lower"))
            self._plan = _Plan(
                self.deadline_s, slow_s, self.epsilon, 1 / self.false_alarm_rate, self._blocks, _BETS / self.epsilon
            )
        _observe(chunk, self._plan, self._state)
        if self.alarm is None and self._state.at_alarm[_SAMPLES]:
            self.alarm = self._raised(*self._state.at_alarm)
        return self.alarm

    def _raised(self, samples: float, misses: float, memory: float, evidence: float) -> Alarm:
        block = int(self._blocks[self._blocks >= MEMORY * memory][0])
        return Alarm(
            sample=int(samples),
            misses=int(misses),
            evidence=float(evidence),
            false_alarm_rate=self.false_alarm_rate,
            block=block,
            null=f"given the past, a share of at most {self.epsilon:g} of the next {block} samples is expected to miss",
        )


@numba.njit(cache=True)
def _observe(latency_s: FloatArray, plan: _Plan, state: _State) -> None:
    for latency in latency_s:
        missed = 0.0 if latency <= plan.deadline_s else 1.0
        slow = 0.0 if latency <= plan.slow_s else 1.0
        state.now[_SAMPLES] += 1
        state.now[_MISSES] += missed
        n = int(state.now[_SAMPLES])
        _batch(n, slow, missed, state)
        if n % _MEMORY_EVERY == 0 or missed > 0:
            state.now[_MEMORY] = _memory(state)
        _settle(n, missed, plan, state)
        if n >= WARM_UP and (missed > 0 or n % plan.blocks[0] == 0):
            state.now[_EVIDENCE] = _evidence(n, plan, state)
            if state.now[_EVIDENCE] >= plan.limit and state.at_alarm[_SAMPLES] == 0:
                state.at_alarm[:] = state.now


@numba.njit(cache=True)
def _batch(n: int, slow: float, missed: float, state: _State) -> None:
    """Carry one sample into the batches of every dyadic scale that it completes."""
    for scale in range(_SCALES):
        state.batches[scale] += 1
        state.sums[0, scale] += slow
        state.sums[1, scale] += missed
        state.squares[0, scale] += slow * slow
        state.squares[1, scale] += missed * missed
        slow += state.partial[0, scale]
        missed += state.partial[1, scale]
        if n % (2 << scale) != 0:
            state.partial[0, scale] = slow
            state.partial[1, scale] = missed
            return
        state.partial[0, scale] = 0.0
        state.partial[1, scale] = 0.0


@numba.njit(cache=True)
def _memory(state: _State) -> float:
    """Largest ratio of a batch sum's variance to that of independent samples, over scales, slow samples and misses."""
    memory = 1.0
    for scale in range(_SCALES):
        count = state.batches[scale]
        if count < _MIN_BATCHES:
            break
        for kind in range(2):
            mean = state.sums[kind, scale] / count
            share = mean / (1 << scale)
            if 0 < share < 1:
                variance = (state.squares[kind, scale] - count * mean * mean) / (count - 1)
                memory = max(memory, variance / (mean * (1 - share)))
    return memory


@numba.njit(cache=True)
def _settle(n: int, missed: float, plan: _Plan, state: _State) -> None:
    """Pay out the bets on every block that ends with this sample."""
    for length in range(plan.blocks.size):
        state.in_block[length] += missed
        if n % plan.blocks[length] == 0:
            surplus = state.in_block[length] / plan.blocks[length] - plan.epsilon
            for bet in range(plan.bets.size):
                state.log_wealth[length, bet] += math.log1p(plan.bets[bet] * surplus)
            state.in_block[length] = 0.0


@numba.njit(cache=True)
def _evidence(n: int, plan: _Plan, state: _State) -> float:
    """Wealth over the blocks long enough to count.

    A running block counts as if no further miss came: a wealth that its end is certain to reach.
    """
    total = 0.0
    for length in range(plan.blocks.size):
        if plan.blocks[length] < MEMORY * state.now[_MEMORY]:
            continue
        running = n % plan.blocks[length] != 0
        surplus = state.in_block[length] / plan.blocks[length] - plan.epsilon
        for bet in range(plan.bets.size):
            log_wealth = state.log_wealth[length, bet]
            if running:
                log_wealth += math.log1p(plan.bets[bet] * surplus)
            total += _BLOCK_WEIGHTS[length] * _BET_WEIGHTS[bet] * math.exp(min(log_wealth, 500.0))
    return total
