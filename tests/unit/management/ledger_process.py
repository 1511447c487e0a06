"""A process that writes to a ledger, for tests that end it in the middle or run several of it at once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from testbed.management.entry import CapacityError, Entry, Request
from testbed.management.ledger import Ledger

CAPACITY = {"network": 100}
FAR_S = 4e9


def entry(name: str, amount: int = 10, replaces: str | None = None, place: str | None = None) -> Entry:
    return Entry(
        name, f"tenant-{name}", "broker", place or f"10.0.0.{name}", {"network": amount}, "{}", FAR_S, replaces
    )


def killed_at(point: str) -> None:
    """Do one whole life, and die by KILL where told."""

    def reached(now: str) -> None:
        if now == point:
            os.kill(os.getpid(), signal.SIGKILL)

    ledger = Ledger(Path(sys.argv[2]), CAPACITY, reached=reached)
    steps = {
        "offer": lambda books: books.offer([entry("a")]),
        "prepare": lambda books: books.prepare("a", "broker", FAR_S),
        "commit": lambda books: books.commit("a", "broker", FAR_S),
        "renew": lambda books: books.renew("a", "broker", FAR_S + 1),
        "release": lambda books: books.release("a", "broker"),
    }
    for call, step in steps.items():
        ledger.once(
            Request(f"id-{call}", call, "broker", b"x"), lambda books, step=step: (step(books) and b"") or b"done"
        )


def crowd(number: str) -> None:
    """Offer and prepare forty reservations of one writer, and say how many were held."""
    ledger = Ledger(Path(sys.argv[2]), CAPACITY)
    names = [f"{number}-{index}" for index in range(40)]
    with ledger.transaction("offer") as books:
        books.offer([entry(name, amount=1) for name in names])
    held = 0
    for name in names:
        try:
            with ledger.transaction("prepare") as books:
                books.prepare(name, "broker", FAR_S)
        except CapacityError:
            continue
        held += 1
    print(held)


if __name__ == "__main__":
    {"killed-at": killed_at, "crowd": crowd}[sys.argv[1]](sys.argv[3])
