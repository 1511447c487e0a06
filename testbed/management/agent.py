"""One operator's agent: the eight calls of a domain, between its ledger, its key and its controller.

An agent signs what it offers, holds only what it signed and what breaks no earlier promise, and calls a reservation
committed when its controller has installed it *and read it back*. Whoever calls has been identified already
(`testbed.management.service`); here every reservation belongs to who asked for it. The agent knows no other domain and
no route.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.message import Message

from testbed.envelope.descriptor import Stage, Validity
from testbed.envelope.keys import SigningKey
from testbed.envelope.store import issue, verify
from testbed.envelope.trust import Root
from testbed.errors import EnvelopeError, ReservationError
from testbed.management import market, sealing
from testbed.management.books import Books
from testbed.management.calibrations import Calibrations
from testbed.management.crowds import Crowds
from testbed.management.demands import model_of, require_sellable
from testbed.management.entry import HOLDING, Entry, Request, State, UnknownReservationError
from testbed.management.generated import management_pb2 as wire
from testbed.management.installer import Installer, body_of
from testbed.management.ledger import Ledger
from testbed.management.sizing import PAUSE_S
from testbed.scenario.federation import Operator, ServedModel, Site
from testbed.scenario.model import Domain, Reservation

LOG = logging.getLogger("testbed.agent")

OFFER_S = 600
"""How long an offer may be taken up."""

PREPARED_S = 30.0
COMMITTED_S = 3600.0
LONGEST_LEASE_S = 24 * 3600.0
"""Leases where the caller asks for none, and the longest that are given."""

MICRO = 1_000_000


@dataclass
class Agent:
    """The agent of one domain.

    Attributes:
        operator: What the domain is and sells.
        key: Signs its envelopes.
        root: The federation's trust root: which keys count, its own included.
        ledger: What is offered, held and installed.
        installer: The way to its controller.
        calibrations: What it has measured of its own service.
        clock: Unix time in seconds.
        reached: Told each point that a call reaches; tests end the process there.
        pause_s: How long the host may leave a class unserved without its losing rate.
        refusals: How often a call was refused, by reason.
    """

    operator: Operator
    key: SigningKey
    root: Root
    ledger: Ledger
    installer: Installer
    calibrations: Calibrations = field(default_factory=Calibrations)
    clock: Callable[[], float] = time.time
    reached: Callable[[str], None] = lambda _point: None
    pause_s: float = PAUSE_S
    refusals: Counter[str] = field(default_factory=Counter)
    _sealing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def offer(self, caller: str, asked: wire.OfferRequest) -> wire.OfferAnswer:
        """Sign envelopes for each demand, or say why not; nothing is held by an offer.

        Raises:
            ReusedRequestError: The request id stood for something else.
        """

        def act(books: Books) -> bytes:
            answer = wire.OfferAnswer()
            entries: list[Entry] = []
            for demand in asked.demands:
                offered = answer.offers.add(tenant=demand.tenant)
                try:
                    entries.append(self._offered(caller, demand, offered, books))
                except (EnvelopeError, ReservationError) as error:
                    offered.refused = str(error)
                    self.refusals["offer"] += 1
            books.offer(entries)
            return answer.SerializeToString()

        return wire.OfferAnswer.FromString(self.ledger.once(_request("offer", caller, asked), act))

    def prepare(self, caller: str, asked: wire.PrepareRequest) -> wire.HoldingAnswer:
        """Hold what was offered; what is refused says so, the rest is held.

        Raises:
            ReusedRequestError: The request id stood for something else.
        """
        self.reached("prepare:received")
        expires_s = self._lease_end(asked.lease_ms, PREPARED_S)

        def act(books: Books) -> bytes:
            crowds = Crowds(books.entries(*HOLDING))
            answer = wire.HoldingAnswer()
            for presented in asked.presented:
                try:
                    with books.undoable():
                        entry = self._prepared(caller, presented, expires_s, books, crowds)
                except (EnvelopeError, ReservationError) as error:
                    reason = getattr(error, "reason", "capacity")
                    self.refusals[reason] += 1
                    LOG.warning("refused Prepare of %s: %s: %s: %s", caller, presented.reservation, reason, error)
                    answer.holdings.add(reservation=presented.reservation, refused=f"{reason}: {error}")
                else:
                    answer.holdings.append(_holding(entry))
            return answer.SerializeToString()

        return wire.HoldingAnswer.FromString(self.ledger.once(_request("prepare", caller, asked), act))

    def commit(self, caller: str, asked: wire.ChangeRequest) -> wire.HoldingAnswer:
        """Install what is prepared, read it back, and only then call it committed; all of it or none.

        Raises:
            ControllerError: It could not be installed; it is still prepared, and the switches are as they were.
            ReservationError: One is not the caller's, not prepared, or its lease ended.
        """
        self.reached("commit:received")
        request = _request("commit", caller, asked)
        expires_s = self._lease_end(asked.lease_ms, COMMITTED_S)
        with self.installer.alone():
            known = self.ledger.answered(request)
            if known is not None:
                return wire.HoldingAnswer.FromString(known)
            with self.ledger.transaction("check") as books:
                joining = [books.require_committable(one, caller) for one in asked.reservations]

            def act(books: Books) -> bytes:
                answer = wire.HoldingAnswer()
                answer.holdings.extend(_holding(books.commit(one, caller, expires_s)) for one in asked.reservations)
                return answer.SerializeToString()

            try:
                self.installer.follow([entry for entry in joining if entry.state is State.PREPARED])
                self.reached("commit:installed")
                answered = self.ledger.once(request, act)
            except BaseException:
                self._undo_installation()
                raise
        self.reached("commit:recorded")
        return wire.HoldingAnswer.FromString(answered)

    def abort(self, caller: str, asked: wire.ChangeRequest) -> wire.HoldingAnswer:
        """Give up what is offered or prepared; unknown reservations were given up before."""
        self.reached("abort:received")
        return self._give_up("abort", caller, asked, lambda books, one: books.abort(one, caller))

    def release(self, caller: str, asked: wire.ChangeRequest) -> wire.HoldingAnswer:
        """Give back what is held and take it off the switches.

        Raises:
            ControllerError: It is released, but the switches do not show it yet; they will as soon as the controller
                answers, and asking again says when.
        """
        self.reached("release:received")
        with self.installer.alone():
            answer = self._give_up("release", caller, asked, lambda books, one: books.release(one, caller))
            self.reached("release:recorded")
            self.installer.follow()
        self.reached("release:removed")
        return answer

    def renew(self, caller: str, asked: wire.ChangeRequest) -> wire.HoldingAnswer:
        """Move the end of leases.

        Raises:
            ReservationError: One is not the caller's, or holds nothing.
        """
        expires_s = self._lease_end(asked.lease_ms, COMMITTED_S)

        def act(books: Books) -> bytes:
            answer = wire.HoldingAnswer()
            answer.holdings.extend(_holding(books.renew(one, caller, expires_s)) for one in asked.reservations)
            return answer.SerializeToString()

        return wire.HoldingAnswer.FromString(self.ledger.once(_request("renew", caller, asked), act))

    def report(self, caller: str, asked: wire.ReportRequest) -> wire.ReportAnswer:
        """What the domain sells, what is left of it, and the caller's own reservations."""
        use = self.ledger.use()
        prospectus = market.Prospectus(self.operator, {name: one.free for name, one in use.items()})
        answer = wire.ReportAnswer(domain=self.operator.name, prospectus=prospectus.to_json())
        for name, one in use.items():
            answer.resources.add(name=name, capacity=one.capacity, held=one.held)
        if asked.with_holdings:
            answer.holdings.extend(_holding(e) for e in self.ledger.entries() if e.owner == caller)
        return answer

    def health(self, _caller: str, _asked: wire.HealthRequest) -> wire.HealthAnswer:
        """Whether switches and ledger agree, and what was repaired and refused."""
        counts = self.installer.counts
        return wire.HealthAnswer(
            in_step=counts.in_step,
            repairs=counts.repairs,
            expired=counts.expired,
            refusals=dict(self.refusals),
            last_problem=counts.last_problem,
        )

    def recover(self) -> None:
        """After a start: drop what is over and bring the switches in step, however the last process ended."""
        self.installer.look_after()

    def _undo_installation(self) -> None:
        """Take a half-made installation off again; where that fails too, the keeper goes on trying."""
        self.installer.look_after()

    def _give_up(
        self, call: str, caller: str, asked: wire.ChangeRequest, end: Callable[[Books, str], Entry]
    ) -> wire.HoldingAnswer:
        def act(books: Books) -> bytes:
            answer = wire.HoldingAnswer()
            for one in asked.reservations:
                try:
                    answer.holdings.append(_holding(end(books, one)))
                except UnknownReservationError:
                    # Giving up is asked for when answers were lost: one that never arrived holds nothing either.
                    answer.holdings.add(reservation=one, state=State.ABORTED)
            return answer.SerializeToString()

        return wire.HoldingAnswer.FromString(self.ledger.once(_request(call, caller, asked), act))

    def _offered(self, caller: str, demand: wire.Demand, offered: wire.Offered, books: Books) -> Entry:
        """Sign for one demand and say what the ledger is to remember of it."""
        version = books.next("version")
        network, shaped = demand.network, market.house_of(self.operator)
        reservation = Reservation(network.rate_bps, network.meter_rate_bps, network.burst_bits, network.queue_bits)
        require_sellable(self.operator, demand)
        wanted = sealing.Demand(
            tenant=demand.tenant,
            number=1,
            client=network.client,
            server=network.server,
            reservation=reservation,
            burst_bits=network.burst_bits,
            largest_packet_bits=network.largest_packet_bits,
        )
        klass = shaped.shape(network.rate_bps, network.largest_packet_bits, pause_s=self.pause_s)
        now = int(self.clock())
        validity = Validity(now, now + OFFER_S)
        envelopes = [
            sealing.network_envelope(
                self._domain,
                wanted,
                reservation,
                klass,
                host_allowance_s=self.operator.host_allowance_s,
                version=version,
                validity=validity,
                calibrated=self.calibrations.of(demand.tenant, network.rate_bps),
            )
        ]
        crowd = {market.NETWORK: shaped.guest(demand.tenant, network.rate_bps, klass, network.largest_packet_bits)}
        amounts = {market.NETWORK: network.rate_bps, market.CLASSES: 1}
        price = market.network_price(self.operator, network.rate_bps)
        if demand.HasField("compute"):
            site, model = model_of(self.operator, demand)
            promised = self._computation(demand, site, model)
            envelopes.append(sealing.compute_envelope(self.operator.name, promised, version=version, validity=validity))
            crowd[market.COMPUTE] = market.compute_guest(demand.tenant, site, model)
            amounts |= {market.COMPUTE: demand.compute.share_ppm, market.SEATS: 1}
            price += market.compute_price(site, demand.compute.share_ppm / market.WHOLE_PPM)
        with self._sealing:
            sealed = [issue(envelope, [self.key]) for envelope in envelopes]
        rule = sealing.reserved_rule(wanted, envelopes[0].guardrails, klass)
        offered.reservation = f"{self.operator.name}/{demand.tenant}/{version}"
        offered.envelopes.extend(sealed)
        offered.price_micro = round(price * MICRO)
        return Entry(
            reservation=offered.reservation,
            tenant=demand.tenant,
            owner=caller,
            place=network.client,
            amounts=amounts,
            body=body_of(
                rule,
                envelopes=[base64.b64encode(data).decode() for data in sealed],
                crowd={name: [guest.weight, guest.bears] for name, guest in crowd.items()},
            ),
            expires_s=float(validity.not_after_s),
            replaces=demand.replaces or None,
        )

    def _prepared(
        self, caller: str, presented: wire.Presented, expires_s: float, books: Books, crowds: Crowds
    ) -> Entry:
        """Check what is presented against what was signed, and everybody's promise, then hold it."""
        now_s = self.clock()
        self.root.require_current(now_s)
        for data in presented.envelopes:
            promise = verify(data, self.root.trust, now_s)
            if promise.domain != self.operator.name:
                raise EnvelopeError(f"envelope of {promise.domain}: presented to {self.operator.name}; present its own")
        before = books.state_of(presented.reservation, caller)
        entry = books.prepare(presented.reservation, caller, expires_s)
        if before is not State.OFFERED:
            return entry
        kept = json.loads(entry.body)
        if [base64.b64encode(data).decode() for data in presented.envelopes] != kept["envelopes"]:
            raise EnvelopeError(f"reservation {entry.reservation}: other envelopes than were offered; present those")
        if entry.replaces:
            crowds.count(books.entries(*HOLDING))
        else:
            crowds.admit(entry)
        return entry

    def _computation(self, demand: wire.Demand, site: Site, model: ServedModel) -> sealing.Computation:
        """What a tenant is promised of the domain's server, for as many others as there are seats."""
        asked = demand.compute
        share = asked.share_ppm / market.WHOLE_PPM
        rate_bps = sealing.computing_rate_bps(share, site.workers, asked.largest_request_bits, model.work_s)
        return sealing.Computation(
            tenant=demand.tenant,
            model=model.name,
            rate_bps=rate_bps,
            latency_s=market.compute_latency_s(site, model),
            host_allowance_s=0.0,
            delay_cap_s=asked.burst_bits / max(rate_bps, 1),
            largest_request_bits=asked.largest_request_bits,
            meter_rate_bps=asked.meter_rate_bps,
            burst_bits=asked.burst_bits,
            calibrated=self.calibrations.of(demand.tenant, rate_bps, Stage.COMPUTE) or (None, None),
        )

    @property
    def _domain(self) -> Domain:
        operator = self.operator
        return Domain(operator.name, operator.link_rate_bps, operator.link_delay_s, operator.site is not None)

    def _lease_end(self, lease_ms: int, otherwise_s: float) -> float:
        return self.clock() + min(lease_ms / 1000 or otherwise_s, LONGEST_LEASE_S)


def _request(call: str, caller: str, asked: Message) -> Request:
    """The call as the ledger remembers it; its id is the caller's own, and nobody else's."""
    request_id = str(getattr(asked, "request_id", ""))
    if not request_id:
        raise ReservationError(f"{call}: found no request id, expected one of the caller's choice")
    digest = hashlib.sha256(asked.SerializeToString(deterministic=True)).digest()
    return Request(f"{caller}/{request_id}", call, caller, digest)


def _holding(entry: Entry) -> wire.Holding:
    return wire.Holding(
        reservation=entry.reservation,
        tenant=entry.tenant,
        state=str(entry.state),
        number=entry.number or 0,
        expires_s=entry.expires_s,
        owner=entry.owner,
    )
