"""What an orchestrator must not forget: for every tenant, which reservations where, and how far it had come.

    preparing -> committing -> committed
        |            |             |
        +------------+-------------+--> undoing -> undone

A transfer is written down before the first domain is asked to hold anything, and each phase before it is acted upon. So
whoever opens the journal after a crash knows what to finish: what was decided is committed, everything else is undone.

Beside them it keeps which offers were seen, so that an old one is refused after a restart as before it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from testbed.envelope.strict_json import Json


class Phase(StrEnum):
    """How far a transfer has come; PREPARING, COMMITTING and UNDOING are to be finished after a crash."""

    PREPARING = "preparing"
    COMMITTING = "committing"
    COMMITTED = "committed"
    UNDOING = "undoing"
    UNDONE = "undone"


UNFINISHED = (Phase.PREPARING, Phase.COMMITTING, Phase.UNDOING)


@dataclass(frozen=True)
class Transfer:
    """One tenant's reservations across domains.

    Attributes:
        transfer: Its id.
        tenant: For whom.
        reservations: Domain to the reservation there.
        rates_bps: Domain to the rate reserved there.
        shares_ppm: Domain to the share of its server reserved there.
        bound_s: Latency that the signed envelopes promise, None where nothing is promised.
        price: Per hour.
        replaces: Transfer that this one takes over from, None for a new tenant.
        phase: How far it has come.
    """

    transfer: str
    tenant: str
    reservations: Mapping[str, str]
    rates_bps: Mapping[str, int]
    shares_ppm: Mapping[str, int]
    bound_s: float | None
    price: float
    replaces: str | None = None
    phase: Phase = Phase.PREPARING


class Journal:
    """Transfers in a SQLite file with a write-ahead log; safe to share between threads.

    Args:
        path: The file; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS transfer "
            "(id TEXT PRIMARY KEY, tenant TEXT NOT NULL, phase TEXT NOT NULL, body TEXT NOT NULL) STRICT"
        )
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS seen "
            "(domain TEXT, tenant TEXT, body TEXT NOT NULL, PRIMARY KEY (domain, tenant)) STRICT, WITHOUT ROWID"
        )
        self._database.execute("CREATE TABLE IF NOT EXISTS root (one INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT")

    def close(self) -> None:
        """Close the file; nothing is left to be written."""
        self._database.close()

    def begin(self, transfers: Sequence[Transfer]) -> None:
        """Write transfers down before anybody is asked to hold anything for them."""
        rows = [(one.transfer, one.tenant, str(one.phase), json.dumps(asdict(one))) for one in transfers]
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT INTO transfer VALUES (?, ?, ?, ?)", rows)

    def move(self, transfers: Iterable[str], phase: Phase) -> None:
        """Write down that these have come so far, all of them or none."""
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(
                "UPDATE transfer SET phase = ? WHERE id = ?", [(str(phase), one) for one in transfers]
            )

    def transfers(self, *phases: Phase) -> list[Transfer]:
        """Transfers in these phases, the oldest first."""
        marks = ", ".join("?" * len(phases))
        with self._lock:
            rows = self._database.execute(
                f"SELECT phase, body FROM transfer WHERE phase IN ({marks}) ORDER BY rowid",  # noqa: S608 - marks only
                [str(phase) for phase in phases],
            ).fetchall()
        return [Transfer(**{**json.loads(body), "phase": Phase(phase)}) for phase, body in rows]

    def note(self, memory: Json) -> None:
        """Keep what an `EnvelopeStore` remembers of some tenants beside what is kept of the others."""
        offers = [(one["domain"], one["tenant"], json.dumps(one)) for one in memory["offers"]]
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("INSERT OR REPLACE INTO root VALUES (1, ?)", (json.dumps(memory["root"]),))
            self._database.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", offers)

    def noted(self) -> Json | None:
        """All that was kept, for `EnvelopeStore.recall`; None where nothing was."""
        with self._lock:
            root = self._database.execute("SELECT body FROM root").fetchone()
            offers = self._database.execute("SELECT body FROM seen ORDER BY domain, tenant").fetchall()
        return None if root is None else {"root": json.loads(root[0]), "offers": [json.loads(one) for (one,) in offers]}
