"""Makes the server worse on purpose, so that whoever observes it can be tested: seeded, recorded, and never a secret.

An impairment has a kind, a window of time, and an amount. What it touches carries its kind and its cost in the answer
and is counted; its beginning and end go into the record, a file of JSON lines, with the clock of the stamps. Which
answers are wrong follows from the seed, the tenant and the request's id alone, so the same requests are answered
wrongly again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format

from inference_server.errors import InvalidRequestError
from inference_server.generated import open_inference_pb2 as pb
from inference_server.messages import parsed
from inference_server.protocol import IMPAIRMENTS, NOTHING_LOST, Kind, LostTime, Stamps
from inference_server.tensors import Array

_LOG = logging.getLogger(__name__)

CRASHED = 70
"""Exit code of a server that crashed on purpose."""

_LONGEST_S = 1e9
_LARGEST_FACTOR = 1e6
_PAGE_BYTES = 4096
_REMEMBERED = 1 << 16
"""Of how many times that a worker was held up the server knows; more than can happen while a request waits."""


@dataclass(frozen=True, slots=True, eq=False)
class Impairment:
    """One impairment; another that is the same in every attribute is another one.

    Attributes:
        kind: What is done.
        start_ns: From when, CLOCK_MONOTONIC.
        end_ns: Until when; a crash needs none.
        amount: How many times as long a computation takes, share of wrong answers, or bytes held; 0 for the others.
        seed: Decides which answers are wrong.
    """

    kind: Kind
    start_ns: int
    end_ns: int
    amount: float
    seed: int

    def later(self, by_ns: int) -> Impairment:
        """The same, so much later."""
        return replace(self, start_ns=self.start_ns + by_ns, end_ns=self.end_ns + by_ns)

    def overlaps(self, from_ns: int, to_ns: int) -> bool:
        """Whether it was active at any time between these."""
        return self.start_ns < to_ns and from_ns < self.end_ns


def parse(request: pb.ImpairRequest, start_ns: int) -> list[Impairment]:
    """The impairments a request asks for.

    Args:
        request: What is asked.
        start_ns: What its times are counted from, CLOCK_MONOTONIC.

    Raises:
        InvalidRequestError: An unknown kind, a window that ends before it begins, or an amount that makes no sense.
    """
    return [_parsed(item, request.seed, start_ns) for item in request.impairments]


def read(path: Path) -> pb.ImpairRequest:
    """Read the JSON form of an `ImpairRequest`.

    Raises:
        ValueError: It is none, or cannot be read.
    """
    try:
        return json_format.Parse(path.read_text(encoding="utf-8"), pb.ImpairRequest())
    except (json_format.ParseError, UnicodeDecodeError, OSError) as error:
        found = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        expected = "a file with seed and impairments, see docs/inference.md"
        raise ValueError(f"{path}: {found}; expected {expected}") from error


def impairment_handler(impairments: Impairments) -> grpc.GenericRpcHandler:
    """The call by which clients ask for impairments."""

    async def impair(message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> pb.ImpairResponse:
        start_ns = time.monotonic_ns()
        try:
            impairments.add(parse(parsed(message, pb.ImpairRequest()), start_ns))
        except InvalidRequestError as error:
            await context.abort(error.code, str(error))
        return pb.ImpairResponse(start_ns=start_ns)

    handler: grpc.RpcMethodHandler[bytes, pb.ImpairResponse] = grpc.unary_unary_rpc_method_handler(
        impair, response_serializer=pb.ImpairResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler(IMPAIRMENTS, {"Impair": handler})


def _parsed(item: pb.Impairment, seed: int, start_ns: int) -> Impairment:
    try:
        kind = Kind(item.kind)
    except ValueError:
        raise InvalidRequestError(
            f"impairment: found kind {item.kind!r}, expected one of {[*map(str, Kind)]}"
        ) from None
    to_s = item.from_s if kind is Kind.CRASH else item.to_s
    if not 0 <= item.from_s <= to_s <= _LONGEST_S:
        raise InvalidRequestError(
            f"impairment {kind}: found it from {item.from_s} s to {to_s} s, expected 0 <= from <= to <= {_LONGEST_S:g}"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    amount, fits, expected = {
        Kind.SLOW_DOWN: (
            item.factor, 1 <= item.factor <= _LARGEST_FACTOR, f"a factor of at least 1 and at most {_LARGEST_FACTOR:g}"
        ),
        Kind.WRONG_ANSWERS: (item.rate, 0 <= item.rate <= 1, "a rate from 0 to 1"),
        Kind.MEMORY_PRESSURE: (
            float(item.bytes), 0 < item.bytes <= memory, f"bytes above 0, at most the {memory} of this machine"
        ),
    }.get(kind, (0.0, True, ""))  # fmt: skip
    if not fits:
        raise InvalidRequestError(f"impairment {kind}: found {amount:g}, expected {expected}")
    return Impairment(kind, start_ns + int(item.from_s * 1e9), start_ns + int(to_s * 1e9), amount, seed)


class Impairments:
    """The impairments of one server while it runs; every method may be called from any thread."""

    def __init__(
        self,
        record: Path | None,
        *,
        touched: Callable[[str, int], None],
        workers: int = 1,
        crash: Callable[[int], object] = os._exit,
    ) -> None:
        """Begin with none.

        Args:
            record: File to append beginnings and ends to.
            touched: Told of each kind, and how many requests it touched.
            workers: How many there are to be held up.
            crash: Ends the process.

        Raises:
            OSError: The record cannot be written.
        """
        self._record = None if record is None else record.open("a", encoding="utf-8")
        self._record_failed = False
        self._touched = touched
        self._workers = workers
        self._crash = crash
        self._lock = threading.Lock()
        self._all: tuple[Impairment, ...] = ()
        self._held: dict[Impairment, Array] = {}
        # From when until when a worker was held up and by what, in the order of the ends.
        self._held_up: deque[tuple[int, int, Kind]] = deque(maxlen=_REMEMBERED)
        self._unnamed = count()
        self._changed = threading.Event()
        self._ended = threading.Event()
        self._clock: threading.Thread | None = None

    def add(self, impairments: Sequence[Impairment]) -> None:
        """Impair the server from now on."""
        with self._lock:
            self._all += tuple(impairments)
            if self._clock is None and impairments:
                self._clock = threading.Thread(target=self._keep, name="impairments", daemon=True)
                self._clock.start()
        self._changed.set()

    @property
    def any(self) -> bool:
        """Whether anything has been asked for, be it over or still to come."""
        return bool(self._all)

    def close(self) -> None:
        """Impair no more."""
        self._ended.set()
        self._changed.set()
        if self._clock is not None:
            self._clock.join()
        if self._record is not None:
            with self._failure_logged():
                self._record.close()

    def wait_out_pause(self) -> None:
        """Return when no pause holds the workers up, or the server ends."""
        begun_ns = time.monotonic_ns()
        while pauses := self._active(Kind.PAUSE):
            left_ns = max(pause.end_ns for pause in pauses) - time.monotonic_ns()
            over = self._ended.wait(max(0.0, left_ns / 1e9))
            begun_ns = self._was_held_up(begun_ns, Kind.PAUSE)
            if over:
                return

    def slow_down(self, taken_ns: int) -> int:
        """Make a computation that took so long take longer unless the server ends, and say by how many ns it did."""
        factor = math.prod(impairment.amount for impairment in self._active(Kind.SLOW_DOWN))
        if factor <= 1:
            return 0
        begun_ns = time.monotonic_ns()
        self._ended.wait(min(taken_ns * (factor - 1) / 1e9, _LONGEST_S))
        return self._was_held_up(begun_ns, Kind.SLOW_DOWN) - begun_ns

    def called(self, name: str) -> str:
        """What draws are made by: a request's id, and a name of its own for a request that has none."""
        return name or f"unnamed {next(self._unnamed)}"

    def part(self, tenant: str, called: str, outputs: Mapping[str, Array]) -> tuple[Mapping[str, Array], bool]:
        """A part of an answer as it shall be sent now, and whether it is wrong.

        Args:
            tenant: Who asked.
            called: See `called`.
            outputs: What was computed.
        """
        if not any(self._drawn(each, tenant, called) for each in self._active(Kind.WRONG_ANSWERS)):
            return outputs, False
        return {key: _other(array) for key, array in outputs.items()}, True

    def applied(
        self,
        tenant: str,
        called: str,
        outputs: Mapping[str, Array],
        stamps: Stamps,
        slowed_ns: int = 0,
        *,
        spoilt: bool | None = None,
    ) -> tuple[Mapping[str, Array], tuple[str, ...], LostTime]:
        """The outputs of a request as they shall be answered, the kinds of impairment that touched it, and their cost.

        Args:
            tenant: Who asked.
            called: See `called`.
            outputs: What was computed.
            stamps: When.
            slowed_ns: How much longer than it had to its computation took.
            spoilt: Of outputs that were sent in parts, whether any was wrong; None where they are sent now.
        """
        if not self._all:
            return outputs, (), NOTHING_LOST
        lost = self._lost(stamps, slowed_ns)
        kinds: set[Kind] = {Kind.SLOW_DOWN} if lost.behind_ns else set()
        if spoilt:
            kinds.add(Kind.WRONG_ANSWERS)
        for impairment in self._all:
            match impairment.kind:
                case Kind.PAUSE if impairment.overlaps(stamps.queued_ns, stamps.started_ns):
                    kinds.add(impairment.kind)
                case Kind.SLOW_DOWN | Kind.MEMORY_PRESSURE if impairment.overlaps(
                    stamps.started_ns, stamps.finished_ns
                ):
                    kinds.add(impairment.kind)
                case Kind.WRONG_ANSWERS if (
                    spoilt is None
                    and impairment.overlaps(stamps.started_ns, stamps.finished_ns)
                    and self._drawn(impairment, tenant, called)
                ):
                    kinds.add(impairment.kind)
                    outputs = {key: _wrong(array) for key, array in outputs.items()}
        for kind in kinds:
            self._touched(kind, 1)
        return outputs, tuple(sorted(kinds)), lost

    def _was_held_up(self, begun_ns: int, kind: Kind) -> int:
        """Remember that a worker was held up from then until now, and return now."""
        with self._lock:
            now_ns = time.monotonic_ns()
            self._held_up.append((begun_ns, now_ns, kind))
        return now_ns

    def _lost(self, stamps: Stamps, slowed_ns: int) -> LostTime:
        """What a request lost of the time it was queued while workers were held up, and of its own computation.

        A pause holds up whoever waits, whatever other workers still compute; a slow-down takes away the part of the
        workers that it slows down.
        """
        paused_ns = behind_ns = 0
        earliest_ns = stamps.started_ns
        with self._lock:
            for begun_ns, end_ns, kind in reversed(self._held_up):
                if end_ns <= stamps.queued_ns:
                    break
                begin_ns = max(begun_ns, stamps.queued_ns)
                if kind is Kind.PAUSE:
                    # Ends come in falling order, so what lies behind the earliest beginning has been counted.
                    paused_ns += max(0, min(end_ns, earliest_ns) - begin_ns)
                    earliest_ns = min(earliest_ns, begin_ns)
                else:
                    behind_ns += max(0, min(end_ns, stamps.started_ns) - begin_ns)
        left_ns = stamps.started_ns - stamps.queued_ns - paused_ns
        return LostTime(paused_ns, min(behind_ns // self._workers, left_ns), slowed_ns)

    @staticmethod
    def _drawn(impairment: Impairment, tenant: str, called: str) -> bool:
        text = f"{impairment.seed}/{tenant}/{called}"
        drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        return drawn < impairment.amount

    def _active(self, kind: Kind) -> list[Impairment]:
        if not self._all:
            return []
        now_ns = time.monotonic_ns()
        return [each for each in self._all if each.kind is kind and each.start_ns <= now_ns < each.end_ns]

    def _keep(self) -> None:
        """Begin and end impairments at their times."""
        begun: set[Impairment] = set()
        over: set[Impairment] = set()
        while not self._ended.is_set():
            self._changed.clear()
            now_ns = time.monotonic_ns()
            for each in self._all:
                if each.start_ns <= now_ns and each not in begun:
                    begun.add(each)
                    try:
                        self._begin(each)
                    except MemoryError as error:
                        over.add(each)
                        self._fail(each, error)
                if each.end_ns <= now_ns and each not in over:
                    over.add(each)
                    self._end(each)
            moments = [each.start_ns for each in self._all if each not in begun]
            moments += [each.end_ns for each in self._all if each not in over]
            left_s = max(0.0, (min(moments) - time.monotonic_ns()) / 1e9) if moments else None
            self._changed.wait(left_s)
        for each in begun - over:
            self._end(each)

    def _begin(self, each: Impairment) -> None:
        held = np.empty(int(each.amount), dtype=np.uint8) if each.kind is Kind.MEMORY_PRESSURE else None
        self._write("begin", each)
        if each.kind is Kind.CRASH:
            self._crash(CRASHED)
        if held is not None:
            held[::_PAGE_BYTES] = 1  # a page that nobody wrote to is held by nobody
            self._held[each] = held

    def _fail(self, each: Impairment, error: MemoryError) -> None:
        """Say that there is no memory to hold, and forget the impairment, so that no answer claims it."""
        _LOG.error("impairment %s: cannot hold %d bytes (%s); ask for less", each.kind, each.amount, error)
        with self._lock:
            self._all = tuple(other for other in self._all if other is not each)
        self._write("fail", each)

    def _end(self, each: Impairment) -> None:
        self._held.pop(each, None)
        self._write("end", each)

    def _write(self, what: str, each: Impairment) -> None:
        if self._record is not None:
            entry = {
                "at_ns": time.monotonic_ns(),
                "event": what,
                "kind": each.kind.value,
                "amount": each.amount,
                "seed": each.seed,
            }
            with self._failure_logged():
                print(json.dumps(entry), file=self._record, flush=True)

    @contextmanager
    def _failure_logged(self) -> Iterator[None]:
        """Log the first time that the record cannot be written; impairments go on without it."""
        try:
            yield
        except OSError as error:
            if not self._record_failed and self._record is not None:
                self._record_failed = True
                _LOG.error(
                    "impairment record %s: cannot be written (%s), so beginnings and ends may be missing from it; "
                    "is the disk full?",
                    self._record.name,
                    error,
                )


def _wrong(array: Array) -> Array:
    """What is not the answer, of the same datatype and shape: every last dimension turned by one place."""
    turned = np.roll(array, 1, axis=-1) if array.ndim and array.shape[-1] > 1 else array
    if not np.array_equal(turned, array):
        return turned
    return _other(array)


def _other(array: Array) -> Array:
    """Other values, each for itself, of the same datatype and shape."""
    return ~array if array.dtype == np.bool_ else array + np.ones(1, dtype=array.dtype)
