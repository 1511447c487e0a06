"""The compute stage against a plain model of it, and what its random factors are worth."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest

from testbed.errors import ScenarioError
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.compute import Compute, ComputeStage
from testbed.simulation.impairment import Constant, Delayer, Excess, Exponential, Lognormal, Loser, Measured
from tests.unit.simulation.references import bursty, push_in_pieces, wave_of

SEED = np.random.SeedSequence(3)
MS = PS_PER_S // 1000


def reference(times: list[int], compute: Compute) -> list[int]:
    """Finish time of each request in ps: event by event, workers in a list."""
    coming = deque(enumerate(times))
    queue: deque[tuple[int, int]] = deque()
    free = [0] * compute.workers
    done = [0] * len(times)
    patience = round(compute.patience_s * PS_PER_S)
    while coming or queue:
        if not queue:
            queue.append(coming.popleft())
        idle_from = min(free)
        # Wait for company until the batch is full, the oldest has lost patience, or no worker is idle before that.
        while coming and len(queue) < compute.batch and coming[0][1] <= max(idle_from, queue[0][1] + patience):
            queue.append(coming.popleft())
        full = queue[compute.batch - 1][1] if len(queue) >= compute.batch else math.inf
        start = max(idle_from, min(full, queue[0][1] + patience))
        size = min(len(queue), compute.batch)
        finish = int(start) + round((compute.setup_s + compute.each_s * size) * PS_PER_S)
        free[free.index(idle_from)] = finish
        for _ in range(size):
            done[queue.popleft()[0]] = finish
    return done


@pytest.mark.parametrize("pieces", [1, 40])
@pytest.mark.parametrize(
    "compute",
    [
        pytest.param(Compute(1, 500e-6), id="one worker"),
        pytest.param(Compute(4, 2e-3), id="four workers"),
        pytest.param(Compute(1, 100e-6, 1e-3, batch=8), id="greedy batches"),
        pytest.param(Compute(2, 100e-6, 2e-3, batch=8, patience_s=3e-3), id="patient batches"),
        pytest.param(Compute(3, 0.0, 1e-3, batch=2, patience_s=1.0), id="batches that wait until they are full"),
    ],
)
def test_requests_are_served_as_the_reference_does(compute: Compute, pieces: int) -> None:
    wave = bursty(4, 2000, 2, 700)
    served = push_in_pieces(ComputeStage(compute, SEED), wave, pieces).on
    found = dict(zip(served.number.tolist(), served.time_ps.tolist(), strict=True))
    expected = reference(wave.time_ps.tolist(), compute)
    last_batch = served.number.size - len(expected)
    assert last_batch == 0
    assert [found[number] for number in range(len(expected))] == expected


def test_only_the_last_packet_of_a_request_is_computed() -> None:
    wave = wave_of(np.arange(4) * MS, np.full(4, 800))
    wave.ends[:] = [False, True, False, True]
    served = ComputeStage(Compute(1, 0.5e-3), SEED).push(wave, 2**62).on
    found = dict(zip(served.number.tolist(), served.time_ps.tolist(), strict=True))
    assert found == {0: 0, 1: 3 * MS // 2, 2: 2 * MS, 3: 7 * MS // 2}


def test_a_stage_with_exponential_times_is_erlangs_queue() -> None:
    """M/M/2: a request waits with Erlang's probability C(2, a)."""
    rng = np.random.default_rng(8)
    service_s, load = 1e-3, 0.6
    times = np.cumsum(rng.standard_exponential(400_000)) * service_s / (2 * load) * PS_PER_S
    wave = wave_of(np.rint(times), np.full(times.size, 800))
    stage = ComputeStage(Compute(2, service_s, factor=Exponential(1.0)), SEED)
    done = stage.push(wave, 2**62).on
    order = np.argsort(done.number)
    sojourn_s = (done.time_ps[order] - wave.time_ps) / PS_PER_S
    waits = load**2 * 2 / (1 + load)
    mean_s = service_s + waits * service_s / (2 * (1 - load))
    assert sojourn_s.mean() == pytest.approx(mean_s, rel=0.02)


@pytest.mark.parametrize(
    ("law", "mean", "cv"),
    [
        (Constant(2.0), 2.0, 0.0),
        (Exponential(2.0), 2.0, 1.0),
        (Lognormal(2.0, 0.5), 2.0, 0.5),
        (Measured((1.0, 3.0)), 2.0, 0.5),
    ],
)
def test_laws_have_the_moments_they_say(
    law: Constant | Exponential | Lognormal | Measured, mean: float, cv: float
) -> None:
    drawn = law(np.random.default_rng(5), 200_000)
    assert drawn.mean() == pytest.approx(mean, rel=0.01)
    assert drawn.std() / drawn.mean() == pytest.approx(cv, abs=0.01)


def test_excess_latency_delays_the_stated_share_and_keeps_the_order() -> None:
    wave = wave_of(np.arange(20_000) * MS, np.full(20_000, 800))
    out = push_in_pieces(Delayer(Excess(0.1, Constant(0.4e-3)), SEED), wave, 9).on
    extra = out.time_ps - wave.time_ps
    assert set(np.unique(extra).tolist()) == {0, round(0.4e-3 * PS_PER_S)}
    assert np.mean(extra > 0) == pytest.approx(0.1, abs=0.01)
    pause = push_in_pieces(Delayer(Excess(0.01, Constant(0.05)), SEED), wave, 9).on
    assert np.all(np.diff(pause.time_ps) >= 0)
    assert np.mean(pause.time_ps > wave.time_ps) > 0.3, "a pause of 50 packets holds up those behind it"


def test_loss_takes_the_stated_share() -> None:
    wave = wave_of(np.arange(50_000) * MS, np.full(50_000, 800))
    passed = push_in_pieces(Loser(0.02, SEED), wave, 9)
    assert len(passed.lost) == pytest.approx(1000, rel=0.15)
    assert sorted([*passed.on.number.tolist(), *passed.lost.number.tolist()]) == list(range(50_000))


def test_an_impossible_stage_is_refused() -> None:
    with pytest.raises(ScenarioError, match="compute stage"):
        Compute(0, 1e-3)
