"""A run's tenant whose queue cannot hold what its bound counts on has no bound, and the record says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testbed.management.paper import on_paper
from testbed.management.queues import SHORT_QUEUE
from testbed.run.bounds import bounds_of
from testbed.run.request_terms import Granted
from testbed.scenario.loader import load
from testbed.scenario.model import Scenario
from tests.unit.run.test_requests import TENANT, terms

FILE = """
name: short
allow-zero-delay: true
domains:
  - {name: west, link-rate: 40 Mbit/s}
  - {name: east, link-rate: 40 Mbit/s, compute: true}
tenants:
  - name: steady
    arrivals: {model: poisson, rate: 4 Mbit/s, size: 1000 B}
    reservation: {rate: 8 Mbit/s, burst: 200 kbit, queue: QUEUE}
    promise: {deadline: 100 ms, epsilon: 0.001}
  - name: bulk
    arrivals: {model: poisson, rate: 1 Mbit/s, size: 1000 B}
"""


def reserved(tmp_path: Path, queue: str) -> Scenario:
    path = tmp_path / "short.yaml"
    path.write_text(FILE.replace("QUEUE", queue), encoding="utf-8")
    return load(path)


@pytest.mark.parametrize(("queue", "bounded"), [("10 kB", False), ("60 kB", True)])
def test_an_explicit_queue_that_is_too_short_leaves_no_bound(tmp_path: Path, queue: str, bounded: bool) -> None:
    federation = on_paper(reserved(tmp_path, queue))
    federation.collect_offers()
    found = bounds_of(federation, 0.01, {})
    assert (set(found.found), found.missing) == (({"steady"}, {}) if bounded else (set(), {"steady": SHORT_QUEUE}))


def test_a_queue_that_holds_everything_but_what_comes_while_the_host_stands_still_leaves_none(tmp_path: Path) -> None:
    federation = on_paper(reserved(tmp_path, "40 kB"), host_allowance_s=0.0)
    federation.collect_offers()
    assert [set(bounds_of(federation, host_s, {}).found) for host_s in (0.0, 0.05)] == [{"steady"}, set()]


@pytest.mark.parametrize(("queue_bits", "bounded"), [(4_000_000, False), (9_000_000, True)])
def test_requests_need_a_queue_for_all_that_their_meter_lets_pass(
    tmp_path: Path, queue_bits: int, bounded: bool
) -> None:
    scenario = reserved(tmp_path, "60 kB")
    bought = replace(TENANT.reservation, queue_bits=queue_bits)  # type: ignore[type-var]
    federation = on_paper(replace(scenario, tenants=(replace(TENANT, reservation=bought),)))
    federation.collect_offers()
    found = bounds_of(federation, 0.01, {TENANT.name: Granted(terms(), 0.01)})
    assert (set(found.found), set(found.missing)) == (({TENANT.name}, set()) if bounded else (set(), {TENANT.name}))


def test_requests_of_which_a_warm_up_says_nothing_are_owed_no_reason(tmp_path: Path) -> None:
    federation = on_paper(replace(reserved(tmp_path, "60 kB"), tenants=(TENANT,)))
    federation.collect_offers()
    found = bounds_of(federation, 0.01, {})
    assert (found.found, found.missing) == ({}, {})
