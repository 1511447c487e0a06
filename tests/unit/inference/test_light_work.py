"""Small computations are done where the network is served, in the place of a worker, and are right there."""

from __future__ import annotations

import threading

import grpc
import numpy as np
import pytest
import torch

from inference_server import repository
from inference_server.digits import held_out
from inference_server.impairments import Impairments
from inference_server.models import Model
from inference_server.networks import Perceptron
from inference_server.perceptron import PerceptronModel
from inference_server.workers import Workers
from tests.unit.inference.serving import LONG_S, Running, infer, request, until

MODELS = ["digits-small", "digits-medium"]


def load(name: str) -> Model:
    (found,) = repository.load([name], None, device=torch.device("cpu"), max_rows=1024)
    return found


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that computed."""
    found: list[str] = []
    compute = Workers._computed

    def seen(self: Workers, batch: object) -> object:
        found.append(threading.current_thread().name)
        return compute(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Workers, "_computed", seen)
    return found


@pytest.mark.parametrize("rows", [1, 8, 9, 500])
@pytest.mark.parametrize("name", MODELS)
def test_a_perceptron_computes_what_its_network_does_however_many_rows(name: str, rows: int) -> None:
    model, pixels = load(name), held_out().pixels[:rows]
    assert isinstance(model, PerceptronModel)
    assert isinstance(model.network, Perceptron)
    with torch.inference_mode():
        expected = model.network(torch.tensor(pixels)).numpy()
    found = model.compute({"pixels": pixels}).outputs["logits"]
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_few_rows_are_charged_what_numpy_takes_and_more_what_pytorch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    taken_s = {1: 1.0, 8: 1.7, 9: 5.0, 1024: 5.0 + 1015 * 0.01}
    monkeypatch.setattr(PerceptronModel, "_fastest_s", lambda _, rows: taken_s[rows])
    cost = load("digits-small").measure_cost()
    found = [cost({"pixels": np.zeros((rows, 64), np.float32)}) for rows in (1, 4, 8, 9, 109, 1024)]
    assert found == pytest.approx([1.0, 1.3, 1.7, 5.0, 6.0, 15.15])


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
