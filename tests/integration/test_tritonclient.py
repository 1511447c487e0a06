"""Triton's own client, in a process and an environment of its own, finds in our server what it expects of Triton's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from inference_server.generated import open_inference_pb2 as pb
from inference_server.security import Security
from inference_server.server import Settings
from tests.unit.inference.serving import Running, serving
from tests.unit.inference.test_operation import Identity

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("triton_program.py")
OURS = {"Impairment", "ImpairRequest", "ImpairResponse"}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A server for everybody."""
    with serving(Settings(listen="127.0.0.1:0", device="cpu", message_bytes=1 << 20)) as server:
        yield server


@pytest.fixture(scope="module")
def closed() -> Iterator[Running]:
    """A server that lives and takes no requests, like one that drains."""
    with serving(Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu")) as server:
        server.server.service.accepting = False
        yield server


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    folder = tmp_path_factory.mktemp("identities")
    authority = Identity("authority", folder)
    return {"authority": authority} | {name: Identity(name, folder, authority) for name in ("server", "client")}


@pytest.fixture(scope="module")
def guarded(identities: dict[str, Identity]) -> Iterator[Running]:
    """A server whose tenants hold all of it, and that asks clients for a certificate."""
    mine, authority = identities["server"], identities["authority"]
    settings = Settings(
        listen="127.0.0.1:0",
        models=["digits-small"],
        shares={"alpha": 0.6, "bravo": 0.4},
        device="cpu",
        security=Security(mine.certificate, mine.key, authority.certificate),
    )
    with serving(settings) as server:
        yield server


@pytest.fixture(scope="module")
def seen(running: Running, closed: Running, guarded: Running, identities: dict[str, Identity]) -> dict[str, Any]:
    """What the client reports; its environment is made if it is not there."""
    made = subprocess.run([ROOT / "scripts" / "tritonclient"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    where = {
        "open": running.target,
        "closed": closed.target,
        "guarded": f"localhost:{guarded.server.port}",
        "authority": str(identities["authority"].certificate),
        "certificate": str(identities["client"].certificate),
        "key": str(identities["client"].key),
    }
    command = [made.stdout.splitlines()[-1], "-I", str(PROGRAM), json.dumps(where)]
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


def test_text_comes_byte_by_byte_and_then_as_a_whole(seen: dict[str, Any]) -> None:
    found = seen["decoupled"]
    assert found["declared"]
    assert (found["ids"], found["left"]) == (["five"], 0)
    assert found["final"] == [False] * 5 + [True]
    *parts, whole = found["bytes"]
    assert parts == [[byte] for byte in whole]


def test_its_coroutines_stream_text_with_refusals_among_the_answers(seen: dict[str, Any]) -> None:
    first, second, third = (
        [(name, final) for name, final, wrong in seen["aio stream"] if not wrong and name == which]
        for which in ("1", "2", "3")
    )
    assert (first, second, third) == ([("1", False)] * 2 + [("1", True)], [], [("3", False), ("3", True)])
    assert [name for name, _, _ in seen["aio stream"]] == ["1", "1", "1", "", "3", "3"]
    assert seen["aio stream"][3][2].startswith("[NOT_FOUND] model 'digits-huge'")


def test_a_timeout_it_sends_is_kept_by_the_server(seen: dict[str, Any]) -> None:
    """gRPC knows nothing of it: without the server's word the call would go on."""
    found = seen["deadlines"]
    late = "model 'text-small': the deadline passed before the answer was there"
    assert found["server"] == ["StatusCode.DEADLINE_EXCEEDED", late]
    assert found["streamed"] == [["None", f"[DEADLINE_EXCEEDED] {late}"], ["answered", ""]]
    assert found["enough"] == "answered"


def test_a_call_it_gives_up_is_given_up(seen: dict[str, Any], running: Running) -> None:
    found = seen["deadlines"]
    assert found["client"][0] == "StatusCode.DEADLINE_EXCEEDED"
    assert [status for status, _ in found["stream"]] == ["StatusCode.DEADLINE_EXCEEDED"]
    assert found["cancelled"][0] == "StatusCode.CANCELLED"
    assert found["afterwards"] == "answered"
    statistics = running.server.service.statistics
    with statistics.read():
        # The short texts that were asked for; none of those that were given up was computed to its end.
        assert statistics.models["text-small"].executions == 6


def test_a_server_that_takes_no_requests_is_unavailable_and_says_so(seen: dict[str, Any]) -> None:
    found = seen["closed"]
    assert (found["live"], found["ready"], found["model ready"]) == (True, False, False)
    assert found["infer"][0] == found["metadata"] == "StatusCode.UNAVAILABLE"
    assert "drains before it ends; try again later" in found["infer"][1]


def test_over_tls_its_tenant_is_named_by_a_parameter_or_by_a_header(seen: dict[str, Any], guarded: Running) -> None:
    found = seen["guarded"]
    assert (found["parameter"], found["header"]) == ("answered", "answered")
    assert found["nobody"] == "StatusCode.RESOURCE_EXHAUSTED"
    assert found["no text"] == "StatusCode.INVALID_ARGUMENT"
    first, second, third = found["stream"]
    assert (first, second) == ("1", "2")
    assert third.startswith("[RESOURCE_EXHAUSTED]")
    statistics = guarded.server.service.statistics
    with statistics.read():
        answered = {share: counts.endings[grpc.StatusCode.OK] for (_, share), counts in statistics.shares.items()}
    # A call, a stream's request and a coroutine's call of each.
    assert (answered["alpha"], answered["bravo"]) == (3, 3)


def test_without_a_certificate_it_is_not_let_in(seen: dict[str, Any]) -> None:
    assert seen["guarded"]["no certificate"] == seen["guarded"]["no tls"] == "StatusCode.UNAVAILABLE"


STATUSES = {
    "errors": {
        "unknown model": "NOT_FOUND",
        "unknown version": "NOT_FOUND",
        "unknown output": "INVALID_ARGUMENT",
        "wrong shape": "INVALID_ARGUMENT",
        "wrong datatype": "INVALID_ARGUMENT",
        "too large": "RESOURCE_EXHAUSTED",
        "too many rows": "INVALID_ARGUMENT",
        "metadata": "NOT_FOUND",
        "config": "NOT_FOUND",
        "statistics": "NOT_FOUND",
    },
    "aio errors": {
        "unknown model": "NOT_FOUND",
        "wrong shape": "INVALID_ARGUMENT",
        "server's deadline": "DEADLINE_EXCEEDED",
        "client's deadline": "DEADLINE_EXCEEDED",
        "closed": "UNAVAILABLE",
        "no share": "RESOURCE_EXHAUSTED",
    },
}
"""Of its calls and of its coroutines, by what was wrong."""


@pytest.mark.parametrize(("calls", "what"), [(calls, what) for calls, table in STATUSES.items() for what in table])
def test_it_is_told_what_was_wrong(seen: dict[str, Any], calls: str, what: str) -> None:
    assert seen[calls][what] == f"StatusCode.{STATUSES[calls][what]}"


@pytest.mark.parametrize("what", ["parameter", "header"])
def test_its_coroutines_name_their_tenant(seen: dict[str, Any], what: str) -> None:
    assert seen["aio errors"][what] == "answered"


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
