"""Long simulations of the systems whose bounds are compared with the truth: extreme quantiles, each with its error.

Every system is simulated several times; the quantile is the mean over the runs and its error their scatter. Slow on
purpose, so benchmarks call these and tests do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from tests.unit.calculus import reference as ref

_BINS = 1 << 16


class Quantile(NamedTuple):
    """An estimate and its standard error."""

    value: float
    error: float


def of_runs(run: Callable[[np.random.Generator], float], runs: int) -> Quantile:
    """The mean of a quantile over independent runs."""
    found = np.array([run(np.random.default_rng(seed)) for seed in range(runs)])
    return Quantile(float(found.mean()), float(found.std(ddof=1) / np.sqrt(runs)))


def _from_counts(counts: np.ndarray, width: float, epsilon: float) -> float:
    """The upper quantile of a histogram that starts at 0."""
    above = np.cumsum(counts[::-1])[::-1] / counts.sum()
    return float(np.argmax(above <= epsilon)) * width


def on_off_packet_wait(flow: ref.OnOff, rate: float, epsilon: float, bursts: int, width: float):
    """Wait of the packets of one on-off flow at one server: a run for `of_runs`."""
    return lambda rng: _from_counts(_on_off_waits(flow, rate, bursts, width, rng), width, epsilon)


@njit(cache=True)
def _on_off_waits(flow, rate, bursts, width, rng):
    peak, on, off, bits = flow
    counts = np.zeros(_BINS)
    remainder, free, now = rng.random() * bits, 0.0, 0.0
    for _ in range(bursts):
        length = rng.exponential(on)
        produced = remainder + peak * length
        packets = int(produced // bits)
        for k in range(1, packets + 1):
            arrival = now + (k * bits - remainder) / peak
            wait = max(0.0, free - arrival)
            counts[min(_BINS - 1, int(wait / width))] += 1.0
            free = max(free, arrival) + bits / rate
        remainder = produced - packets * bits
        now += length + rng.exponential(off)
    return counts


def slotted_on_off_wait(
    stay: tuple[float, float], flows: int, rate: float, epsilon: float, slots: int, *, per_bit: bool
):
    """Delay, in slots, of the last bit of a slot, per slot or per bit: a run for `of_runs`."""
    width = 0.01

    def run(rng):
        return _from_counts(_slotted_backlogs(stay, flows, rate, slots, width, per_bit, rng), width, epsilon) / rate

    return run


@njit(cache=True)
def _slotted_backlogs(stay, flows, rate, slots, width, per_bit, rng):  # noqa: PLR0917 - numba takes no keywords
    stay_on, stay_off = stay
    counts = np.zeros(_BINS)
    active, backlog = 0, 0.0
    for _ in range(slots):
        still = 0
        for flow in range(flows):
            draw = rng.random()
            still += draw < stay_on if flow < active else draw >= stay_off
        active = still
        backlog = max(0.0, backlog + active - rate)
        counts[min(_BINS - 1, int(backlog / width))] += active if per_bit else 1.0
    return counts


def lindley_wait(gaps, sizes, rate: float, epsilon: float):
    """Wait of packets with gaps and sizes drawn by the two functions of a generator: a run for `of_runs`."""

    def run(rng):
        waits = ref.waits(np.cumsum(gaps(rng)), sizes(rng), rate)
        return float(np.quantile(waits, 1.0 - epsilon))

    return run


def priority_tandem_delay(stay: tuple[float, float], cross_flows: int, capacities, epsilon: float, slots: int):
    """Virtual delay, in slots, of one on-off flow behind fresh cross traffic that goes first: a run for `of_runs`."""

    def run(rng):
        own = ref.slotted_on_off(*stay, 1, slots, rng)
        cross = np.array([ref.slotted_on_off(*stay, cross_flows, slots, rng) for _ in capacities])
        delays = ref.virtual_delays(own, ref.priority_tandem(own, cross, np.array(capacities)))
        return float(np.quantile(delays, 1.0 - epsilon, method="higher"))

    return run
