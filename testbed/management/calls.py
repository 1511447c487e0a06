"""The names of an agent's calls, how errors cross the wire, and the caller's side of it.

A call that was not answered is made again with the same request id, a bounded number of times: the agent does it once
whatever happens. An error arrives as the kind of error that it was at the agent. The agent's side is
`testbed.management.service`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from testbed.errors import EnvelopeError, ReservationError
from testbed.management.entry import (
    CapacityError,
    ForeignReservationError,
    ReusedRequestError,
    UnknownReservationError,
    WrongStateError,
)
from testbed.management.generated import management_pb2 as wire
from testbed.management.identity import Credentials, IdentityError
from testbed.management.installer import ControllerError

SERVICE = "testbed.management.DomainAgent"

CALLS: dict[str, tuple[type[Message], type[Message]]] = {
    "Offer": (wire.OfferRequest, wire.OfferAnswer),
    "Prepare": (wire.PrepareRequest, wire.HoldingAnswer),
    "Commit": (wire.ChangeRequest, wire.HoldingAnswer),
    "Abort": (wire.ChangeRequest, wire.HoldingAnswer),
    "Release": (wire.ChangeRequest, wire.HoldingAnswer),
    "Renew": (wire.ChangeRequest, wire.HoldingAnswer),
    "Report": (wire.ReportRequest, wire.ReportAnswer),
    "Health": (wire.HealthRequest, wire.HealthAnswer),
}

MESSAGE_BYTES = 64 * 1024 * 1024
"""A thousand tenants' envelopes travel in one message."""

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
)

STATUS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (IdentityError, grpc.StatusCode.UNAUTHENTICATED),
    (UnknownReservationError, grpc.StatusCode.NOT_FOUND),
    (ForeignReservationError, grpc.StatusCode.PERMISSION_DENIED),
    (CapacityError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ReusedRequestError, grpc.StatusCode.ALREADY_EXISTS),
    (WrongStateError, grpc.StatusCode.FAILED_PRECONDITION),
    (ControllerError, grpc.StatusCode.ABORTED),
    (EnvelopeError, grpc.StatusCode.DATA_LOSS),
    (ReservationError, grpc.StatusCode.INVALID_ARGUMENT),
)
"""The first kind that fits decides."""

_Answer = TypeVar("_Answer", bound=Message)


class UnreachableError(ReservationError):
    """An agent that did not answer; what it did is not known."""


def method(name: str) -> str:
    """Path of a call, as HTTP/2 and a channel's `unary_unary` name it."""
    return f"/{SERVICE}/{name}"


def status_of(error: Exception) -> grpc.StatusCode:
    """The status that an error crosses the wire as."""
    return next((code for kind, code in STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def new_id() -> str:
    """A request id that nobody has used."""
    return uuid.uuid4().hex


@dataclass
class AgentClient:
    """A connection to one domain's agent; a context manager.

    Attributes:
        domain: The domain.
        target: HOST:PORT of its agent.
        credentials: Who is calling.
        timeout_s: How long one attempt may take.
        attempts: How often a call without an answer is made.
        pause_s: Between attempts.
    """

    domain: str
    target: str
    credentials: Credentials
    timeout_s: float = 30.0
    attempts: int = 3
    pause_s: float = 0.2
    _calls: dict[str, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # An agent that starts again is to be found again soon, not after the usual minutes of backing off.
        patience = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))
        self._channel = self.credentials.channel(self.target, self.domain, (*OPTIONS, *patience))
        for name, (request, answer) in CALLS.items():
            self._calls[name] = self._channel.unary_unary(
                method(name), request_serializer=request.SerializeToString, response_deserializer=answer.FromString
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def offer(self, demands: Sequence[wire.Demand], request_id: str = "") -> list[wire.Offered]:
        """Envelopes for each demand, or why not."""
        asked = wire.OfferRequest(request_id=request_id or new_id(), demands=demands)
        return list(self._call("Offer", asked, wire.OfferAnswer).offers)

    def prepare(
        self, presented: Sequence[wire.Presented], lease_ms: int = 0, request_id: str = ""
    ) -> list[wire.Holding]:
        """Hold what was offered; each answer says whether it is held."""
        asked = wire.PrepareRequest(request_id=request_id or new_id(), presented=presented, lease_ms=lease_ms)
        return list(self._call("Prepare", asked, wire.HoldingAnswer).holdings)

    def commit(self, reservations: Sequence[str], lease_ms: int = 0, request_id: str = "") -> list[wire.Holding]:
        """Have what is held installed and read back."""
        return self._change("Commit", reservations, lease_ms, request_id)

    def abort(self, reservations: Sequence[str], request_id: str = "") -> list[wire.Holding]:
        """Give up offers and what is prepared."""
        return self._change("Abort", reservations, 0, request_id)

    def release(self, reservations: Sequence[str], request_id: str = "") -> list[wire.Holding]:
        """Give back what is held."""
        return self._change("Release", reservations, 0, request_id)

    def renew(self, reservations: Sequence[str], lease_ms: int, request_id: str = "") -> list[wire.Holding]:
        """Move the end of leases."""
        return self._change("Renew", reservations, lease_ms, request_id)

    def report(self, *, with_holdings: bool = False) -> wire.ReportAnswer:
        """What the domain sells, what is left, and the caller's reservations."""
        return self._call("Report", wire.ReportRequest(with_holdings=with_holdings), wire.ReportAnswer)

    def health(self) -> wire.HealthAnswer:
        """Whether ledger and switches agree."""
        return self._call("Health", wire.HealthRequest(), wire.HealthAnswer)

    def _change(self, name: str, reservations: Sequence[str], lease_ms: int, request_id: str) -> list[wire.Holding]:
        asked = wire.ChangeRequest(request_id=request_id or new_id(), reservations=reservations, lease_ms=lease_ms)
        return list(self._call(name, asked, wire.HoldingAnswer).holdings)

    def _call(self, name: str, asked: Message, kind: type[_Answer]) -> _Answer:
        """One call, made again while nobody answers.

        Raises:
            ReservationError: The agent's own error, or `UnreachableError`.
            EnvelopeError: It refused an envelope.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                answer = self._calls[name](asked, timeout=self.timeout_s)
            except grpc.RpcError as error:
                if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                    raise self._error(name, error) from None
                last = error
                if attempt < self.attempts:
                    time.sleep(self.pause_s)
            else:
                if not isinstance(answer, kind):
                    raise TypeError(f"{name}: found a {type(answer).__name__}, expected a {kind.__name__}")
                return answer
        raise UnreachableError(
            f"domain {self.domain}: {name} was not answered in {self.attempts} attempts at {self.target} "
            f"({last.details()}); is its agent running?"
        )

    def _error(self, name: str, error: grpc.RpcError) -> Exception:
        kinds = {code: kind for kind, code in reversed(STATUS)}
        kind = kinds.get(error.code())
        if kind is None:
            return ReservationError(f"domain {self.domain}: {name} failed with {error.code().name}: {error.details()}")
        return kind(error.details() or error.code().name)
