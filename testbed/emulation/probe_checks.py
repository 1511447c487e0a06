"""What a meter or queue must do to probe traffic, and how far a correct one may be off: arithmetic without a network.

Sizes are L2 frames without FCS. Tolerances have three sources and no free factor: a packet is forwarded whole or not at
all; a meter refills once a millisecond; and a switch or a timer may act later than it should, for which
`SWITCH_LATENESS_S` stands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controller.program import Meter, Queue
from testbed.emulation.probe_bucket import BucketBounds

METER_GRAIN_S = 1e-3
SWITCH_LATENESS_S = 2e-3
METER_LATENESS_S = METER_GRAIN_S + SWITCH_LATENESS_S
_BLUNT_RATE = 0.1
"""A rate known no better than to this part proves nothing, whatever was found."""
_BLUNT_BUCKET = 0.5
"""The same for a bucket."""
_BURSTLESS_S = 1.0
"""How much of its rate a meter's bucket holds without the flag BURST."""


@dataclass(frozen=True)
class ProbeResult:
    """One thing probed, with what was found and what was expected, in bits, bits/s, packets or bytes as `what` says.

    Attributes:
        domain: Name of the domain, `(path)` for what crosses all of them.
        tenant: Name, several joined by commas where they are judged together.
        what: The thing probed and its unit.
        found: Measured.
        expected: What the program says.
        tolerance: Largest difference of a correct network.
        ok: Whether the difference is within it, and the tolerance within its limit.
        limit: Largest tolerance with which right and wrong can be told apart; None where nothing was timed.
    """

    domain: str
    tenant: str
    what: str
    found: float
    expected: float
    tolerance: float
    ok: bool
    limit: float | None = None

    @property
    def blunt(self) -> bool:
        """Whether it was measured so badly that being within the tolerance says nothing."""
        return self.limit is not None and self.limit < self.tolerance and self._within

    @property
    def _within(self) -> bool:
        return abs(self.found - self.expected) <= self.tolerance

    def __str__(self) -> str:
        said = (
            f"{self.domain}, {self.tenant}: {self.what} found {self.found:,.0f}, "
            f"expected {self.expected:,.0f} +- {self.tolerance:,.0f}"
        )
        if not self.blunt:
            return said
        return (
            f"{said}; right and wrong can be told apart up to +- {self.limit:,.0f}: this host is too slow or too busy "
            "to tell, so end what else runs on it or lower the scenario's rates"
        )


@dataclass(frozen=True)
class Passed:
    """What came through a meter or a queue that was offered more than it lets through.

    Attributes:
        bits: Let through.
        elapsed_s: How long that took.
        uncertainty_s: How much longer or shorter it may have been: reading a counter takes its time.
    """

    bits: int
    elapsed_s: float
    uncertainty_s: float = 0.0


def judge(domain: str, tenant: str, what: str, *, found: float, expected: float, tolerance: float) -> ProbeResult:
    """Compare; counts that must be equal have tolerance 0."""
    return ProbeResult(domain, tenant, what, found, expected, tolerance, abs(found - expected) <= tolerance)


def meter_burst(
    domain: str, tenant: str, meter: Meter, *, bounds: BucketBounds, frame_bits: int, offered_bits: int
) -> ProbeResult:
    """Bucket of a meter from what floods say of it: the middle of their bounds, known to half of what is between them.

    A meter refills once a millisecond, so it may be that much ahead of the refill that bounds count, or behind. Bounds
    that exclude each other are no token bucket's; the one that is farther off is what was found. Blunt is what a bucket
    of twice the size would pass for; and floods of which none was cut.
    """
    rate, bucket = meter.rate_kbps * 1000, meter.burst_kbit * 1000
    low, high, cut = bounds.low, bounds.high, bounds.high < float("inf")
    if not cut:
        high = max(low, offered_bits)
    found = (low + high) / 2 if low <= high else max(low, high, key=lambda end: abs(end - bucket))
    tolerance = frame_bits + rate * METER_GRAIN_S + max(0.0, high - low) / 2
    result = judge(domain, tenant, "meter burst, bits", found=found, expected=bucket, tolerance=tolerance)
    # A meter without BURST is known as badly as a right one.
    apart = abs(bucket - rate * _BURSTLESS_S)
    limit = _BLUNT_BUCKET * bucket
    if apart > 2 * (frame_bits + rate * METER_LATENESS_S):
        limit = min(limit, apart / 2)
    return _sharp(result, limit if cut else 0.0)


def meter_rate(domain: str, tenant: str, meter: Meter, *, passed: Passed, frame_bits: int) -> ProbeResult:
    """Rate of a meter from what it let through between two moments at which an overload had left it empty."""
    rate = meter.rate_kbps * 1000
    slack_bits = 2 * (frame_bits + rate * METER_LATENESS_S)
    return _rate(domain, tenant, "meter rate, bit/s", rate_bps=rate, passed=passed, slack_bits=slack_bits)


def queue_rate(domain: str, tenant: str, port: str, queue: Queue, *, passed: Passed, frame_bits: int) -> ProbeResult:
    """Rate of a reserved class from what it sent while it never ran empty.

    Its burst makes up for a late timer, so a reading just before or after may be off by what the lateness is worth.
    """
    slack_bits = 2 * frame_bits + min(8 * queue.burst_bytes, queue.rate_bps * SWITCH_LATENESS_S)
    what = f"queue rate at {port}, bit/s"
    return _rate(domain, tenant, what, rate_bps=queue.rate_bps, passed=passed, slack_bits=slack_bits)


def _rate(domain: str, tenant: str, what: str, *, rate_bps: int, passed: Passed, slack_bits: float) -> ProbeResult:
    tolerance = (slack_bits + rate_bps * passed.uncertainty_s) / passed.elapsed_s
    found = passed.bits / passed.elapsed_s
    result = judge(domain, tenant, what, found=found, expected=rate_bps, tolerance=tolerance)
    return _sharp(result, _BLUNT_RATE * rate_bps)


def _sharp(result: ProbeResult, limit: float) -> ProbeResult:
    """The result with its limit, and nothing proven by it where its tolerance is beyond."""
    limited = replace(result, limit=limit)
    return replace(limited, ok=result.ok and not limited.blunt)


def left_over_rate(
    domain: str,
    queues: dict[str, Queue],
    port: str,
    *,
    link_rate_bps: int,
    reserved_bps: int,
    passed: Passed,
    frame_bits: int,
) -> ProbeResult:
    """Rate of all best-effort classes together while every reserved class uses its own.

    At most the rest of the link and at least what they were given: the link's class, which they borrow from, forgets
    what a late timer leaves over, and nobody promised it to them. The rest is exceeded by a millisecond of the link,
    which that class can hold, their own bursts, and a packet of every class on the way.
    """
    most = min(link_rate_bps - reserved_bps, sum(queue.ceil_bps for queue in queues.values()))
    least = sum(queue.rate_bps for queue in queues.values())
    slack = link_rate_bps * METER_GRAIN_S + sum(8 * queue.burst_bytes for queue in queues.values())
    tolerance = (slack + 2 * frame_bits * (len(queues) + 1) + most * passed.uncertainty_s) / passed.elapsed_s
    found = passed.bits / passed.elapsed_s
    ok = least - tolerance <= found <= most + tolerance
    what = f"left-over rate at {port}, at most, bit/s"
    return ProbeResult(domain, ", ".join(queues), what, found, most, tolerance, ok)
