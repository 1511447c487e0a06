"""Whether a tenant's queues hold all that its bound lets wait in them: their limits count packets, bounds count bits.

A queue that may be full drops packets that the bound says are delivered, so where one may be there is no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from testbed.envelope.descriptor import Envelope
from testbed.report.tenant_record import BoundRecord
from testbed.scenario import guardrails
from testbed.scenario.model import FULL_FRAME_BITS, Domain, Tenant
from testbed.traffic.request_demand import EMPTY_BITS, Demand, packets, wire_bits

SHORT_QUEUE = (
    "its queue may be full, and drop packets, before any is as late as a bound would say; allow for a longer queue, or "
    "reserve more"
)


@dataclass(frozen=True)
class Calls:
    """What a tenant's requests, or its answers, are as packets.

    Attributes:
        crowding: Packets for each full one that would carry their bits, at most.
        largest: Packets of the largest.
    """

    crowding: float
    largest: int

    @classmethod
    def of(cls, message_bits: npt.ArrayLike) -> Self:
        """As declared before any was captured, generously; messages of these sizes, [n]."""
        sizes = np.asarray(message_bits, dtype=np.int64)
        count = packets(sizes)
        return cls(float((count * FULL_FRAME_BITS / wire_bits(sizes)).max()), int(count.max()))

    @property
    def sifted(self) -> Self:
        """What a meter that drops some of them may let pass: nothing but packets without payload."""
        return replace(self, crowding=FULL_FRAME_BITS / EMPTY_BITS)

    def most_packets(self, bits: float) -> float:
        """Packets that so many waiting bits are at most; a call at either end of them may be cut anywhere."""
        return self.crowding * bits / FULL_FRAME_BITS + self.largest


def latencies_s(path: Sequence[Domain], envelopes: Sequence[Envelope]) -> list[float]:
    """What the queues of each domain of a path are promised to take, links and hosts left out."""
    pairs = zip(path, envelopes, strict=True)
    return [e.latency_s - e.guardrails.host_allowance_s - domain.link_delay_s for domain, e in pairs]


def requests_behind_meter(tenant: Tenant, declared: Demand, calls: Calls) -> Calls:
    """What a tenant's requests are as packets behind its meter.

    Short of tokens, a meter drops full packets and lets small ones pass.

    Args:
        tenant: One that reserves and sends requests.
        declared: The messages it declares.
        calls: What its requests are in front of the meter.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    bought = tenant.reservation
    if bought is None:
        raise ValueError(f"tenant {tenant.name}: best effort has no meter")
    needed = guardrails.request_burst_bits(tenant.arrivals, declared, bought.meter_rate_bps, 0)
    return calls if tenant.keeps_its_law and bought.burst_bits >= needed else calls.sifted


def queues_hold(
    tenant: Tenant,
    bound: BoundRecord,
    queues_s: Sequence[float],
    *,
    host_s: float,
    metered: bool = True,
    calls: tuple[Calls, Calls] | None = None,
) -> bool:
    """Whether no more packets find a queue of the tenant's full than its bound lets be late.

    In domain d no more than R (W0 + T_1 + .. + T_d + host) bits of a tenant wait, and behind a meter (r, b) no more
    than b + r (T_1 + .. + T_d + host). So a queue of R w bits drops only what would be later than w, and one of the
    latter nothing. Requests must find one of the latter: their bound gives all of epsilon to the whole way. Answers
    pass no meter, and those of requests that piled up at the server come all at once. A queue on the way back that
    drops only behind R times the whole bound is enough: what finds so much is later, wherever it waited before.

    Args:
        tenant: One that reserves.
        bound: Its bound, that of the host included.
        queues_s: Latency that the queues of each domain of its path promise, nothing granted to a host.
        host_s: What a host may add on the path, 0 where there is none: packets go on arriving while it stands still.
        metered: Whether its meter is there.
        calls: What its requests are behind its meter, and its answers; None where it sends packets.
    """
    bought = tenant.reservation
    if bought is None:
        raise ValueError(f"tenant {tenant.name}: best effort has no queue of its own")
    limit = -(-bought.queue_bits // tenant.packet_bits)
    metered_bits = bought.burst_bits + bought.meter_rate_bps * (sum(queues_s) + host_s)
    if calls is not None:
        out, back = calls
        back_bits = bought.rate_bps * bound.bound_s
        return limit >= max(out.most_packets(metered_bits), back.most_packets(back_bits))
    bits = bought.rate_bps * bound.network_bound_s
    return limit >= guardrails.most_packets(
        tenant.arrivals,
        min(bits, metered_bits) if metered else bits,
        bucket=(bought.meter_rate_bps, bought.burst_bits) if tenant.keeps_its_law else None,
    )
