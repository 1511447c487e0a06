"""What the event loop computes: directly from bytes to bytes, for a bounded time, and never begun too late."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from inference_server import repository, workers
from inference_server.direct import ROWS
from inference_server.generated import open_inference_pb2 as pb
from inference_server.impairments import Impairments
from inference_server.models import Model
from inference_server.scheduler import Batching, Scheduler
from inference_server.server import InferenceServer, Settings
from inference_server.statistics import Statistics
from inference_server.workers import LIGHT_S, TURN_NS, Job, Workers
from tests.unit.inference.serving import LONG_S, infer, request, serving, until
from tests.unit.inference.test_forms import Caller, service


@pytest.fixture(scope="module", params=["digits-small", "digits-medium"])
def perceptron(request: pytest.FixtureRequest) -> Model:
    return repository.load([request.param], None, device=torch.device("cpu"), max_rows=99)[0]


def test_few_rows_are_computed_directly_as_they_are_from_arrays(perceptron: Model) -> None:
    assert perceptron.direct is not None
    rng = np.random.default_rng(1)
    for sizes in ([1], [3], [ROWS], [1] * ROWS, [2, 5, 1], [1, 31]):
        each = [rng.uniform(0, 16, (rows, 64)).astype("<f4") for rows in sizes]
        found, ready_ns, computed_ns = perceptron.direct.many([memoryview(array.tobytes()) for array in each])
        assert ready_ns <= computed_ns
        expected = perceptron.compute({"pixels": np.concatenate(each)}).outputs["logits"]
        assert np.allclose(np.frombuffer(b"".join(found), "<f4").reshape(-1, 10), expected, atol=1e-5)
        assert [len(contents) for contents in found] == [40 * rows for rows in sizes]
        alone = [perceptron.direct.one(memoryview(array.tobytes()))[0] for array in each]
        assert np.allclose(np.frombuffer(b"".join(alone), "<f4").reshape(-1, 10), expected, atol=1e-5)


@pytest.mark.parametrize("rows", [3, ROWS, ROWS + 1, 200])
def test_requests_of_a_known_form_are_answered_as_the_first_of_it_was(rows: int) -> None:
    pixels = np.random.default_rng(2).uniform(0, 16, (rows, 64))
    settings = Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu")
    with serving(settings) as running, running.channel() as channel:
        first, *others = [infer(channel)(request(pixels=pixels, id="seven"), timeout=LONG_S) for _ in range(3)]
    for answer in (first, *others):
        answer.parameters.clear()
        assert answer == first


class Clock:
    """Stands still, or goes on by a step at every reading."""

    def __init__(self, step_ns: int) -> None:
        self._readings = count(0, step_ns) if step_ns else iter(lambda: 0, None)

    def monotonic_ns(self) -> int:
        return next(self._readings)

    def thread_time_ns(self) -> int:
        return 0


def computing() -> tuple[Workers, Scheduler[Job]]:
    scheduler: Scheduler[Job] = Scheduler({}, queue_limit=99, now_ns=lambda: 0, expired=Job.expire)
    statistics = Statistics()
    return Workers(scheduler, 1, 1, statistics, Impairments(None, touched=statistics.touched)), scheduler


@pytest.fixture
def jobs(perceptron: Model) -> Iterator[Any]:
    """Makes jobs, with this much time left at 0."""

    def make(deadline_ns: int | None = None) -> Job:
        made, kept = service()
        made._costs, made.models = {"digits": lambda _: LIGHT_S}, {"digits": replace(perceptron, name="digits")}
        made.admitted(request("digits").SerializeToString(), Caller())  # type: ignore[arg-type]
        made.admitted(request("digits").SerializeToString(), Caller())  # type: ignore[arg-type]
        job = kept.job
        if deadline_ns is not None:
            job.deadline_ns, job.begin_by_ns = deadline_ns, deadline_ns - job.form.least_ns
        return job

    return make


class Hurried(Caller):
    """A call with a deadline."""

    def __init__(self, left_s: float) -> None:
        super().__init__()
        self._left_s = left_s

    def time_remaining(self) -> Any:
        return self._left_s


@pytest.mark.parametrize(
    ("what", "at_once"),
    [("nothing", True), ("an unknown form", False), ("a worker that computes", False), ("a short deadline", False),
     ("a long deadline", True), ("an id that is no ASCII", False), ("a server that drains", False)],
)  # fmt: skip
def test_what_is_light_and_next_is_answered_at_once_unless(perceptron: Model, what: str, at_once: bool) -> None:
    async def ask() -> bytes | None:
        made, kept = service()
        made._costs, made.models = {"digits": lambda _: LIGHT_S}, {"digits": replace(perceptron, name="digits")}
        name = "\u00e4" if what == "an id that is no ASCII" else "seven"
        message = request("digits", id=name).SerializeToString()
        if what != "an unknown form":
            made.admitted(message, Caller())  # type: ignore[arg-type]
        kept.free = what != "a worker that computes"
        made.accepting = what != "a server that drains"
        caller = {"a short deadline": Hurried(0.4 * LIGHT_S), "a long deadline": Hurried(LONG_S)}.get(what, Caller())
        return made._at_once(message, caller)  # type: ignore[arg-type]

    found = asyncio.run(ask())
    assert (found is not None) is at_once
    if found is not None:
        assert pb.ModelInferResponse.FromString(found).id == "seven"


@pytest.mark.parametrize(
    ("shares", "batching", "in_order"),
    [
        ({}, Batching(), True),
        ({}, Batching(4), True),
        ({}, Batching(4, 1e-3), False),
        ({"alpha": 0.5}, Batching(), False),
    ],
)
def test_nothing_is_answered_at_once_where_shares_give_the_order_or_batches_wait(
    shares: dict[str, float], batching: Batching, in_order: bool
) -> None:
    settings = Settings(shares=shares, batching=batching, device="cpu")
    assert InferenceServer(settings).service._in_order is in_order


@pytest.mark.parametrize("directly", [True, False])
def test_nothing_is_begun_after_its_deadline_however_long_a_thread_is_held_up(
    jobs: Any, monkeypatch: pytest.MonkeyPatch, directly: bool
) -> None:
    async def compute() -> list[int]:
        begun = []
        for deadline_ns in range(int(0.5e9), int(6e9), int(0.5e9)):
            mine, _ = computing()
            batch = [jobs(deadline_ns), jobs(), jobs(deadline_ns + int(1e9))]
            # A second passes between any two looks at the clock.
            monkeypatch.setattr(workers, "time", Clock(int(1e9)))
            for _ in range(3):
                outcomes = mine._outcomes(batch, mine._computed_here if directly else mine._computed)
                begun.append(len(outcomes))
                for job, answer in outcomes:
                    assert job.deadline_ns is None or answer.stamps.started_ns < job.deadline_ns
            monkeypatch.undo()
        return begun

    assert set(asyncio.run(compute())) == {1, 2, 3}


@pytest.mark.parametrize("directly", [True, False])
def test_what_was_cancelled_after_it_left_the_queue_is_not_computed(jobs: Any, directly: bool) -> None:
    async def compute() -> None:
        mine, _ = computing()
        given_up, other = jobs(), jobs()
        given_up.answer.cancel()
        outcomes = mine._outcomes([given_up, other], mine._computed_here if directly else mine._computed)
        assert [job for job, _ in outcomes] == [other]

    asyncio.run(compute())


def test_what_is_sure_to_be_late_is_not_begun(jobs: Any) -> None:
    async def make() -> None:
        job = jobs(int(1e9))
        assert job.form.least_ns == int(0.5e9 * LIGHT_S)
        scheduler = Scheduler[Job]({}, queue_limit=9, now_ns=lambda: int(1e9) - job.form.least_ns, expired=Job.expire)
        other = jobs(int(1e9) + 1)
        scheduler.submit(job)
        scheduler.submit(other)
        assert scheduler.take() == [other]
        await asyncio.sleep(0)
        assert job.answer.exception() is not None

    asyncio.run(make())


@pytest.mark.parametrize(("step_ns", "turns"), [(0, 1), (TURN_NS, 5)])
def test_a_turn_computes_what_waits_for_as_long_as_reading_a_request_takes(
    jobs: Any, monkeypatch: pytest.MonkeyPatch, step_ns: int, turns: int
) -> None:
    async def compute() -> int:
        mine, scheduler = computing()
        mine.start()
        until(lambda: scheduler._resting == 1)
        waiting = [jobs() for _ in range(5)]
        monkeypatch.setattr(workers, "time", Clock(step_ns))
        for job in waiting:
            mine.submit(job)
        taken = 0
        while len(scheduler):
            await asyncio.sleep(0)
            taken += 1
        assert all(job.answer.done() for job in waiting)
        monkeypatch.undo()
        scheduler.close()
        mine.join()
        return taken

    assert asyncio.run(compute()) == turns


def test_a_connection_has_no_more_calls_in_the_server_than_it_may() -> None:
    settings = Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu", calls=2)
    with serving(settings) as running, running.channel() as flooding, running.channel() as other:
        # A client learns of the limit when the server's settings come.
        assert infer(flooding)(request("gate"), timeout=LONG_S).outputs
        running.gate.close()
        flood = [infer(flooding).future(request("gate"), timeout=LONG_S) for _ in range(6)]
        assert running.gate.entered.acquire(timeout=LONG_S)
        until(lambda: len(running.server._scheduler) == 1)
        mine = infer(other).future(request("gate"), timeout=LONG_S)
        until(lambda: len(running.server._scheduler) == 2)
        assert not any(call.done() for call in flood)
        running.gate.open.set()
        assert mine.result(LONG_S).outputs
        assert all(call.result(LONG_S).outputs for call in flood)
