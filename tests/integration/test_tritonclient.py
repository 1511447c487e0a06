"""Triton's own client, in a process and an environment of its own, finds in our server what it expects of Triton's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_server.generated import open_inference_pb2 as pb
from inference_server.server import Settings
from tests.unit.inference.serving import Running, serving

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("triton_program.py")
OURS = {"Impairment", "ImpairRequest", "ImpairResponse"}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(Settings(listen="127.0.0.1:0", device="cpu", message_bytes=1 << 20)) as server:
        yield server


@pytest.fixture(scope="module")
def seen(running: Running) -> dict[str, Any]:
    """What the client reports; its environment is made if it is not there."""
    made = subprocess.run([ROOT / "scripts" / "tritonclient"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    command = [made.stdout.splitlines()[-1], "-I", str(PROGRAM), running.target]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return report


def test_it_reads_health_metadata_configuration_index_and_answers(seen: dict[str, Any]) -> None:
    plain = seen["plain"]
    assert (plain["live"], plain["ready"], plain["model_ready"], plain["no_model_ready"]) == (True, True, True, False)
    assert plain["server"] == "tail-latency-testbed"
    assert plain["inputs"] == [["pixels", "FP32", [-1, 64]]]
    assert plain["config"] == ["digits-small", 1024, [64], pb.TYPE_FP32]
    assert {"digits-small", "digits-medium", "digits-large"} <= set(plain["index"])
    assert (plain["shape"], plain["id"]) == ([3, 10], "seven")
    assert plain["stamped"] == ["finished_ns", "queued_ns", "received_ns", "started_ns"]


def test_its_statistics_count_what_it_asked(seen: dict[str, Any]) -> None:
    assert seen["plain"]["statistics"] == ["digits-small", 3, 1, 1]


def test_its_asynchronous_calls_are_answered(seen: dict[str, Any]) -> None:
    assert seen["asynchronous"] == [[1, 10], [2, 10], [3, 10]]


def test_its_streams_are_answered_in_order_with_refusals_among_the_answers(seen: dict[str, Any]) -> None:
    first, second, third = seen["streaming"]
    assert (first, third) == ("1", "3")
    assert "NOT_FOUND" in second
    assert "digits-huge" in second


def test_its_coroutines_are_answered(seen: dict[str, Any]) -> None:
    assert seen["aio"] == {"live": True, "ready": True, "shapes": [[1, 10], [2, 10]], "streamed": ["1", "2"]}


STATUSES = {
    "unknown model": "NOT_FOUND",
    "unknown version": "NOT_FOUND",
    "unknown output": "INVALID_ARGUMENT",
    "wrong shape": "INVALID_ARGUMENT",
    "wrong datatype": "INVALID_ARGUMENT",
    "too large": "RESOURCE_EXHAUSTED",
    "deadline": "DEADLINE_EXCEEDED",
    "metadata": "NOT_FOUND",
    "config": "NOT_FOUND",
    "statistics": "NOT_FOUND",
}


@pytest.mark.parametrize("what", STATUSES)
def test_it_is_told_what_was_wrong(seen: dict[str, Any], what: str) -> None:
    assert seen["errors"][what] == f"StatusCode.{STATUSES[what]}"


def test_every_field_of_our_messages_is_one_of_tritons(seen: dict[str, Any]) -> None:
    checked = 0
    messages = list(pb.DESCRIPTOR.message_types_by_name.values())
    while messages:
        message = messages.pop()
        messages += message.nested_types
        if message.name in OURS:
            continue
        theirs = seen["messages"][message.full_name]
        for field in message.fields:
            assert [field.number, field.type, field.is_repeated] == theirs[field.name], f"{message.name}.{field.name}"
            checked += 1
    assert checked > 100
