"""A window with a fault in it, from its evidence to the record: excused is what the fault explains, and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from testbed.emulation.ovs import DatapathCounters
from testbed.management.paper import on_paper
from testbed.report.record import RunRecord
from testbed.run.assemble import Measured, assemble
from testbed.run.calibrate import calibrate
from testbed.run.faults import Occurrence
from testbed.run.gates import gates_of
from testbed.run.terms import terms_of
from testbed.run.window import Shaper, Switches, Window
from testbed.scenario.faults import Fault, FaultKind
from testbed.scenario.loader import load
from testbed.simulation.bounds import bounds_on_paper
from testbed.telemetry import samples
from testbed.telemetry.host import CoreTimes, Snapshot
from testbed.telemetry.match import BorderCount, Match
from testbed.telemetry.samples import TenantSamples
from testbed.telemetry.stalls import StallRecord
from testbed.traffic.arrivals import schedules
from testbed.traffic.records import SendRecord

FILE = Path(__file__).parents[3] / "topologies" / "faults.yaml"
CUT = Fault("cut", FaultKind.LINK_DOWN, at_s=1.0, for_s=1.0, recovery_s=0.5, domain="east", fails=("far",))
SCENARIO = replace(load(FILE), faults=(CUT,), duration_s=20.0)
DONE = Occurrence(CUT, begin_s=1.0, end_s=2.0)
PER_DOMAIN_S = 0.0003


def seen(number: int, lost: dict[int, tuple[float, float]]) -> Match:
    """A tenant's packets, fast through each domain, and lost in some domains for some time."""
    tenant = SCENARIO.tenants[number - 1]
    domains = tuple(domain.name for domain in SCENARIO.path(tenant))
    schedule = schedules(SCENARIO, window=1, duration_s=SCENARIO.duration_s, seed=7)[number]
    intended_s = schedule.time_s
    border_s = intended_s[:, None] + PER_DOMAIN_S * np.arange(len(domains) + 1)
    # Packets that all take as long would count as one.
    border_s[:, -1] += np.random.default_rng(number).exponential(PER_DOMAIN_S / 4, len(schedule))
    for domain, (first_s, last_s) in lost.items():
        border_s[(intended_s >= first_s) & (intended_s < last_s), domain + 1 :] = np.nan
    samples = TenantSamples(
        tenant=tenant.name, number=number, domains=domains, window_start_ns=0, sequence=np.arange(len(schedule)),
        intended_s=intended_s, sent_s=intended_s, size_bits=schedule.size_bits, border_s=border_s,
    )  # fmt: skip
    borders = [BorderCount(int(np.isfinite(at).sum()), 0, 0, 0, 0, 0) for at in border_s.T]
    lost_in = {name: borders[d].seen - borders[d + 1].seen for d, name in enumerate(domains)}
    return Match(samples, tuple(borders), 0, lost_in, 0.0)


def counted(matches: dict[str, Match], entered: bool) -> Switches:
    """Meters count what entered a domain, queues what left it: a queue without a link counts nothing."""
    tenants: dict[str, dict[str, Any]] = {domain.name: {} for domain in SCENARIO.domains}
    for match in matches.values():
        for d, domain in enumerate(match.samples.domains):
            before, after = (match.borders[k].seen if entered else 0 for k in (d, d + 1))
            tenants[domain][match.samples.tenant] = {
                "meters": {"in": {"in_packets": before, "dropped_packets": 0}},
                "queues": {"out": {"sent_packets": after, "dropped_packets": 0}},
            }
    return Switches({name: {"tenants": held} for name, held in tenants.items()}, 0, DatapathCounters(0, 0, 0))


def snapshot(at_s: float) -> Snapshot:
    cores = tuple(CoreTimes(core=core, idle=int(50 * at_s), steal=0, total=int(100 * at_s)) for core in (0, 1))
    none = {"cpu": 0, "memory": 0, "io": 0}
    return Snapshot(int(at_s * 1e9), 0, cores, 0, none, none, (0.0, 0.0, 0.0), 0, {}, {})


