"""The bound on a request tenant's latency, from what a warm-up counted and its domains signed to the record of a run.

Total and network part come from one model (`testbed.management.requests`): requests as arrivals of virtual size, a way
out, a share of the server, a way back. The network part ends at the server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from testbed.calculus import (
    Arrival,
    CalculusError,
    Metered,
    NotApplicableError,
    Part,
    RequestClass,
    RequestPath,
    Workers,
    delay_bound,
    delay_curve,
)
from testbed.calculus.service.promised import EnvelopeService
from testbed.envelope.descriptor import Envelope
from testbed.envelope.service import to_service
from testbed.management.bounds import CURVE_EPSILONS, HOST, HOST_RISK
from testbed.management.requests import (
    SignedStage,
    metered_arrival,
    replayed_arrival,
    request_arrival,
    request_class,
    request_path,
    require_served_rate,
    traced_arrival,
)
from testbed.report.tenant_record import BoundPart, BoundRecord, BudgetShare
from testbed.scenario.model import Tenant, TraceArrivals
from testbed.telemetry.requests import Framing
from testbed.traffic.request_demand import Demand, least_wire_bits
from testbed.traffic.workloads import read_workload

FloatArray = npt.NDArray[np.float64]

COMPUTE = "compute"
"""What the calculus calls the stage between the two ways."""

_NO_TIME_S = 1e-9
"""Computation of a path that ends at the server."""


_HOST_ASSUMPTION = (
    f"the host delays at most {HOST_RISK:.0%} of epsilon of the requests beyond its allowance, which a gate polices"
)


@dataclass(frozen=True)
class RequestTerms:
    """What a warm-up says of a request tenant, and what was signed for its path.

    Attributes:
        demand: The messages it declares.
        out: Framing towards the server, as counted.
        back: Framing towards the client.
        answer_bits: Largest answer's message.
        server: What its domain signed of the server.
        workers: Of that server.
        services: What the domains of its path promise, in path order, nothing granted to a host.
        works: Parts of the longest computation that others take, and how often; independent of each other and of the
            messages. All of them the longest where nothing is known.
        evened_s: What `works` leaves out, and is to be added to what the server promises.
    """

    demand: Demand
    out: Framing
    back: Framing
    answer_bits: int
    server: Envelope
    workers: int
    services: tuple[EnvelopeService, ...]
    works: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    evened_s: float = 0.0

    @property
    def path(self) -> RequestPath:
        """Out, compute and back; nothing of what is promised is granted to a host.

        Raises:
            WrongRateError: The server's tail was measured at another rate.
        """
        kinds, share = self._kinds()
        signed, promised = self.server.guardrails, to_service(self.server)
        largest_bits = float(signed.largest_packet_bits)
        requests = _of_works(
            request_class(kinds, self.answer_bits, self.out, self.back, work=largest_bits, weights=share), self.works
        )
        latency_s = promised.latency_s - signed.host_allowance_s + self.evened_s
        stage = SignedStage(promised.rate_bps, latency_s, self.workers, largest_bits)
        returning = [replace(service, name=f"{service.name} back") for service in self.services[::-1]]
        path = request_path(
            requests, self.services, stage, returning, excess=promised.excess, loss=promised.loss_probability
        )
        require_served_rate(self.server, path)
        return path

    @property
    def way_out(self) -> RequestPath:
        """Its beginning, up to the server."""
        kinds, share = self._kinds()
        up = tuple(self.out.wire_bits(np.array(kinds)).tolist())
        nothing = (0.0,) * len(up)
        return RequestPath(RequestClass(up, nothing, nothing, share), self.services, Workers(1, _NO_TIME_S), ())

    def virtual_s(self, message_bits: FloatArray) -> FloatArray:
        """How long requests of these sizes keep their busiest stage busy; [n]."""
        path = self.path
        rate_bps = min(service.rate_bps for service in self.services)
        largest = np.max(path.virtual_sizes_s)
        return np.asarray(np.minimum(np.maximum(self.out.wire_bits(message_bits) / rate_bps, self._least_s), largest))

    @property
    def least_bits(self) -> FloatArray:
        """What each kind of request is on the wire at least, (kinds,)."""
        return least_wire_bits(np.array(self._kinds()[0]))

    @property
    def _least_s(self) -> float:
        """What work and answer take, whatever the size of the message."""
        rate_bps = min(service.rate_bps for service in self.services)
        work_s = self.server.guardrails.largest_packet_bits / to_service(self.server).rate_bps
        return max(work_s, float(self.back.wire_bits(self.answer_bits)) / rate_bps)

    def _kinds(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        kinds, index = np.unique(self.demand.message_bits, return_inverse=True)
        return tuple(kinds.tolist()), tuple(np.bincount(index, weights=self.demand.share).tolist())


def _of_works(requests: RequestClass, works: Sequence[tuple[float, float]]) -> RequestClass:
    """The same requests, each kind with computations of several lengths."""
    parts, often = np.array(works).T
    each = len(requests.up_bits)
    return RequestClass(
        up_bits=requests.up_bits * parts.size,
        work=tuple(np.outer(parts, requests.work).ravel().tolist()),
        down_bits=requests.down_bits * parts.size,
        weights=tuple(np.outer(often / often.sum(), requests.weights or np.ones(each) / each).ravel().tolist()),
    )


def services_of(envelopes: Sequence[Envelope]) -> tuple[EnvelopeService, ...]:
    """What domains promise at the smallest rate of the path, without what they grant their host."""
    rate_bps = min(envelope.guardrails.reserved_rate_bps for envelope in envelopes)
    found = [(to_service(envelope, rate_bps), envelope.guardrails.host_allowance_s) for envelope in envelopes]
    return tuple(replace(service, latency_s=service.latency_s - host_s) for service, host_s in found)


def bound_requests(tenant: Tenant, terms: RequestTerms, *, host_s: float) -> BoundRecord:
    """The smallest sound bound on a request's latency from its intended time to its answer, and on the network's part.

    Args:
        tenant: A request tenant with a reservation.
        terms: What the warm-up says of it.
        host_s: What the emulating host may add on the whole way, 0 where there is none; then it has no risk either.

    Raises:
        CalculusError: No theorem applies; the inequality that fails is named.
    """
    epsilon = tenant.promise.epsilon if tenant.promise else 1e-3
    own_share = 1.0 - HOST_RISK if host_s > 0.0 else 1.0
    path, way_out = terms.path, terms.way_out
    arrival, unfitted = _arrival(tenant, terms, path)
    found = delay_bound(arrival, path.services, own_share * epsilon)
    network = delay_bound(_arrival(tenant, terms, way_out)[0], way_out.services, own_share * epsilon)
    curve = delay_curve(arrival, path.services, own_share * CURVE_EPSILONS) + host_s
    parts = [BoundPart(name=part.domain, delay_s=part.delay_s, note=_note(part)) for part in found.parts]
    assumed = "framing and computations are as known, all else is signed"
    if host_s > 0.0:
        parts.append(BoundPart(name=HOST, delay_s=host_s, note="the emulating host on both ways; policed by a gate"))
        assumed = "framing is the warm-up's, all else is signed; a computation that is paused is the host's"
    return BoundRecord(
        bound_s=found.delay_s + host_s,
        network_bound_s=network.delay_s + host_s,
        method=found.method,
        assumptions=(
            *found.assumptions,
            assumed,
            *([_HOST_ASSUMPTION] if host_s > 0.0 else []),
            *_replayed(tenant),
        ),
        parts=tuple(parts),
        budget=tuple(
            BudgetShare(domain=line.domain, epsilon=line.epsilon, delay_s=line.delay_s, price_per_s=line.price_per_s)
            for line in found.budget
        ),
        rejected={c.method: c.delay_s + host_s for c in found.rejected if math.isfinite(c.delay_s)},
        curve=tuple((float(e), float(d)) for e, d in zip(CURVE_EPSILONS, curve, strict=True) if math.isfinite(d)),
        explanation="\n".join(
            [found.explain(), *([f"No flow was fitted to the trace: {unfitted}."] if unfitted else [])]
        ),
    )


def _replayed(tenant: Tenant) -> tuple[str, ...]:
    """How much faster than recorded a trace is replayed."""
    arrivals = tenant.arrivals
    if not isinstance(arrivals, TraceArrivals):
        return ()
    return (f"{arrivals.path.name} is replayed {arrivals.speed_up:g} times as fast as it was recorded",)


def _note(part: Part) -> str:
    if part.kind == "queue":
        return "the tenant's own requests before it at the stage that is busiest with them"
    if part.domain == COMPUTE:
        return "a computation, and one of each other tenant of the server, as its domain signed it"
    return "promised latency of its queues and links; the last one of each way with the request's own size"


def _arrival(tenant: Tenant, terms: RequestTerms, path: RequestPath) -> tuple[Arrival, str]:
    """Requests in the virtual time of a path: their model behind the meter, or the meter or the whole trace alone.

    With it, why no flow could be fitted to a trace; empty if one was, and of other arrivals.
    """
    if tenant.reservation is None:
        raise ValueError(f"tenant {tenant.name}: best effort has no contract, so nothing bounds its delay")
    arrivals, contract = tenant.arrivals, tenant.reservation
    if isinstance(arrivals, TraceArrivals):
        trace = read_workload(arrivals)
        sizes = np.broadcast_to(terms.demand.message_bits.astype(np.float64), trace.time_s.shape)
        time_s, period_s = trace.time_s / arrivals.speed_up, trace.period_s / arrivals.speed_up
        replayed = replayed_arrival(time_s, period_s, sizes, path, terms.out)
        try:
            return Metered(traced_arrival(time_s, sizes, path, terms.out), replayed), ""
        except CalculusError as error:
            return replayed, str(error)
    least_bits = np.resize(terms.least_bits, len(path.requests.up_bits))
    metered = metered_arrival(contract.meter_rate_bps, contract.burst_bits, path, least_bits)
    if not tenant.keeps_its_law:
        return metered, ""
    try:
        return Metered(request_arrival(arrivals, path), metered), ""
    except NotApplicableError:
        return metered, ""
