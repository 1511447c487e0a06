"""Carries intents through a federation: survey, plan, offers, two-phase reservation, and nothing left where it fails.

Domains do not trust each other and need not trust the orchestrator: it can only present what they signed. It trusts
them no further either: a bound is recomputed from the verified envelopes, and a plan that they do not support is
dropped. How the domains come to hold all of it or nothing is the business of `testbed.management.coordinator`.
"""

from __future__ import annotations

import functools
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from testbed.envelope.descriptor import Envelope, Stage
from testbed.envelope.service import to_service
from testbed.envelope.store import EnvelopeStore
from testbed.errors import EnvelopeError, ReservationError, TestbedError
from testbed.management import market
from testbed.management.admission import Rule, confirm
from testbed.management.answers import require_as_asked, sort_offers
from testbed.management.calls import AgentClient
from testbed.management.coordinator import COMMITTED_MS, Coordinator, Pending, unheard
from testbed.management.detours import Setback, because_of, refusal_after
from testbed.management.generated import management_pb2 as wire
from testbed.management.journal import Journal, Phase, Transfer
from testbed.management.market import Prospectus
from testbed.management.planner import (
    Decision,
    Planner,
    Purchase,
    demand_of,
    request_path_of,
    wish_method,
)
from testbed.management.refusal import Refusal
from testbed.management.requests import SignedStage, require_forwarded_rate, require_served_rate
from testbed.management.routes import Barred
from testbed.management.search import Wish
from testbed.scenario.federation import Intent
from testbed.scenario.model import FULL_FRAME_BITS

LOG = logging.getLogger("testbed.orchestrator")


@dataclass(frozen=True)
class Outcome:
    """What became of an intent.

    Attributes:
        decision: What was planned, or why not; a domain's refusal is in its `refusal`.
        transfer: The reservations that hold it, None where nothing is reserved.
        envelopes: What each domain signed for it.
    """

    decision: Decision
    transfer: Transfer | None = None
    envelopes: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)

    @property
    def admitted(self) -> bool:
        """Whether every domain has committed what is to be reserved, which under the rule none is nothing."""
        return self.transfer is not None or (self.decision.admitted and not self.decision.purchases)


