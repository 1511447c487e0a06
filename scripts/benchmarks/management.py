"""The management plane: planning with bounds, the ledger, envelopes under attack, installation against OVS's own tools.

Needs root and Open vSwitch for the installation; `--without-network` leaves that out.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, at_least, at_most, seconds_per_call
from controller.program import DomainProgram
from testbed.envelope.store import EnvelopeStore, issue, verify
from testbed.errors import EnvelopeError
from testbed.management.admission import Rule
from testbed.management.entry import Entry, Request
from testbed.management.ledger import Ledger
from testbed.management.market import Prospectus, capacities
from testbed.management.planner import Planner
from testbed.scenario.federation import Intent, Operator, RequestArrivals, ServedModel, Site
from testbed.scenario.model import OnOffArrivals, PoissonArrivals, RenewalArrivals
from tests.integration import controller_lab
from tests.unit.envelope import samples, test_fuzz
from tests.unit.management.federation_lab import FEDERATION, Lab

_TENANTS = 1000
_DOMAINS = 5
_SEGMENTS = ("access", "metro", "core")
_FAR_S = 4e9
_SAMPLE = 40
"""Calls of each tool that are timed; a thousand tenants need thousands of them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a caller may shorten."""
    parser.add_argument("--attacks", type=int, default=100_000, help="damaged envelopes (default 100,000)")
    parser.add_argument(
        "--rules",
        type=int,
        default=_TENANTS,
        help=f"tenants installed, spread over {_DOMAINS} domains (default {_TENANTS})",
    )
    parser.add_argument("--without-network", action="store_true", help="leave out what needs root and Open vSwitch")


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure."""
    yield from _planning()
    yield from _ledger()
    yield from _agents()
    yield from _verification()
    yield from _attacks(options.attacks)
    if not options.without_network:
        yield from _installation(options.rules)


def operators() -> tuple[Operator, ...]:
    """Five domains, two of them competing, three of them with servers; together they hold a thousand tenants."""
    large = ServedModel("large", "digits", 0.992, 2e-4)
    medium = ServedModel("medium", "digits", 0.98, 1e-4)
    small = ServedModel("small", "digits", 0.876, 5e-5)

    def one(name: str, segment: str, price: float, delay_s: float, site: Site | None = None) -> Operator:
        return Operator(
            name=name, segment=segment, link_rate_bps=10**11, reservable_bps=2 * 10**10, classes=_TENANTS,
            drain_bps=1e11, price_per_mbps=price, link_delay_s=delay_s, site=site,
        )  # fmt: skip

    return (
        one("access", "access", 0.01, 5e-4, Site(8, 200, 30.0, (small, medium))),
        one("metro-a", "metro", 0.05, 1e-3),
        one("metro-b", "metro", 0.01, 8e-3),
        one("core-a", "core", 0.02, 2e-3, Site(64, 600, 100.0, (medium, large))),
        one("core-b", "core", 0.01, 4e-3, Site(64, 600, 80.0, (large,))),
    )


def intents(count: int, seed: int = 1) -> list[Intent]:
    """Tenants no two of which ask for the same."""
    dice = np.random.default_rng(seed)
    found = []
    for number in range(1, count + 1):
        rate, bits = float(dice.uniform(5, 60)), int(dice.integers(1_000, 32_000)) * 8
        arrivals: RequestArrivals
        match number % 3:
            case 0:
                arrivals = PoissonArrivals(rate, bits)
            case 1:
                arrivals = RenewalArrivals(rate, "gamma", float(dice.uniform(0.4, 2.0)), bits)
            case _:
                arrivals = OnOffArrivals(5 * rate * bits, 0.05, 0.2, bits)
        found.append(
            Intent(
                tenant=f"t{number}",
                task="digits",
                accuracy=float(dice.choice([0.5, 0.95, 0.99])),
                deadline_s=float(dice.uniform(0.1, 0.5)),
                epsilon=float(dice.choice([1e-2, 1e-3, 1e-4])),
                arrivals=arrivals,
                price=50.0,
            )
        )
    return found


