"""What a domain has measured against what it has signed: no promise stays that its own evidence refutes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from controller.client import CallError
from testbed.envelope.descriptor import Envelope
from testbed.errors import FidelityError, ReservationError
from testbed.management.agent import OFFER_S
from testbed.management.planner import plan
from testbed.run import agents
from testbed.run.agents import AgentReservations
from testbed.run.members import Members
from testbed.run.window import Window
from testbed.scenario.federation import Intent, Market
from testbed.scenario.model import Domain, Scenario, Tenant
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.requests import Framing, Passages
from testbed.traffic.request_records import OK

from .federation_lab import BROKER, OPERATORS, SEGMENTS, Lab, intent

MEASURED = "core"
ASKED = intent("t1", epsilon=0.02, deadline_s=0.25)
N = 2_000
FRAMING = Framing(64_000, 64_000.0, 0.0, 1.0, 0.0)
REJECTED = 8


def late(seconds: float, *, lost: int = 0) -> np.ndarray:
    """How late each of N packets is: a hair each, one in twenty by some `seconds`, and some never there."""
    rng = np.random.default_rng(5)
    late_s = rng.exponential(1e-5, N) + np.where(rng.random(N) < 0.05, rng.exponential(seconds, N), 0.0)
    late_s[:lost] = np.nan
    return late_s


def warm_up(domains: int, late_s: np.ndarray, served_s: float | np.ndarray = 1e-3, *, errors: int = 0) -> Window:
    """Packets far apart that no domain holds up but the last one, and requests that its server computes."""
    time_s = np.repeat(np.arange(N)[:, None] * 1.0, domains + 1, axis=1)
    time_s[:, -1] += late_s
    packets = Passages(time_s, np.full(N, 8_000, dtype=np.int64))
    match = SimpleNamespace(packets=packets, samples=served(served_s, errors), out=FRAMING, back=FRAMING)
    sizes = SimpleNamespace(request_bytes=np.full(N, 8_000), response_bytes=np.full(N, 250))
    return cast(Window, SimpleNamespace(requests={"t1": SimpleNamespace(match=match, record=sizes)}))


def served(served_s: float | np.ndarray, errors: int) -> RequestSamples:
    """Requests a second apart, each computed so long after it was received; the last ones refused."""
    n, at = N, np.arange(N) * 1.0
    status = np.full(n, OK, np.int16)
    status[n - errors :] = REJECTED
    server = np.stack([at, at, at, at + served_s], axis=1)
    server[n - errors :] = np.nan
    return RequestSamples(
        tenant="t1", number=1, domains=("core",), window_start_ns=0, deadline_s=1.0, images=1, intended_s=at,
        sent_s=at, first_s=at, out_s=np.stack([at, at], axis=1), server_s=server, back_s=np.zeros((n, 2)),
        received_s=at, status=status, request_bytes=np.full(n, 8_000), response_bytes=np.full(n, 250),
        out_bits=np.full(n, 64_000.0), back_bits=np.full(n, 2_000.0), correct=np.full(n, 1, np.int32),
    )  # fmt: skip


@contextmanager
def reserved(lab: Lab, asked: Intent, *, calibrated: bool) -> Iterator[AgentReservations]:
    """A federation in which one tenant holds what it asked for."""
    operators = tuple(replace(one, calibrated=calibrated and one.name == MEASURED) for one in OPERATORS)
    sold = Market("lab", SEGMENTS, operators, (asked,))
    (decision,) = plan(sold)
    assert decision.route is not None
    domains = tuple(Domain(one.name, one.link_rate_bps, one.link_delay_s, segment=one.segment) for one in operators)
    tenant = Tenant("t1", asked.arrivals, "core", way=decision.route.domains)
    scenario = Scenario("lab", domains, (tenant,), 1, 1.0, 1.0)
    members = Members(lab.folder, BROKER, lab.keys, lab.root, lab.folder / "root.json", lab.authorities, {})
    lab.start()
    with lab.orchestrator() as orchestrator:
        found = AgentReservations(sold, scenario, {}, members, orchestrator)
        found.reserve()
        yield found


def test_a_tenant_whose_envelopes_the_warm_up_refutes_holds_nothing_where_no_better_ones_are_to_be_had(
    lab: Lab,
) -> None:
    with reserved(lab, ASKED, calibrated=False) as held:
        (tenant,) = held.scenario.tenants
        before = held.envelopes(tenant)
        with pytest.raises(FidelityError, match=r"t1: the warm-up contradicts.*core broke its envelope"):
            held.calibrated({}, warm_up(len(before), late(0.2)))
        assert held.orchestrator.held() == []
        assert list(held.signed()) == []
        (decided,) = held.plan()["decisions"]
        assert not decided["admitted"]
        assert "does not keep the promise" in decided["refused_because"]
    lab.require_in_step()
    assert lab.tenants() == {}


def test_a_tenant_whose_tails_are_too_uncertain_keeps_envelopes_that_nothing_contradicts(lab: Lab) -> None:
    # Two thousand packets on time support no better than a few in a thousand.
    with reserved(lab, replace(ASKED, epsilon=1e-3, deadline_s=0.4), calibrated=True) as held:
        (tenant,) = held.scenario.tenants
        before = held.envelopes(tenant)
        held.calibrated({}, warm_up(len(before), late(0.0)))
        assert held.envelopes(tenant) == before
        assert len(held.orchestrator.held()) == 1
    lab.require_in_step()


class Rules:
    """A controller of which only the number of its rules is asked."""

    def __init__(self, rules: int | None) -> None:
        self.rules = rules

    def health(self) -> dict[str, int]:
        if self.rules is None:
            raise CallError("connection", ["call health: the controller closed the connection"])
        return {"rules": self.rules}


def test_a_release_that_an_agent_does_not_answer_says_also_what_every_switch_still_holds(lab: Lab) -> None:
    with reserved(lab, ASKED, calibrated=False) as held:
        held.controllers = cast(Any, {"access": Rules(0), "metro-cheap": Rules(2), "core": Rules(None)})
        lab.seats["core"].kill("agent")
        with pytest.raises(ReservationError) as raised:
            held.release()
    unanswered, *left = raised.value.problems
    assert "domain core: Release was not answered" in unanswered
    assert left == [
        "domain metro-cheap: after the release: found 2 rules, expected none",
        "domain core: after the release: call health: the controller closed the connection",
    ]


def test_a_warm_up_may_last_longer_than_offers_do(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with reserved(lab, replace(ASKED, epsilon=1e-3, deadline_s=0.4), calibrated=True) as held:
        (tenant,) = held.scenario.tenants
        before, later = held.envelopes(tenant), SimpleNamespace(time=lambda: time.time() + 2 * OFFER_S)
        monkeypatch.setattr(agents, "time", later)
        held.calibrated({}, warm_up(len(before), late(0.0)))
        assert held.envelopes(tenant) == before


def test_a_tail_that_the_deadline_bears_takes_the_place_of_what_it_refutes(lab: Lab) -> None:
    with reserved(lab, replace(ASKED, epsilon=0.05, deadline_s=0.6), calibrated=False) as held:
        (tenant,) = held.scenario.tenants
        before = held.envelopes(tenant)
        held.calibrated({}, warm_up(len(before), late(5e-3)))
        after = held.envelopes(tenant)
        assert [one.tail is None for one in after] == [True] * (len(after) - 1) + [False]
        assert after[-1].version > before[-1].version


def test_a_loss_refutes_a_promise_of_none_whatever_tail_is_signed(lab: Lab) -> None:
    with (
        reserved(lab, replace(ASKED, epsilon=0.05, deadline_s=0.6), calibrated=False) as held,
        pytest.raises(FidelityError, match=r"core broke its envelope for t1: loss: 0\.001 of the packets"),
    ):
        held.calibrated({}, warm_up(len(held.envelopes(held.scenario.tenants[0])), late(0.0, lost=2)))
    assert lab.tenants() == {}


def paused(seconds: float, share: float = 0.05) -> np.ndarray:
    """Computations of a hair's difference, some of which pause."""
    rng = np.random.default_rng(6)
    return 1e-3 + rng.exponential(1e-5, N) + np.where(rng.random(N) < share, rng.exponential(seconds, N), 0.0)