@dataclass
class Orchestrator:
    """Reserves across domains on behalf of tenants.

    Attributes:
        clients: A connection to each domain's agent.
        segments: Names, in path order.
        rule: The admission rule.
        store: Verifies envelopes and remembers which offers were seen.
        journal: What must survive a crash.
        address_of: (client, server) address of a tenant's traffic to a site.
        clock: Unix time in seconds.
        reached: Told each point that a transfer reaches.
        slow_down: How many times slower than it was written everything is.
    """

    clients: Mapping[str, AgentClient]
    segments: Sequence[str]
    rule: Rule
    store: EnvelopeStore
    journal: Journal
    address_of: Callable[[str, str], tuple[str, str]]
    clock: Callable[[], float] = time.time
    reached: Callable[[str], None] = unheard
    slow_down: float = 1.0
    _workers: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Take up what the journal kept of earlier offers; raises as `EnvelopeStore.recall`."""
        if (noted := self.journal.noted()) is not None:
            self.store.recall(noted)

    def survey(self) -> dict[str, Prospectus]:
        """What every domain sells and has left now; one that does not answer, or not for itself, sells nothing."""
        found = {}
        for name, client in self.clients.items():
            try:
                prospectus = Prospectus.from_json(client.report().prospectus)
                if prospectus.operator.name != name:
                    raise ReservationError(
                        f"prospectus: found that of {prospectus.operator.name[:64]}, expected that of {name}"
                    )
            except TestbedError as error:
                LOG.warning("domain %s: sells nothing now: %s", name, error)
            else:
                found[name] = prospectus
        self._workers = {name: p.operator.site.workers for name, p in found.items() if p.operator.site is not None}
        return found

    def admit(self, intents: Sequence[Intent]) -> list[Outcome]:
        """Plan and reserve; each intent is held by every domain of its route, or by none.

        What a domain refuses, or offers otherwise than asked, is planned again past it. A domain that is lost once it
        was asked to hold something may hold it still, so that tenant is undone and not planned again.

        Args:
            intents: Each of another tenant.

        Raises:
            ReservationError: A segment that no reachable domain sells.
        """
        planner: Planner | None = self._planner()
        outcomes: dict[str, Outcome] = {}
        setbacks: dict[str, Setback] = {}
        barred: dict[str, Barred] = {}
        asked = list(intents)
        while asked and planner is not None:
            decisions = planner.decide(asked, barred)
            self.reached("planned")
            planned = [(planner.wish(intent), decision) for intent, decision in zip(asked, decisions, strict=True)]
            found, failed = self._reserve(planned, {})
            outcomes |= found
            for _, decision in planned:
                if (setback := failed.get(decision.tenant)) is not None:
                    barred[decision.tenant] = barred.get(decision.tenant, Barred()) | setback.bars(decision.route)
            setbacks |= failed
            asked = [intent for intent in asked if intent.tenant in failed and failed[intent.tenant].answered]
            if failed:
                planner = self._planner_again()
        for intent in intents:
            setback = setbacks.get(intent.tenant)
            if setback is not None and not outcomes[intent.tenant].admitted:
                why = self._refusal(planner, intent, barred[intent.tenant], setback)
                outcomes[intent.tenant] = Outcome(Decision(intent.tenant, refusal=why))
        return [outcomes[intent.tenant] for intent in intents]

    def renegotiate(self, intent: Intent) -> Outcome:
        """Replace what a tenant holds by what a new intent needs, in place; refused, it keeps what it has.

        Only a domain lost for good after another one has committed costs the tenant both. What a domain refuses is not
        planned again past it: the tenant holds something, and the refusal says what else would do.

        Raises:
            ReservationError: The tenant holds nothing.
        """
        present = self._held(intent.tenant)
        planner = self._planner()
        for domain, rate_bps in present.rates_bps.items():
            # A domain that sells nothing now is on no route, whatever the tenant holds there.
            left, share_ppm = planner.free.get(domain, {}), present.shares_ppm.get(domain, 0)
            given = {market.NETWORK: rate_bps, market.CLASSES: 1}
            given |= {market.COMPUTE: share_ppm, market.SEATS: 1} if share_ppm else {}
            for resource in given.keys() & left.keys():
                left[resource] += given[resource]
        (decision,) = planner.decide([intent])
        found, failed = self._reserve([(planner.wish(intent), decision)], {intent.tenant: present})
        if (setback := failed.get(intent.tenant)) is None:
            return found[intent.tenant]
        planner.give_back(decision)
        why = self._refusal(planner, intent, setback.bars(decision.route), setback)
        return Outcome(Decision(intent.tenant, refusal=why))

    def release(self, tenants: Sequence[str]) -> None:
        """Give back everything these tenants hold.

        Raises:
            UnreachableError: A domain did not answer; `recover` will ask it again, and its lease ends anyway.
        """
        wanted = set(tenants)
        self._coordinator.undo([one for one in self.held() if one.tenant in wanted], strict=True)

    def renew(self, lease_ms: int = COMMITTED_MS) -> None:
        """Move the end of every lease that is held; as `Coordinator.renew`."""
        self._coordinator.renew(lease_ms)

    def recover(self) -> None:
        """Finish what a crash interrupted: what was decided is committed, everything else is undone."""
        self._coordinator.recover()

    def held(self) -> list[Transfer]:
        """What every admitted tenant holds."""
        return self.journal.transfers(Phase.COMMITTED)

    @property
    def _coordinator(self) -> Coordinator:
        return Coordinator(self.clients, self.journal, self.reached)

    def _held(self, tenant: str) -> Transfer:
        found = [one for one in self.held() if one.tenant == tenant]
        if not found:
            raise ReservationError(f"tenant {tenant}: holds nothing here; admit it first")
        return found[-1]

    def _planner(self) -> Planner:
        """What is left now; raises `ReservationError` for a segment that nobody sells."""
        return Planner(self.rule, self.segments, self.survey().values(), slow_down=self.slow_down)

    def _planner_again(self) -> Planner | None:
        """The same after a setback, which may have left a segment without any domain."""
        try:
            return self._planner()
        except ReservationError as error:
            LOG.warning("nothing is planned any more: %s", error)
            return None

    @staticmethod
    def _refusal(planner: Planner | None, intent: Intent, barred: Barred, setback: Setback) -> Refusal:
        if planner is None:
            return Refusal(setback.because, ("domain",))
        return refusal_after(planner, intent, barred, setback.because)

    def _reserve(
        self, planned: Sequence[tuple[Wish, Decision]], present: Mapping[str, Transfer]
    ) -> tuple[dict[str, Outcome], dict[str, Setback]]:
        """Offers, two phases, and the outcome of each tenant; what did not come about is among the setbacks too."""
        pending, refused = self._offers([(w, d) for w, d in planned if d.purchases], present)
        self.journal.note(self.store.remember({decision.tenant for _, decision in planned}))
        self.reached("offered")
        committed, failed = self._coordinator.reserve(pending)
        refused |= failed
        firm = {one.transfer.tenant: one for one in committed}
        for tenant, setback in refused.items():
            LOG.warning("tenant %s: not reserved as planned: %s", tenant, setback.because)
        outcomes = {d.tenant: self._outcome(d, firm.get(d.tenant), refused) for _, d in planned}
        return outcomes, refused

    def _outcome(self, decision: Decision, firm: Pending | None, refused: Mapping[str, Setback]) -> Outcome:
        if firm is not None:
            signed = replace(decision, bound_s=firm.transfer.bound_s, price=firm.transfer.price)
            return Outcome(signed, firm.transfer, firm.envelopes)
        if decision.tenant in refused:
            why = Refusal(refused[decision.tenant].because, ("domain",))
            return Outcome(Decision(decision.tenant, refusal=why))
        return Outcome(decision)

    def _offers(
        self, planned: Sequence[tuple[Wish, Decision]], present: Mapping[str, Transfer]
    ) -> tuple[list[Pending], dict[str, Setback]]:
        """Ask every domain at once for all that is planned in it; drop what it refuses or does not support."""
        demands: dict[str, dict[str, wire.Demand]] = {}
        for wish, decision in planned:
            for bought in decision.purchases:
                demand = self._demand(wish, decision, bought, present)
                demands.setdefault(bought.domain, {})[decision.tenant] = demand
        offers: dict[tuple[str, str], wire.Offered] = {}
        refused: dict[str, Setback] = {}
        for domain, wanted in demands.items():
            try:
                answers = self._coordinator.client(domain).offer([*wanted.values()])
                found, without = sort_offers(domain, [*wanted.values()], answers)
            except TestbedError as error:
                found, without = {}, dict.fromkeys(wanted, because_of(error))
            offers |= {(domain, tenant): offered for tenant, offered in found.items()}
            refused |= {tenant: Setback(why, domain) for tenant, why in without.items()}
        pending = []
        for wish, decision in planned:
            if decision.tenant in refused:
                continue
            domains = [bought.domain for bought in decision.purchases]
            mine = {domain: offers[domain, decision.tenant] for domain in domains}
            accepted: list[Envelope] = []
            for domain in domains:
                try:
                    asked = functools.partial(require_as_asked, domain, demands[domain][decision.tenant])
                    accepted += self.store.accept_offer(mine[domain].envelopes, self.clock(), asked)
                except EnvelopeError as error:
                    refused[decision.tenant] = Setback(because_of(error), domain)
                    break
            else:
                try:
                    pending.append(self._supported(wish, decision, mine, accepted, present.get(decision.tenant)))
                except (EnvelopeError, ReservationError) as error:
                    refused[decision.tenant] = Setback(because_of(error))
        return pending, refused

    def _supported(
        self,
        wish: Wish,
        decision: Decision,
        offers: Mapping[str, wire.Offered],
        accepted: Sequence[Envelope],
        present: Transfer | None,
    ) -> Pending:
        """Check that what was signed keeps the promise, whatever prospectuses said.

        Raises:
            EnvelopeError: A tail was measured at another rate than it is to be used at.
            ReservationError: The envelopes promise less than was planned, or cost more than the tenant pays.
        """
        sealed = {domain: tuple(offered.envelopes) for domain, offered in offers.items()}
        bound_s = self._signed_bound_s(wish, decision, accepted)
        price = sum(offered.price_micro for offered in offers.values()) / 1e6
        if price > wish.intent.price * (1 + 1e-6) + 1e-6 * len(offers):
            raise ReservationError(f"tenant {decision.tenant}: offered for {price:g}, it pays {wish.intent.price:g}")
        transfer = Transfer(
            transfer=uuid.uuid4().hex,
            tenant=decision.tenant,
            reservations={domain: offered.reservation for domain, offered in offers.items()},
            rates_bps={bought.domain: bought.rate_bps for bought in decision.purchases},
            shares_ppm={bought.domain: bought.share_ppm for bought in decision.purchases if bought.share_ppm},
            bound_s=bound_s,
            price=price,
            replaces=None if present is None else present.transfer,
        )
        return Pending(transfer, sealed)

    def _signed_bound_s(self, wish: Wish, decision: Decision, accepted: Sequence[Envelope]) -> float | None:
        route = decision.route
        if route is None:
            raise ReservationError(f"tenant {decision.tenant}: reservations without a route")
        # Each domain has signed what it was asked for: its network, and the last one its server.
        network = {e.domain: e for e in accepted if e.subject.stage is Stage.NETWORK}
        compute = [e for e in accepted if e.subject.stage is Stage.COMPUTE]
        if len(compute) != 1:
            raise ReservationError(f"tenant {decision.tenant}: found {len(compute)} servers signed for, expected one")
        rate_bps = min(e.guardrails.reserved_rate_bps for e in network.values())
        services = [to_service(network[name], rate_bps) for name in route.domains]
        rails = compute[0].guardrails
        server = to_service(compute[0])
        work_per_s = server.rate_bps * wish.request_bits / rails.largest_packet_bits
        stage = SignedStage(work_per_s, server.latency_s, self._workers[route.where], wish.request_bits)
        path = request_path_of(wish, route, services, stage, excess=server.excess, loss=server.loss_probability)
        require_served_rate(compute[0], path)
        require_forwarded_rate(network.values(), path, [wish.least_bits])
        demand = demand_of(self.rule, wish, path, rate_bps)
        method = wish_method(wish) if self.rule is Rule.STOCHASTIC else "deterministic"
        judged, _ = confirm(self.rule, demand, path.services, method=method)
        if not judged.admitted:
            raise ReservationError(f"what was signed does not keep the promise: {judged.reason}")
        return judged.bound_s

    def _demand(self, wish: Wish, decision: Decision, bought: Purchase, present: Mapping[str, Transfer]) -> wire.Demand:
        where = "" if decision.route is None else decision.route.where
        client, server = self.address_of(decision.tenant, where)
        before = present.get(decision.tenant)
        asked = wire.Demand(
            tenant=decision.tenant,
            network=wire.NetworkDemand(
                client=client,
                server=server,
                rate_bps=bought.rate_bps,
                meter_rate_bps=bought.meter_rate_bps,
                burst_bits=bought.burst_bits,
                queue_bits=bought.queue_bits,
                largest_packet_bits=FULL_FRAME_BITS,
            ),
            replaces="" if before is None else before.reservations.get(bought.domain, ""),
        )
        if bought.share_ppm and decision.route is not None:
            asked.compute.CopyFrom(
                wire.ComputeDemand(
                    model=decision.route.model.name,
                    share_ppm=bought.share_ppm,
                    largest_request_bits=int(wish.request_bits),
                    meter_rate_bps=bought.meter_rate_bps,
                    burst_bits=bought.burst_bits,
                )
            )
        return asked
