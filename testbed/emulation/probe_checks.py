"""What a meter or queue must do to probe traffic, and how far a correct one may be off: arithmetic without a network.

Sizes are L2 frames without FCS. Tolerances have three sources and no free factor: a packet is forwarded whole or not at
all; a meter refills once a millisecond; and the switch may look at a packet later than it was sent, for which
`SWITCH_LATENESS_S` stands. HTB may also be ahead or behind by its own burst.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.program import Meter, Queue

METER_GRAIN_S = 1e-3
SWITCH_LATENESS_S = 2e-3


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
        ok: Whether the difference is within it.
    """

    domain: str
    tenant: str
    what: str
    found: float
    expected: float
    tolerance: float
    ok: bool

    def __str__(self) -> str:
        return (
            f"{self.domain}, {self.tenant}: {self.what} found {self.found:,.0f}, "
            f"expected {self.expected:,.0f} +- {self.tolerance:,.0f}"
        )


@dataclass(frozen=True)
class Passed:
    """What came through a meter that was offered more than it lets through.

    Attributes:
        bits: Let through.
        elapsed_s: How long that took.
    """

    bits: int
    elapsed_s: float


def judge(domain: str, tenant: str, what: str, *, found: float, expected: float, tolerance: float) -> ProbeResult:
    """Compare; counts that must be equal have tolerance 0."""
    return ProbeResult(domain, tenant, what, found, expected, tolerance, abs(found - expected) <= tolerance)


def meter_burst(domain: str, tenant: str, meter: Meter, *, passed: Passed, frame_bits: int) -> ProbeResult:
    """Bucket of a meter from what it let through of an overload that found it full and left it empty."""
    rate = meter.rate_kbps * 1000
    return judge(
        domain,
        tenant,
        "meter burst, bits",
        found=passed.bits - rate * passed.elapsed_s,
        expected=meter.burst_kbit * 1000,
        tolerance=2 * frame_bits + rate * (METER_GRAIN_S + SWITCH_LATENESS_S),
    )


def meter_rate(domain: str, tenant: str, meter: Meter, *, passed: Passed, frame_bits: int) -> ProbeResult:
    """Rate of a meter from what it let through between two moments at which an overload had left it empty."""
    rate = meter.rate_kbps * 1000
    return judge(
        domain,
        tenant,
        "meter rate, bit/s",
        found=passed.bits / passed.elapsed_s,
        expected=rate,
        tolerance=2 * (frame_bits + rate * (METER_GRAIN_S + SWITCH_LATENESS_S)) / passed.elapsed_s,
    )


def queue_rate(
    domain: str, tenant: str, port: str, queue: Queue, *, sent_bits: int, elapsed_s: float, frame_bits: int
) -> ProbeResult:
    """Rate of a reserved class from what it sent while it never ran empty."""
    return judge(
        domain,
        tenant,
        f"queue rate at {port}, bit/s",
        found=sent_bits / elapsed_s,
        expected=queue.rate_bps,
        tolerance=(2 * frame_bits + 8 * queue.burst_bytes) / elapsed_s,
    )


def left_over_rate(
    domain: str,
    queues: dict[str, Queue],
    port: str,
    *,
    link_rate_bps: int,
    reserved_bps: int,
    sent_bits: int,
    elapsed_s: float,
    frame_bits: int,
) -> ProbeResult:
    """Rate of all best-effort classes together while every reserved class uses its own: the rest of the link.

    They borrow from the link's class, whose bucket holds a millisecond, and every class may have a packet on the way.
    """
    expected = min(link_rate_bps - reserved_bps, sum(queue.ceil_bps for queue in queues.values()))
    slack = link_rate_bps * METER_GRAIN_S + sum(8 * queue.burst_bytes for queue in queues.values())
    return judge(
        domain,
        ", ".join(queues),
        f"left-over rate at {port}, bit/s",
        found=sent_bits / elapsed_s,
        expected=expected,
        tolerance=(slack + 2 * frame_bits * (len(queues) + 1)) / elapsed_s,
    )
