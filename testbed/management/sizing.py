"""Token buckets and quanta of a port's HTB classes, and the latency that follows for each reservation.

A class needs `quantum >= R T + L`, and a burst that covers its waits, else it loses rate for good; the others' quanta
are in its T. The smallest such parameters are found together, by iteration from below. What is installed from them,
and read back, is the controller's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from controller.program import Queue
from testbed.calculus.service.htb import HtbClass, htb_latencies
from testbed.errors import ReservationError

DRAIN_BPS = 400e6
"""Rate at which a software switch port is drained where nothing serialises: the CPU's, stated low and then policed by
the calibration. A port that reserves a larger share of it leaves no room for a second round of the others."""

TIMER_S = 0.2e-3
"""Lateness of the kernel timer that wakes a throttled class, beyond which the host allowance answers."""

PAUSE_S = 10e-3
"""How long the host may leave a class unserved without its losing rate: afterwards its bucket pays for all that it
missed, at once. With less, a pause in the middle of a busy period delays every packet to the end of that period. The
bucket never makes a packet late and, being larger than a turn's quantum, no other class either."""

CLASS_BASE = 0x10
"""Classes 1:0 to 1:f are the root and the default class."""

SHARED_MINOR = CLASS_BASE
"""Class 1:10 belongs to no tenant, because their numbers start at 1: it is everybody's in a domain with one queue."""

_TOLERANCE_BITS = 1.0
_MAX_ROUNDS = 10_000


@dataclass(frozen=True)
class ClassDemand:
    """A reservation that wants a class.

    Attributes:
        tenant: Name.
        rate_bps: Reserved rate.
        packet_bits: Largest packet.
    """

    tenant: str
    rate_bps: int
    packet_bits: int


@dataclass(frozen=True)
class ReservedClass:
    """The class parameters of one reservation and the latency they give at one port.

    Attributes:
        burst_bytes: HTB `burst` and `cburst`.
        quantum_bytes: HTB `quantum`.
        latency_s: T of one port, timer included, host allowance not.
    """

    burst_bytes: int
    quantum_bytes: int
    latency_s: float


def class_minor(number: int) -> int:
    """HTB class 1:minor of a tenant."""
    return CLASS_BASE + number


def best_effort_class(number: int, link_rate_bps: int, packet_bits: int) -> Queue:
    """A class that may borrow all that reservations leave of the link, one packet at a time.

    Its own rate is a hundredth of the link's so that HTB never starves it; its burst is small because it is in every
    reserved class's latency.
    """
    packet_bytes = -(-packet_bits // 8)
    return Queue(
        minor=class_minor(number),
        rate_bps=max(8000, link_rate_bps // 100),
        ceil_bps=link_rate_bps,
        burst_bytes=2 * packet_bytes,
        quantum_bytes=packet_bytes,
        limit_packets=200,
    )


def shared_class(link_rate_bps: int, packet_bits: int, queue_bits: int, *, pause_s: float = PAUSE_S) -> Queue:
    """The one class of a port whose tenants all share a FIFO queue at the link's rate.

    Args:
        link_rate_bps: Rate of the link.
        packet_bits: Largest packet of any tenant.
        queue_bits: Size of the queue.
        pause_s: As for `design_classes`.

    Raises:
        ReservationError: As `design_classes`.
    """
    own = design_classes([ClassDemand("everybody", link_rate_bps, packet_bits)], pause_s=pause_s)["everybody"]
    return Queue(
        minor=SHARED_MINOR,
        rate_bps=link_rate_bps,
        ceil_bps=link_rate_bps,
        burst_bytes=own.burst_bytes,
        quantum_bytes=own.quantum_bytes,
        limit_packets=-(-queue_bits // packet_bits),
    )


def design_classes(
    demands: Sequence[ClassDemand],
    *,
    drain_bps: float = DRAIN_BPS,
    best_effort_bits: int = 12_112,
    pause_s: float = PAUSE_S,
) -> dict[str, ReservedClass]:
    """Find the smallest bursts and quanta with which every reservation keeps its rate, and its latency.

    Args:
        demands: All reservations of a port.
        drain_bps: Rate at which the port is drained.
        best_effort_bits: Largest packet of the one best-effort class assumed beside them.
        pause_s: How long the host may leave a class unserved.

    Raises:
        ReservationError: No finite burst is enough: the reservations are too large a share of the drain rate.
    """
    if not demands:
        return {}
    bystander = HtbClass(1.0, 2 * best_effort_bits, best_effort_bits, best_effort_bits)
    classes = [HtbClass(float(d.rate_bps), d.packet_bits, d.packet_bits, d.packet_bits) for d in demands]
    total = sum(demand.rate_bps for demand in demands)
    for _ in range(_MAX_ROUNDS):
        *latencies, _ = htb_latencies([*classes, bystander], drain_bps, TIMER_S)
        turns = [d.rate_bps * latency + d.packet_bits for d, latency in zip(demands, latencies, strict=True)]
        if total > drain_bps or max(latencies) > 1.0:
            raise ReservationError(
                f"reservations of {total} bit/s on a port drained at {drain_bps:g} bit/s: no finite burst lets every "
                "class keep its rate; reserve less"
            )
        if all(turn <= c.quantum_bits + _TOLERANCE_BITS for turn, c in zip(turns, classes, strict=True)):
            break
        classes = [
            replace(c, burst_bits=turn + c.rate_bps * pause_s, quantum_bits=turn)
            for turn, c in zip(turns, classes, strict=True)
        ]
    return {
        d.tenant: ReservedClass(-(-int(c.burst_bits + 8) // 8), -(-int(c.quantum_bits + 8) // 8), latency)
        for d, c, latency in zip(demands, classes, latencies, strict=True)
    }