def server_of(held: AgentReservations) -> Envelope:
    (tenant,) = held.scenario.tenants
    signed = held.server(tenant)
    assert signed is not None
    return signed


@pytest.mark.parametrize("declares", [True, False])
def test_a_server_is_signed_for_again_with_what_its_stamps_support(lab: Lab, declares: bool) -> None:
    with reserved(lab, replace(ASKED, epsilon=0.05, deadline_s=0.6), calibrated=not declares) as held:
        before = server_of(held)
        assert before.stochastic is before.evidence is None
        held.calibrated({}, warm_up(len(held.envelopes(held.scenario.tenants[0])), late(0.0), paused(0.0)))
        after = server_of(held)
        assert after.version > before.version
        assert after.guardrails == before.guardrails
        assert after.evidence is not None
        assert after.evidence.n == N
        assert (after.tail is None) == declares
        assert [one.envelope for one in held.signed()].count(after) == 1


def test_a_tail_of_a_server_takes_the_place_of_a_promise_that_it_refutes_and_is_in_the_bound(lab: Lab) -> None:
    with reserved(lab, replace(ASKED, epsilon=0.05, deadline_s=0.6), calibrated=False) as held:
        (decided,) = held.plan()["decisions"]
        way = len(held.envelopes(held.scenario.tenants[0]))
        held.calibrated({}, warm_up(way, late(0.0), paused(0.02)))
        after = server_of(held)
        assert after.tail is not None
        (tails,) = held.plan()["decisions"]
        assert tails["bound_s"] > decided["bound_s"]


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        (
            {"served_s": paused(0.1, 0.2)},
            "he server of core broke its envelope for t1: later than promised",
        ),
        ({"errors": 3}, r"he server of core broke its envelope for t1: error: 0\.0015 of the requests"),
    ],
    ids=["paused", "refused"],
)
def test_a_server_whose_own_stamps_refute_its_promise_holds_nobody(lab: Lab, worse: dict[str, Any], said: str) -> None:
    with reserved(lab, ASKED, calibrated=False) as held, pytest.raises(FidelityError, match=said):
        held.calibrated({}, warm_up(len(held.envelopes(held.scenario.tenants[0])), late(0.0), **worse))
    assert lab.tenants() == {}
