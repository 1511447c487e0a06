"""The transformer is as good as its record says, its steps agree with its whole, and its cost follows the request."""

from __future__ import annotations

import time
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inference_server import repository, train_text
from inference_server.digits import HELD_OUT
from inference_server.errors import AbandonedError
from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import MOST_CONTEXT, MOST_GENERATED, Kind, LostTime, Stamps, impaired_by
from inference_server.server import Settings
from inference_server.text import TextModel, TokenCost
from inference_server.transformer import Transformer
from tests.unit.inference.serving import LONG_S, Running, infer, serving, until
from tests.unit.inference.test_impairments import LATER_S, impair
from tests.unit.inference.test_triton import stream

CPU = torch.device("cpu")
WORDS = b"The data set contains "


@pytest.fixture(scope="module")
def model() -> TextModel:
    (found,) = repository.load(["text-small"], None, device=CPU, max_rows=1024)
    assert isinstance(found, TextModel)
    return found


def asked(count: int, context: bytes = WORDS) -> dict[str, np.ndarray]:
    return {"context": np.frombuffer(context, np.uint8), "count": np.array([count], np.int32)}


def request(count: int, context: bytes = WORDS) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="text-small", id="1")
    arrays = (("context", "UINT8", np.frombuffer(context, np.uint8)), ("count", "INT32", np.array([count], "<i4")))
    for name, datatype, array in arrays:
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


def test_the_error_on_record_is_that_of_the_weights(model: TextModel) -> None:
    held_out = load_file(HELD_OUT.parent / "text-held-out.safetensors")["bytes"].to(torch.int64)
    found = train_text.bits_per_byte(model.network, held_out)
    assert found == pytest.approx(repository.text_record()["held_out_bits_per_byte"], rel=1e-3)
    counts = np.bincount(held_out.numpy(), minlength=256) / held_out.numel()
    entropy = -float(np.sum(counts[counts > 0] * np.log2(counts[counts > 0])))
    assert found < entropy - 0.5, "it knows more than how frequent each byte is"


def test_the_weights_are_small() -> None:
    assert (HELD_OUT.parent / "text-small.safetensors").stat().st_size <= 1 << 20


