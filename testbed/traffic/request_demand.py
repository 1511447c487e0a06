"""What a request tenant will put on the wire, by declaration: for guardrails that must exist before any capture does.

A run counts what messages really cost (`testbed.telemetry.requests.Framing`) and bounds delays with that. Here their
framing is added up from the protocols' headers, a little more rather than less, so that a meter that is derived from it
lets a conforming tenant pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.scenario.model import (
    FULL_FRAME_BITS,
    Arrivals,
    DrawnSize,
    MmppArrivals,
    ModelSize,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    RequestSize,
    TokenSize,
    TraceArrivals,
)
from testbed.traffic.request_wire import Maker, TextMaker
from testbed.traffic.workloads import read_workload

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_FEWEST_FRAME_BYTES = 14
"""The header of a DATA frame and gRPC's own five bytes: what a message never goes without."""
FRAMES_BYTES = 96
"""A call's HEADERS frame, the header of its DATA frame and gRPC's own five bytes."""
SEGMENT_BYTES = 1448
"""What a full packet carries."""
HEADERS_BYTES = 66
"""Ethernet, IPv4 and TCP with time stamps."""
EMPTY_BITS = 8 * HEADERS_BYTES
"""A packet without payload."""
ACKNOWLEDGEMENTS = 2
"""Packets without payload that a call costs the client: for its answer, and for what HTTP/2 says now and then."""


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Messages a tenant declares.

    Attributes:
        message_bits: Possible sizes of a message; of a trace, that of each row. int64[n].
        share: How often each occurs, together 1; float64[n].
        per_s: Requests a second on average.
    """

    message_bits: IntArray
    share: FloatArray
    per_s: float

    @property
    def wire_bits(self) -> FloatArray:
        """L2 bits that each size costs towards the server; float64[n]."""
        return wire_bits(self.message_bits)

    @property
    def crowding(self) -> float:
        """How many packets requests are for each full one that would carry their bits, at most."""
        return float((packets(self.message_bits) * FULL_FRAME_BITS / self.wire_bits).max())

    @property
    def mean_bps(self) -> float:
        """Mean L2 rate towards the server."""
        return self.per_s * float(self.wire_bits @ self.share)


def packets(message_bits: IntArray) -> FloatArray:
    """Packets towards the server that calls with messages of these sizes are, generously."""
    stream_bytes = np.asarray(message_bits) / 8 + FRAMES_BYTES
    return np.asarray(np.ceil(stream_bytes / SEGMENT_BYTES) + ACKNOWLEDGEMENTS)


def wire_bits(message_bits: IntArray) -> FloatArray:
    """L2 bits towards the server that calls with messages of these sizes cost, generously."""
    stream_bytes = np.asarray(message_bits) / 8 + FRAMES_BYTES
    return np.asarray(8.0 * (stream_bytes + HEADERS_BYTES * packets(message_bits)))


def least_wire_bits(message_bits: IntArray) -> FloatArray:
    """L2 bits towards the server that calls with messages of these sizes cost at the very least.

    A packet is as full as it can be then, shared with other calls, and HTTP/2 says nothing that it need not.
    """
    stream_bytes = np.asarray(message_bits) / 8 + _FEWEST_FRAME_BYTES
    return np.asarray(8.0 * stream_bytes * (1.0 + HEADERS_BYTES / SEGMENT_BYTES))


def demand(arrivals: Arrivals, size: RequestSize, maker: Maker) -> Demand:
    """What a tenant declares.

    Args:
        arrivals: Its arrival process, one arrival a request.
        size: How large messages are.
        maker: Knows how small a message can be.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    wanted, share = _messages(arrivals, size)
    subject = np.zeros(wanted.size, dtype=np.int64)
    if isinstance(maker, TextMaker):
        # Messages differ by their rows even where nothing is padded.
        subject = np.arange(maker.subjects)
        wanted, share = np.broadcast_to(wanted, subject.shape), np.full(subject.size, 1.0 / subject.size)
    return Demand(8 * maker.message_bytes(wanted, subject), share, requests_per_s(arrivals))


def requests_per_s(arrivals: Arrivals) -> float:
    """Mean number of arrivals a second.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    match arrivals:
        case PoissonArrivals() | RenewalArrivals() | MmppArrivals():
            return arrivals.rate_per_s
        case OnOffArrivals(peak_bps=peak, mean_on_s=on, mean_off_s=off, size_bits=bits):
            return peak * on / (on + off) / bits
        case TraceArrivals():
            trace = read_workload(arrivals)
            return trace.time_s.size * arrivals.speed_up / trace.period_s


def _messages(arrivals: Arrivals, size: RequestSize) -> tuple[IntArray, FloatArray]:
    """Wanted bytes of each kind of message, and how often it occurs."""
    match size:
        case ModelSize():
            return np.zeros(1, dtype=np.int64), np.ones(1)
        case DrawnSize(size_bits=bits, weights=weights):
            share = np.array(weights or (1.0,) * len(bits))
            return np.array(bits, dtype=np.int64) // 8, share / share.sum()
        case TokenSize():
            if not isinstance(arrivals, TraceArrivals):
                raise TypeError(f"sizes by tokens need a trace, found {type(arrivals).__name__}")
            tokens = read_workload(arrivals).request
            bytes_each = np.array([math.ceil(n * arrivals.bits_per_token / 8) for n in tokens.tolist()], dtype=np.int64)
            return bytes_each, np.full(tokens.size, 1.0 / tokens.size)
