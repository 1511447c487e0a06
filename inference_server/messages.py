"""Messages out of the bytes that came over the wire; bytes that are none are the client's mistake."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from inference_server.errors import InvalidRequestError

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
