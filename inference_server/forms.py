"""What requests have in common, checked once: all that they say beside their ids and their raw contents.

A client's requests differ in little else, and looking at a message field by field takes longer than a small model
computes. So the first request of a form goes through protobuf and every check, and is remembered by its bytes without
id and contents; one whose bytes without them are the same says the same. Whatever is not of that kind (typed contents,
several inputs, a field given twice, an unusual encoding) goes through protobuf every time.

The wire format is https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

from inference_server.models import Model
from inference_server.tensors import TensorSpec

_TAGS = frozenset(field << 3 | 2 for field in range(1, 8))
"""Tags of the fields of a `ModelInferRequest`, all of which are length-delimited."""
_ID, _RAW = 3 << 3 | 2, 7 << 3 | 2
_MOST = 256
_LARGEST_BYTES = 1 << 14
"""How many forms are remembered, and how large: 4 MiB at most."""


@dataclass(slots=True, eq=False)
class Form:
    """What requests of one form ask for.

    Attributes:
        model: What computes them.
        tenant: Whose share they use, None where they leave that to the call's metadata.
        timeout_ns: How long the server may take, as they say themselves; None where they do not.
        outputs: The outputs they ask for.
        raw: Whether their contents are raw, and so shall those of the answer be.
        shape: Of the only input; empty where a model has several.
        rows: Rows of their inputs.
        batch: What requests that are computed with them have in common, None if none can be.
        work_s: What they are expected to take of one worker.
        light: Whether computing one takes less than handing it to a worker.
        direct: Whether contents of the answer can be computed from those of the request, see `direct`.
        least_ns: What computing one takes at the very least; one that has less left is dropped.
        call_s: What a call takes beside, see `call_cost`; None until one was counted.
        counted: How many were.
        shapes: Shapes of the outputs that `head` and `marks` are for.
        head: The beginning of an answer, which is the same for all of them; see `answers`.
        marks: What goes before the contents of each output.
    """

    model: Model
    tenant: str | None
    timeout_ns: int | None
    outputs: tuple[TensorSpec, ...]
    raw: bool
    shape: tuple[int, ...]
    rows: int
    batch: Hashable | None
    work_s: float
    light: bool
    direct: bool
    least_ns: int
    call_s: float | None = None
    counted: int = 0
    shapes: tuple[tuple[int, ...], ...] | None = None
    head: bytes = b""
    marks: tuple[bytes, ...] = ()


_Layout: TypeAlias = tuple[int, int, int, int, bool]
"""Begin and end of what comes first, of what comes then, and whether the former is the id."""


class Forms:
    """The forms that are known; used by the event loop only."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[_Layout, dict[bytes, Form]]] = {}
        self._count = 0

    def find(self, message: bytes) -> tuple[Form, bytes, memoryview] | None:
        """The form of a message, its id, and its contents; None where it has to be parsed."""
        known = self._known.get(len(message))
        if known is None:
            return None
        (begin, end, begin_2, end_2, id_first), forms = known
        form = forms.get(message[:begin] + message[end:begin_2] + message[end_2:])
        if form is None:
            return None
        if id_first:
            return form, message[begin:end], memoryview(message)[begin_2:end_2]
        return form, message[begin_2:end_2], memoryview(message)[begin:end]

    def learn(self, message: bytes, form: Form) -> None:
        """Remember the form of a message that has been parsed and checked, where it is of the kind that can be."""
        layout = _layout(message)
        if layout is None or not form.raw or not form.shape or not form.model.known_by_shape:
            return
        begin, end, begin_2, end_2, _ = layout
        rest = message[:begin] + message[end:begin_2] + message[end_2:]
        if len(rest) > _LARGEST_BYTES:
            return
        if self._count >= _MOST:
            self.clear()
        known = self._known.get(len(message))
        if known is None or known[0] != layout:
            self._known[len(message)] = known = layout, {}
        known[1][rest] = form
        self._count += 1

    def clear(self) -> None:
        """Forget all of them."""
        self._known.clear()
        self._count = 0


def _layout(message: bytes) -> _Layout | None:
    """Where id and contents are, and whether the id comes first; None unless each is there once, or the id not at all.

    A message without an id has an empty one at its beginning.
    """
    found: dict[int, tuple[int, int]] = {}
    at = 0
    while at < len(message):
        tag = message[at]
        length = _length(message, at + 1)
        if tag not in _TAGS or length is None:
            return None
        begin, end = length
        if tag in {_ID, _RAW}:
            if tag in found:
                return None
            found[tag] = begin, end
        at = end
    if at != len(message) or _RAW not in found:
        return None
    mine, contents = found.get(_ID, (0, 0)), found[_RAW]
    return (*mine, *contents, True) if mine <= contents else (*contents, *mine, False)


def _length(message: bytes, at: int) -> tuple[int, int] | None:
    """Begin and end of the field whose length is written at this place; None where it is not there."""
    length = shift = 0
    for place in range(at, min(at + 4, len(message))):
        byte = message[place]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return place + 1, place + 1 + length
        shift += 7
    return None
