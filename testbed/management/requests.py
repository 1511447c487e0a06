"""From what a request tenant declares and what was captured and calibrated to the words of the calculus.

Three things are needed for a bound on requests: what each kind of request costs on the wire in both directions and in
the server, how requests arrive when each counts for as long as it keeps its busiest stage busy, and what share of the
server the tenant holds. The mathematics is `testbed.calculus` (docs/calculus.md, "Compute stage").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.calculus import (
    Arrival,
    CompoundPoisson,
    ComputeStage,
    ConstantGap,
    EnvelopeService,
    ExcessTail,
    GammaGap,
    MarkovOnOff,
    MarkovPoisson,
    NotApplicableError,
    Renewal,
    RequestClass,
    RequestPath,
    SharedStage,
    TokenBucket,
    Workers,
    fit_trace,
)
from testbed.envelope.descriptor import Envelope
from testbed.envelope.errors import WrongRateError
from testbed.scenario.guardrails import largest_backlog_bits
from testbed.scenario.model import Arrivals, MmppArrivals, OnOffArrivals, PoissonArrivals, RenewalArrivals
from testbed.telemetry.requests import Framing

_ROUNDING = 1e-9
_BELOW_ONE = 1.0 - 1e-9
"""A rate at which a queue of rate 1 still empties."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ComputeReservation:
    """A tenant's part of an inference server, as its operator promises it.

    Attributes:
        workers: Workers of the server.
        share: Fraction of them that the tenant is guaranteed.
        most_work_s: Time in which one of the tenant's requests is computed, as promised.
        foreign_work_s: The same of a request of each other tenant: one of each may be in the way.
        turn_s: What a turn amounts to, see `turn_s`; 0 where all computations take what turns go by.
    """

    workers: int
    share: float
    most_work_s: float
    foreign_work_s: tuple[float, ...] = ()
    turn_s: float = 0.0

    @property
    def charged_s(self) -> float:
        """Work at the rate of the share that a request stands for."""
        return max(self.most_work_s, self.turn_s)

    @property
    def stage(self) -> SharedStage:
        """The same for the calculus; its unit of work is a second of one worker."""
        return SharedStage(Workers(self.workers, self.most_work_s), self.share, self.foreign_work_s, self.workers)


@dataclass(frozen=True, slots=True)
class SignedStage:
    """A server as an envelope states it: requests of up to S bits at a rate in their bits, within a latency.

    Attributes:
        work_per_s: The rate; work is counted in bits of the request.
        latency_s: What it promises.
        workers: How many requests may be computed at once, and so overtake each other.
        request_bits: S.
    """

    work_per_s: float
    latency_s: float
    workers: int
    request_bits: float

    @property
    def overtaking_work(self) -> float:
        """What the other workers can do while one is busy with the longest request."""
        return (self.workers - 1) * self.request_bits


def turn_s(share: float, work_s: float, expected_s: float, others: Iterable[tuple[float, float, float]]) -> float:
    """Work at the rate of a share that a computation amounts to, others' turns meanwhile included.

    Turns go by what computations are expected to take, e, and not by what they take: for each of a tenant with share
    phi another tenant has (e/phi) (phi_j/e_j), whatever they take.

    Args:
        share: Phi.
        work_s: Longest computation of the tenant.
        expected_s: e.
        others: Of each other tenant of the server, its share, longest and expected computation.
    """
    return share * work_s + expected_s * sum(other * longest_s / usual_s for other, longest_s, usual_s in others)


def request_class(
    message_bits: Sequence[int],
    answer_bits: int,
    out: Framing,
    back: Framing,
    *,
    work: float,
    weights: Sequence[float] = (),
) -> RequestClass:
    """The kinds of request of a tenant, measured in what they cost on the wire.

    Args:
        message_bits: Size of the message of each kind.
        answer_bits: Size of the largest answer's message.
        out: Framing towards the server.
        back: Framing towards the client.
        work: What the server does for a request, in its own units: padding costs the network, not the server.
        weights: How often each kind occurs, relative to the others; equally often when empty.
    """
    up = out.wire_bits(np.asarray(message_bits))
    down = float(back.wire_bits(answer_bits))
    return RequestClass(tuple(up.tolist()), (work,) * up.size, (down,) * up.size, tuple(weights))


