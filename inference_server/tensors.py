"""Tensors of the protocol to numpy and back, with every way a client can get them wrong.

Contents are either typed (a list of the datatype's own field) or raw (little-endian bytes); an answer takes the form of
its request, but that it is raw where an output has no typed form. Datatypes that no model computes on (BYTES, BF16) are
refused. What a model expects is `models`' to know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference_server.errors import InvalidRequestError
from inference_server.generated.open_inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}

_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Field of each datatype's typed contents; FP16 has none and must be raw."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model says of one of its tensors.

    Attributes:
        name: Name in requests and answers.
        datatype: A key of `DTYPES`.
        shape: Sizes, -1 where any size of at least 1 will do.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        sizes = ", ".join("n" if size == -1 else str(size) for size in self.shape)
        return f"{self.datatype} [{sizes}] named {self.name!r}"

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape fits."""
        return len(shape) == len(self.shape) and all(
            found >= 1 if wanted == -1 else found == wanted for found, wanted in zip(shape, self.shape, strict=True)
        )


def inputs_of(request: ModelInferRequest, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The inputs of a request by name, checked against what the model takes.

    Raises:
        InvalidRequestError: A tensor that is missing, unknown, given twice, or of another datatype, shape or size.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"model {request.model_name!r}: found {len(raw)} raw contents for {len(request.inputs)} inputs, expected "
            "one for each; send all contents raw or all typed"
        )
    found = [tensor.name for tensor in request.inputs]
    wanted = {spec.name: spec for spec in specs}
    if len(found) != len(wanted) or wanted.keys() != set(found):
        expected = ", ".join(map(str, specs))
        raise InvalidRequestError(f"model {request.model_name!r}: found inputs {found}, expected {expected}")
    return {
        name: _array(tensor, raw[i] if raw else None, wanted[name])
        for i, (name, tensor) in enumerate(zip(found, request.inputs, strict=True))
    }


def wanted_outputs(request: ModelInferRequest, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The outputs that a request asks for, all of them where it names none.

    Raises:
        InvalidRequestError: An output that the model does not have.
    """
    if not request.outputs:
        return list(specs)
    known = {spec.name: spec for spec in specs}
    unknown = [output.name for output in request.outputs if output.name not in known]
    if unknown:
        raise InvalidRequestError(
            f"model {request.model_name!r}: found requested outputs {unknown}, expected some of {sorted(known)}"
        )
    return [known[output.name] for output in request.outputs]


def put_outputs(
    response: ModelInferResponse, specs: Sequence[TensorSpec], arrays: Mapping[str, Array], *, raw: bool
) -> None:
    """Append outputs to an answer, raw or typed; raw, too, where one of them has no typed form.

    The protocol has raw contents for every output or for none: clients find an output's by its place.
    """
    raw = raw or any(spec.datatype not in _FIELDS for spec in specs)
    for spec in specs:
        array = np.ascontiguousarray(arrays[spec.name], dtype=DTYPES[spec.datatype])
        output = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(array.tobytes())
        else:
            getattr(output.contents, _FIELDS[spec.datatype]).extend(array.ravel().tolist())


def _array(tensor: ModelInferRequest.InferInputTensor, raw: bytes | None, spec: TensorSpec) -> Array:
    if tensor.datatype != spec.datatype:
        raise InvalidRequestError(f"input {tensor.name!r}: found datatype {tensor.datatype!r}, expected {spec}")
    shape = tuple(tensor.shape)
    if not spec.accepts(shape):
        raise InvalidRequestError(f"input {tensor.name!r}: found shape {list(shape)}, expected {spec}")
    elements = math.prod(shape)
    if raw is None:
        return _typed(tensor.name, tensor.contents, spec, elements).reshape(shape)
    if tensor.HasField("contents"):
        raise InvalidRequestError(f"input {tensor.name!r}: found typed contents beside raw ones, expected one of them")
    dtype = DTYPES[spec.datatype]
    if len(raw) != elements * dtype.itemsize:
        raise InvalidRequestError(
            f"input {tensor.name!r}: found {len(raw)} bytes of raw contents, expected {elements * dtype.itemsize} for "
            f"{spec.datatype} {list(shape)}"
        )
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def _typed(name: str, contents: InferTensorContents, spec: TensorSpec, elements: int) -> Array:
    field = _FIELDS.get(spec.datatype)
    if field is None:
        raise InvalidRequestError(
            f"input {name!r}: found no raw contents, expected them: {spec.datatype} has no typed ones"
        )
    used = [descriptor.name for descriptor, _ in contents.ListFields()]
    if used != [field]:
        raise InvalidRequestError(f"input {name!r}: found contents in {used}, expected them in ['{field}']")
    values = getattr(contents, field)
    if len(values) != elements:
        raise InvalidRequestError(f"input {name!r}: found {len(values)} values, expected {elements} for its shape")
    # A field may be wider than its datatype, and numpy turns what protobuf holds into a narrower one by cutting it off.
    held = np.array(values)
    array = held.astype(DTYPES[spec.datatype])
    if array.dtype.kind in "iu" and (lost := held[array != held]).size:
        raise InvalidRequestError(f"input {name!r}: found {lost[0]}, expected what {spec.datatype} can hold")
    return array