def _planning() -> Iterator[Figure]:
    asked = intents(_TENANTS)

    def plan() -> tuple[float, int, int]:
        planner = Planner(Rule.STOCHASTIC, _SEGMENTS, [Prospectus.of(one) for one in operators()])
        began = time.process_time()
        decisions = planner.decide(asked)
        spent = time.process_time() - began
        late = sum(
            1
            for intent, d in zip(asked, decisions, strict=True)
            if d.admitted and (d.bound_s or 1e9) > intent.deadline_s
        )
        return spent, sum(decision.admitted for decision in decisions), late

    plan()
    rounds = [plan() for _ in range(3)]
    spent = min(seconds for seconds, _, _ in rounds)
    note = f"{rounds[0][1]} of {_TENANTS} admitted over 5 domains; least CPU time of 3"
    yield at_least("tenants planned and admitted, bounds included, one core", _TENANTS / spent, 500, "1/s", note=note)
    yield at_most("admitted with a bound above the deadline", rounds[0][2], 0)


def _ledger() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite", capacities(operators()[0]))
        names = [f"t{n}" for n in range(_TENANTS)]
        entries = [
            Entry(name, name, "broker", name, {"network": 10**6, "classes": 1}, "{}" * 400, _FAR_S) for name in names
        ]
        began = time.perf_counter()
        steps = {
            "offer": lambda books: books.offer(entries),
            "prepare": lambda books: [books.prepare(name, "broker", _FAR_S) for name in names],
            "commit": lambda books: [books.commit(name, "broker", _FAR_S) for name in names],
        }
        for call, step in steps.items():
            ledger.once(Request(call, call, "broker", b""), lambda books, step=step: (step(books) and b"") or b"")
        spent = time.perf_counter() - began
        ledger.close()
    yield Figure("offered, prepared and committed in one ledger, flushed", _TENANTS / spent, "1/s")


def _agents() -> Iterator[Figure]:
    """Through five agent processes over mutual TLS, with simulated controllers: everything but the switches."""
    with tempfile.TemporaryDirectory(prefix="bench-agents-") as folder:
        lab = Lab(Path(folder), operators())
        try:
            lab.start()
            with lab.orchestrator() as orchestrator:
                began = time.perf_counter()
                outcomes = orchestrator.admit(intents(_TENANTS))
                spent = time.perf_counter() - began
            entered = sum(outcome.admitted for outcome in outcomes)
            lab.require_in_step()
        finally:
            lab.stop()
    note = (
        f"{entered} of {_TENANTS} held by every domain of their route; federation {FEDERATION!r}, controllers simulated"
    )
    yield Figure(
        "tenants planned, signed, verified, prepared and committed in 5 agents", _TENANTS / spent, "1/s", note=note
    )


def _verification() -> Iterator[Figure]:
    sealed = issue(samples.envelope(), [samples.key("east")])
    trust = samples.root().trust
    yield at_least(
        "envelopes verified, one signature, root cached",
        1.0 / seconds_per_call(lambda: verify(sealed, trust, samples.NOW_S)),
        5_000,
        "1/s",
    )


def _attacks(rounds: int) -> Iterator[Figure]:
    dice = random.Random(2026)  # noqa: S311 - damages, not secrets
    genuine = issue(samples.envelope(), [samples.key("east")])
    store = EnvelopeStore(samples.root())
    store.accept(genuine, samples.NOW_S)
    accepted = crashed = done = 0
    slowest = 0.0
    names = list(test_fuzz.DAMAGES)
    while done < rounds:
        name = dice.choice(names)
        data = test_fuzz.DAMAGES[name](dice, genuine)
        if data == genuine and name != "replayed":
            continue
        began = time.thread_time()
        try:
            store.accept(data, samples.NOW_S)
            accepted += 1
        except EnvelopeError:
            pass
        except Exception as error:  # noqa: BLE001 - counted and shown, whatever it is
            crashed += 1
            print(f"bench: {name}: {error!r}")
        slowest = max(slowest, time.thread_time() - began)
        done += 1
    note = f"{rounds:,} of {len(names)} kinds"
    yield at_most("mutated, truncated, replayed or re-signed envelopes accepted", accepted, 0, note=note)
    yield at_most("crashes among them", crashed, 0)
    yield at_most("CPU time of the slowest", 1e3 * slowest, 50, "ms")


