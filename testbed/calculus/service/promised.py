"""What a domain promises a tenant: a rate, a latency, and how often a packet lags further behind than that.

The lag is measured against an ideal queue that serves the tenant's arrivals at this domain at R, the smallest rate the
tenant reserves on its path. With G_n the time that queue would start packet n and d_n the time the packet leaves,
`X_n = max(0, d_n - G_n - T)` is the lag, and the *lingering* lag Y_n = max(X_n, Y_{n-1} - idle_n) remembers an old lag
until the ideal queue has been idle for as long. `ExcessTail` bounds Y (docs/calculus.md, "Service").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from testbed.calculus.errors import CalculusError, require_not_negative, require_positive


@dataclass(frozen=True, slots=True)
class ExcessTail:
    """`P_packet(Y > x) <= prefactor exp(-decay_per_s x)` for x >= x_min_s, whatever conforming traffic arrives.

    Attributes:
        prefactor: M; an upper confidence limit when it was measured.
        decay_per_s: theta in 1/s; a lower confidence limit when it was measured.
        x_min_s: Where the bound starts to hold.
        cap_s: An excess that is never exceeded, because the queue is finite or because what exceeds it is counted as
            lost; infinite when there is none.
    """

    prefactor: float
    decay_per_s: float
    x_min_s: float = 0.0
    cap_s: float = math.inf

    def __post_init__(self) -> None:
        require_positive("prefactor of an excess", self.prefactor)
        require_positive("decay of an excess", self.decay_per_s)
        require_not_negative("x_min of an excess", self.x_min_s)
        if not self.cap_s > 0.0:
            raise CalculusError(f"cap of an excess is {self.cap_s!r}; expected above 0")


@dataclass(frozen=True, slots=True)
class RateLatency:
    """A guarantee without exceptions: a packet leaves at most `latency_s` after an ideal queue of the rate starts it.

    Attributes:
        rate_bps: Reserved rate.
        latency_s: T, everything else that can hold a packet up, its own transmission included where the hop serialises.
        name: The domain, for reports.
    """

    rate_bps: float
    latency_s: float
    name: str = ""

    def __post_init__(self) -> None:
        require_positive(f"rate of service {self.name!r}", self.rate_bps)
        require_not_negative(f"latency of service {self.name!r}", self.latency_s)

    @property
    def excess(self) -> ExcessTail | None:
        """None: nothing exceeds the latency."""
        return None

    @property
    def loss_probability(self) -> float:
        """0: nothing is lost."""
        return 0.0

    @property
    def worst_latency_s(self) -> float:
        """The latency."""
        return self.latency_s


@dataclass(frozen=True, slots=True)
class EnvelopeService:
    """A domain's promise: a rate, a latency, a tail of what exceeds it, and a probability of loss.

    Attributes:
        rate_bps: Reserved rate.
        latency_s: T; the deterministic part.
        excess: Tail of the lingering lag beyond T, or None when nothing exceeds T.
        loss_probability: Probability that a packet which enters the domain is lost in it (or exceeds the cap).
        name: The domain, for reports.
    """

    rate_bps: float
    latency_s: float
    excess: ExcessTail | None = None
    loss_probability: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        require_positive(f"rate of service {self.name!r}", self.rate_bps)
        require_not_negative(f"latency of service {self.name!r}", self.latency_s)
        if not 0.0 <= self.loss_probability < 1.0:
            raise CalculusError(
                f"loss probability of service {self.name!r} is {self.loss_probability!r}; expected at least 0, below 1"
            )

    @property
    def worst_latency_s(self) -> float:
        """T plus the cap of the excess; infinite when the excess has no cap."""
        return self.latency_s + (0.0 if self.excess is None else self.excess.cap_s)


def concatenated(*services: RateLatency) -> RateLatency:
    """Servers in tandem as one: the smallest rate, and all latencies (min-plus convolution of the service curves).

    Raises:
        CalculusError: There is no service.
    """
    if not services:
        raise CalculusError("a concatenation has 0 services; expected at least 1")
    return RateLatency(
        min(service.rate_bps for service in services),
        math.fsum(service.latency_s for service in services),
        " + ".join(service.name for service in services if service.name),
    )


def packetised(service: RateLatency, packet_bits: float) -> RateLatency:
    """The service of a hop that stores a packet of up to `packet_bits` and then sends it: one transmission more.

    A class of Linux HTB does not do this (it sends while it has tokens and goes into debt), so it needs no packetiser.
    """
    require_not_negative("largest packet", packet_bits)
    return RateLatency(service.rate_bps, service.latency_s + packet_bits / service.rate_bps, service.name)
