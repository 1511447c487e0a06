"""A scenario's network with its reservations installed and not yet probed, for tests that then tamper with it.

As a program it is a neighbour on the same host: it builds the smoke scenario's network, says so, obeys the words on its
standard input (`probe`), and stands there until it is killed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from controller.client import ControllerClient
from controller.program import DomainProgram
from testbed.emulation.network import TandemNetwork
from testbed.emulation.probe import probe
from testbed.management.federation import Federation
from testbed.run.pipeline import found_federation, start_controller
from testbed.scenario.loader import load
from testbed.scenario.model import Datapath
from tests.integration.conftest import ROOT

SMOKE = ROOT / "topologies" / "smoke.yaml"
SMALL = """
name: small
seed: 3
warm-up: 1 s
duration: {duration_s} s
allow-zero-delay: true
domains:
  - {{name: only, link-rate: 20 Mbit/s, compute: true}}
tenants:
  - name: steady
    arrivals: {{model: poisson, rate: 1 Mbit/s, size: 200 B}}
    reservation: {{rate: 4 Mbit/s, burst: 20 kB}}
    promise: {{deadline: 50 ms, epsilon: 0.02}}
"""
"""A run of few seconds, for tests of what becomes of it and not of what it measures."""

CROWD = 70
"""More tenants than a machine word has bits."""


@dataclass(frozen=True)
class Reserved:
    """A network in which every domain has installed what it signed; the calling thread is inside its fabric."""

    network: TandemNetwork
    controllers: dict[str, ControllerClient]
    federation: Federation

    @property
    def programs(self) -> dict[str, DomainProgram]:
        """What each domain's controller installed."""
        return {name: agent.program for name, agent in self.federation.agents.items()}

    def rates(self, domain: str) -> dict[str, tuple[set[int], set[int]]]:
        """By tenant, the rates of its meters in kbit/s and of its queues in bit/s that are read back."""
        state = self.controllers[domain].read_back()["tenants"]
        return {
            name: (
                {meter["rate_kbps"] for meter in held["meters"].values()},
                {queue["rate_bps"] for queue in held["queues"].values()},
            )
            for name, held in state.items()
        }


def small(folder: Path, *, duration_s: int = 2) -> Path:
    """The small scenario's file, in this folder."""
    file = folder / "small.yaml"
    file.write_text(SMALL.format(duration_s=duration_s), encoding="utf-8")
    return file


def crowd(folder: Path, *, domains: Sequence[str] = ("only",), tenants: int = CROWD, burst: str = "5 kB") -> Path:
    """A file of these domains and so many tenants, each with a reservation of its own size in all of them."""
    path = "".join(
        f"  - {{name: {name}, link-rate: 20 Mbit/s{', compute: true' if name == domains[-1] else ''}}}\n"
        for name in domains
    )
    members = "".join(
        f"  - {{name: t{number}, arrivals: {{model: poisson, rate: {40 + number} kbit/s, size: 500 B}}, reservation: "
        f"{{rate: {2 * (40 + number)} kbit/s, burst: {burst}}}, promise: {{deadline: 2 s, epsilon: 0.1}}}}\n"
        for number in range(1, tenants + 1)
    )
    file = folder / "crowd.yaml"
    settings = SMALL.partition("domains:\n")[0].format(duration_s=2)
    file.write_text(f"{settings}domains:\n{path}tenants:\n{members}", encoding="utf-8")
    return file


@contextmanager
def reserved(file: Path = SMOKE, datapath: Datapath = Datapath.USERSPACE) -> Iterator[Reserved]:
    """Build it, and leave nothing behind."""
    scenario = load(file)
    with ExitStack() as stack:
        network = stack.enter_context(TandemNetwork(scenario, datapath))
        controllers = {
            domain.name: stack.enter_context(start_controller(network, index, domain.name))
            for index, domain in enumerate(scenario.domains)
        }
        federation = found_federation(network, controllers)
        federation.collect_offers()
        federation.reserve()
        yield Reserved(network, controllers, federation)


def _neighbour() -> None:
    with reserved() as made:
        print(json.dumps({"runid": made.network.journal.runid, "drift": made.federation.drift()}), flush=True)
        for line in sys.stdin:
            assert line == "probe\n", line
            results = probe(made.network, made.programs)
            print(json.dumps({"probed": len(results), "drift": made.federation.drift()}), flush=True)


if __name__ == "__main__":
    _neighbour()
