"""Planned calls begin at their times over whatever connection there is, and each is told of once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.traffic import nghttp2_compiled, punctual
from testbed.traffic.grpc_connection import Call, Connection, _timeout, framed
from testbed.traffic.punctual import BEGUN, OVERDUE, SKIPPED, SLOTS, Plan
from tests.unit.traffic.test_grpc_connection import LONG_NS, LONG_S, PATH, connected, echo, frame, serving


@dataclass
class Told:
    """Calls to begin, and what was told of them."""

    due_ns: list[int]
    messages: list[bytes]
    deadline_ns: int = LONG_NS
    spin_ns: int = 100_000
    most_open: int = 1000
    slice_ns: int = 20_000_000
    begun: dict[int, tuple[int, int]] = field(default_factory=dict)
    ended: dict[int, Call] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan = Plan(PATH, self.spin_ns, self.most_open, self._due, self._end)

    def run(self, connection: Connection, between: Callable[[], None] = lambda: None) -> None:
        """Begin all and wait for the last."""
        deadline = time.monotonic() + LONG_S
        while self.plan.begin < len(self.due_ns) or len(self.ended) < sum(
            kind == BEGUN for kind, _ in self.begun.values()
        ):
            assert time.monotonic() < deadline
            between()
            while (k := self.plan.end) < len(self.due_ns) and not self.plan.full:
                self.plan.add(self.due_ns[k], self.due_ns[k] + self.deadline_ns, framed(self.messages[k]))
            if len(self.plan):
                connection.begin_due(self.plan, time.monotonic_ns() + self.slice_ns)
            else:
                connection.serve(time.monotonic_ns() + 1_000_000)

    def codes(self) -> list[grpc.StatusCode]:
        return [self.ended[k].code for k in range(len(self.due_ns))]

    def _due(self, kind: int, number: int, at_ns: int) -> None:
        assert number not in self.begun, "nobody is told twice"
        self.begun[number] = kind, at_ns

    def _end(self, number: int, call: Call) -> None:
        assert number not in self.ended, "nobody is told twice"
        self.ended[number] = call


@contextmanager
def silent(says: bytes = b"") -> Iterator[tuple[int, threading.Event]]:
    """A server that begins HTTP/2, says this and never answers; gives its port, and when its connection is left."""
    left, ending = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def listen() -> None:
            accepted, _ = listening.accept()
            with accepted:
                accepted.settimeout(LONG_S)
                accepted.sendall(frame(b"\x04", 0, 0, b"") + says)
                while accepted.recv(1 << 16) and not ending.is_set():
                    pass
            left.set()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield listening.getsockname()[1], left
        ending.set()


def told(messages: list[bytes], gap_s: float = 0.0, first_s: float = 0.0, **how: int) -> Told:
    first_ns = time.monotonic_ns() + int(1e9 * first_s)
    return Told([first_ns + int(1e9 * gap_s * k) for k in range(len(messages))], messages, **how)


@pytest.mark.parametrize("spin_ns", [0, 100_000, 10**9])
def test_each_call_begins_when_it_is_due_and_has_its_own_answer(spin_ns: int) -> None:
    with serving(echo) as port, connected(port) as connection:
        connection.ask(PATH, b"", LONG_S)
        calls = told([b"%d" % k for k in range(5 * SLOTS)], gap_s=0.002, first_s=0.01, spin_ns=spin_ns)
        calls.run(connection)
    assert [calls.ended[k].answer for k in range(len(calls.messages))] == calls.messages
    for k, due_ns in enumerate(calls.due_ns):
        kind, at_ns = calls.begun[k]
        assert kind == BEGUN
        assert due_ns <= at_ns < calls.ended[k].ended_ns


@pytest.mark.parametrize("size", [40_000, 150_000, 1_000_000])
def test_bodies_that_a_window_or_the_socket_cuts_are_whole(size: int) -> None:
    messages = [np.random.default_rng(k).bytes(size) for k in range(SLOTS + 4)]
    with serving(echo) as port, connected(port) as connection:
        calls = told(messages)
        calls.run(connection)
    assert [calls.ended[k].answer for k in range(len(messages))] == messages


def test_what_is_due_beyond_the_cap_or_after_its_deadline_is_left_out() -> None:
    release = threading.Event()

    def wait(message: bytes, _: grpc.ServicerContext) -> bytes:
        release.wait(LONG_S)
        return message

    with serving(wait) as port, connected(port) as connection:
        calls = told([b""] * 5, most_open=3, deadline_ns=LONG_NS)
        calls.due_ns[2] -= 2 * LONG_NS
        calls.run(connection, between=lambda: release.set() if calls.plan.begin == len(calls.due_ns) else None)
    assert [calls.begun[k][0] for k in range(5)] == [BEGUN, BEGUN, OVERDUE, BEGUN, SKIPPED]
    assert calls.ended.keys() == {0, 1, 3}


def test_who_has_ended_makes_room_under_the_cap() -> None:
    with serving(echo) as port, connected(port) as connection:
        for _ in range(3):
            calls = told([b""], most_open=1)
            calls.run(connection)
            assert calls.codes() == [grpc.StatusCode.OK]


def test_calls_that_nobody_answers_are_given_up_while_others_are_planned() -> None:
    with silent() as (port, _), connected(port) as connection:
        calls = told([b"first", b"later"], deadline_ns=200_000_000, slice_ns=LONG_NS)
        calls.due_ns[1] += 600_000_000
        calls.run(connection)
    assert calls.codes() == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
    assert calls.ended[0].ended_ns < calls.begun[1][1]


def test_a_deadline_ends_a_call_also_where_others_leave_no_time() -> None:
    for _ in range(20):
        with silent() as (port, _), connected(port) as connection:
            calls = told([b""] * SLOTS, gap_s=150e-6, first_s=0.05, deadline_ns=1_000_000, slice_ns=LONG_NS)
            calls.run(connection)
        # A host that was away for a millisecond leaves the first one out.
        if calls.begun[0][0] == BEGUN == calls.begun[SLOTS - 1][0]:
            break
    assert calls.ended[0].ended_ns < calls.begun[SLOTS - 1][1]


def test_the_cap_holds_where_a_body_waits_for_a_window() -> None:
    with silent() as (port, _), connected(port) as connection:
        calls = told([bytes(100_000)] * 4, most_open=2, deadline_ns=300_000_000)
        calls.run(connection)
    assert [calls.begun[k][0] for k in range(4)] == [BEGUN, BEGUN, SKIPPED, SKIPPED]
    assert calls.ended.keys() == {0, 1}


def test_a_server_that_says_it_is_going_is_left_before_the_next_call_is_due() -> None:
    goaway = frame(b"\x07", 0, 0, bytes(8))
    with silent(goaway) as (port, left), connected(port) as connection:
        calls = told([b""], first_s=0.3, deadline_ns=300_000_000, slice_ns=LONG_NS)
        calls.run(connection)
        assert left.wait(LONG_S)
    assert calls.codes() == [grpc.StatusCode.DEADLINE_EXCEEDED], "over another connection, on which nobody answers"


def test_who_is_cancelled_has_been_begun_before() -> None:
    with silent() as (port, _), connected(port) as connection:
        calls = told([b""] * 2, first_s=0.05, gap_s=0.01)
        for k, due_ns in enumerate(calls.due_ns):
            calls.plan.add(due_ns, due_ns + LONG_NS, framed(calls.messages[k]))
        while calls.plan.begin < 2:
            connection.begin_due(calls.plan, time.monotonic_ns() + LONG_NS)
        connection.cancel_all()
    assert calls.codes() == [grpc.StatusCode.CANCELLED] * 2
    assert all(calls.begun[k][1] <= calls.ended[k].ended_ns for k in range(2))


def test_messages_are_made_ahead_also_while_a_body_waits_for_a_window() -> None:
    with silent() as (port, _), connected(port) as connection:
        calls = told([bytes(100_000), b""], deadline_ns=LONG_NS)
        calls.due_ns[1] += LONG_NS
        for k, due_ns in enumerate(calls.due_ns):
            calls.plan.add(due_ns, due_ns + LONG_NS, framed(calls.messages[k]))
        while calls.plan.begin == 0:
            connection.begin_due(calls.plan, time.monotonic_ns() + 20_000_000)
        assert not connection.begin_due(calls.plan, time.monotonic_ns() + 20_000_000, busy=False)
        assert connection.begin_due(calls.plan, time.monotonic_ns() + 20_000_000, busy=True)


def test_a_server_that_comes_back_during_a_plan_answers_what_is_due_then() -> None:
    with serving(echo) as port:
        connection = connected(port)
        connection.ask(PATH, b"", LONG_S)
    with connection:
        calls = told([b"%d" % k for k in range(300)], gap_s=0.01)
        back = serving(echo, port)
        entered: list[int] = []

        def between() -> None:
            if calls.plan.begin >= 50 and not entered:
                entered.append(back.__enter__())

        calls.run(connection, between)
        back.__exit__(None, None, None)
    codes = calls.codes()
    assert codes[:40] == [grpc.StatusCode.UNAVAILABLE] * 40
    assert codes[-20:] == [grpc.StatusCode.OK] * 20
    assert {kind for kind, _ in calls.begun.values()} == {BEGUN}


def test_a_server_that_ends_during_a_plan_answers_what_it_has_and_no_more() -> None:
    entered: list[bytes] = []

    def slow(message: bytes, _: grpc.ServicerContext) -> bytes:
        entered.append(message)
        time.sleep(0.3)
        return message

    server = grpc.server(ThreadPoolExecutor(60))
    methods = {"Method": grpc.unary_unary_rpc_method_handler(slow)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    has: list[int] = []

    def between() -> None:
        # A call that reaches gRPC's server just as it stops may never be ended by it, whoever called.
        if not has and len(entered) == len(calls.begun) > 0:
            has.append(len(entered))
            server.stop(LONG_S)

    with connected(port) as connection:
        calls = told([b"%d" % k for k in range(60)], gap_s=0.02, slice_ns=1_000_000)
        calls.run(connection, between)
    codes = calls.codes()
    assert codes[: has[0]] == [grpc.StatusCode.OK] * has[0]
    assert grpc.StatusCode.OK not in codes[has[0] :]
    assert codes[-10:] == [grpc.StatusCode.UNAVAILABLE] * 10


def test_a_server_is_told_the_time_that_is_left() -> None:
    left_s: list[float] = []

    def note(message: bytes, context: grpc.ServicerContext) -> bytes:
        left_s.append(context.time_remaining())
        return message

    with serving(note) as port, connected(port) as connection:
        connection.ask(PATH, b"", LONG_S)
        left_s.clear()
        calls = told([b"", b""], gap_s=0.01, first_s=-0.5, deadline_ns=2_000_000_000)
        calls.run(connection)
    assert all(1.0 < left <= 1.51 for left in left_s)


@given(st.integers(min_value=1, max_value=99_999_999_000))
def test_the_loop_writes_a_time_as_python_does(left_ns: int) -> None:
    value = np.zeros(punctual.VALUE_BYTES, np.uint8)
    length = punctual._write_timeout(value, left_ns)
    assert value[:length].tobytes() == _timeout(left_ns)


def test_there_is_room_for_so_many_names() -> None:
    names = [b"%d" % k for k in range(nghttp2_compiled.MOST_NAMES)]
    nghttp2_compiled.notes(names)
    with pytest.raises(ValueError, match="found 9, expected at most 8"):
        nghttp2_compiled.notes([*names, b"more"])
