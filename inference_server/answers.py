"""Messages that carry what was computed; when and in what order they are sent is for the calls to decide.

Raw answers are put together from bytes: of those to one form of request nothing differs but the id, the stamps and the
contents, and protobuf would spend more time on the fields than a small model computes. The wire format is
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod

import numpy as np

from inference_server import tensors
from inference_server.forms import Form
from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import IMPAIRED, Stamps
from inference_server.tensors import DTYPES, Array
from inference_server.workers import Answer

_ID, _RAW = b"\x1a", b"\x32"
"""Tags of the fields that hold the id and the contents."""
_LONGEST_ID = 127
"""An id whose length takes one byte."""
_MOST_STAMP_BYTES = 8


def _lanes(pattern: int) -> int:
    """A pattern of 64 bits, once for each stamp."""
    return sum(pattern << 64 * k for k in range(len(Stamps._fields)))


_SPREAD = (
    (_lanes(0x0FFFFFFF), _lanes(0x0FFFFFFF << 28), 4),
    (_lanes(0x00003FFF_00003FFF), _lanes(0x0FFFC000_0FFFC000), 2),
    (_lanes(0x007F007F_007F007F), _lanes(0x3F803F80_3F803F80), 1),
)
"""How 56 bits become eight groups of seven, each in a byte: what stays, what moves, and how far."""
_GOES_ON = [_lanes(sum(0x80 << 8 * k for k in range(size - 1))) for size in range(_MOST_STAMP_BYTES + 1)]
"""The bit of every byte of a number but its last, for numbers of so many bytes."""


def encoded(form: Form, name: bytes, answer: Answer) -> bytes:
    """The answer to a request of this form and id, serialised."""
    stamps = _stamps(answer.stamps)
    if not form.raw or answer.impaired or len(name) > _LONGEST_ID or stamps is None:
        return response_to(form, name.decode(), answer).SerializeToString()
    identity = b"".join((_ID, bytes((len(name),)), name)) if name else b""
    if answer.contents is not None and form.shapes:
        return b"".join((form.head, stamps, identity, form.marks[0], answer.contents))
    outputs = _outputs(form, answer)
    arrays = [np.ascontiguousarray(outputs[spec.name], dtype=DTYPES[spec.datatype]) for spec in form.outputs]
    shapes = tuple([array.shape for array in arrays])
    if shapes != form.shapes:
        _prepare(form, shapes)
    contents = [part for mark, array in zip(form.marks, arrays, strict=True) for part in (mark, array.tobytes())]
    return b"".join((form.head, stamps, identity, *contents))


def response_to(form: Form, name: str, answer: Answer) -> pb.ModelInferResponse:
    """The answer to a request of this form and id, as a message."""
    response = response_with(form, name, _outputs(form, answer))
    answer.stamps.write(response.parameters)
    if answer.impaired:
        response.parameters[IMPAIRED].string_param = ",".join(answer.impaired)
        answer.lost.write(response.parameters)
    return response


def response_with(form: Form, name: str, outputs: Mapping[str, Array]) -> pb.ModelInferResponse:
    """A message with outputs."""
    response = pb.ModelInferResponse(model_name=form.model.name, model_version=form.model.version, id=name)
    tensors.put_outputs(response, form.outputs, outputs, raw=form.raw)
    return response


def _outputs(form: Form, answer: Answer) -> Mapping[str, Array]:
    """The outputs of an answer by name, whatever they were computed as."""
    if answer.contents is None:
        return answer.outputs
    (spec,) = form.outputs
    shape = (form.rows, *spec.shape[1:])
    return {spec.name: np.frombuffer(answer.contents, DTYPES[spec.datatype]).reshape(shape)}


def _prepare(form: Form, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Serialise what is the same in all answers whose outputs have these shapes."""
    response = pb.ModelInferResponse(model_name=form.model.name, model_version=form.model.version)
    for spec, shape in zip(form.outputs, shapes, strict=True):
        response.outputs.add(name=spec.name, datatype=spec.datatype, shape=shape)
    items = [DTYPES[spec.datatype].itemsize for spec in form.outputs]
    form.head = response.SerializeToString()
    form.marks = tuple([_RAW + _varint(size * prod(shape)) for size, shape in zip(items, shapes, strict=True)])
    form.shapes = shapes


def _stamps(stamps: Stamps) -> bytes | None:
    """The parameters that hold the stamps; None where these are not in order, of one length and of at most 56 bits.

    All are written at once, each in 64 bits of one number.
    """
    first, second, third, last = stamps
    size = (first.bit_length() + 6) // 7
    if not 0 < first <= second <= third <= last or size != (last.bit_length() + 6) // 7 or size > _MOST_STAMP_BYTES:
        return None
    number = first | second << 64 | third << 128 | last << 192
    for stays, moves, places in _SPREAD:
        number = number & stays | (number & moves) << places
    groups = (number | _GOES_ON[size]).to_bytes(32, "little")
    one, two, three, four = _before_stamps(size)
    return b"".join(
        (one, groups[:size], two, groups[8 : 8 + size], three, groups[16 : 16 + size], four, groups[24 : 24 + size])
    )


@cache
def _before_stamps(size: int) -> tuple[bytes, ...]:
    """What goes before each stamp: the beginning of an entry of the map of parameters, whose value is so long."""
    found = []
    for name in Stamps._fields:
        value = bytes((0x12, size + 1, 0x10))
        entry = bytes((0x0A, len(name))) + name.encode() + value
        found.append(bytes((0x22, len(entry) + size)) + entry)
    return tuple(found)


def _varint(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*groups, number))
