"""Meters are read from a switch that answers in parts, or asks back in between; what is no answer is an error."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.counters import MeterCounters
from testbed.emulation.meters import connected
from testbed.errors import PreflightError

HELLO, ERROR, ECHO_REQUEST, ECHO_REPLY, REQUEST, REPLY = 0, 1, 2, 3, 18, 19


def message(kind: int, body: bytes = b"", number: int = 1) -> bytes:
    return struct.pack("!BBHI", 4, kind, 8 + len(body), number) + body


def meter(meter_id: int, packets: int, size: int, *dropped: tuple[int, int]) -> bytes:
    bands = b"".join(struct.pack("!QQ", *band) for band in dropped)
    return struct.pack("!IH6xIQQII", meter_id, 40 + len(bands), 1, packets, size, 3, 0) + bands


def reply(*meters: bytes, more: bool, number: int = 1) -> bytes:
    return message(REPLY, struct.pack("!HH4x", 9, more) + b"".join(meters), number)


def request(meter_id: int, number: int) -> bytes:
    return message(REQUEST, struct.pack("!HH4xI4x", 9, 0, meter_id), number)


@contextmanager
def switch(path: Path, *said: bytes) -> Iterator[list[bytes]]:
    """One that says this to the first who connects, and remembers what it was told."""
    heard: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for piece in said:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while some := connection.recv(4096):
                heard.append(some)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield heard
        thread.join(10)


def test_an_answer_in_parts_is_read_to_its_end_and_a_question_in_between_is_answered(tmp_path: Path) -> None:
    first = reply(meter(1, 10, 1_000, (4, 400)), meter(2, 7, 70, (1, 10), (2, 20)), more=True)
    last = reply(meter(9, 2**40, 2**50), more=False)
    said = (message(HELLO), first[:30], first[30:], message(ECHO_REQUEST, b"there?", 77), last)
    with switch(tmp_path / "br.mgmt", *said) as heard, connected(tmp_path / "br.mgmt") as connection:
        found = connection.read()
    assert found == {
        1: MeterCounters(10, 1_000, 4, 400),
        2: MeterCounters(7, 70, 3, 30),
        9: MeterCounters(2**40, 2**50, 0, 0),
    }
    told = b"".join(heard)
    assert told.startswith(message(HELLO, number=0) + request(0xFFFFFFFF, 1))
    assert told.endswith(message(ECHO_REPLY, b"there?", 77))


def test_a_connection_is_asked_again_and_again_and_an_answer_to_something_else_is_none(tmp_path: Path) -> None:
    unknown = message(ERROR, struct.pack("!HH", 12, 3) + request(8, 2), 2)
    said = (message(HELLO), reply(meter(7, 1, 10), more=False), unknown, reply(meter(7, 5, 50), more=False, number=1))
    said += (reply(meter(7, 2, 20), more=False, number=3),)
    with switch(tmp_path / "br.mgmt", *said) as heard, connected(tmp_path / "br.mgmt") as connection:
        found = [connection.read(7), connection.read(8), connection.read(7)]
    assert found == [{7: MeterCounters(1, 10, 0, 0)}, {}, {7: MeterCounters(2, 20, 0, 0)}]
    assert b"".join(heard) == message(HELLO, number=0) + request(7, 1) + request(8, 2) + request(7, 3)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((message(HELLO), message(ERROR, b"\x00\x01\x00\x02")), "refused to show its meters: OpenFlow error 00010002"),
        ((struct.pack("!BBHI", 1, 0, 8, 0),), r"speaks OpenFlow's wire version 1, expected 4 \(1.3\)"),
        ((message(HELLO), reply(more=True)), "found the end of the connection, expected the switch's meters"),
        ((), "found the end of the connection, expected the switch's meters"),
    ],
    ids=[
        "the switch refuses",
        "the switch knows OpenFlow 1.0 only",
        "the last part never comes",
        "the switch hangs up",
    ],
)
def test_what_is_no_answer_is_an_error_with_the_reason(tmp_path: Path, said: tuple[bytes, ...], why: str) -> None:
    with (
        switch(tmp_path / "br.mgmt", *said),
        pytest.raises(PreflightError, match=why),
        connected(tmp_path / "br.mgmt") as connection,
    ):
        connection.read()


def test_a_switch_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"br\.mgmt: found .*No such file"), connected(tmp_path / "br.mgmt"):
        pytest.fail("connected to nothing")
