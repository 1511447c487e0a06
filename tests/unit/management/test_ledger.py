"""A ledger keeps its books whatever happens to its process and however many write in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.errors import ReservationError
from testbed.management.books import Books
from testbed.management.entry import (
    CapacityError,
    Entry,
    ForeignReservationError,
    Request,
    ReusedRequestError,
    State,
    UnknownReservationError,
    Use,
    WrongStateError,
)
from testbed.management.ledger import Ledger

from .ledger_process import CAPACITY, FAR_S, entry

ROOT = Path(__file__).parents[3]


@dataclass
class Clock:
    now_s: float = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "ledger.sqlite", CAPACITY, clock=clock)
    yield found
    found.close()


def do(ledger: Ledger, *steps: Callable[[Books], object]) -> None:
    for step in steps:
        with ledger.transaction("test") as books:
            step(books)


def held(ledger: Ledger) -> int:
    """What is held, as counted and as summed over the entries, which must agree."""
    counted = ledger.use()["network"].held
    assert counted == sum(e.amounts["network"] for e in ledger.entries(State.PREPARED, State.COMMITTED))
    return counted


def offered(
    name: str, amount: int = 10, replaces: str | None = None, place: str | None = None
) -> Callable[[Books], object]:
    return lambda books: books.offer([entry(name, amount, replaces, place)])


def prepared(name: str, expires_s: float = FAR_S) -> Callable[[Books], object]:
    return lambda books: books.prepare(name, "broker", expires_s)


def committed(name: str, expires_s: float = FAR_S) -> Callable[[Books], object]:
    return lambda books: books.commit(name, "broker", expires_s)


def aborted(name: str) -> Callable[[Books], object]:
    return lambda books: books.abort(name, "broker")


def released(name: str) -> Callable[[Books], object]:
    return lambda books: books.release(name, "broker")


@pytest.mark.parametrize(
    ("steps", "state", "amount"),
    [
        pytest.param([offered("a")], State.OFFERED, 0, id="an offer holds nothing"),
        pytest.param([offered("a"), prepared("a")], State.PREPARED, 10, id="what is prepared is held"),
        pytest.param([offered("a"), prepared("a"), prepared("a")], State.PREPARED, 10, id="and held once"),
        pytest.param([offered("a"), prepared("a"), committed("a")], State.COMMITTED, 10, id="and goes on being held"),
        pytest.param(
            [offered("a"), prepared("a"), committed("a"), committed("a")], State.COMMITTED, 10, id="twice firm"
        ),
        pytest.param([offered("a"), aborted("a")], State.ABORTED, 0, id="an offer can be given up"),
        pytest.param([offered("a"), prepared("a"), aborted("a")], State.ABORTED, 0, id="so can what is prepared"),
        pytest.param([offered("a"), prepared("a"), aborted("a"), aborted("a")], State.ABORTED, 0, id="and again"),
        pytest.param([offered("a"), prepared("a"), released("a")], State.ABORTED, 0, id="release of what is prepared"),
        pytest.param([offered("a"), prepared("a"), committed("a"), released("a")], State.RELEASED, 0, id="released"),
        pytest.param(
            [offered("a"), prepared("a"), committed("a"), released("a"), released("a")], State.RELEASED, 0, id="once"
        ),
    ],
)
def test_a_reservation_moves_as_the_protocol_says(
    ledger: Ledger, steps: list[Callable[[Books], object]], state: State, amount: int
) -> None:
    do(ledger, *steps)
    assert [e.state for e in ledger.entries()] == [state]
    assert held(ledger) == amount


@pytest.mark.parametrize(
    ("steps", "last", "error", "said"),
    [
        pytest.param([], prepared("a"), UnknownReservationError, "unknown here", id="unknown"),
        pytest.param([offered("a")], committed("a"), WrongStateError, "found it offered", id="commit unprepared"),
        pytest.param(
            [offered("a"), prepared("a"), committed("a")], aborted("a"), WrongStateError, "release it", id="abort firm"
        ),
        pytest.param([offered("a"), aborted("a")], prepared("a"), WrongStateError, "found it aborted", id="over"),
        pytest.param(
            [offered("a")],
            lambda books: books.prepare("a", "stranger", FAR_S),
            ForeignReservationError,
            "belongs to broker",
            id="somebody else's",
        ),
        pytest.param(
            [offered("a", 101)], prepared("a"), CapacityError, "101 of network with 100 of 100", id="too much"
        ),
        pytest.param(
            [offered("a", 60), offered("b", 60), prepared("a")], prepared("b"), CapacityError, "40 of 100", id="rest"
        ),
        pytest.param(
            [offered("a"), prepared("a"), offered("b", place="10.0.0.a")],
            prepared("b"),
            CapacityError,
            "10.0.0.a is held by reservation a",
            id="one client twice",
        ),
    ],
)
def test_what_the_protocol_does_not_allow_changes_nothing(
    ledger: Ledger,
    steps: list[Callable[[Books], object]],
    last: Callable[[Books], object],
    error: type[ReservationError],
    said: str,
) -> None:
    do(ledger, *steps)
    before, amount = ledger.entries(), held(ledger)
    with pytest.raises(error, match=said):
        do(ledger, last)
    assert ledger.entries() == before
    assert held(ledger) == amount


def test_leases_end_and_give_back_what_they_held(ledger: Ledger, clock: Clock) -> None:
    do(ledger, offered("a"), offered("b"), prepared("a", 1_010), prepared("b", 1_010), committed("b", 1_020))
    clock.now_s = 1_015
    do(ledger, lambda books: books.expire())
    assert {e.reservation: e.state for e in ledger.entries()} == {"a": State.EXPIRED, "b": State.COMMITTED}
    do(ledger, lambda books: books.renew("b", "broker", 1_100))
    clock.now_s = 1_050
    do(ledger, lambda books: books.expire())
    assert held(ledger) == 10
    clock.now_s = 1_101
    do(ledger, lambda books: books.expire())
    assert held(ledger) == 0


def test_a_lease_that_ended_can_neither_be_committed_nor_renewed(ledger: Ledger, clock: Clock) -> None:
    do(ledger, offered("a"), prepared("a", 1_010))
    clock.now_s = 1_011
    with pytest.raises(WrongStateError, match="lease ended"):
        do(ledger, committed("a"))
    with pytest.raises(WrongStateError, match="nothing to renew"):
        do(ledger, lambda books: books.renew("a", "broker", 2_000))


def test_an_offer_that_ended_is_not_taken_up(ledger: Ledger, clock: Clock) -> None:
    do(ledger, lambda books: books.offer([Entry("a", "t", "broker", "p", {"network": 1}, "{}", 1_001.0)]))
    clock.now_s = 1_002
    with pytest.raises(WrongStateError, match="offer ended"):
        do(ledger, prepared("a"))


def test_a_replacement_holds_only_what_is_more_and_sits_where_the_other_sat(ledger: Ledger) -> None:
    do(ledger, offered("a", 60), prepared("a"), committed("a"))
    do(ledger, offered("b", 90, replaces="a", place="10.0.0.a"))
    with pytest.raises(WrongStateError, match="expected it committed for tenant-b"):
        do(ledger, prepared("b"))
    same = Entry("c", "tenant-a", "broker", "10.0.0.a", {"network": 90}, "{}", FAR_S, "a")
    do(ledger, lambda books: books.offer([same]), prepared("c"))
    assert ledger.use()["network"].held == 90
    do(ledger, committed("c"))
    assert seated(ledger) == {"a": (State.YIELDED, 1), "c": (State.COMMITTED, 1)}
    assert held(ledger) == 90
    do(ledger, released("a"))
    assert seated(ledger) == {"a": (State.RELEASED, 1), "c": (State.COMMITTED, 1)}
    assert held(ledger) == 90


def seated(ledger: Ledger) -> dict[str, tuple[State, int | None]]:
    return {e.reservation: (e.state, e.number) for e in ledger.entries() if e.number}


def replacing(name: str, amount: int) -> Callable[[Books], object]:
    return lambda books: books.offer(
        [Entry(name, "tenant-a", "broker", "10.0.0.a", {"network": amount}, "{}", FAR_S, "a")]
    )


@pytest.mark.parametrize(("old", "new"), [(60, 90), (60, 20), (60, 60)])
def test_what_yielded_comes_back_when_the_one_it_yielded_to_is_given_back_first(
    ledger: Ledger, old: int, new: int
) -> None:
    do(ledger, offered("a", old), prepared("a"), committed("a"))
    do(ledger, replacing("c", new), prepared("c"), committed("c"))
    assert ledger.use()["network"].held == max(old, new)
    do(ledger, released("c"))
    assert seated(ledger) == {"a": (State.COMMITTED, 1), "c": (State.RELEASED, 1)}
    assert held(ledger) == old
    do(ledger, released("a"))
    assert held(ledger) == 0


@pytest.mark.parametrize(("old", "new"), [(60, 90), (60, 20), (60, 60)])
def test_what_yielded_holds_nothing_once_it_is_released(ledger: Ledger, old: int, new: int) -> None:
    do(ledger, offered("a", old), prepared("a"), committed("a"))
    do(ledger, replacing("c", new), prepared("c"), committed("c"), released("a"))
    assert held(ledger) == new
    do(ledger, released("c"))
    assert held(ledger) == 0
    assert seated(ledger) == {"a": (State.RELEASED, 1), "c": (State.RELEASED, 1)}


@pytest.mark.parametrize("first", ["a", "c"])
def test_leases_of_a_replacement_and_of_what_yielded_to_it_end_in_either_order(
    ledger: Ledger, clock: Clock, first: str
) -> None:
    do(ledger, offered("a", 60), prepared("a"), committed("a", 1_010 if first == "a" else 1_020))
    do(ledger, replacing("c", 90), prepared("c"), committed("c", 1_010 if first == "c" else 1_020))
    clock.now_s = 1_011
    do(ledger, lambda books: books.expire())
    other = "c" if first == "a" else "a"
    assert seated(ledger) == {first: (State.EXPIRED, 1), other: (State.COMMITTED, 1)}
    assert held(ledger) == {"a": 60, "c": 90}[other]
    clock.now_s = 1_021
    do(ledger, lambda books: books.expire())
    assert held(ledger) == 0


def test_what_yielded_can_neither_be_aborted_nor_committed_nor_replaced_again(ledger: Ledger) -> None:
    do(ledger, offered("a", 60), prepared("a"), committed("a"))
    do(ledger, replacing("c", 90), prepared("c"), committed("c"), replacing("d", 10))
    for step in (aborted("a"), committed("a"), prepared("a"), prepared("d")):
        with pytest.raises(WrongStateError, match=r"found (it|that) yielded"):
            do(ledger, step)
    with pytest.raises(WrongStateError, match="found it yielded, expected prepared"):
        do(ledger, lambda books: books.require_committable("a", "broker"))


def test_a_replacement_given_up_leaves_the_other_as_it_was(ledger: Ledger) -> None:
    do(ledger, offered("a", 60), prepared("a"), committed("a"))
    smaller = Entry("c", "tenant-a", "broker", "10.0.0.a", {"network": 20}, "{}", FAR_S, "a")
    do(ledger, lambda books: books.offer([smaller]), prepared("c"), aborted("c"))
    assert held(ledger) == 60


def test_seats_are_the_smallest_that_are_free(ledger: Ledger) -> None:
    do(ledger, *(offered(name) for name in "abc"), *(prepared(name) for name in "abc"), aborted("b"))
    do(ledger, offered("d"), prepared("d"))
    assert {e.reservation: e.number for e in ledger.entries(State.PREPARED)} == {"a": 1, "d": 2, "c": 3}


def test_the_same_request_is_done_once_and_answered_alike(ledger: Ledger) -> None:
    asked = Request("id", "offer", "broker", b"digest")

    def act(books: Books) -> bytes:
        books.offer([entry("a")])
        return b"first"

    assert ledger.once(asked, act) == b"first"
    assert ledger.once(asked, lambda _: b"second") == b"first"
    with pytest.raises(ReusedRequestError):
        ledger.once(Request("id", "offer", "broker", b"another"), act)


def test_versions_count_up_across_restarts(ledger: Ledger) -> None:
    seen = []
    for _ in range(2):
        with ledger.transaction("test") as books:
            seen.append(books.next("version"))
    again = Ledger(ledger.path, CAPACITY)
    with again.transaction("test") as books:
        seen.append(books.next("version"))
    again.close()
    assert seen == [1, 2, 3]


def test_a_capacity_below_what_is_held_is_refused(ledger: Ledger) -> None:
    do(ledger, offered("a", 60), prepared("a"))
    with pytest.raises(CapacityError, match="capacity of 50 with 60 held"):
        Ledger(ledger.path, {"network": 50})


def test_what_is_no_longer_sold_is_gone_once_nothing_of_it_is_held(tmp_path: Path) -> None:
    path, both = tmp_path / "ledger.sqlite", {**CAPACITY, "compute": 10}
    ledger = Ledger(path, both)
    wanted = [Entry(name, name, "broker", name, {"compute": 5}, "{}", FAR_S) for name in "ab"]
    do(ledger, lambda books: books.offer(wanted), prepared("a"))
    with pytest.raises(CapacityError, match="compute: found a capacity of 0 with 5 held; release"):
        Ledger(path, CAPACITY)
    do(ledger, aborted("a"))
    ledger.close()
    without = Ledger(path, CAPACITY)
    assert set(without.use()) == {"network"}
    with pytest.raises(CapacityError, match="b of b: wants 5 of compute with 0 of 0 free"):
        do(without, prepared("b"))
    without.close()
    again = Ledger(path, both)
    assert again.use() == {"network": Use(100, 0), "compute": Use(10, 0)}
    again.close()


def test_who_only_reads_a_ledger_leaves_what_is_sold_as_it_was(ledger: Ledger) -> None:
    do(ledger, offered("a", 60), prepared("a"))
    reader = Ledger(ledger.path, None)
    assert reader.use() == ledger.use() == {"network": Use(100, 60)}
    reader.close()


def run(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.unit.management.ledger_process", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


ORDER = ("offer", "prepare", "commit", "renew", "release")
AFTER = (State.OFFERED, State.PREPARED, State.COMMITTED, State.COMMITTED, State.RELEASED)


@pytest.mark.parametrize("call", ORDER)
@pytest.mark.parametrize("point", ["begun", "written", "durable"])
def test_a_ledger_killed_at_any_point_holds_all_of_a_call_or_nothing_of_it(
    call: str, point: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    process = run("killed-at", str(path), f"{call}:{point}")
    process.communicate()
    assert process.returncode == -9
    done = ORDER.index(call) + (point == "durable")
    with_it = Ledger(path, CAPACITY)
    assert [e.state for e in with_it.entries()] == ([AFTER[done - 1]] if done else [])
    assert held(with_it) == (10 if with_it.entries(State.PREPARED, State.COMMITTED) else 0)
    answered = with_it.answered(Request(f"id-{call}", call, "broker", b"x"))
    assert answered == (b"done" if point == "durable" else None)
    with_it.close()


def test_four_writers_at_once_hold_exactly_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path, CAPACITY).close()
    processes = [run("crowd", str(path), str(number)) for number in range(4)]
    counts = [int(process.communicate()[0]) for process in processes]
    ledger = Ledger(path, CAPACITY)
    assert sum(counts) == held(ledger) == 100
    assert sorted(e.number or 0 for e in ledger.entries(State.PREPARED)) == list(range(1, 101))
    ledger.close()
