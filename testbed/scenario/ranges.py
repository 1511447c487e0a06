"""Ranges of values and limits that several tables of the scenario file format share."""

from __future__ import annotations

from fractions import Fraction

from testbed.scenario.model import FULL_FRAME_BITS
from testbed.scenario.units import RATE, SIZE, TIME
from testbed.scenario.values import Quantity

MOST_TENANTS = 2000
"""In a file. Emulated networks carry fewer (`testbed.run.preflight`); simulated ones do not mind."""
SMALLEST_FRAME_BYTES = 66
"""Ethernet, IPv4 and UDP headers and the 24 bytes by which the testbed recognises a packet."""
LARGEST_FRAME_BYTES = FULL_FRAME_BITS // 8
LARGEST_REQUEST_BYTES = 1_000_000
"""What inference servers of a run are told to accept."""
LARGEST_BUCKET_BITS = 4 * 10**9
"""Meters count kbit in 32 bits."""

_KBIT = 1000
_METER_STEP = "OpenFlow meters and tc classes are installed in whole kbit/s"
TEN_GIGABIT = Fraction(10**10)

LINK_RATE = Quantity(RATE, Fraction(_KBIT), TEN_GIGABIT, _KBIT, _METER_STEP)
RESERVED_RATE = Quantity(RATE, Fraction(8 * _KBIT), TEN_GIGABIT, _KBIT, _METER_STEP)
BIT_RATE = Quantity(RATE, Fraction(1), TEN_GIGABIT)

BUCKET = Quantity(SIZE, Fraction(_KBIT), Fraction(LARGEST_BUCKET_BITS), _KBIT, "OpenFlow meters hold whole kbit")
QUEUE = Quantity(SIZE, Fraction(1), Fraction(LARGEST_BUCKET_BITS))
FRAME = Quantity(
    SIZE, Fraction(8 * SMALLEST_FRAME_BYTES), Fraction(8 * LARGEST_FRAME_BYTES), 8, "a frame is made of whole bytes"
)
MESSAGE = Quantity(SIZE, Fraction(8), Fraction(8 * LARGEST_REQUEST_BYTES), 8, "a message is made of whole bytes")
PACKET_OR_MESSAGE = Quantity(
    SIZE,
    Fraction(8 * SMALLEST_FRAME_BYTES),
    Fraction(8 * LARGEST_REQUEST_BYTES),
    8,
    "frames and messages are made of whole bytes",
)

INSTANT = Quantity(TIME, Fraction(0), Fraction(7200))
