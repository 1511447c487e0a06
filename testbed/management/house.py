"""What a port promises whoever comes: class parameters and a latency for a full house, and the check that they hold.

The latency of an HTB class grows with the others on its port. A domain whose tenants come and go cannot sign a latency
that the next one breaks, so it signs the one of a full house: as many classes, as much reserved rate and as large
packets as it will ever admit. Buckets and quanta follow from that latency alone, so a newcomer changes nobody's class.
`Guest`s let admission compute everybody's latency again when one more comes; `latencies_s` does it from first
principles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.errors import ReservationError
from testbed.management.admission import Guest
from testbed.management.sizing import DRAIN_BPS, PAUSE_S, TIMER_S, ReservedClass
from testbed.scenario.model import FULL_FRAME_BITS

FloatArray = npt.NDArray[np.float64]

BYSTANDERS = 2
"""Classes beside the reserved ones: best effort, and what no class was found for. Each sends one packet a turn."""

_BYTE_BITS = 8


@dataclass(frozen=True, slots=True)
class House:
    """The fullest a port may become.

    Attributes:
        reservable_bps: Largest sum of reserved rates, below half of the drain rate.
        classes: Most reserved classes.
        packet_bits: Largest packet of any of them.
        drain_bps: Rate at which the port is drained.
    """

    reservable_bps: int
    classes: int
    packet_bits: int = FULL_FRAME_BITS
    drain_bps: float = DRAIN_BPS

    def __post_init__(self) -> None:
        """Raises `ReservationError` where no finite latency could be promised."""
        if not 0 < 2 * self.reservable_bps < self.drain_bps:
            raise ReservationError(
                f"a port drained at {self.drain_bps:g} bit/s: found {self.reservable_bps} bit/s reservable, expected "
                "more than none and less than half, or a class's turn comes too late to keep its rate; reserve less"
            )
        if self.classes < 1:
            raise ReservationError(f"a port: found room for {self.classes} classes, expected at least one")

    @property
    def latency_s(self) -> float:
        """T of every class in a full house, timer included.

        `htb_latency` with a quantum of R T + L for each of the others, which is linear in T: its fixed point, with all
        rates at their sum and all packets at their largest.
        """
        overhead_bits = self.classes * (2 * self.packet_bits + 2 * _BYTE_BITS)
        overhead_bits += BYSTANDERS * 2 * FULL_FRAME_BITS
        fixed_s = 2 * overhead_bits / self.drain_bps
        fixed_s += self.packet_bits / self.drain_bps + TIMER_S
        return float(fixed_s / (1 - 2 * self.reservable_bps / self.drain_bps))

    def shape(self, rate_bps: int, packet_bits: int, *, pause_s: float = PAUSE_S) -> ReservedClass:
        """The class of a reservation, the same whoever else is there.

        Args:
            rate_bps: Reserved rate.
            packet_bits: Largest packet.
            pause_s: How long the host may leave the class unserved.

        Raises:
            ReservationError: Packets larger than the house allows.
        """
        if packet_bits > self.packet_bits:
            raise ReservationError(
                f"packets of {packet_bits} bits on a port that promises for at most {self.packet_bits}; "
                "send smaller ones"
            )
        latency_s = self.latency_s
        turn_bits = rate_bps * latency_s + packet_bits
        return ReservedClass(_bytes(turn_bits + rate_bps * pause_s), _bytes(turn_bits), latency_s)

    def guest(self, tenant: str, rate_bps: int, shaped: ReservedClass, packet_bits: int) -> Guest:
        """A class as one of the crowd of its port, in bits of a round."""
        turn_bits = _turn_bits(float(rate_bps), shaped, self.drain_bps) + packet_bits
        spare_s = shaped.latency_s - TIMER_S - packet_bits / self.drain_bps
        return Guest(tenant, turn_bits, spare_s * self.drain_bps / 2 - BYSTANDERS * 2 * FULL_FRAME_BITS)


def _bytes(bits: float) -> int:
    return -(-(int(bits) + _BYTE_BITS) // _BYTE_BITS)


def _turn_bits(rate_bps: float, shaped: ReservedClass, drain_bps: float) -> float:
    return min(8.0 * shaped.quantum_bytes, 8.0 * shaped.burst_bytes / max(1.0 - rate_bps / drain_bps, 1e-12))


def latencies_s(classes: Sequence[tuple[int, ReservedClass, int]], drain_bps: float = DRAIN_BPS) -> FloatArray:
    """The latency each class of a port really has among the others.

    Args:
        classes: (reserved rate in bit/s, parameters, largest packet in bits) of every reserved class.
        drain_bps: Rate at which the port is drained.

    Returns:
        `2 Round + L/C + t_timer` of each, shape (classes,); infinite where the rates exceed the drain rate.
        Source: `testbed.calculus.service.htb`, whose loop over the others is one sum here.
    """
    rates = np.array([rate for rate, _, _ in classes], dtype=np.float64)
    if rates.sum() > drain_bps:
        return np.full(rates.size, np.inf)
    packets = np.array([packet for _, _, packet in classes], dtype=np.float64)
    turns = np.array([_turn_bits(float(rate), shaped, drain_bps) for rate, shaped, _ in classes]) + packets
    others = turns.sum() - turns + BYSTANDERS * 2 * FULL_FRAME_BITS
    return np.asarray(2.0 * others / drain_bps + packets / drain_bps + TIMER_S)
