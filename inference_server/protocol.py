"""The names both ends of the wire use: methods, parameters of a request and of its answer, and the server's clock.

The messages themselves are the Open Inference Protocol's (`open_inference.proto`); what is ours travels in the
parameters that the protocol leaves to servers, so that any client may ignore it. Nothing here needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import NamedTuple, Self

from inference_server.generated.open_inference_pb2 import InferParameter, ModelInferResponse

SERVICE = "inference.GRPCInferenceService"

TENANT = "tenant"
"""Request parameter (text), or call metadata of the same name, that says whose share of the server is to be used."""

PADDING = "padding"
"""Request parameter (text) that is ignored: it makes a request as large on the wire as its sender wants it. Servers of
this protocol let parameters they do not know pass, while most refuse an input tensor that their model does not have."""

IMPAIRED = "impaired"
"""Parameter of an answer (text): kinds of impairment, made on purpose, that touched the request, with commas."""


class Kind(StrEnum):
    """What is done to a server to make it worse on purpose."""

    SLOW_DOWN = "slow-down"
    PAUSE = "pause"
    WRONG_ANSWERS = "wrong-answers"
    CRASH = "crash"
    MEMORY_PRESSURE = "memory-pressure"


TIMEOUT = "timeout"
"""Request parameter (whole number, microseconds) of Triton's clients: how long the server may take."""

IMPAIRMENTS = "inference.Impairments"

CONTEXT, COUNT, GENERATED = "context", "count", "generated"
"""Tensors of a model that generates text: bytes in, how many are wanted, bytes out."""
MOST_CONTEXT = 8192
MOST_GENERATED = 1024


def method(name: str) -> str:
    """Path of a call, as HTTP/2 and a channel's `unary_unary` name it."""
    return f"/{SERVICE}/{name}"


class Stamps(NamedTuple):
    """Moments of one request within the server, CLOCK_MONOTONIC ns, as parameters of the answer.

    Attributes:
        received_ns: The complete message was handed to the server.
        queued_ns: It had been checked and was queued in its tenant's share.
        started_ns: A worker took it up.
        finished_ns: The result was there.
    """

    received_ns: int
    queued_ns: int
    started_ns: int
    finished_ns: int

    def write(self, parameters: Mapping[str, InferParameter]) -> None:
        """Put the stamps into the parameters of an answer (a protobuf map makes the entries it is asked for)."""
        parameters["received_ns"].int64_param = self.received_ns
        parameters["queued_ns"].int64_param = self.queued_ns
        parameters["started_ns"].int64_param = self.started_ns
        parameters["finished_ns"].int64_param = self.finished_ns

    @classmethod
    def read(cls, response: ModelInferResponse) -> Self | None:
        """The stamps of an answer, None where its server does not give them."""
        if any(name not in response.parameters for name in cls._fields):
            return None
        return cls(*(response.parameters[name].int64_param for name in cls._fields))


@dataclass(frozen=True, slots=True)
class LostTime:
    """What impairments cost a request within the server, ns, as parameters of the answer; one that is 0 is left out.

    Attributes:
        paused_ns: It waited while workers were paused.
        behind_ns: It waited while a worker that was slowed down was not yet done with others. With several workers that
            is the share of them that was taken away.
        slowed_ns: Its own computation took so much longer.
    """

    paused_ns: int = 0
    behind_ns: int = 0
    slowed_ns: int = 0

    def write(self, parameters: Mapping[str, InferParameter]) -> None:
        """Put what is not 0 into the parameters of an answer."""
        for field in fields(self):
            if value := getattr(self, field.name):
                parameters[field.name].int64_param = value

    @classmethod
    def read(cls, response: ModelInferResponse) -> Self:
        """What an answer says, 0 where it says nothing."""
        names = [field.name for field in fields(cls) if field.name in response.parameters]
        return cls(**{name: response.parameters[name].int64_param for name in names})


NOTHING_LOST = LostTime()


def impaired_by(response: ModelInferResponse) -> frozenset[Kind]:
    """The kinds of impairment that touched an answer, as far as it says; those of another server's are ignored."""
    if IMPAIRED not in response.parameters:
        return frozenset()
    known = set(Kind)
    return frozenset(Kind(name) for name in response.parameters[IMPAIRED].string_param.split(",") if name in known)
