"""Models compute the same on every device there is; without CUDA, what concerns it is skipped and says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from torch import nn

from inference_server import repository
from inference_server.__main__ import main
from inference_server.digits import held_out
from inference_server.generated.open_inference_pb2 import ModelInferRequest
from inference_server.models import Model
from inference_server.protocol import MOST_GENERATED, Stamps
from inference_server.scheduler import Batching
from inference_server.server import Settings
from inference_server.text import TextModel
from tests.unit.inference.serving import LONG_S, Running, infer, request, serving, until
from tests.unit.inference.test_calls import _held

pytestmark = [
    # PyTorch advises against TorchScript; users have it all the same.
    pytest.mark.filterwarnings("ignore:`?torch.jit:DeprecationWarning"),
    # PyTorch 2.11 makes tensors of the bytes of an exported program, and warns of what it does there itself.
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=NO_CUDA)]
CONTEXT = np.frombuffer(b"The data set contains ", np.uint8)
OWN = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}


def load(name: str, device: str, folder: Path | None = None) -> Model:
    (found,) = repository.load([name], folder, device=torch.device(device), max_rows=1024)
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["digits-small", "digits-medium", "digits-large"])
def test_digits_are_classified_as_well_as_the_record_says(name: str, device: str) -> None:
    digits = held_out()
    logits = load(name, device).compute({"pixels": digits.pixels.astype(np.float32)}).outputs["logits"]
    reference = load(name, "cpu").compute({"pixels": digits.pixels.astype(np.float32)}).outputs["logits"]
    assert logits == pytest.approx(reference, abs=1e-2, rel=1e-3)
    accuracy = float(np.mean(logits.argmax(axis=1) == digits.labels))
    assert accuracy == pytest.approx(repository.record()["models"][name]["held_out_accuracy"], abs=0.005)


@pytest.mark.parametrize("device", DEVICES)
def test_text_begins_as_on_the_cpu_and_is_as_long_as_asked(device: str) -> None:
    model, reference = load("text-small", device), load("text-small", "cpu")
    tokens = torch.tensor(CONTEXT, dtype=torch.int64)[None, :]
    with torch.inference_mode():
        logits, _ = model.network(tokens.to(model.device), None)
        expected, _ = reference.network(tokens, None)
    assert logits.cpu().numpy() == pytest.approx(expected.numpy(), abs=1e-2, rel=1e-3)
    generated = model.compute({"context": CONTEXT, "count": np.array([40], np.int32)}).outputs["generated"]
    assert (generated.dtype, generated.shape) == (np.dtype(np.uint8), (40,))


@pytest.mark.parametrize("device", DEVICES)
def test_costs_are_of_finished_computations(device: str) -> None:
    cost = load("text-small", device).measure_cost()
    short, long = ({"context": CONTEXT, "count": np.array([n], np.int32)} for n in (1, 200))
    assert cost(long) > 10 * cost(short) > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["script", "export"])
def test_a_model_of_ones_own_computes_where_the_server_does(tmp_path: Path, kind: str, device: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    layer = nn.Linear(3, 2)
    if kind == "script":
        torch.jit.trace(layer, torch.zeros(2, 3)).save(folder / "model.pt")
    else:
        shapes = ({0: torch.export.Dim("rows", min=1)},)
        program = torch.export.export(layer, (torch.zeros(2, 3),), dynamic_shapes=shapes)
        torch.export.save(program, folder / "model.pt2")
    (folder / "model.json").write_text(json.dumps(OWN))
    model = load("mine", device, tmp_path)
    assert {parameter.device.type for parameter in model.network.parameters()} == {device}
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert model.compute({"x": rows}).outputs["y"] == pytest.approx(
        layer(torch.tensor(rows)).detach().numpy(), abs=1e-3
    )


@pytest.fixture(scope="module", params=DEVICES)
def served(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A server on each device that computes up to 8 rows together, and lets three requests wait."""
    settings = Settings(
        listen="127.0.0.1:0",
        models=("digits-small", "text-small"),
        batching=Batching(8),
        queue_limit=3,
        device=request.param,
    )
    with serving(settings) as running:
        assert running.server.service.models["digits-small"].device.type == request.param
        yield running


