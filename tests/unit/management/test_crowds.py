"""An agent admits nobody who would break a promise that it has made, however much capacity its ledger counts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.errors import ReservationError
from testbed.management import market
from testbed.management.admission import Crowd
from testbed.management.crowds import Crowds
from testbed.management.entry import Entry, State
from testbed.management.generated import management_pb2 as wire
from testbed.management.ledger import Ledger
from testbed.scenario.federation import Operator, ServedModel, Site

from .agents_at_hand import AtHand, Domains
from .federation_lab import CORE_SITE, operator
from .test_agent import demand, presented

PLENTY = {market.NETWORK: 10**9, market.CLASSES: 1_000, market.COMPUTE: market.WHOLE_PPM, market.SEATS: 1_000}


def overfull(folder: Path, sold: Operator) -> Domains:
    """A domain whose ledger counts more than its promises bear."""
    domains = Domains.of(folder, (sold,))
    domains.close()
    domains.clients[sold.name].agent.ledger = Ledger(folder / "plenty.sqlite", PLENTY)
    return domains


@pytest.fixture
def port(tmp_path: Path) -> Iterator[AtHand]:
    """Room for two classes on a port."""
    found = overfull(tmp_path, replace(operator("core", "core"), classes=2, reservable_bps=20_000_000))
    yield found.clients["core"]
    found.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AtHand]:
    """Two seats at a server; a port with room for everybody."""
    site = Site(CORE_SITE.workers, 2, CORE_SITE.price, CORE_SITE.models)
    found = overfull(tmp_path, operator("core", "core", site=site))
    yield found.clients["core"]
    found.close()


def take(client: AtHand, tenant: str, **asked: Any) -> tuple[wire.Offered, wire.Holding]:
    (offered,) = client.offer([demand(tenant, **asked)])
    assert not offered.refused
    (held,) = client.prepare([presented(offered)])
    return offered, held


def test_a_class_more_than_the_port_promises_for_is_refused(port: AtHand) -> None:
    held = [take(port, f"t{number}", model="")[1] for number in range(1, 6)]
    assert [one.state for one in held[:2]] == ["prepared"] * 2
    assert "would break the promise made to t" in held[-1].refused
    assert len(port.agent.ledger.entries(State.PREPARED)) == sum(one.state == "prepared" for one in held) < 5


def test_a_tenant_more_than_the_server_promises_for_is_refused(server: AtHand) -> None:
    held = [take(server, f"t{number}", model="large", rate_bps=6_000_000)[1] for number in range(1, 4)]
    assert [one.state for one in held] == ["prepared", "prepared", ""]
    assert "t3: would break the promise made to t" in held[-1].refused


def test_a_replacement_that_breaks_a_promise_is_refused_and_those_after_it_are_judged_by_all(port: AtHand) -> None:
    mine, held = take(port, "t1", model="", rate_bps=6_000_000)
    assert held.state == "prepared"
    port.commit([mine.reservation])
    while take(port, f"t{len(port.agent.ledger.entries(State.PREPARED)) + 2}", model="", rate_bps=5_100_000)[1].state:
        pass
    before = len(port.agent.ledger.entries(State.PREPARED))
    (heavier,) = port.offer([demand("t1", model="", rate_bps=20_000_000, replaces=mine.reservation)])
    (another,) = port.offer([demand("t50", model="", rate_bps=5_100_000)])
    answers = port.prepare([presented(heavier), presented(another)])
    assert all("would break the promise made to" in one.refused for one in answers)
    assert len(port.agent.ledger.entries(State.PREPARED)) == before


def server_latencies_s(site: Site, models: Sequence[ServedModel]) -> list[float]:
    """What each tenant waits for at most: `(c - 1)/c w + w` of its own, and one of everybody else over c."""
    c, everybody = site.workers, sum(model.work_s for model in models)
    return [(c - 1) / c * one.work_s + one.work_s + (everybody - one.work_s) / c for one in models]


@pytest.mark.parametrize("seed", range(10))
def test_the_crowd_of_a_server_breaks_exactly_when_a_signed_latency_does(seed: int) -> None:
    dice = np.random.default_rng(seed)
    kinds = tuple(ServedModel(f"m{n}", "digits", 0.9, float(dice.uniform(1e-3, 9e-3))) for n in range(3))
    site = Site(4, 5, 1.0, kinds)
    crowd, inside = Crowd(), list[ServedModel]()
    for number in range(100):
        model = kinds[int(dice.integers(3))]
        after = [*inside, model]
        signed = [market.compute_latency_s(site, one) for one in after]
        holds = all(now <= s * (1 + 1e-12) for now, s in zip(server_latencies_s(site, after), signed, strict=True))
        newcomer = market.compute_guest(f"t{number}", site, model)
        assert (crowd.broken_by(newcomer) is None) is holds
        if not holds:
            break
        crowd.admit(newcomer)
        inside = after
    assert site.seats <= len(inside) < 100


@pytest.mark.parametrize("seats", [7, 600, 3000])
def test_every_seat_of_a_server_can_be_taken_by_its_largest_model_and_no_other_one(seats: int) -> None:
    model = ServedModel("large", "digits", 0.99, 2e-4)
    site = Site(64, seats, 1.0, (model,))
    crowd = Crowd(market.compute_guest(f"t{number}", site, model) for number in range(seats))
    assert crowd.broken_by(market.compute_guest("more", site, model)) is not None
    one_by_one = Crowd()
    for number in range(seats):
        one_by_one.admit(market.compute_guest(f"t{number}", site, model))


def entry(name: str, weight: float, bears: float, place: str = "", replaces: str | None = None) -> Entry:
    body = json.dumps({"crowd": {market.NETWORK: [weight, bears]}})
    return Entry(name, name, "broker", place or name, {market.NETWORK: 1}, body, 9e9, replaces)


def test_a_crowd_that_could_not_be_counted_again_is_still_the_one_before() -> None:
    tender, other = entry("b", 5, 8), entry("a", 5, 20)
    crowds = Crowds([other, tender])
    newcomer = entry("x", 5, 99)
    for _ in range(2):
        with pytest.raises(ReservationError, match="made to b"):
            crowds.admit(newcomer)
        with pytest.raises(ReservationError, match="made to b"):
            crowds.count([entry("a2", 9, 20, "a", "a"), tender, other])


def test_whom_the_server_has_no_room_for_is_not_counted_on_the_port_either() -> None:
    def both(name: str, *, bears_s: float) -> Entry:
        crowd = {market.NETWORK: [5, 8], market.COMPUTE: [3, bears_s]}
        return replace(entry(name, 5, 8), body=json.dumps({"crowd": crowd}))

    crowds = Crowds([both("a", bears_s=9)])
    with pytest.raises(ReservationError, match="tenant x: would break the promise made to x"):
        crowds.admit(both("x", bears_s=2))
    crowds.admit(entry("b", 5, 8))
