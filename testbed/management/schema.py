"""The tables of a ledger, and the triggers that count what is held.

Capacity is counted by the database itself below a CHECK, so that no caller and no number of concurrent writers can hold
more than there is, whatever the program around it does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from testbed.management.entry import HOLDING, LIVE, State

IN_LIVE = ", ".join(f"'{state}'" for state in LIVE)
IN_HOLDING = ", ".join(f"'{state}'" for state in HOLDING)
"""States as SQL lists them."""
_STATES = ", ".join(f"'{state}'" for state in State)
_SHARE_OF = "(SELECT amount FROM share WHERE reservation = NEW.id AND resource = name)"
_ITS_RESOURCES = "name IN (SELECT resource FROM share WHERE reservation = NEW.id)"
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS resource (
    name TEXT PRIMARY KEY,
    capacity INTEGER NOT NULL CHECK (capacity >= 0),
    held INTEGER NOT NULL DEFAULT 0,
    CONSTRAINT never_over_committed CHECK (held BETWEEN 0 AND capacity)
) STRICT;
CREATE TABLE IF NOT EXISTS reservation (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    owner TEXT NOT NULL,
    place TEXT NOT NULL,
    body TEXT NOT NULL,
    expires_s REAL NOT NULL,
    replaces TEXT,
    state TEXT NOT NULL CHECK (state IN ({_STATES})),
    number INTEGER CHECK (number > 0),
    CHECK (state NOT IN ({IN_HOLDING}) OR number IS NOT NULL)
) STRICT;
CREATE TABLE IF NOT EXISTS share (
    reservation TEXT NOT NULL REFERENCES reservation ON DELETE CASCADE,
    resource TEXT NOT NULL REFERENCES resource,
    wanted INTEGER NOT NULL CHECK (wanted > 0),
    amount INTEGER NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (reservation, resource)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS request (
    id TEXT PRIMARY KEY, call TEXT NOT NULL, owner TEXT NOT NULL, digest BLOB NOT NULL, answer BLOB NOT NULL,
    at_s REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS reservation_by_state ON reservation (state, expires_s);
CREATE INDEX IF NOT EXISTS reservation_by_place ON reservation (place);
CREATE UNIQUE INDEX IF NOT EXISTS one_in_a_seat ON reservation (number) WHERE state = '{State.COMMITTED}';
CREATE UNIQUE INDEX IF NOT EXISTS one_in_a_place ON reservation (place) WHERE state = '{State.COMMITTED}';
CREATE TRIGGER IF NOT EXISTS takes AFTER UPDATE OF state ON reservation
WHEN NEW.state IN ({IN_HOLDING}) AND OLD.state NOT IN ({IN_HOLDING})
BEGIN UPDATE resource SET held = held + {_SHARE_OF} WHERE {_ITS_RESOURCES}; END;
CREATE TRIGGER IF NOT EXISTS gives_back AFTER UPDATE OF state ON reservation
WHEN OLD.state IN ({IN_HOLDING}) AND NEW.state NOT IN ({IN_HOLDING})
BEGIN UPDATE resource SET held = held - {_SHARE_OF} WHERE {_ITS_RESOURCES}; END;
CREATE TRIGGER IF NOT EXISTS takes_the_rest AFTER UPDATE OF amount ON share
WHEN (SELECT state FROM reservation WHERE id = NEW.reservation) IN ({IN_HOLDING})
BEGIN UPDATE resource SET held = held + NEW.amount - OLD.amount WHERE name = NEW.resource; END;
"""  # noqa: S608


def statements() -> Iterable[str]:
    """The tables' statements one by one, so that they share a transaction (`executescript` would end it)."""
    statement = ""
    for line in _SCHEMA.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