def judged(
    folder: Path, *done: Occurrence, not_undone: tuple[str, ...] = (), **lost: dict[int, tuple[float, float]]
) -> RunRecord:
    """The record of a run with this one window."""
    matches = {name: seen(number, lost.get(name, {})) for number, name in ((1, "near"), (2, "far"))}
    federation = on_paper(SCENARIO)
    federation.collect_offers()
    sent = {
        name: SendRecord(
            number, 0, 0, schedules(SCENARIO, window=1, duration_s=SCENARIO.duration_s, seed=7)[number],
            matches[name].samples.sent_s, np.zeros(len(matches[name].samples), np.int32),
        )
        for number, name in ((1, "near"), (2, "far"))
    }  # fmt: skip
    none = np.empty(0, np.int64)
    quiet = [StallRecord(core, 80_000, 0, int(20e9), none, none, 0, *np.zeros((2, 1), np.int64)) for core in (0, 1)]
    window = Window(
        index=1, seed=7, duration_s=SCENARIO.duration_s, start_ns=0, complete=True, matches=matches, requests={},
        sent=sent, captures={}, switches_before=counted(matches, entered=False),
        switches_after=counted(matches, entered=True), host_before=snapshot(1), host_after=snapshot(21), stalls=quiet,
        faults=done,
    )  # fmt: skip
    shapers = {name: Shaper(4_000_000, 80_000) for name in matches}
    terms = terms_of(SCENARIO, federation, shapers, host_s=0.005, idle={})
    gates = gates_of(SCENARIO, window, terms, {}, ())
    (folder / "window-1").mkdir()
    measured = [Measured(window, gates, terms, {})]
    return assemble(SCENARIO, folder, measured, bounds_on_paper(SCENARIO), federation, not_undone=not_undone)


def test_a_fault_that_did_what_it_should_leaves_the_run_valid_and_the_rest_of_the_promise_judged(
    tmp_path: Path,
) -> None:
    record = judged(tmp_path, DONE, far={1: (1.0, 2.2)})
    assert [gate.name for gate in record.gates if not gate.ok] == ["queue counters, fault cut"]
    near, far = record.tenants
    assert (record.verdict, near.verdict, far.verdict) == ("PASS", "PASS", "PASS")
    assert (far.lost, far.misses, near.in_faults) == (0, 0, 0)
    assert far.in_faults == pytest.approx(1.55 * 625, rel=0.1)
    assert not far.bound_broken
    (cut,) = record.faults
    assert [each.met for each in cut.expectations] == [True, True, True]
    assert next(each.seconds for each in cut.expectations if each.seconds) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("lost", "verdict", "gates"),
    [
        pytest.param({"far": {}}, "FAIL", set(), id="the fault touched nobody"),
        pytest.param({"far": {1: (1.0, 9.0)}}, "FAIL", set(), id="it was never over"),
        pytest.param({"far": {0: (1.0, 2.0)}}, "INVALID", {"queue counters"}, id="packets vanished in another domain"),
        pytest.param(
            {"far": {1: (1.0, 2.0)}, "near": {0: (1.0, 2.0)}},
            "INVALID",
            {"queue counters"},
            id="packets of somebody else vanished",
        ),
    ],
)
def test_whatever_else_happens_is_held_against_the_run(
    tmp_path: Path, lost: dict[str, dict[int, tuple[float, float]]], verdict: str, gates: set[str]
) -> None:
    record = judged(tmp_path, DONE, **lost)
    assert record.verdict == verdict
    assert {gate.name for gate in record.gates if not gate.holds} == gates


def test_the_same_packets_lost_without_a_fault_invalidate_the_run(tmp_path: Path) -> None:
    record = judged(tmp_path, far={1: (1.0, 2.2)})
    assert record.verdict == "INVALID"
    assert {gate.name for gate in record.gates if not gate.holds} == {"queue counters"}


def test_what_could_not_be_given_back_invalidates_the_run_and_takes_nothing_from_what_was_measured(
    tmp_path: Path,
) -> None:
    problems = ("domain east: found 2 rules, expected none", "repeat with testbed clean")
    record = judged(tmp_path, DONE, not_undone=problems, far={1: (1.0, 2.2)})
    (gate,) = [gate for gate in record.gates if not gate.holds]
    assert (gate.name, gate.detail) == ("given back and taken down", "; ".join(problems))
    assert (record.verdict, [window.valid for window in record.windows]) == ("INVALID", [True])
    assert [tenant.verdict for tenant in record.tenants] == ["INVALID", "INVALID"]
    for tenant in record.tenants:
        assert tenant.p999_s is not None
        assert len(samples.read(tmp_path / record.windows[0].samples[tenant.name])[0]) == tenant.n + tenant.in_faults


def test_a_warm_up_tells_what_an_idle_path_takes_of_packets_that_wait_for_nobody() -> None:
    matches = {name: seen(number, {}) for number, name in ((1, "near"), (2, "far"))}
    federation = on_paper(SCENARIO)
    federation.collect_offers()
    terms = terms_of(SCENARIO, federation, {name: Shaper(4_000_000, 80_000) for name in matches}, 0.0, {})
    found = calibrate(SCENARIO, federation, cast("Window", SimpleNamespace(matches=matches)), terms).idle
    assert found.keys() == matches.keys()
    for name, match in matches.items():
        least_s = PER_DOMAIN_S * len(match.samples.domains)
        assert least_s <= found[name].before_s.min() <= found[name].typical_s < least_s + PER_DOMAIN_S
        granted = terms_of(SCENARIO, federation, {name: terms[name].shaper}, 0.0, found)[name]
        assert np.median(granted.replay(match.samples).idle_s) == pytest.approx(found[name].typical_s, rel=0.1)
