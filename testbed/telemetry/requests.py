"""Finds a tenant's requests in the captures of its path and splits each one's latency into parts that add up.

A full capture at the client's own interface gives both byte streams of the connection, hence the frames of every
request and answer (`testbed.telemetry.http2`); every other capture only has to hold headers, because a byte is known by
its stream offset (`testbed.telemetry.tcp`). A request has passed a border when all bytes of its frames have been seen
there. Captures, sender and server share one host and its clocks; stamps are shifted by the run's one offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from testbed.errors import FidelityError
from testbed.telemetry import http2, tcp
from testbed.telemetry.http2 import Frames
from testbed.telemetry.pcap import Records
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.tcp import NEVER_NS, Flow, Segments
from testbed.traffic.request_records import RequestRecord

_LESS_THAN_A_PACKET_BITS = 8 * 40
"""What a header is at least; differences below it are rounding."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RequestCaptures:
    """What was captured of one tenant's connection; each capture sees what arrives at its place.

    Attributes:
        sent: What the client sent, whole packets: captured on its own interface (outgoing), or on the far end of its
            link.
        received: What the client received, whole packets, on its own interface.
        out: Border 0 (entry of the first domain) .. D (compute host), packets towards the server; headers will do.
        back: Where answers leave the compute host, packets towards the client; headers will do.
    """

    sent: Records
    received: Records
    out: Sequence[Records]
    back: Records