def test_training_begins_to_learn_and_does_the_same_again() -> None:
    data = train_text.text()
    first, again = (train_text.train(data, steps=12) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    torch.manual_seed(train_text.SEED)
    untrained = Transformer().eval()
    assert train_text.bits_per_byte(first, data.held_out) < train_text.bits_per_byte(untrained, data.held_out)


def test_steps_with_what_is_kept_give_what_the_whole_gives(model: TextModel) -> None:
    tokens = torch.tensor(list(WORDS))[None, :]
    with torch.inference_mode():
        whole, _ = model.network(tokens)
        _, past = model.network(tokens[:, :10])
        for k in range(10, len(WORDS)):
            step, past = model.network(tokens[:, k : k + 1], past)
            assert torch.allclose(step[:, -1], whole[:, k], atol=1e-4)


class Watched:
    """Waits for so many parts, and then no more."""

    def __init__(self, parts: int) -> None:
        self.left = parts
        self.seen: list[int] = []

    def wanted(self) -> bool:
        return self.left > 0

    def emit(self, outputs: Any) -> None:
        self.left -= 1
        self.seen += outputs["generated"].tolist()


def test_a_computation_nobody_waits_for_stops_at_the_next_byte(model: TextModel) -> None:
    watched = Watched(3)
    with pytest.raises(AbandonedError):
        model.compute(asked(500), watched)
    assert len(watched.seen) == 3


def test_a_longer_answer_begins_like_a_shorter_one(model: TextModel) -> None:
    short, long_ = (model.compute(asked(count)).outputs["generated"].tolist() for count in (5, 20))
    assert (len(short), len(long_)) == (5, 20)
    assert long_[:5] == short


def test_the_fit_of_costs_finds_the_costs_it_was_made_from() -> None:
    made = TokenCost(1e-3, 2e-6, 3e-9, 4e-4, 5e-7)
    sizes = [(16, 1), (1024, 1), (2048, 1), (16, 33), (1024, 33)]
    found = TokenCost.fitted(sizes, [made.of(*size) for size in sizes])
    assert found.of(700, 12) == pytest.approx(made.of(700, 12), rel=1e-6)


def test_what_a_request_costs_grows_with_its_context_and_with_its_answer(model: TextModel) -> None:
    cost = model.measure_cost()
    assert cost(asked(1, b" " * 4096)) > cost(asked(1, b" " * 64))
    assert cost(asked(64)) > cost(asked(2))


def test_a_unary_call_is_answered_at_once_with_all_bytes(channel: grpc.Channel) -> None:
    answer = infer(channel)(request(7), timeout=LONG_S)
    assert (list(answer.outputs[0].shape), len(answer.raw_output_contents[0])) == ([7], 7)
    assert Stamps.read(answer) is not None


def test_a_stream_gives_every_byte_as_it_comes_and_then_all_of_them(channel: grpc.Channel) -> None:
    answers = [answer.infer_response for answer in stream(channel, iter([request(4)]))]
    final = [answer.parameters["triton_final_response"].bool_param for answer in answers]
    assert final == [False, False, False, False, True]
    assert b"".join(answer.raw_output_contents[0] for answer in answers[:4]) == answers[4].raw_output_contents[0]


def test_impairments_touch_every_part_of_a_stream_and_the_answer_repeats_the_parts() -> None:
    def impaired(kind: str, **more: float) -> pb.ImpairRequest:
        return pb.ImpairRequest(seed=1, impairments=[pb.Impairment(kind=kind, to_s=LATER_S, **more)])

    settings = Settings(listen="127.0.0.1:0", models=["text-small"], device="cpu", allow_impairments=True)
    with serving(settings) as running, running.channel() as channel:
        right = infer(channel)(request(6), timeout=LONG_S).raw_output_contents[0]
        impair(channel)(impaired("wrong-answers", rate=1.0), timeout=LONG_S)
        impair(channel)(impaired("slow-down", factor=3.0), timeout=LONG_S)
        begun = time.monotonic()
        came = [(time.monotonic() - begun, each.infer_response) for each in stream(channel, iter([request(6)]))]
    *parts, (_, answer) = came
    assert impaired_by(answer) == {Kind.WRONG_ANSWERS, Kind.SLOW_DOWN}
    assert answer.raw_output_contents[0] == b"".join(part.raw_output_contents[0] for _, part in parts)
    assert all(wrong != byte for wrong, byte in zip(answer.raw_output_contents[0], right, strict=True))
    stamps, lost = Stamps.read(answer), LostTime.read(answer)
    assert stamps is not None
    computed_ns = stamps.finished_ns - stamps.started_ns
    assert computed_ns / 2 < lost.slowed_ns < computed_ns
    # The first byte, which costs the most, is slowed down as well, and not only what comes behind the last.
    assert parts[-1][0] > lost.slowed_ns / 1e9


WRONG = [(0, WORDS), (MOST_GENERATED + 1, WORDS), (1, b" " * (MOST_CONTEXT + 1))]


@pytest.mark.parametrize(("count", "context"), WRONG)
def test_what_is_too_long_is_refused(channel: grpc.Channel, count: int, context: bytes) -> None:
    with pytest.raises(grpc.RpcError, match="expected at most 8192 and 1 to 1024") as caught:
        infer(channel)(request(count, context), timeout=LONG_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_deadline_that_passes_while_bytes_are_made_ends_them(running: Running, channel: grpc.Channel) -> None:
    hurried = request(MOST_GENERATED, b" " * 512)
    hurried.parameters["timeout"].int64_param = 20_000
    computed = running.server.workers.computed
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel)(hurried, timeout=LONG_S)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert running.server.workers.computed == computed


def test_a_client_that_hangs_up_ends_what_is_computed_for_it(running: Running, channel: grpc.Channel) -> None:
    endless = request(MOST_GENERATED, b" " * 512)
    computed = running.server.workers.computed
    streamed = stream(channel, iter([endless]))
    begun = [next(streamed).infer_response.parameters["triton_final_response"].bool_param for _ in range(2)]
    assert begun == [False, False]
    streamed.cancel()
    until(lambda: running.server._scheduler.idle)
    plain = infer(channel).future(endless, timeout=LONG_S)
    until(lambda: running.server._scheduler._resting == 0)
    plain.cancel()
    until(lambda: running.server._scheduler.idle)
    assert running.server.workers.computed == computed, "neither was computed to its end"
    assert len(infer(channel)(request(3), timeout=LONG_S).raw_output_contents[0]) == 3
