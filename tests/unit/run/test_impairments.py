"""What a server wrote down of its impairments is what a run's record says of them."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from inference_server.generated import open_inference_pb2 as pb
from inference_server.impairments import Impairments, parse
from testbed.errors import FidelityError
from testbed.run.impairments import read


def event(at_ns: int, what: str, kind: str, amount: float = 0.0, seed: int = 7) -> dict[str, Any]:
    return {"at_ns": at_ns, "event": what, "kind": kind, "amount": amount, "seed": seed}


def written(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in events), encoding="utf-8")
    return path


def test_beginnings_find_their_ends_and_a_crash_has_none(tmp_path: Path) -> None:
    path = written(
        tmp_path / "record",
        event(2_000_000_000, "begin", "slow-down", 3.0),
        event(2_500_000_000, "begin", "slow-down", 2.0),
        event(3_000_000_000, "end", "slow-down", 3.0),
        event(4_000_000_000, "end", "slow-down", 2.0),
        event(5_000_000_000, "begin", "slow-down", 3.0),
        event(5_500_000_000, "end", "slow-down", 3.0),
        event(6_000_000_000, "begin", "crash"),
    )
    found = list(read(path, "h1", ("vision",), start_ns=1_000_000_000))
    assert [(each.kind, each.amount, each.begin_s, each.end_s) for each in found] == [
        ("slow-down", 3.0, 1.0, 2.0),
        ("slow-down", 2.0, 1.5, 3.0),
        ("slow-down", 3.0, 4.0, 4.5),
        ("crash", 0.0, 5.0, None),
    ]
    assert {(each.server, each.tenants, each.seed) for each in found} == {("h1", ("vision",), 7)}


def test_what_a_killed_server_had_begun_does_not_take_the_end_of_what_began_later(tmp_path: Path) -> None:
    path = written(
        tmp_path / "record",
        event(1_000_000_000, "begin", "slow-down", 3.0),
        event(5_000_000_000, "begin", "slow-down", 3.0),
        event(6_000_000_000, "end", "slow-down", 3.0),
    )
    assert [(each.begin_s, each.end_s) for each in read(path, "h1", (), 0)] == [(1.0, None), (5.0, 6.0)]


def test_memory_that_could_not_be_had_neither_began_nor_ends_what_is_held(tmp_path: Path) -> None:
    held, failed, over = (
        event(at, what, "memory-pressure", 4e9) for at, what in ((1, "begin"), (2, "fail"), (3, "end"))
    )
    found = list(read(written(tmp_path / "record", held, failed, over), "h1", (), 0))
    assert [(each.begin_s, each.end_s) for each in found] == [(1e-9, 3e-9)]


def test_a_servers_own_record_is_understood(tmp_path: Path) -> None:
    path, crashed, over = tmp_path / "record", threading.Event(), threading.Event()

    def crash(_: int) -> None:
        """Whoever has crashed writes nothing more."""
        crashed.set()
        over.wait(10)

    impairments = Impairments(path, touched=lambda *_: None, crash=crash)
    plan = [pb.Impairment(kind="wrong-answers", to_s=1e6, rate=0.25), pb.Impairment(kind="crash")]
    start_ns = time.monotonic_ns()
    impairments.add(parse(pb.ImpairRequest(seed=9, impairments=plan), start_ns))
    assert crashed.wait(10)
    during = {each.kind: each for each in read(path, "h1", (), start_ns)}
    assert (during["wrong-answers"].amount, during["wrong-answers"].seed, during["crash"].end_s) == (0.25, 9, None)
    assert during["wrong-answers"].describe() == "wrong answers to 25 % of the requests"
    assert 0.0 <= during["crash"].begin_s < 10.0
    over.set()
    impairments.close()
    ended = {each.kind: each.end_s for each in read(path, "h1", (), start_ns)}
    assert ended["wrong-answers"] is not None


@pytest.mark.parametrize("text", ["{", "[]\n", '{"event": "begin"}\n'])
def test_what_is_no_such_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "record").write_text(text, encoding="utf-8")
    with pytest.raises(FidelityError, match="no record of a server's impairments"):
        list(read(tmp_path / "record", "h1", (), 0))
    with pytest.raises(FidelityError, match="no record of a server's impairments"):
        list(read(tmp_path / "missing", "h1", (), 0))
