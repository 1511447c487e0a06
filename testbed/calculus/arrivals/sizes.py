"""Packets whose sizes depend neither on each other nor on when the packets come; when they come is not known here."""

from __future__ import annotations

from functools import cached_property

from testbed.calculus.amounts import Amount, as_amount
from testbed.calculus.arrivals.base import Arrival
from testbed.calculus.errors import require_positive


class IndependentSizes(Arrival):
    """A flow of such packets.

    Attributes:
        packet_bits: Bits in a packet: a number for a constant size, or a distribution.
    """

    packet_bits: float | Amount

    def require_sizes(self) -> None:
        """Check that packets have sizes; raises `CalculusError` for a constant that is not positive."""
        if not isinstance(self.packet_bits, Amount):
            require_positive("packet size", self.packet_bits)

    @cached_property
    def amount(self) -> Amount:
        """The size as a distribution."""
        return as_amount(self.packet_bits)

    @property
    def largest_packet_bits(self) -> float:
        return self.amount.largest

    @property
    def theta_pole(self) -> float:
        return self.amount.pole

    @property
    def theta_scale(self) -> float:
        return 1.0 / self.amount.mean