def classified(pixels: np.ndarray) -> np.ndarray:
    """What the model on the CPU says."""
    return load("digits-small", "cpu").compute({"pixels": pixels}).outputs["logits"]


def test_a_server_answers_from_its_device_and_stamps_what_was_finished(served: Running) -> None:
    pixels = held_out().pixels[:8].astype(np.float32)
    with served.channel() as channel:
        answer = infer(channel)(request(pixels=pixels), timeout=LONG_S)
        found = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(8, 10)
        assert found == pytest.approx(classified(pixels), abs=1e-2)
        stamps = Stamps.read(answer)
        assert stamps is not None
        assert stamps.received_ns <= stamps.queued_ns <= stamps.started_ns < stamps.finished_ns
        assert len(infer(channel)(text(5), timeout=LONG_S).raw_output_contents[0]) == 5


def test_what_waited_for_a_device_is_computed_together_and_what_is_beyond_the_queue_is_refused(served: Running) -> None:
    pixels = held_out().pixels.astype(np.float32)
    parts = [pixels[:1], pixels[1:3], pixels[3:6]]
    statistics = served.server.service.statistics
    with statistics.read():
        before = statistics.models["digits-small"].executions
    with served.channel() as channel:
        (held,) = _held(served, channel, 0)
        calls = []
        for waiting, part in enumerate(parts, start=1):
            calls.append(infer(channel).future(request(pixels=part), timeout=LONG_S))
            until(lambda waiting=waiting: len(served.server._scheduler) == waiting)
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel)(request(), timeout=LONG_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        served.gate.open.set()
        held.result(LONG_S)
        answers = [call.result(LONG_S).raw_output_contents[0] for call in calls]
    found = np.frombuffer(b"".join(answers), "<f4").reshape(6, 10)
    assert found == pytest.approx(classified(pixels[:6]), abs=1e-2)
    with statistics.read():
        assert statistics.models["digits-small"].executions == before + 1


def test_no_device_computes_what_is_late_or_was_given_up(served: Running) -> None:
    with served.channel() as channel:
        (held,) = _held(served, channel, 0)
        computed = served.server.workers.computed
        given_up = infer(channel).future(request(), timeout=LONG_S)
        until(lambda: len(served.server._scheduler) == 1)
        given_up.cancel()
        until(lambda: len(served.server._scheduler) == 0)
        late = infer(channel).future(request(), timeout=0.2)
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: len(served.server._scheduler) == 0)
        served.gate.open.set()
        held.result(LONG_S)
        hurried = text(MOST_GENERATED)
        hurried.parameters["timeout"].int64_param = 20_000
        with pytest.raises(grpc.RpcError, match="deadline passed before the answer was there") as caught:
            infer(channel)(hurried, timeout=LONG_S)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        infer(channel)(request(), timeout=LONG_S)
    assert served.server.workers.computed == computed + 2


def text(count: int) -> ModelInferRequest:
    asked = ModelInferRequest(
        model_name="text-small", raw_input_contents=[CONTEXT.tobytes(), count.to_bytes(4, "little")]
    )
    asked.inputs.add(name="context", datatype="UINT8", shape=CONTEXT.shape)
    asked.inputs.add(name="count", datatype="INT32", shape=[1])
    return asked


def test_the_device_is_cuda_where_there_is_one_and_none_was_chosen() -> None:
    with serving(Settings(listen="127.0.0.1:0", models=("text-small",))) as server:
        model = server.server.service.models["text-small"]
        assert isinstance(model, TextModel)
        assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda", "--listen", "127.0.0.1:0"]) == 2
    assert capsys.readouterr().err.startswith("inference_server: device cuda: found no CUDA device")