def request_path(
    requests: RequestClass,
    out: Sequence[EnvelopeService],
    stage: ComputeStage,
    back: Sequence[EnvelopeService],
    *,
    excess: ExcessTail | None = None,
    loss: float = 0.0,
) -> RequestPath:
    """A tenant's whole path; `delay_bound(request_arrival(...), path.services, epsilon)` bounds its requests.

    Args:
        requests: See `request_class`.
        out: What the domains promise towards the server, in path order (`testbed.envelope.service.to_service`).
        stage: What the server promises.
        back: What the domains promise towards the client, in the order answers cross them.
        excess: Tail of what the server exceeds its promise by, measured against a queue in which no request is smaller
            than its virtual size.
        loss: Probability that the server drops, rejects or fails a request.
    """
    return RequestPath(requests, tuple(out), stage, tuple(back), excess, loss)


def served_rate_bps(
    counted_bits: float, least_bits: float, answer_bits: float, *, network_bps: float, server_bps: float
) -> int:
    """The rate, in bits of requests that all count as the largest, to measure the tail of a server against.

    A queue of this rate is no faster than the server's share and the way back, so the tail may be used in the bound
    (`require_served_rate`). Where it can be, it is no slower than the way to the server either, so that tails of the
    network may be used beside it (`require_forwarded_rate`).

    Args:
        counted_bits: What a request counts for.
        least_bits: What the largest one costs on the wire at the least.
        answer_bits: What the largest answer costs on the wire.
        network_bps: Smallest rate reserved on the way, the same in both directions.
        server_bps: Rate of the tenant's share of the server.
    """
    fastest_bps = min(server_bps, network_bps * counted_bits / answer_bits)
    return max(1, min(int(fastest_bps), math.ceil(network_bps * counted_bits / least_bits)))


def require_served_rate(envelope: Envelope, path: RequestPath) -> None:
    """Check that the tail of a server, if it has one, was measured at no larger rate than may be used on the path.

    What a server exceeds its promise by lingers in itself and on the way back, so the tail must have been measured
    with requests that count for at least what keeps either of them busy (docs/calculus.md, "Compute stage").

    Raises:
        WrongRateError: The server, or the way back, is busier with a request than what the tail was measured against.
    """
    if envelope.tail is None:
        return
    counted_s = envelope.guardrails.largest_packet_bits / envelope.tail.rate_bps
    busiest_s = float(path.served_sizes_s.max())
    if busiest_s > counted_s * (1 + _ROUNDING):
        raise WrongRateError(
            f"domain {envelope.domain}: the tail of its server was measured at {envelope.tail.rate_bps} bit/s, where a "
            f"request counts for {counted_s * 1e3:.4g} ms, and what follows is busy with one for "
            f"{busiest_s * 1e3:.4g}; lingering excess cannot be converted, so ask for a calibration on this path"
        )


def require_forwarded_rate(envelopes: Iterable[Envelope], path: RequestPath, least_bits: npt.ArrayLike) -> None:
    """Check that nothing on a path is busier with a request than the links that its domains' tails were measured on.

    Such a stage leaves the queue of the bound less idle time than the queue that a tail was measured against, so what
    a domain exceeds its promise by would linger for longer than was signed. That queue was fed real packets, so what
    counts is the least that a request is on the wire, not what it is declared or counted as.

    Args:
        envelopes: What the domains signed of the way to the server.
        path: The path.
        least_bits: What each kind of request is on the wire at least, (kinds,).

    Raises:
        WrongRateError: The server, or the way back, is busier with some request than the way to the server.
    """
    for envelope in envelopes:
        if envelope.tail is None:
            continue
        forwarded_s = np.asarray(least_bits) / envelope.tail.rate_bps
        # The rate of a server is rounded down to whole bits per second.
        busier = np.flatnonzero(path.served_sizes_s > forwarded_s * (1 + _ROUNDING + 1 / envelope.tail.rate_bps))
        if busier.size:
            kind = int(busier[0])
            raise WrongRateError(
                f"domain {envelope.domain}: its tail was measured at {envelope.tail.rate_bps} bit/s, where a request "
                f"takes as little as {forwarded_s[kind] * 1e3:.4g} ms, and what follows is busy with one for "
                f"{path.served_sizes_s[kind] * 1e3:.4g}; lingering excess cannot be converted, so reserve more of the "
                "server or less of the network"
            )


