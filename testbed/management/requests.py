"""From what a request tenant declares and what was captured and calibrated to the words of the calculus.

Three things are needed for a bound on requests: what each kind of request costs on the wire in both directions and in
the server, how requests arrive when each counts for as long as it keeps its busiest stage busy, and what share of the
server the tenant holds. The mathematics is `testbed.calculus` (docs/calculus.md, "Compute stage").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.calculus import (
    Arrival,
    CompoundPoisson,
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
from testbed.scenario.model import Arrivals, MmppArrivals, OnOffArrivals, PoissonArrivals, RenewalArrivals
from testbed.telemetry.requests import Framing

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ComputeReservation:
    """A tenant's part of an inference server, as its operator promises it.

    Attributes:
        workers: Workers of the server.
        share: Fraction of them that the tenant is guaranteed.
        most_work_s: Time in which one of the tenant's requests is computed, as promised.
        foreign_work_s: The same of a request of each other tenant: one of each may be in the way.
    """

    workers: int
    share: float
    most_work_s: float
    foreign_work_s: tuple[float, ...] = ()

    @property
    def stage(self) -> SharedStage:
        """The same for the calculus; its unit of work is a second of one worker."""
        return SharedStage(Workers(self.workers, self.most_work_s), self.share, self.foreign_work_s, self.workers)


def request_class(
    message_bits: Sequence[int],
    answer_bits: int,
    out: Framing,
    back: Framing,
    *,
    most_work_s: float,
    weights: Sequence[float] = (),
) -> RequestClass:
    """The kinds of request of a tenant, measured in what they cost on the wire.

    Args:
        message_bits: Size of the message of each kind.
        answer_bits: Size of the largest answer's message.
        out: Framing towards the server.
        back: Framing towards the client.
        most_work_s: Longest computation of a request: padding costs the network, not the server.
        weights: How often each kind occurs, relative to the others; equally often when empty.
    """
    up = out.wire_bits(np.asarray(message_bits))
    down = float(back.wire_bits(answer_bits))
    return RequestClass(tuple(up.tolist()), (most_work_s,) * up.size, (down,) * up.size, tuple(weights))


def request_path(
    requests: RequestClass,
    out: Sequence[EnvelopeService],
    compute: ComputeReservation,
    back: Sequence[EnvelopeService],
    *,
    excess: ExcessTail | None = None,
    loss: float = 0.0,
) -> RequestPath:
    """A tenant's whole path; `delay_bound(request_arrival(...), path.services, epsilon)` bounds its requests.

    Args:
        requests: See `request_class`.
        out: What the domains promise towards the server, in path order (`testbed.envelope.service.to_service`).
        compute: What the server promises.
        back: What the domains promise towards the client, in the order answers cross them.
        excess: Tail of what the server exceeds its promise by.
        loss: Probability that the server drops, rejects or fails a request.
    """
    return RequestPath(requests, tuple(out), compute.stage, tuple(back), excess, loss)


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
    rate_bps = min(service.rate_bps for service in path.up)
    sizes_s = np.maximum(out.wire_bits(message_bits) / rate_bps, path.virtual_sizes_s.min())
    return fit_trace(time_s, sizes_s)


def metered_arrival(meter_rate_bps: float, burst_bits: float, path: RequestPath) -> TokenBucket:
    """What the tenant's meter enforces, in the virtual time of its path: holds whatever the tenant does.

    A request that puts S bits on the wire counts for at most S times the largest ratio of virtual size to bits.
    """
    sizes_s = path.virtual_sizes_s
    seconds_per_bit = float((sizes_s / np.array(path.requests.up_bits)).max())
    return TokenBucket(
        rate_bps=meter_rate_bps * seconds_per_bit,
        burst_bits=burst_bits * seconds_per_bit,
        packet_bits=float(sizes_s.max()),
    )
