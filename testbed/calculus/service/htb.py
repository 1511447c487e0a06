"""The latency of a reserved class of Linux HTB, and what its parameters must be for the class to have one.

All classes are leaves of one root with rate = ceil, at one priority, served by deficit round robin. Pure arithmetic:
what is installed in a kernel, and whether it was read back, is the data plane's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.calculus.errors import CalculusError, require_positive
from testbed.calculus.service.promised import RateLatency


@dataclass(frozen=True, slots=True)
class HtbClass:
    """One leaf class.

    Attributes:
        rate_bps: Rate and ceil.
        burst_bits: Token bucket depth of the class.
        quantum_bits: What one turn of the round robin may send.
        packet_bits: Largest packet of the class.
    """

    rate_bps: float
    burst_bits: float
    quantum_bits: float
    packet_bits: float

    def __post_init__(self) -> None:
        require_positive("rate of an HTB class", self.rate_bps)
        require_positive("burst of an HTB class", self.burst_bits)
        require_positive("quantum of an HTB class", self.quantum_bits)
        require_positive("packet size of an HTB class", self.packet_bits)


def htb_latency(own: HtbClass, others: Sequence[HtbClass], drain_bps: float, timer_s: float) -> float:
    """Latency of a reserved class while all others are backlogged.

    `T = 2 Round + L/C + t_timer`, `Round = sum over others of (min(Q_j, B_j/(1 - R_j/C)) + L_j)/C`. Two rounds, because
    the class's turn can end on the deficit left over from the turn before; one round is unsound.

    Args:
        own: The class whose latency is asked.
        others: All other classes under the same root.
        drain_bps: C, the rate at which the port really sends: the link, or the CPU where nothing serialises.
        timer_s: Largest lateness of the timer that wakes a throttled class.

    Raises:
        CalculusError: The reservations exceed the drain rate, or the burst or the quantum is too small for the class
            to keep its rate while it waits.
    """
    require_positive("drain rate", drain_bps)
    total = math.fsum((own.rate_bps, *(other.rate_bps for other in others)))
    if total > drain_bps:
        raise CalculusError(f"sum of reserved rates <= drain rate fails: {total:g} against {drain_bps:g} bit/s")
    turns = math.fsum(_turn_bits(other, drain_bps) for other in others)
    latency = _latency_s(own, turns, drain_bps, timer_s)
    needed = own.rate_bps * latency + own.packet_bits
    for what, value in (("burst", own.burst_bits), ("quantum", own.quantum_bits)):
        if value < needed:
            raise CalculusError(
                f"{what} >= rate x latency + packet fails: {value:g} against {needed:g} bits; "
                f"with less, a class of {own.rate_bps:g} bit/s loses rate while it waits"
            )
    return latency


def htb_latencies(classes: Sequence[HtbClass], drain_bps: float, timer_s: float) -> list[float]:
    """Latency of each class of a port while all the others are backlogged, in one pass over them.

    Bursts and quanta are not held against it, because they follow from it where classes are designed.

    Args:
        classes: All classes under one root, none with a quantum beyond reason.
        drain_bps: As for `htb_latency`.
        timer_s: As for `htb_latency`.
    """
    turns = [_turn_bits(one, drain_bps) for one in classes]
    together = math.fsum(turns)
    return [_latency_s(one, together - turn, drain_bps, timer_s) for one, turn in zip(classes, turns, strict=True)]


def _turn_bits(one: HtbClass, drain_bps: float) -> float:
    """What a backlogged class sends in a round at most."""
    return min(one.quantum_bits, one.burst_bits / max(1.0 - one.rate_bps / drain_bps, 1e-12)) + one.packet_bits


def _latency_s(own: HtbClass, turns_bits: float, drain_bps: float, timer_s: float) -> float:
    return 2.0 * turns_bits / drain_bps + own.packet_bits / drain_bps + timer_s


def htb_service(
    own: HtbClass, others: Sequence[HtbClass], drain_bps: float, timer_s: float, name: str = ""
) -> RateLatency:
    """The rate-latency service of a reserved class; arguments as `htb_latency`."""
    return RateLatency(own.rate_bps, htb_latency(own, others, drain_bps, timer_s), name)
