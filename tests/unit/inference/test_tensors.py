"""Every datatype's typed contents mean what they say, and an answer never has both kinds of contents."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from inference_server.errors import InvalidRequestError
from inference_server.generated.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from inference_server.tensors import _FIELDS, DTYPES, TensorSpec, inputs_of, put_outputs

TYPED: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False]),
    "UINT8": ("uint_contents", [0, 2**8 - 1]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "INT8": ("int_contents", [-(2**7), 2**7 - 1]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "FP32": ("fp32_contents", [0.5, float("inf")]),
    "FP64": ("fp64_contents", [0.1, float("-inf")]),
}
"""Field and two values of each datatype that has one, the least and the largest where these are whole numbers."""

TOO_LARGE = [
    ("UINT8", [2**8]),
    ("UINT16", [2**16]),
    ("INT8", [2**7]),
    ("INT8", [-(2**7) - 1]),
    ("INT16", [2**15]),
    ("INT16", [-(2**15) - 1]),
]


def typed(datatype: str, field: str, values: list[Any]) -> ModelInferRequest:
    message = ModelInferRequest(model_name="any")
    contents = message.inputs.add(name="x", datatype=datatype, shape=[len(values)]).contents
    getattr(contents, field).extend(values)
    return message


def spec(datatype: str, name: str = "x") -> TensorSpec:
    return TensorSpec(name, datatype, (-1,))


def test_every_datatype_but_one_has_a_typed_form() -> None:
    assert TYPED.keys() == _FIELDS.keys() == DTYPES.keys() - {"FP16"}


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_are_read_as_their_datatype_and_answered_in_its_field(datatype: str) -> None:
    field, values = TYPED[datatype]
    found = inputs_of(typed(datatype, field, values), [spec(datatype)])["x"]
    assert (found.dtype, found.tolist()) == (DTYPES[datatype], values)
    answer = ModelInferResponse()
    put_outputs(answer, [spec(datatype)], {"x": found}, raw=False)
    assert [name.name for name, _ in answer.outputs[0].contents.ListFields()] == [field]
    assert list(getattr(answer.outputs[0].contents, field)) == values
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (datatype, [2])
    assert not answer.raw_output_contents


@pytest.mark.parametrize("datatype", DTYPES)
def test_raw_contents_are_the_same_bytes_there_and_back(datatype: str) -> None:
    sent = np.array([0, 1], DTYPES[datatype])
    message = ModelInferRequest(raw_input_contents=[sent.tobytes()])
    message.inputs.add(name="x", datatype=datatype, shape=[2])
    found = inputs_of(message, [spec(datatype)])["x"]
    assert (found.dtype, found.tolist()) == (DTYPES[datatype], sent.tolist())
    answer = ModelInferResponse()
    put_outputs(answer, [spec(datatype)], {"x": found}, raw=True)
    assert list(answer.raw_output_contents) == [sent.tobytes()]
    assert not answer.outputs[0].HasField("contents")


@pytest.mark.parametrize("datatype", TYPED)
def test_contents_in_the_field_of_another_datatype_are_refused(datatype: str) -> None:
    field, _ = TYPED[datatype]
    other = "fp32_contents" if field != "fp32_contents" else "bool_contents"
    with pytest.raises(InvalidRequestError, match=rf"found contents in \['{other}'\], expected them in \['{field}'\]"):
        inputs_of(typed(datatype, other, [1]), [spec(datatype)])


@pytest.mark.parametrize(("datatype", "values"), TOO_LARGE)
def test_values_that_a_datatype_cannot_hold_are_refused(datatype: str, values: list[int]) -> None:
    field, _ = TYPED[datatype]
    with pytest.raises(InvalidRequestError, match=f"found {values[0]}, expected what {datatype} can hold"):
        inputs_of(typed(datatype, field, [*values, 1]), [spec(datatype)])


def test_a_datatype_without_a_typed_form_must_be_raw() -> None:
    with pytest.raises(InvalidRequestError, match="found no raw contents, expected them: FP16 has no typed ones"):
        inputs_of(typed("FP16", "fp32_contents", [0.5]), [spec("FP16")])


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("shape", [[-1, -1], [-1, 1], [1, -1], [0, 1], [-2, -2]])
def test_a_size_that_a_request_chooses_must_be_at_least_1(shape: list[int], raw: bool) -> None:
    message = ModelInferRequest(raw_input_contents=[bytes(4)] if raw else [])
    tensor = message.inputs.add(name="x", datatype="FP32", shape=shape)
    if not raw:
        tensor.contents.fp32_contents.append(0.0)
    expected = rf"^input 'x': found shape {re.escape(str(shape))}, expected FP32 \[n, n\] named 'x'$"
    with pytest.raises(InvalidRequestError, match=expected):
        inputs_of(message, [TensorSpec("x", "FP32", (-1, -1))])


def test_an_answer_is_raw_as_a_whole_where_one_of_its_outputs_has_no_typed_form() -> None:
    specs = [spec("FP32", "first"), spec("FP16", "half"), spec("INT32", "last")]
    arrays = {each.name: np.array([1, 2], DTYPES[each.datatype]) for each in specs}
    mixed, plain = ModelInferResponse(), ModelInferResponse()
    put_outputs(mixed, specs, arrays, raw=False)
    assert list(mixed.raw_output_contents) == [arrays[each.name].tobytes() for each in specs]
    assert not any(output.HasField("contents") for output in mixed.outputs)
    put_outputs(plain, [specs[0], specs[2]], arrays, raw=False)
    assert not plain.raw_output_contents
    assert all(output.HasField("contents") for output in plain.outputs)
