from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.client import CallError, ControllerClient
from controller.errors import KernelError
from controller.northbound import Northbound
from controller.program import DomainProgram, ProgramError
from tests.unit.controller.programs import program


class Application:
    """Answers like a controller that has nothing."""

    def __init__(self) -> None:
        self.installed: list[DomainProgram] = []

    def install(self, wanted: DomainProgram) -> dict[str, Any]:
        self.installed.append(wanted)
        return {"added": []}

    def remove(self, numbers: list[int]) -> dict[str, Any]:
        raise ProgramError(f"rules: numbers {numbers} not found")

    def read_back(self) -> dict[str, Any]:
        raise KernelError(["class 1:11 of p: gone", "class 1:12 of p: gone"])

    def verify(self) -> list[dict[str, str]]:
        return [{"object": "meter 1 of d0i", "tenant": "", "found": "absent", "expected": "there"}]

    def counters(self) -> dict[str, Any]:
        return {}

    def health(self) -> dict[str, Any]:
        return {"errors": []}


@pytest.fixture
def stopped() -> threading.Event:
    return threading.Event()


@pytest.fixture
def northbound(tmp_path: Path, stopped: threading.Event) -> Iterator[Northbound]:
    served = Northbound(Application(), tmp_path / "socket", stopped.set)  # type: ignore[arg-type]
    yield served
    served.close()
    served._listener.close()


NOT_CALLS = [
    ("noise", b"\xff\x00", "not JSON"),
    ("half an object", b'{"id": 1', "not JSON"),
    ("a list", b"[1, 2]", "expected an object with id, call and args"),
    ("an extra key", b'{"id": 1, "call": "health", "colour": "red"}', "expected an object with id, call and args"),
    ("an unknown call", b'{"id": 1, "call": "explode"}', "found 'explode', expected one of install"),
    ("a call that is no name", b'{"id": 1, "call": ["health"]}', r"found \['health'\], expected one of"),
    ("an argument too many", b'{"id": 1, "call": "health", "args": {"x": 1}}', "arguments of health"),
    ("an argument missing", b'{"id": 1, "call": "install", "args": {}}', "arguments of install"),
    ("arguments that are no object", b'{"id": 1, "call": "health", "args": 7}', "expected an object with id"),
]


@pytest.mark.parametrize(("line", "message"), [row[1:] for row in NOT_CALLS], ids=[row[0] for row in NOT_CALLS])
def test_what_is_not_a_call_is_answered_and_not_obeyed(northbound: Northbound, line: bytes, message: str) -> None:
    error = northbound.answer(line)["error"]
    assert error["kind"] == "request"
    with pytest.raises(CallError, match=message):
        raise CallError(error["kind"], error["problems"])


NOT_PROGRAMS = [
    ("a number", 7),
    ("nothing in it", {}),
    ("hops that are numbers", {"hops": [1]}),
    ("rules that are no list", {"rules": 3}),
    ("a queue that is missing", {"rules": [{"tenant": "a"}]}),
]


@pytest.mark.parametrize("value", [row[1] for row in NOT_PROGRAMS], ids=[row[0] for row in NOT_PROGRAMS])
def test_what_is_not_a_program_is_refused_as_one(northbound: Northbound, value: object) -> None:
    line = json.dumps({"id": 1, "call": "install", "args": {"program": value}}).encode()
    assert northbound.answer(line)["error"]["kind"] == "program"


def test_numbers_to_remove_are_whole(northbound: Northbound) -> None:
    for numbers in ([1.0], "1", [True]):
        line = json.dumps({"id": 1, "call": "remove", "args": {"numbers": numbers}}).encode()
        assert "expected a list of integers" in northbound.answer(line)["error"]["problems"][0]


def test_a_client_gets_results_and_errors_as_they_were_meant(northbound: Northbound) -> None:
    northbound.start()
    with ControllerClient(northbound._path, timeout_s=10) as client:
        assert client.install(program()) == {"added": []}
        assert northbound._application.installed == [program()]  # type: ignore[attr-defined]
        assert client.verify()[0]["object"] == "meter 1 of d0i"
        with pytest.raises(CallError, match=r"numbers \[3\] not found") as refused:
            client.remove([3])
        assert refused.value.kind == "program"
        with pytest.raises(CallError) as failed:
            client.read_back()
        assert failed.value.kind == "kernel"
        assert failed.value.problems == ("class 1:11 of p: gone", "class 1:12 of p: gone")
        assert client.health() == {"errors": []}


def test_a_shutdown_is_answered_before_it_happens(northbound: Northbound, stopped: threading.Event) -> None:
    northbound.start()
    with ControllerClient(northbound._path, timeout_s=10) as client:
        client.shutdown()
    assert stopped.wait(10)


def test_a_controller_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"controller socket .*absent: .* expected a running controller") as refused:
        ControllerClient(tmp_path / "absent")
    assert refused.value.kind == "connection"


def test_a_controller_that_hangs_up_is_an_error_and_not_an_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with ControllerClient(tmp_path / "socket", timeout_s=10) as client:
            listener.accept()[0].close()
            with pytest.raises(CallError) as refused:
                client.health()
            assert refused.value.kind == "connection"


@pytest.mark.parametrize("half", [b'{"id": 1, "result": {"rul', '{"id": 1, "result": "ö'.encode()[:-1]])
def test_an_answer_that_ends_in_its_middle_is_a_lost_connection(tmp_path: Path, half: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with ControllerClient(tmp_path / "socket", timeout_s=10) as client:
            with listener.accept()[0] as controller:
                controller.sendall(half)
                controller.shutdown(socket.SHUT_WR)
                with pytest.raises(CallError, match="no JSON, expected a whole answer") as refused:
                    client.health()
            assert refused.value.kind == "connection"
