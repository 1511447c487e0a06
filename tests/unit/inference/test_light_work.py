"""Small computations are done where the network is served, in the place of a worker."""

from __future__ import annotations

import threading
from typing import Any

import grpc
import numpy as np
import pytest

from inference_server.impairments import Impairments
from inference_server.statistics import Statistics
from tests.unit.inference.serving import LONG_S, Running, infer, request, until


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that computed."""
    found: list[str] = []
    executed = Statistics.executed

    def seen(self: Statistics, *arguments: Any, **options: Any) -> None:
        found.append(threading.current_thread().name)
        executed(self, *arguments, **options)

    monkeypatch.setattr(Statistics, "executed", seen)
    return found


def test_what_is_light_is_computed_by_the_event_loop_and_the_rest_by_a_worker(
    running: Running, channel: grpc.Channel, threads: list[str]
) -> None:
    infer(channel)(request("digits-small"), timeout=LONG_S)
    infer(channel)(request("digits-large", np.zeros((64, 64))), timeout=LONG_S)
    infer(channel)(request("gate"), timeout=LONG_S)
    light, *rest = threads
    assert not light.startswith("compute-")
    assert all(name.startswith("compute-") for name in rest)


def test_while_the_server_is_impaired_the_event_loop_computes_nothing(
    running: Running, channel: grpc.Channel, threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Impairments, "any", True)
    infer(channel)(request("digits-small"), timeout=LONG_S)
    assert [name.startswith("compute-") for name in threads] == [True]


def test_light_work_waits_for_its_turn_while_the_only_worker_computes(running: Running, channel: grpc.Channel) -> None:
    running.gate.close()
    first = infer(channel).future(request("gate"), timeout=LONG_S)
    assert running.gate.entered.acquire(timeout=LONG_S)
    light = infer(channel).future(request("digits-small"), timeout=LONG_S)
    until(lambda: len(running.server._scheduler) == 1)
    assert not light.done()
    running.gate.open.set()
    assert len(light.result(LONG_S).outputs) == len(first.result(LONG_S).outputs) == 1
