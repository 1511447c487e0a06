"""Calls end as their server ended them, or as gRPC ends those that no server answers; bodies leave in their order."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from testbed.telemetry import http2
from testbed.traffic import nghttp2
from testbed.traffic.grpc_connection import Call, CallError, Connection, _timeout

LONG_S = 30.0
LONG_NS = int(LONG_S * 1e9)
PATH = "/test.Service/Method"
Handler = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def serving(handler: Handler, port: int = 0) -> Iterator[int]:
    """A server of gRPC's own whose every method is `handler`; gives its port."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(4), options=options)
    methods = {"Method": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", methods),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield bound
    finally:
        server.stop(None).wait(LONG_S)


@contextmanager
def saying(answer: bytes) -> Iterator[int]:
    """A server of anything that says this to whoever connects, and hangs up; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer_once() -> None:
            accepted, _ = listening.accept()
            with accepted:
                accepted.recv(1 << 16)
                accepted.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(LONG_S)


def connected(port: int) -> Connection:
    return Connection(f"127.0.0.1:{port}")


def begun(connection: Connection, message: bytes = b"", seconds: float = LONG_S) -> Call:
    return connection.begin(PATH, message, time.monotonic_ns() + int(seconds * 1e9), lambda _: None)


def served(connection: Connection, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not until():
        assert time.monotonic() < deadline
        connection.serve(time.monotonic_ns() + 1_000_000)


def echo(message: bytes, _: grpc.ServicerContext) -> bytes:
    return message


def test_who_waits_for_a_connection_beside_others_is_woken_by_an_answer() -> None:
    with serving(echo) as port, connected(port) as connection:
        connection.ask(PATH, b"", LONG_S)
        call = begun(connection, b"later")
        while not call.ended:
            assert select.select([connection], [], [], LONG_S)[0]
            connection.serve(0)
        assert call.answer == b"later"
    assert connection.fileno() == -1


@pytest.mark.parametrize("size", [0, 1, 16_384, 100_000, 3_000_000])
def test_an_answer_is_whole_whatever_its_size_and_that_of_the_message(size: int) -> None:
    message = np.random.default_rng(size).bytes(size)
    with serving(echo) as port, connected(port) as connection:
        assert connection.ask(PATH, message, LONG_S) == message
        assert connection.ask(PATH, message[::-1], LONG_S) == message[::-1]


def test_many_calls_are_open_at_once_and_each_has_its_own_answer() -> None:
    messages = [b"%d" % k * 3000 for k in range(300)]
    with serving(echo) as port, connected(port) as connection:
        ended: list[Call] = []
        calls = [connection.begin(PATH, each, time.monotonic_ns() + LONG_NS, ended.append) for each in messages]
        served(connection, lambda: len(ended) == len(calls))
        assert [call.answer for call in calls] == messages
        assert set(ended) == set(calls)
        assert len(ended) == len(calls), "nobody is told twice"


def test_a_failure_keeps_the_servers_code_and_words() -> None:
    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "100 % full: öl")
        raise AssertionError

    with serving(refuse) as port, connected(port) as connection:
        with pytest.raises(CallError, match=r"RESOURCE_EXHAUSTED \(100 % full: öl\)"):
            connection.ask(PATH, b"", LONG_S)
        with pytest.raises(CallError, match="UNIMPLEMENTED"):
            connection.ask("/test.Service/Other", b"", LONG_S)


def test_a_server_is_told_the_deadline_and_that_nobody_waits_any_longer() -> None:
    left_s: list[float] = []
    abandoned = threading.Event()

    def wait(_: bytes, context: grpc.ServicerContext) -> bytes:
        left_s.append(context.time_remaining())
        context.add_callback(abandoned.set)
        abandoned.wait(LONG_S)
        return b""

    with serving(wait) as port, connected(port) as connection:
        call = begun(connection, seconds=0.3)
        served(connection, lambda: call.ended)
        assert call.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert call.ended_ns >= call.deadline_ns
        assert abandoned.wait(LONG_S)
        assert 0 < left_s[0] <= 0.3


def test_calls_that_are_cancelled_end_at_once_and_the_server_hears_of_it() -> None:
    entered, abandoned = threading.Event(), threading.Event()

    def wait(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(abandoned.set)
        entered.set()
        abandoned.wait(LONG_S)
        return b""

    with serving(wait) as port, connected(port) as connection:
        call = begun(connection)
        served(connection, entered.is_set)
        connection.cancel_all()
        assert call.code is grpc.StatusCode.CANCELLED
        assert abandoned.wait(LONG_S)


def test_where_nobody_listens_a_call_is_unavailable_and_a_server_that_comes_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with connected(port) as connection:
        with pytest.raises(CallError, match=r"UNAVAILABLE .*refused"):
            connection.ask(PATH, b"", LONG_S)
        assert begun(connection).code is grpc.StatusCode.UNAVAILABLE, "at once, while it rests"
        with serving(echo, port):
            served(connection, lambda: _answers(connection))


def test_a_lost_connection_fails_what_is_open_and_another_one_carries_the_next() -> None:
    entered = threading.Event()

    def wait(message: bytes, context: grpc.ServicerContext) -> bytes:
        if message:
            return message
        ended = threading.Event()
        context.add_callback(ended.set)
        entered.set()
        ended.wait(LONG_S)
        return b""

    with serving(wait) as port:
        connection = connected(port)
        call = begun(connection)
        served(connection, entered.is_set)
    served(connection, lambda: call.ended)
    assert call.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    with connection, serving(wait, port):
        served(connection, lambda: _answers(connection))


def _answers(connection: Connection) -> bool:
    try:
        return connection.ask(PATH, b"found", LONG_S) == b"found"
    except CallError:
        return False


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2])
def test_what_speaks_no_http2_is_unavailable(answer: bytes) -> None:
    with saying(answer) as port, connected(port) as connection, pytest.raises(CallError, match="UNAVAILABLE"):
        connection.ask(PATH, b"", LONG_S)


@pytest.mark.parametrize(
    ("left_ns", "said"),
    [(0, b"0u"), (1, b"1u"), (300_000_000, b"300000u"), (99_999_999_000, b"99999999u"), (99_999_999_001, b"100000m"),
     (10**15, b"1000000S"), (10**20, b"99999999M")],
)  # fmt: skip
def test_a_time_is_written_in_the_finest_unit_with_eight_digits(left_ns: int, said: bytes) -> None:
    assert _timeout(left_ns) == said


FIELDS = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", PATH.encode()), (b":authority", b"server")]


def test_bodies_leave_in_the_order_of_their_requests_also_where_a_window_cuts_them() -> None:
    session, fields = _session(), nghttp2.Fields(FIELDS, b"n")
    streams = [session.request(fields, b"%d" % k, bytes(50_000)) for k in range(4)]
    sent = session.take()
    for stream in streams:
        session.receive(_window_update(0, 50_000) + _window_update(stream, 50_000))
        sent += session.take()
    carried = _carried(sent)
    assert [stream for stream, _ in carried] == sorted(stream for stream, _ in carried)
    assert {stream: sum(size for own, size in carried if own == stream) for stream in streams} == dict.fromkeys(
        streams, 50_000
    )
    session.close()


def test_a_body_that_is_given_up_lets_the_next_one_go() -> None:
    session, fields = _session(), nghttp2.Fields(FIELDS, b"n")
    first, second = (session.request(fields, b"", bytes(size)) for size in (200_000, 100))
    sent = session.take()
    assert {stream for stream, _ in _carried(sent)} == {first}
    session.cancel(first)
    session.receive(_window_update(0, 1000))
    sent += session.take()
    assert _carried(sent)[-1] == (second, 100)
    session.close()


def test_fields_that_matter_pieces_and_ends_are_told_in_order_and_with_the_time_of_their_reading() -> None:
    told: list[tuple[object, ...]] = []
    how = {
        f"on_{kind}": lambda *what, kind=kind: told.append((kind, *what)) for kind in ("header", "data", "close", "due")
    }
    session, fields = nghttp2.Session(names=(b"x", b":status"), **how), nghttp2.Fields(FIELDS, b"n")
    session.receive(frame(b"\x04", 0, 0, b""))
    stream = session.request(fields, b"", b"question")
    session.take()
    # `:status: 200` from the static table, then `y: 1` and `x: 22` literally.
    headers = b"\x88" + b"\x00\x01y\x011" + b"\x00\x01x\x0222"
    session.receive(frame(b"\x01", 4, stream, headers) + frame(b"\x00", 0, stream, b"ans"), 5)
    session.receive(frame(b"\x00", 1, stream, b"wer"), 7)
    assert told == [
        ("header", stream, b":status", b"200"),
        ("header", stream, b"x", b"22"),
        ("data", stream, b"ans"),
        ("data", stream, b"wer"),
        ("close", stream, nghttp2.NO_ERROR, 7),
    ]
    session.close()


def frame(kind: bytes, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + kind + bytes([flags]) + struct.pack(">I", stream) + payload


def _session() -> nghttp2.Session:
    def nothing(*_: object) -> None:
        return None

    session = nghttp2.Session(names=(), on_header=nothing, on_data=nothing, on_close=nothing, on_due=nothing)
    session.receive(frame(b"\x04", 0, 0, b""))
    return session


def _window_update(stream: int, size: int) -> bytes:
    return frame(b"\x08", 0, stream, struct.pack(">I", size))


def _carried(sent: bytes) -> list[tuple[int, int]]:
    """Stream and size of every DATA frame."""
    frames = http2.walk(np.frombuffer(sent, np.uint8))
    data = (frames.kind == http2.DATA) & (frames.payload_bytes > 0)
    return list(zip(frames.stream[data].tolist(), frames.payload_bytes[data].tolist(), strict=True))
