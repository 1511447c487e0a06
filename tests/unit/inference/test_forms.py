"""What is read and written by hand means what protobuf reads and writes."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inference_server import answers
from inference_server.errors import InferenceError
from inference_server.forms import Form, Forms
from inference_server.generated import open_inference_pb2 as pb
from inference_server.models import Model
from inference_server.protocol import LostTime, Stamps
from inference_server.scheduler import Scheduler
from inference_server.service import InferenceService
from inference_server.statistics import Statistics
from inference_server.tensors import TensorSpec
from inference_server.triton import Serving
from inference_server.workers import Answer, Job
from tests.unit.inference.serving import request, special

PIXELS = (TensorSpec("pixels", "FP32", (-1, 64)),)


class Kept:
    """In place of workers: keeps what is submitted."""

    def submit(self, job: Job) -> None:
        self.job = job

    free = True


class Caller:
    """A call with metadata and without a deadline."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        return self._metadata

    def time_remaining(self) -> None:
        return None


def service() -> tuple[InferenceService, Kept]:
    scheduler: Scheduler[Job] = Scheduler({}, queue_limit=9, now_ns=lambda: 0, expired=lambda _: None)
    kept = Kept()
    made = InferenceService(scheduler, kept, Statistics(), Serving(batch_rows=4))  # type: ignore[arg-type]
    pair = (TensorSpec("one", "UINT8", (-1,)), TensorSpec("two", "INT16", (2,)))
    two = Model("pair", "1", "test", pair, PIXELS, nn.Identity(), torch.device("cpu"), 9)
    models = [special("gate", nn.Identity()), special("digits", nn.Identity()), two]
    made._costs = {model.name: lambda _: 1e-3 for model in models}
    made.models = {model.name: model for model in models}
    made.accepting = True
    return made, kept


def said(made: InferenceService, kept: Kept, message: bytes, caller: Caller) -> Any:
    """All that a service understands of a message: what it would compute, or why it refuses it."""
    try:
        job = made.admitted(message, caller)  # type: ignore[arg-type]
    except InferenceError as error:
        return type(error), str(error)
    assert kept.job is job
    form = job.form
    inputs = {name: (array.dtype, array.shape, array.tobytes()) for name, array in job.inputs.items()}
    own_ns = None if job.deadline_ns is None else job.deadline_ns - job.received_ns
    same = (job.tenant, job.id, own_ns, job.rows, job.work_s, job.batch, job.model.name)
    return same, inputs, form.outputs, form.raw, form.shape, form.timeout_ns


def _field(**fields: Any) -> bytes:
    return pb.ModelInferRequest(**fields).SerializeToString()


def _input(rows: int, width: int, name: str, datatype: str) -> bytes:
    message = pb.ModelInferRequest()
    message.inputs.add(name=name, datatype=datatype, shape=[rows, width])
    return message.SerializeToString()


def _parameter(name: str, **value: Any) -> bytes:
    message = pb.ModelInferRequest()
    message.parameters[name].MergeFrom(pb.InferParameter(**value))
    return message.SerializeToString()


ids = st.one_of(st.text(max_size=3), st.just("0123456789"), st.just("x" * 200))
pieces = st.one_of(
    st.builds(lambda text: _field(id=text), ids),
    st.builds(lambda name: _field(model_name=name), st.sampled_from(["digits", "gate", "pair", "none"])),
    st.builds(lambda version: _field(model_version=version), st.sampled_from(["", "1", "2"])),
    st.builds(lambda rows, fill: _field(raw_input_contents=[bytes([fill]) * rows * 256]),
              st.integers(0, 3), st.integers(0, 255)),
    st.builds(_input, st.integers(1, 3), st.sampled_from([64, 63]), st.sampled_from(["pixels", "one"]),
              st.sampled_from(["FP32", "INT16"])),
    st.builds(lambda name: _parameter("tenant", string_param=name), st.sampled_from(["", "alpha", "bravo"])),
    st.builds(lambda us: _parameter("timeout", int64_param=us), st.sampled_from([-1, 0, 250])),
    st.builds(lambda size: _parameter("padding", string_param="." * size), st.sampled_from([0, 300, 1 << 14])),
    st.just(b"\x32\x08\x0a\x06logits"),
    st.just(b"\x18\x05"),
    st.just(b"\x1a\x02\xc3\x28"),
    st.just(b"\x1a\x83\x00abc"),
)  # fmt: skip


def _whole(name: str, rows: int, fill: int, extra: list[bytes], order: list[int]) -> bytes:
    parts = [_field(id=name), _field(model_name="digits"), _field(raw_input_contents=[bytes([fill]) * rows * 256]),
             _input(rows, 64, "pixels", "FP32"), *extra]  # fmt: skip
    return b"".join(parts[k] for k in sorted(range(len(parts)), key=lambda k: order[k % len(order)]))


messages = st.one_of(
    st.builds(_whole, ids, st.integers(1, 3), st.integers(0, 255), st.lists(pieces, max_size=2),
              st.lists(st.integers(0, 9), min_size=1, max_size=6)),
    st.lists(pieces, max_size=5).map(b"".join),
    st.binary(max_size=12),
)  # fmt: skip


def _changed(message: bytes, at: int, byte: int, cut: int) -> bytes:
    place = at % (len(message) + 1)
    changed = message[:place] + bytes([byte]) + message[place + 1 :]
    return changed[: len(changed) - cut] if cut else changed


