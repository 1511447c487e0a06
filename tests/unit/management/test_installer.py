"""Switches stay in step with the ledger, or the agent says that they are not, whatever becomes of the ledger."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Self

import pytest

from controller.program import DomainProgram
from testbed.management import installer
from testbed.management.books import Books
from testbed.management.entry import Request, State
from testbed.management.installer import Installer, Keeper
from testbed.management.ledger import Ledger

from .agents_at_hand import Domains
from .ledger_process import CAPACITY
from .test_agent import demand, presented, wait_for


class Switches:
    """A client of a controller that installs whatever it is given."""

    def __init__(self) -> None:
        self.tenants: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None: ...

    def install(self, program: DomainProgram) -> dict[str, list[str]]:
        before, self.tenants = self.tenants, [rule.tenant for rule in program.rules]
        return {"added": [one for one in self.tenants if one not in before], "changed": [], "removed": []}


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> Switches:
    found = Switches()
    monkeypatch.setattr(installer, "ControllerClient", lambda _path: found)
    return found


def above(ledger: Ledger) -> Installer:
    return Installer(ledger, ledger.path.with_name("c.sock"), DomainProgram("core", "userspace", 10**9, (), ()))


@pytest.mark.usefixtures("switches")
def test_a_keeper_outlives_a_ledger_that_cannot_be_used_and_says_so_meanwhile(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", CAPACITY)
    ledger._database.execute("PRAGMA busy_timeout = 1")
    domain = above(ledger)
    domain.look_after()
    assert domain.counts.in_step
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    keeper = Keeper(domain.look_after, 0.01)
    keeper.start()
    said = "ledger.sqlite cannot be used now (database is locked)"
    wait_for(lambda: said in domain.counts.last_problem, "the ledger to be missed")
    assert not domain.counts.in_step
    other.execute("ROLLBACK")
    wait_for(lambda: domain.counts.in_step and not domain.counts.last_problem, "the switches in step")
    keeper.stop()
    other.close()
    ledger.close()


def test_what_the_ledger_could_not_call_committed_is_taken_off_the_switches_again(
    tmp_path: Path, switches: Switches, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains = Domains.of(tmp_path)
    core = domains.clients["core"]
    core.agent.installer = above(core.agent.ledger)
    (offered,) = core.offer([demand()])
    core.prepare([presented(offered)])
    installed = []

    def full(_books: Books, _request: Request, _answer: bytes) -> None:
        installed.extend(switches.tenants)
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Books, "remember", full)
        with pytest.raises(sqlite3.OperationalError, match="disk is full"):
            core.commit([offered.reservation])
    assert (installed, switches.tenants) == (["t1"], [])
    assert [entry.state for entry in core.agent.ledger.entries()] == [State.PREPARED]
    core.commit([offered.reservation])
    assert switches.tenants == ["t1"]
    domains.close()
