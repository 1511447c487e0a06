"""A run on a real network in which one domain serves a tenant slower than it signed for, on purpose.

The scenario is the smoke scenario without its flood, and with twice the reservation. Between the probes and the
measured window the rate of one queue is lowered behind the controller's back, and the check that would see it is told
that nothing drifted: the run is left to think that all is well, as with a domain that cheats.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

from testbed.management.federation import Federation
from testbed.report.record import read_record
from testbed.run.pipeline import Options, run
from testbed.run.progress import Silent
from testbed.scenario.loader import load
from testbed.scenario.model import PoissonArrivals, Scenario

SLOW, KEPT = "east", "west"
TENANT = "steady"
SIGNED_BPS = 8_000_000
RATE = "3100kbit"
"""For 2 Mbit/s that are sent: the queue drains fast, so that its slow events are many and short."""

_SIZE_BITS = 3200
_SMOKE = Path(__file__).resolve().parents[2] / "topologies" / "smoke.yaml"
_PORT = "d2i-dn"


def scenario(duration_s: float, seed: int) -> Scenario:
    """In 20 s some sixty independent slow events of the slow domain."""
    smoke = load(_SMOKE)
    steady, bulk = (tenant for tenant in smoke.tenants if tenant.misbehaviour is None)
    assert steady.reservation is not None
    steady = replace(
        steady,
        arrivals=PoissonArrivals(rate_per_s=625.0, size_bits=_SIZE_BITS),
        reservation=replace(steady.reservation, rate_bps=SIGNED_BPS),
    )
    return replace(smoke, tenants=(steady, bulk), duration_s=duration_s, seed=seed)


def run_honest(out: Path, *, duration_s: float = 20.0, seed: int = 7) -> Path:
    """One whole run in which every domain serves as it signed; its folder."""
    return run(scenario(duration_s, seed), Options(out=out), Silent())


def run_slowed(out: Path, *, duration_s: float = 20.0, seed: int = 7) -> Path:
    """One whole run with the slow domain; its folder."""
    with _slowed():
        return run_honest(out, duration_s=duration_s, seed=seed)


def broken_gates(folder: Path) -> list[str]:
    """Names of the gates by which the host could not keep up."""
    return [gate.name for gate in read_record(folder).gates if not gate.ok]


@contextmanager
def _slowed() -> Iterator[None]:
    def drift(federation: Federation) -> tuple[str, ...]:
        """Lower the rate of one class, and its bucket to one packet; then see no drift.

        The host is held to what is installed, slow queue and all. With the bucket it was given to outlast pauses, the
        class would make up at once for nearly all that the lower rate costs, and keep what it signed for.
        """
        (queue,) = [rule.queue for rule in federation.agents[SLOW].program.rules if rule.tenant == TENANT]
        burst = f"{_SIZE_BITS // 8 + 14}b"
        command = ["tc", "class", "change", "dev", _PORT, "parent", "1:1", "classid", f"1:{queue.minor:x}", "htb"]
        command += ["rate", RATE, "ceil", RATE, "burst", burst, "cburst", burst]
        subprocess.run(command, check=True, capture_output=True)
        return ()

    with mock.patch.object(Federation, "drift", drift):
        yield