@dataclass(frozen=True)
class Framing:
    """What a tenant's messages cost on the wire in one direction, counted from captured packets; never fitted.

    Attributes:
        payload_bits: Message bits of the requests (or answers) found.
        call_bits: L2 bits that carried their frames, packets' headers included.
        other_bits: L2 bits of everything else on the connection: acknowledgements and HTTP/2's own frames.
        bits_per_bit: L2 bits for each payload bit of the fullest packet: what one more message bit costs at length.
        bits_per_request: What to add for a request, so that no captured request is underrated and everything else on
            the connection is paid for by the requests in equal parts.
    """

    payload_bits: int
    call_bits: float
    other_bits: float
    bits_per_bit: float
    bits_per_request: float

    @property
    def factor(self) -> float:
        """Wire bits for each message bit, everything included; NaN without payload."""
        return (self.call_bits + self.other_bits) / self.payload_bits if self.payload_bits else float("nan")

    def wire_bits(self, message_bits: npt.ArrayLike) -> FloatArray:
        """What messages of these sizes cost on the wire: at least what was captured, for every single request."""
        return np.asarray(self.bits_per_request + self.bits_per_bit * np.asarray(message_bits, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Passages:
    """Packets with payload of a window, those sent again left out, in the order in which they entered the first domain.

    Attributes:
        time_s: When each was seen at every border, seconds since the window's start; NaN where it was not; [m, D+1].
        size_bits: L2 bits; [m].
    """

    time_s: FloatArray
    size_bits: IntArray


@dataclass(frozen=True)
class RequestMatch:
    """A tenant's requests, found.

    Attributes:
        samples: Request by request.
        out: Framing towards the server.
        back: Framing towards the client.
        reordered: Requests whose last byte left the client before that of an earlier-sent one: HTTP/2 interleaved them.
        retransmitted_bits: L2 bits beyond border 0 that carried bytes seen there before.
        packets: What carried the requests, packet by packet.
        last_bits: L2 bits of each request in the packet that ended it at border 0, 0 where it was not seen; [n].
    """

    samples: RequestSamples
    out: Framing
    back: Framing
    reordered: int
    retransmitted_bits: float
    packets: Passages
    last_bits: FloatArray


class _Connection(NamedTuple):
    flow: Flow
    sent: Segments
    received: Segments
    requests: Frames
    answers: Frames
    request: IntArray
    answer: IntArray

    @property
    def carried(self) -> int:
        """How many requests went over it."""
        return int(np.unique(self.request[self.request >= 0]).size)


class _Seen(NamedTuple):
    """What was seen of one connection; arrays as in `RequestSamples`, moments CLOCK_REALTIME."""

    first_ns: IntArray
    out_ns: IntArray
    back_ns: IntArray
    out_bits: FloatArray
    back_bits: FloatArray
    resent_s: FloatArray
    last_bits: FloatArray
    entered: Segments
    left: Segments
    packets: Passages


def match_requests(
    name: str, record: RequestRecord, captures: RequestCaptures, *, domains: Sequence[str], server_port: int
) -> RequestMatch:
    """Find one tenant's window in its captures.

    A client whose connection was lost has gone on over another one; a request was sent over one of them, once.

    Args:
        name: The tenant.
        record: What its sender recorded.
        captures: What was captured.
        domains: Names of the D domains of its path.
        server_port: The server's TCP port.

    Raises:
        FidelityError: The captures hold no such connection, or not all of its bytes at the client.
    """
    if len(captures.out) != len(domains) + 1:
        raise ValueError(f"{len(domains)} domains have {len(domains) + 1} borders, found {len(captures.out)} captures")
    seen = [_seen(found, captures, record, server_port) for found in _connections(name, captures, server_port)]
    zero_ns = record.start_realtime_ns
    samples = RequestSamples(
        tenant=name,
        number=record.tenant,
        domains=tuple(domains),
        window_start_ns=zero_ns,
        deadline_s=record.deadline_s,
        images=record.images,
        intended_s=record.schedule.time_s,
        sent_s=record.sent_s,
        first_s=_seconds(np.min([each.first_ns for each in seen], axis=0), zero_ns),
        out_s=_seconds(np.min([each.out_ns for each in seen], axis=0), zero_ns),
        server_s=record.server_s,
        back_s=_seconds(np.min([each.back_ns for each in seen], axis=0), zero_ns),
        received_s=record.received_s,
        status=record.status,
        request_bytes=record.request_bytes,
        response_bytes=record.response_bytes,
        out_bits=np.sum([each.out_bits for each in seen], axis=0),
        back_bits=np.sum([each.back_bits for each in seen], axis=0),
        correct=record.correct,
        impaired=record.impaired,
        lost_time_s=record.lost_time_s,
        resent_s=np.sum([each.resent_s for each in seen], axis=0),
    )
    return RequestMatch(
        samples=samples,
        out=_framing(samples.out_bits, record.request_bytes, [each.entered for each in seen]),
        back=_framing(samples.back_bits, record.response_bytes, [each.left for each in seen]),
        reordered=_overtaken(samples),
        retransmitted_bits=sum(_repeated_bits(each.entered) for each in seen),
        packets=_in_order([each.packets for each in seen]),
        last_bits=np.sum([each.last_bits for each in seen], axis=0),
    )


def _seen(found: _Connection, captures: RequestCaptures, record: RequestRecord, server_port: int) -> _Seen:
    n, zero_ns = len(record.schedule), record.start_realtime_ns
    places = [_at(records, found.flow, found.sent.base, server_port) for records in captures.out]
    leaving = _at(captures.back, found.flow.reverse, found.received.base, server_port)
    ways = [(found.requests, found.request, before, behind) for before, behind in pairwise(places)]
    ways.append((found.answers, found.answer, leaving, found.received))
    end_ns = zero_ns + int(1e9 * (record.schedule.time_s.max(initial=0.0) + record.deadline_s + 1.0))
    entered = places[0].within(zero_ns, end_ns)
    return _Seen(
        first_ns=_per_request(found.requests, found.request, n, places[0], last=False),
        out_ns=np.stack([_per_request(found.requests, found.request, n, place) for place in places], axis=1),
        back_ns=np.stack(
            [_per_request(found.answers, found.answer, n, place) for place in (leaving, found.received)], axis=1
        ),
        out_bits=_wire_bits(found.requests, found.request, n, places[0]),
        back_bits=_wire_bits(found.answers, found.answer, n, leaving),
        resent_s=np.stack([_resent_s(frames, owner, n, *ends) for frames, owner, *ends in ways], axis=1),
        last_bits=_last_bits(found.requests, found.request, n, places[0]),
        entered=entered,
        left=leaving.within(zero_ns, end_ns),
        packets=_passages(entered, places, zero_ns),
    )


def _connections(name: str, captures: RequestCaptures, server_port: int) -> list[_Connection]:
    """The connections that carried the tenant's requests; any one if none did."""
    sent_by, received_by = (tcp.flows(r, server_port=server_port) for r in (captures.sent, captures.received))
    found = []
    for flow, packets in sent_by.items():
        if flow.destination_port != server_port or flow.reverse not in received_by:
            continue
        sent = tcp.segments(captures.sent, packets)
        received = tcp.segments(captures.received, received_by[flow.reverse])
        bytes_sent = sent.stream(captures.sent.data)
        requests, answers = http2.walk(bytes_sent), http2.walk(received.stream(captures.received.data))
        ids, numbers = http2.request_of_stream(bytes_sent, requests)
        request, answer = http2.owners(requests, ids, numbers), http2.owners(answers, ids, numbers)
        found.append(_Connection(flow, sent, received, requests, answers, request, answer))
    if not found:
        raise FidelityError(
            f"tenant {name}: found no connection to TCP port {server_port} in {captures.sent.path} and "
            f"{captures.received.path}, expected one in both directions; is the capture's filter that of UDP tenants?"
        )
    return [connection for connection in found if connection.carried] or found[:1]


def _at(records: Records, flow: Flow, base: int, server_port: int) -> Segments:
    """The flow at another place; no packets where nothing of it was seen."""
    packets = tcp.flows(records, server_port=server_port).get(flow, np.empty(0, dtype=np.intp))
    return tcp.segments(records, packets, base=base)


def _per_request(
    frames: Frames, owner: IntArray, n: int, place: Segments, *, last: bool = True, again: bool = False
) -> IntArray:
    """When the last (or the first) byte of each request's frames was seen at a place, CLOCK_REALTIME; [n].

    Each byte for the first time, or, with `again`, for the last.
    """
    ours = _ours(owner, n)
    start = frames.start[ours]
    seen = place.seen_ns(start, frames.end[ours] if last else start + 1, again=again)
    if last:
        moments = np.full(n, np.iinfo(np.int64).min)
        np.maximum.at(moments, owner[ours], seen)
        return np.where(moments == np.iinfo(np.int64).min, NEVER_NS, moments)
    moments = np.full(n, NEVER_NS)
    np.minimum.at(moments, owner[ours], seen)
    return moments


def _wire_bits(frames: Frames, owner: IntArray, n: int, place: Segments) -> FloatArray:
    ours = _ours(owner, n)
    bits = np.zeros(n)
    np.add.at(bits, owner[ours], place.wire_bits(frames.start[ours], frames.end[ours]))
    return bits


def _last_bits(frames: Frames, owner: IntArray, n: int, place: Segments) -> FloatArray:
    """Of each request, the bits in the packet that ended it; frames of others in the same packet are not its own."""
    ours = _ours(owner, n)
    end = np.zeros(n, dtype=np.int64)
    np.maximum.at(end, owner[ours], frames.end[ours])
    start = np.maximum(frames.start[ours], place.finishing_start(end)[owner[ours]])
    bits = np.zeros(n)
    np.add.at(bits, owner[ours], place.wire_bits(np.minimum(start, frames.end[ours]), frames.end[ours]))
    return bits


def _resent_s(frames: Frames, owner: IntArray, n: int, before: Segments, behind: Segments) -> FloatArray:
    """Of each request's way between two places, the part that passed before lost bytes set out again; [n].

    Only where more bits entered than left was something lost: what was sent again in vain cost no time.
    """
    entered_ns, left_ns = (_per_request(frames, owner, n, place) for place in (before, behind))
    again_ns = np.minimum(_per_request(frames, owner, n, before, again=True), left_ns)
    lost = _wire_bits(frames, owner, n, before) > _wire_bits(frames, owner, n, behind) + _LESS_THAN_A_PACKET_BITS
    told = lost & (left_ns != NEVER_NS) & (again_ns > entered_ns)
    return np.where(told, (again_ns - entered_ns) / 1e9, 0.0)


def _ours(owner: IntArray, n: int) -> npt.NDArray[np.intp]:
    return np.flatnonzero((owner >= 0) & (owner < n))


def _framing(bits: FloatArray, message_bytes: IntArray, connections: Sequence[Segments]) -> Framing:
    carried = (bits > 0) & (message_bytes > 0)
    payload = 8 * message_bytes[carried]
    call_bits = float(bits[carried].sum())
    size_bits = np.concatenate([packets.size_bits for packets in connections])
    payload_bytes = np.concatenate([packets.payload_bytes for packets in connections])
    other_bits = max(0.0, float(size_bits.sum()) - call_bits)
    filled = payload_bytes > 0
    ratio = float((size_bits[filled] / (8 * payload_bytes[filled])).min(initial=np.inf))
    slope = ratio if np.isfinite(ratio) else 1.0
    own = float((bits[carried] - slope * payload).max(initial=0.0))
    shared = other_bits / payload.size if payload.size else 0.0
    return Framing(int(payload.sum()), call_bits, other_bits, slope, own + shared)


def _overtaken(samples: RequestSamples) -> int:
    done = samples.out_s[:, 0][np.isfinite(samples.out_s[:, 0])]
    return int(np.count_nonzero(done < np.maximum.accumulate(done))) if done.size else 0


def _repeated_bits(packets: Segments) -> float:
    """Bits of packets whose bytes all had been seen before."""
    filled = packets.payload_bytes > 0
    end = packets.end[filled]
    furthest = np.concatenate(([-1], np.maximum.accumulate(end)[:-1])) if end.size else end
    return float(packets.size_bits[filled][end <= furthest].sum())


def _passages(entered: Segments, places: Sequence[Segments], zero_ns: int) -> Passages:
    filled = np.flatnonzero(entered.payload_bytes > 0)
    end = entered.end[filled]
    first = filled[end > np.concatenate(([-1], np.maximum.accumulate(end)[:-1]))] if filled.size else filled
    seen = [place.seen_ns(entered.start[first], entered.end[first]) for place in places]
    time_s = np.stack([_seconds(moments, zero_ns) for moments in seen], axis=1)
    return Passages(time_s, entered.size_bits[first])


def _in_order(connections: Sequence[Passages]) -> Passages:
    """The packets of all connections, in the order in which they entered the first domain."""
    time_s = np.concatenate([packets.time_s for packets in connections])
    order = np.argsort(time_s[:, 0], kind="stable")
    return Passages(time_s[order], np.concatenate([packets.size_bits for packets in connections])[order])


def _seconds(moments_ns: IntArray, zero_ns: int) -> FloatArray:
    return np.where(moments_ns == NEVER_NS, np.nan, (moments_ns - zero_ns) / 1e9)
