"""What a source asks whose arrivals are requests: messages, their packets in both directions, and the server's work.

TCP cuts what a call puts into its stream into full packets and a remainder, all of them sent at the instant of the
call; packets without payload (acknowledgements, what HTTP/2 says now and then) follow it. There are no windows and
nothing is sent again: what TCP would hold back at the client waits in the first queue instead, for the same rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError
from testbed.scenario.model import FULL_FRAME_BITS
from testbed.simulation.impairment import Draw
from testbed.telemetry.requests import Framing
from testbed.traffic.request_demand import ACKNOWLEDGEMENTS, EMPTY_BITS, FRAMES_BYTES, HEADERS_BYTES, SEGMENT_BYTES

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Cut(NamedTuple):
    """Calls as packets; n calls, m packets.

    Attributes:
        packets: Packets of each call, int64[n].
        last: Position of the packet that completes each call among all packets, int64[n].
        size_bits: L2 frames without FCS, int32[m].
        ends: Whether each completes a call, bool[m].
    """

    packets: IntArray
    last: IntArray
    size_bits: npt.NDArray[np.int32]
    ends: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Wire:
    """What the calls of one direction are on the wire; as declared before any was captured, if nothing is said.

    Attributes:
        frame_bytes: What HTTP/2 and gRPC add to a message.
        others: Packets without payload that a call costs.
    """

    frame_bytes: int = FRAMES_BYTES
    others: int = ACKNOWLEDGEMENTS

    def cut(self, message_bytes: IntArray) -> Cut:
        """Calls with messages of these sizes, [n], as packets."""
        stream = message_bytes + self.frame_bytes
        filled = self._filled(message_bytes)
        count = filled + self.others
        first = np.cumsum(count) - count
        last = first + filled - 1
        size_bits = np.full(int(count.sum()), FULL_FRAME_BITS, np.int32)
        size_bits[last] = 8 * (stream - (filled - 1) * SEGMENT_BYTES + HEADERS_BYTES)
        for k in range(1, self.others + 1):
            size_bits[last + k] = EMPTY_BITS
        ends = np.zeros(size_bits.size, np.bool_)
        ends[last] = True
        return Cut(count, last, size_bits, ends)

    def call_bits(self, message_bytes: IntArray) -> IntArray:
        """L2 bits of the packets that carry calls with messages of these sizes, [n]."""
        return 8 * (message_bytes + self.frame_bytes + HEADERS_BYTES * self._filled(message_bytes))

    def last_bits(self, message_bytes: IntArray) -> IntArray:
        """L2 bits of the packet that completes each, [n]."""
        return self.call_bits(message_bytes) - (self._filled(message_bytes) - 1) * FULL_FRAME_BITS

    def crowding(self, message_bytes: Sequence[int]) -> tuple[float, int]:
        """Packets that calls with messages of these sizes are for each full one that would carry their bits, at most.

        And how many the largest of these calls is.
        """
        sizes = np.array(message_bytes, dtype=np.int64)
        packets = self._filled(sizes) + self.others
        bits = self.call_bits(sizes) + self.others * EMPTY_BITS
        return float((packets * FULL_FRAME_BITS / bits).max()), int(packets.max())

    def framing(self, message_bytes: Sequence[int], weights: Sequence[float] = ()) -> Framing:
        """The same as a capture would have counted it, for bounds: no message of these sizes is underrated.

        Args:
            message_bytes: Sizes that occur.
            weights: How often each does, relative to the others; equally often when empty.
        """
        sizes = np.array(message_bytes, dtype=np.int64)
        share = np.array(weights or np.ones(sizes.size), dtype=np.float64)
        share /= share.sum()
        call_bits, other_bits = self.call_bits(sizes), float(self.others * EMPTY_BITS)
        slope = FULL_FRAME_BITS / (8 * SEGMENT_BYTES)
        own = float((call_bits - slope * 8 * sizes).max())
        return Framing(round(8 * float(sizes @ share)), float(call_bits @ share), other_bits, slope, own + other_bits)

    def _filled(self, message_bytes: IntArray) -> IntArray:
        """Packets with payload of each call, [n]."""
        return np.asarray(-(-(message_bytes + self.frame_bytes) // SEGMENT_BYTES))


@dataclass(frozen=True)
class Asking:
    """What each arrival of a source asks of the server behind its last domain.

    Attributes:
        request_bytes: Sizes of messages that occur.
        answer_bytes: Size of an answer's message.
        work: Draws the seconds that computations take.
        expected_s: What the server expects one to take, by which it charges the source's share.
        share: Part of the server that is the source's own.
        timeout_ps: How long after its intended time an answer is worth anything; the server drops what is older.
        weights: How often each size occurs, relative to the others; equally often when empty.
        by_row: Whether there is one size for each row of the source's trace instead.
        out: What requests are on the wire.
        back: What answers are on the wire.
    """

    request_bytes: tuple[int, ...]
    answer_bytes: int
    work: Draw
    expected_s: float
    share: float
    timeout_ps: int
    weights: tuple[float, ...] = ()
    by_row: bool = False
    out: Wire = Wire()
    back: Wire = Wire()

    def __post_init__(self) -> None:
        if not self.request_bytes or min(*self.request_bytes, self.answer_bytes) < 0:
            raise ScenarioError("requests: found no sizes, or negative ones, expected bytes of messages; correct them")
        if not (self.expected_s >= 0 and 0 < self.share <= 1 and self.timeout_ps > 0):
            raise ScenarioError(
                f"requests: found {self.expected_s} s of work, a share of {self.share} and a timeout of "
                f"{self.timeout_ps} ps, expected no negative work, a share above 0 and at most 1, and time to wait"
            )

    def framing_out(self) -> Framing:
        """Framing of the requests."""
        return self.out.framing(self.request_bytes, self.weights)

    def framing_back(self) -> Framing:
        """Framing of the answers."""
        return self.back.framing([self.answer_bytes])
