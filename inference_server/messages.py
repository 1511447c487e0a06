"""Messages out of the bytes that came over the wire, and their parameters; what is none is the client's mistake."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from inference_server.errors import InvalidRequestError
from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import TIMEOUT

M = TypeVar("M", bound=Message)


def parsed(data: bytes, into: M) -> M:
    """Read a serialised message into an empty one, and return that.

    Raises:
        InvalidRequestError: It is none of that type.
    """
    try:
        into.ParseFromString(data)
    except DecodeError as error:
        raise InvalidRequestError(f"found {len(data)} bytes that are no {into.DESCRIPTOR.name} ({error})") from error
    return into


def parameter(request: pb.ModelInferRequest, name: str, kind: str) -> Any:
    """A parameter of a request, None where it has none of that name.

    Args:
        request: The request.
        name: Of the parameter.
        kind: Which of the protocol's kinds it is to be, by its field.

    Raises:
        InvalidRequestError: It is of another kind.
    """
    if name not in request.parameters:
        return None
    value = request.parameters[name]
    if (found := value.WhichOneof("parameter_choice")) != kind:
        raise InvalidRequestError(f"parameter {name!r}: found {found}, expected {kind}")
    return getattr(value, kind)


def timeout_ns(request: pb.ModelInferRequest) -> int | None:
    """How long the server may take, as a request says itself; None where it says nothing.

    Raises:
        InvalidRequestError: What it says is no number.
    """
    timeout_us = parameter(request, TIMEOUT, "int64_param")
    return timeout_us * 1000 if timeout_us is not None and timeout_us > 0 else None
