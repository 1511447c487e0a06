"""What a tenant's request looks like as a message, for the sender that writes it and the telemetry that finds it.

A request is a `ModelInferRequest` whose first bytes are its id, ten digits that count from 0, so that a request can be
recognised in a captured stream without understanding anything else of it. It is put together from serialised parts,
which protobuf allows: messages of one type that are concatenated mean their merge. Channels, clocks and what HTTP/2 and
TCP add belong elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from inference_server.digits import PIXELS, Digits
from inference_server.generated.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from inference_server.protocol import CONTEXT, COUNT, GENERATED, MOST_CONTEXT, PADDING, TENANT

ID_DIGITS = 10
ID_TAG = bytes((3 << 3 | 2, ID_DIGITS))
"""How the id field (number 3, length-delimited) begins, at the very beginning of a message."""
PROBE_ID = "probe".ljust(ID_DIGITS, "-")
"""Id of requests outside the window: no number, so never part of a measurement."""

GRPC_PREFIX_BYTES = 5
"""What gRPC puts before a message: whether it is compressed, and its length."""

MOST_REQUESTS = 10**ID_DIGITS

INPUT, OUTPUT = "pixels", "logits"
_FILLER = (b"the quick brown fox jumps over the lazy dog " * (MOST_CONTEXT // 40))[:MOST_CONTEXT]
"""What a context says; its cost is its length."""

IntArray = npt.NDArray[np.int64]


class Maker(Protocol):
    """Makes the messages of one tenant; what a request asks about is its subject, a number from 0."""

    @property
    def takes(self) -> list[tuple[str, str, list[int]]]:
        """Name, datatype and shape of each input of the model; -1 is a free dimension."""

    @property
    def gives(self) -> str:
        """Name of its only output."""

    @property
    def subjects(self) -> int:
        """How many there are to ask about."""

    @property
    def smallest_bytes(self) -> int:
        """Bytes of the smallest message."""

    def message_bytes(self, wanted: IntArray, subject: IntArray) -> IntArray:
        """Sizes that messages about these subjects really get where `wanted` is wanted."""

    def message(self, sequence: int, subject: int, size_bytes: int) -> bytes:
        """A serialised request."""

    def probe(self, size_bytes: int) -> bytes:
        """A request of this size that belongs to no window."""

    def answered(self, response: ModelInferResponse) -> bool:
        """Whether a response answers the probe."""

    def correct(self, response: ModelInferResponse, subject: int) -> int:
        """How much of an answer is right, -1 where that is not known."""


@dataclass(frozen=True)
class RequestMaker:
    """Makes messages that have digits classified; a subject is the position of the first image.

    Attributes:
        tenant: Its name, by which the server finds its share.
        model: Name of the model.
        images: Images in each request.
        digits: The images and what they show; request k starts at any of them and wraps around.
    """

    tenant: str
    model: str
    images: int
    digits: Digits

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images in a request: found {self.images}, expected at least 1")

    @property
    def takes(self) -> list[tuple[str, str, list[int]]]:
        """Images."""
        return [(INPUT, "FP32", [-1, PIXELS])]

    @property
    def gives(self) -> str:
        """Logits."""
        return OUTPUT

    @property
    def subjects(self) -> int:
        """One for each image that can be the first."""
        return len(self.digits)

    @cached_property
    def smallest_bytes(self) -> int:
        """Bytes of a message without padding."""
        return len(self.message(0, 0, 0))

    def message_bytes(self, wanted: IntArray, subject: IntArray | None = None) -> IntArray:  # noqa: ARG002
        """Sizes that messages really get where these sizes are wanted: never less than the images need.

        Padding itself needs a few bytes, so sizes just above the smallest become the smallest.
        """
        return np.where(wanted < self.smallest_bytes + _LEAST_PADDING, self.smallest_bytes, wanted)

    def message(self, sequence: int, first_image: int, size_bytes: int) -> bytes:
        """A serialised request.

        Args:
            sequence: Its number, from 0.
            first_image: Position of its first image.
            size_bytes: How large the message shall be, see `message_bytes`; it is at most 2 bytes smaller, because
                lengths are written in more bytes the larger they are.
        """
        return self._with_id(f"{sequence:0{ID_DIGITS}d}", first_image, size_bytes)

    def probe(self, size_bytes: int) -> bytes:
        """A request of this size that belongs to no window."""
        return self._with_id(PROBE_ID, 0, size_bytes)

    def answered(self, response: ModelInferResponse) -> bool:
        """Whether a response has logits for as many images as the probe."""
        return self.correct(response, 0) >= 0

    def correct(self, response: ModelInferResponse, first_image: int) -> int:
        """How many images of a request were classified rightly, -1 where the answer is none for it."""
        labels = self.digits.labels[self._positions(first_image)]
        if len(response.outputs) != 1 or len(response.raw_output_contents) != 1:
            return -1
        output, raw = response.outputs[0], response.raw_output_contents[0]
        classes = output.shape[1] if len(output.shape) == 2 else 0
        if output.name != OUTPUT or output.datatype != "FP32" or len(raw) != 4 * self.images * classes or not classes:
            return -1
        logits = np.frombuffer(raw, dtype="<f4").reshape(self.images, classes)
        return int(np.count_nonzero(logits.argmax(axis=1) == labels))

    def _with_id(self, text: str, first_image: int, size_bytes: int) -> bytes:
        body = ID_TAG + text.encode("ascii") + self._images(first_image) + self._constant
        return body + _padding(size_bytes - len(body))

    def _positions(self, first_image: int) -> IntArray:
        return (first_image + np.arange(self.images)) % len(self.digits)

    def _images(self, first_image: int) -> bytes:
        pixels = self.digits.pixels[self._positions(first_image)]
        return ModelInferRequest(raw_input_contents=[pixels.astype("<f4").tobytes()]).SerializeToString()

    @cached_property
    def _constant(self) -> bytes:
        request = ModelInferRequest(model_name=self.model)
        request.inputs.add(name=INPUT, datatype="FP32", shape=[self.images, PIXELS])
        request.parameters[TENANT].string_param = self.tenant
        return request.SerializeToString()


@dataclass(frozen=True)
class TextMaker:
    """Makes messages that have text generated; a subject is a row of a trace.

    Attributes:
        tenant: Its name, by which the server finds its share.
        model: Name of the model.
        tokens: Bytes of context and bytes to generate of each row, int64[n, 2].
    """

    tenant: str
    model: str
    tokens: IntArray

    @property
    def takes(self) -> list[tuple[str, str, list[int]]]:
        """A context, and how many bytes are wanted."""
        return [(CONTEXT, "UINT8", [-1]), (COUNT, "INT32", [1])]

    @property
    def gives(self) -> str:
        """Generated bytes."""
        return GENERATED

    @property
    def subjects(self) -> int:
        """One for each row."""
        return len(self.tokens)

    @cached_property
    def smallest_bytes(self) -> int:
        """Bytes of the message with the shortest context."""
        subject = np.arange(self.subjects)
        return int(self.message_bytes(np.zeros_like(subject), subject).min())

    def message_bytes(self, wanted: IntArray, subject: IntArray) -> IntArray:
        """Sizes that messages about these rows really get: never less than their contexts need, see `RequestMaker`."""
        context, row = np.unique(self.tokens[:, 0], return_inverse=True)
        needed = np.array([len(self._body(PROBE_ID, int(length), 1)) for length in context])[row][subject]
        return np.where(wanted < needed + _LEAST_PADDING, needed, wanted)

    def message(self, sequence: int, subject: int, size_bytes: int) -> bytes:
        """A serialised request, see `RequestMaker.message`."""
        context, count = self.tokens[subject].tolist()
        body = self._body(f"{sequence:0{ID_DIGITS}d}", context, count)
        return body + _padding(size_bytes - len(body))

    def probe(self, size_bytes: int) -> bytes:
        """A request of this size that belongs to no window and has one byte generated."""
        body = self._body(PROBE_ID, 1, 1)
        return body + _padding(size_bytes - len(body))

    def answered(self, response: ModelInferResponse) -> bool:
        """Whether a response has the byte that the probe asked for."""
        return (
            [(output.name, output.datatype, list(output.shape)) for output in response.outputs]
            == [(GENERATED, "UINT8", [1])]
            and [len(raw) for raw in response.raw_output_contents] == [1]
        )  # fmt: skip

    def correct(self, response: ModelInferResponse, subject: int) -> int:  # noqa: ARG002
        """Not known: generated text is neither right nor wrong."""
        return -1

    def _body(self, text: str, context: int, count: int) -> bytes:
        contents = [_FILLER[:context], np.array([count], dtype="<i4").tobytes()]
        request = ModelInferRequest(model_name=self.model, raw_input_contents=contents)
        request.inputs.add(name=CONTEXT, datatype="UINT8", shape=[context])
        request.inputs.add(name=COUNT, datatype="INT32", shape=[1])
        request.parameters[TENANT].string_param = self.tenant
        return ID_TAG + text.encode("ascii") + request.SerializeToString()


def sequences(messages: Sequence[bytes]) -> IntArray:
    """Numbers of requests by the first bytes of their messages, -1 for those that are no request of a window."""
    return np.array([_sequence(message) for message in messages], dtype=np.int64)


def _sequence(message: bytes) -> int:
    text = message[len(ID_TAG) : len(ID_TAG) + ID_DIGITS]
    ours = message.startswith(ID_TAG) and len(text) == ID_DIGITS and text.isdigit()
    return int(text) if ours else -1


def _padding(length: int) -> bytes:
    """A padding parameter of `length` bytes, or the largest one below; nothing where there is no room for one."""
    if length < _LEAST_PADDING:
        return b""
    text = length - _LEAST_PADDING
    while len(entry := _padding_entry(text)) > length:
        text -= len(entry) - length
    return entry


def _padding_entry(text: int) -> bytes:
    request = ModelInferRequest()
    request.parameters[PADDING].string_param = "." * text
    return request.SerializeToString()


_LEAST_PADDING = len(_padding_entry(0))