def _installation(rules: int) -> Iterator[Figure]:
    """Every domain's tenants by its controller, read back, against one call of OVS's tools for each object.

    The domains come one after the other, each with a switch and a controller of its own, so nobody waits for a core.
    """
    objects = 0
    installed_s = again_s = removed_s = 0.0
    calls_s = []
    for domain in range(_DOMAINS):
        tenants = range(domain + 1, rules + 1, _DOMAINS)
        with controller_lab.laboratory() as lab:
            with controller_lab.controller(lab) as controlled:
                controlled.client.install(controller_lab.program())
                numbered = (controller_lab.rule(n, 1_000_000) for n in range(1, len(tenants) + 1))
                wanted = controller_lab.program(*numbered)
                began = time.perf_counter()
                done = controlled.client.install(wanted)
                installed_s += time.perf_counter() - began
                objects += len(done["added"])
                again_s += _again_s(controlled, wanted)
                removed = time.perf_counter()
                controlled.client.install(controller_lab.program())
                removed_s += time.perf_counter() - removed
            calls_s.append(_tools_s(lab))
    ours_s, tools_s = installed_s / objects, float(np.mean(calls_s))
    note = (
        f"{objects} objects of {rules} tenants over {_DOMAINS} domains, {1e6 * ours_s:.0f} us each, "
        f"{installed_s:.2f} s altogether, read back"
    )
    yield at_least(
        "installing, against one ovs-ofctl or ovs-vsctl call an object",
        tools_s / ours_s,
        20,
        peer="tools, ms an object",
        peer_value=1e3 * tools_s,
        note=note,
    )
    yield Figure("installing the same again, compared and read back", 1e3 * again_s, "ms")
    yield Figure("removing all of them", 1e3 * removed_s, "ms")


def _again_s(controlled: controller_lab.Controlled, wanted: DomainProgram) -> float:
    began = time.perf_counter()
    controlled.client.install(wanted)
    return time.perf_counter() - began


def _tools_s(lab: controller_lab.Lab) -> float:
    """Mean time of one call that adds a flow, a meter or a queue, in equal parts."""
    spent = []
    inside = ["ip", "netns", "exec", lab.namespace]
    database = f"--db=unix:{lab.directory}/db.sock"
    bridge = f"unix:{lab.directory}/d0i.mgmt"
    for number in range(1, _SAMPLE + 1):
        flow = f"priority=100,ip,nw_src={controller_lab.address(number)},actions=normal"
        calls = (
            [
                "ovs-ofctl",
                "-O",
                "OpenFlow13",
                "add-meter",
                bridge,
                f"meter={number},kbps,burst,band=type=drop,rate=1000,burst_size=80",
            ],
            ["ovs-ofctl", "-O", "OpenFlow13", "add-flow", bridge, flow],
            ["ovs-vsctl", database, "--no-wait", "create", "Queue", "other_config:min-rate=1000000"],
        )
        for call in calls:
            began = time.perf_counter()
            subprocess.run([*inside, *call], check=True, stdout=subprocess.DEVNULL)
            spent.append(time.perf_counter() - began)
    entering = _entering_s(inside)
    return float(np.mean(spent)) - entering


def _entering_s(inside: list[str]) -> float:
    """What entering the namespace takes of each call, which a user of the tools would not pay."""
    spent = []
    for _ in itertools.repeat(None, _SAMPLE):
        began = time.perf_counter()
        subprocess.run([*inside, "true"], check=True)
        spent.append(time.perf_counter() - began)
    return float(np.mean(spent))