changes = st.tuples(st.integers(0, 2000), st.integers(0, 255), st.sampled_from([0, 0, 0, 1, 5]))
families = st.builds(
    lambda message, changed: [message, *(_changed(message, *each) for each in changed)],
    messages,
    st.lists(changes, max_size=6),
)
"""A message and others that differ from it in a byte, be that of its id, its contents, or anything else."""
callers = st.sampled_from([Caller(), Caller(("tenant", "charlie"))])


@settings(max_examples=600)
@given(st.lists(families, min_size=1, max_size=3), callers, callers)
def test_a_form_that_is_known_means_what_protobuf_reads(
    found: list[list[bytes]], first: Caller, second: Caller
) -> None:
    async def both() -> None:
        (warm, kept), (cold, fresh) = service(), service()
        for caller in (first, second):
            for message in chain.from_iterable(found):
                cold._forms.clear()
                assert said(warm, kept, message, caller) == said(cold, fresh, message, caller)

    asyncio.run(both())


def test_requests_that_differ_in_id_and_contents_only_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    real = InferenceService._parsed

    def seen(self: InferenceService, message: bytes, *arguments: Any, **options: Any) -> Job:
        parsed.append(message)
        return real(self, message, *arguments, **options)

    monkeypatch.setattr(InferenceService, "_parsed", seen)

    async def ask() -> None:
        made, kept = service()
        for k in range(20):
            pixels = np.full((2, 64), k)
            assert said(made, kept, request("digits", pixels, id=f"{k:010d}").SerializeToString(), Caller())
            assert kept.job.inputs["pixels"][0, 0] == k
            assert kept.job.id == f"{k:010d}"

    asyncio.run(ask())
    assert len(parsed) == 1


def test_forms_are_forgotten_when_there_are_too_many_and_when_other_models_are_served() -> None:
    async def ask() -> None:
        made, kept = service()
        for k in range(600):
            named = request("digits", id="seven")
            named.parameters["tenant"].string_param = f"{k:05d}"
            said(made, kept, named.SerializeToString(), Caller())
        assert 0 < made._forms._count <= 256
        assert sum(len(forms) for _, forms in made._forms._known.values()) == made._forms._count
        message = request("digits", id="seven").SerializeToString()
        said(made, kept, message, Caller())
        made.serve([])
        assert said(made, kept, message, Caller())[1].startswith("model 'digits': found no such model")

    asyncio.run(ask())


def test_a_form_says_nothing_while_the_server_does_not_accept() -> None:
    async def ask() -> None:
        made, kept = service()
        message = request("digits").SerializeToString()
        said(made, kept, message, Caller())
        made.accepting = False
        assert "try again later" in said(made, kept, message, Caller())[1]

    asyncio.run(ask())


def test_what_is_no_whole_message_has_no_form() -> None:
    form = Form(special("digits", nn.Identity()), None, None, PIXELS, True, (1, 64), 1, None, 0.0, True, False, 0)
    forms = Forms()
    for wrong in (b"", b"\x3a", b"\x3a\x05ab", b"\x3a\x80\x80\x80\x80", b"\x42\x00\x3a\x00", b"\x3a\x00\x3a\x00"):
        forms.learn(wrong, form)
        assert forms.find(wrong) is None


stamps = st.one_of(
    st.lists(st.integers(1 << 40, 1 << 42), min_size=4, max_size=4).map(sorted).map(lambda four: Stamps(*four)),
    st.lists(st.integers(0, (1 << 63) - 1), min_size=4, max_size=4).map(lambda four: Stamps(*four)),
    st.builds(lambda at, step: Stamps(at, at + step, at + 2 * step, at + 3 * step), st.integers(0, 1 << 57),
              st.integers(0, 200)),
)  # fmt: skip
shapes = st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple)


@settings(max_examples=400)
@given(ids, stamps, st.lists(shapes, min_size=1, max_size=3),
       st.tuples(st.sampled_from(["FP32", "INT64", "BOOL"]), st.booleans(), st.booleans()),
       st.lists(st.booleans(), min_size=3, max_size=3))  # fmt: skip
def test_an_answer_put_together_means_what_protobuf_writes(
    name: str,
    moments: Stamps,
    found: list[tuple[int, ...]],
    how: tuple[str, bool, bool],
    asked: list[bool],
) -> None:
    datatype, raw, impaired = how
    specs = tuple(TensorSpec(f"y{k}", datatype, (-1,) * len(shape)) for k, shape in enumerate(found))
    wanted = tuple(spec for spec, want in zip(specs, asked, strict=False) if want)
    model = Model("digits", "1", "test", PIXELS, specs, nn.Identity(), torch.device("cpu"), 9)
    form = Form(model, None, None, wanted, raw, (1, 64), 1, None, 0.0, True, False, 0)
    kinds, lost = (("pause",), LostTime(5, 0, 7)) if impaired else ((), LostTime())
    for turn in range(2):
        outputs = {spec.name: np.full(shape[turn:], 1.5) for spec, shape in zip(specs, found, strict=True)}
        answer = Answer(outputs, moments, kinds, lost)
        assert pb.ModelInferResponse.FromString(answers.encoded(form, name.encode(), answer)) == answers.response_to(
            form, name, answer
        )