def request_arrival(arrivals: Arrivals, path: RequestPath) -> Arrival:
    """How requests arrive in the virtual time of their path, for a tenant that keeps to what it declared.

    Raises:
        NotApplicableError: Requests of varying sizes that leave in bursts, or a trace, for which see `traced_arrival`.
    """
    size = path.size
    match arrivals:
        case PoissonArrivals(rate_per_s=rate):
            return CompoundPoisson(rate, size)
        case RenewalArrivals(rate_per_s=rate, gap="deterministic"):
            return Renewal(ConstantGap(1.0 / rate), size)
        case RenewalArrivals(rate_per_s=rate, gap="erlang" | "gamma", cv=cv):
            return Renewal(GammaGap(1.0 / rate, cv**-2), size)
        case MmppArrivals(rates_per_s=rates, switch_per_s=switch):
            return MarkovPoisson(rates, size, switch)
        case OnOffArrivals(peak_bps=peak, mean_on_s=on, mean_off_s=off, size_bits=bits) if size.largest == min(
            size.values
        ):
            return MarkovOnOff(peak / bits * size.largest, on, off, packet_bits=size.largest)
        case _:
            raise NotApplicableError(
                f"no arrival model of the calculus describes requests of {type(arrivals).__name__}; bound them by what "
                "their meter lets pass"
            )


def traced_arrival(time_s: FloatArray, message_bits: FloatArray, path: RequestPath, out: Framing) -> Arrival:
    """A flow fitted to a trace's requests, the one part of the trace checked on the other.

    Args:
        time_s: When requests arrive, as they are replayed, float64[n].
        message_bits: Size of each message, float64[n].
        path: The path, whose work and answers are the same for every request.
        out: Framing towards the server.

    Raises:
        CalculusError: The trace is too short, or has no light tail.
    """
    return fit_trace(time_s, _traced_sizes_s(message_bits, path, out))


def replayed_arrival(
    time_s: FloatArray, period_s: float, message_bits: FloatArray, path: RequestPath, out: Framing
) -> TokenBucket:
    """What a trace that is replayed over and over brings at most, wherever a window begins in it.

    The bucket is the largest backlog of its own replay in virtual time, so no request that keeps to the trace waits
    longer. What its meter lets pass says less: as if every one of its bits could come in the smallest messages.

    Args:
        time_s: When requests arrive, as they are replayed, float64[n].
        period_s: After which they come again.
        message_bits: Size of each message, float64[n].
        path: The path, whose work and answers are the same for every request.
        out: Framing towards the server.
    """
    sizes_s = _traced_sizes_s(message_bits, path, out)
    rate = max(_BELOW_ONE, float(sizes_s.sum()) / period_s)
    return TokenBucket(rate, largest_backlog_bits(time_s, sizes_s, period_s, rate), packet_bits=float(sizes_s.max()))


def _traced_sizes_s(message_bits: FloatArray, path: RequestPath, out: Framing) -> FloatArray:
    rate_bps = min(service.rate_bps for service in path.up)
    return np.asarray(np.maximum(out.wire_bits(message_bits) / rate_bps, path.virtual_sizes_s.min()))


def metered_arrival(
    meter_rate_bps: float, burst_bits: float, path: RequestPath, least_bits: npt.ArrayLike
) -> TokenBucket:
    """What the tenant's meter enforces, in the virtual time of its path: holds whatever the tenant does.

    A request that puts S bits on the wire counts for at most S times the largest ratio of virtual size to the bits that
    it costs there at the least: what it is counted as is more than the meter sees of it.

    Args:
        meter_rate_bps: Rate of the meter.
        burst_bits: Its bucket.
        path: The path.
        least_bits: What each kind of request is on the wire at least, (kinds,).
    """
    sizes_s = path.virtual_sizes_s
    seconds_per_bit = float((sizes_s / np.asarray(least_bits)).max())
    return TokenBucket(
        rate_bps=meter_rate_bps * seconds_per_bit,
        burst_bits=burst_bits * seconds_per_bit,
        packet_bits=float(sizes_s.max()),
    )
