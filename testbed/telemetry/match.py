"""Joins the sender's record of a window with the captures of the domain borders, packet by packet.

A packet is known by its tenant and its sequence number; its intended send time, which it carries as well, keeps packets
of another window with the same numbers out. What was lost, where, what came twice and what overtook is counted here and
judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from testbed.errors import FidelityError
from testbed.telemetry.pcap import PacketTable
from testbed.telemetry.samples import BoolArray, FloatArray, IntArray, TenantSamples
from testbed.traffic import wire

_SAME_PACKET_NS = 1_000_000
"""Windows lie seconds apart, so a millisecond tells them apart and forgives a sender that rounds what it records."""


@dataclass(frozen=True)
class SentPackets:
    """What one tenant's sender recorded of one window; arrays of shape [n] in the order of sending.

    Attributes:
        tenant: Name.
        number: Tenant number, 1-based.
        sequence: Sequence numbers, distinct.
        intended_ns: Intended send times, CLOCK_REALTIME.
        sent_ns: Actual send times, CLOCK_REALTIME.
        size_bits: L2 frame without FCS.
        last_of_request: Whether each packet completes a request; None where every packet is its own request.
    """

    tenant: str
    number: int
    sequence: IntArray
    intended_ns: IntArray
    sent_ns: IntArray
    size_bits: npt.NDArray[np.int32]
    last_of_request: BoolArray | None = None


@dataclass(frozen=True)
class BorderCount:
    """What one border saw of one tenant's window.

    Attributes:
        seen: Distinct packets of the window.
        duplicates: Further sightings of packets already seen.
        reordered: Packets that arrived after one with a larger sequence number (RFC 4737, type P-reordered).
        strangers: Packets of this tenant that its sender did not record in this window (warm-up traffic excepted).
        resized: Packets whose length on the wire is not the one that was sent.
        unseen: Packets not seen here although a later border saw them: this capture lost them, the network did not.
    """

    seen: int
    duplicates: int
    reordered: int
    strangers: int
    resized: int
    unseen: int


@dataclass(frozen=True)
class Match:
    """One tenant's window, matched.

    Attributes:
        samples: Packet by packet.
        borders: One count for each border, 0..D.
        lost_before: Packets that were sent and seen at no border.
        lost_in: Packets lost in each domain of the path (seen at its entry or before, and not after it), by name.
        residual_s: Largest absolute difference, over delivered packets seen everywhere, between the latency and the
            sum of its parts: sender's lateness, access, and every domain's delay. Zero up to rounding.
    """

    samples: TenantSamples
    borders: tuple[BorderCount, ...]
    lost_before: int
    lost_in: dict[str, int]
    residual_s: float

    @property
    def lost(self) -> int:
        """Packets that were sent and never delivered."""
        return self.lost_before + sum(self.lost_in.values())


def match(sent: SentPackets, borders: Sequence[PacketTable], *, domains: Sequence[str], window_start_ns: int) -> Match:
    """Matches one tenant's window.

    Args:
        sent: The sender's record.
        borders: What borders 0..D captured; packets of other tenants and of warm-ups are ignored.
            `PacketTable.by_tenant` spares a second look at them where there are many tenants.
        domains: Names of the D domains of the tenant's path.
        window_start_ns: CLOCK_REALTIME of the window's start.

    Raises:
        FidelityError: The sender's record names a packet twice.
    """
    if len(borders) != len(domains) + 1:
        raise ValueError(f"{len(domains)} domains have {len(domains) + 1} borders, found {len(borders)} captures")
    order = np.argsort(sent.intended_ns, kind="stable")
    sequence, intended_ns, size_bits = sent.sequence[order], sent.intended_ns[order], sent.size_bits[order]
    place = _Places(sent.tenant, sequence)
    n = sequence.size
    seen_ns = np.zeros((n, len(borders)), np.int64)
    found = np.zeros((n, len(borders)), np.bool_)
    raw: list[tuple[int, int, int, int]] = []
    for k, border in enumerate(borders):
        ours = border.take((border.tenant == sent.number) & (border.flags & wire.OUTSIDE_WINDOW == 0))
        at = place.of(ours.sequence)
        known = at >= 0
        known[known] = np.abs(intended_ns[at[known]] - ours.intended_ns[known]) <= _SAME_PACKET_NS
        at, seen = at[known], ours.take(known)
        duplicates, reordered = _first_sightings(at, seen.time_ns, seen.sequence, seen_ns[:, k], found[:, k])
        resized = int(np.count_nonzero(seen.size_bits != size_bits[at]))
        raw.append((duplicates, reordered, len(ours) - at.size, resized))
    border_s = np.where(found, (seen_ns - window_start_ns) / 1e9, np.nan)
    samples = TenantSamples(
        tenant=sent.tenant,
        number=sent.number,
        domains=tuple(domains),
        window_start_ns=window_start_ns,
        sequence=sequence.astype(np.int64),
        intended_s=(intended_ns - window_start_ns) / 1e9,
        sent_s=(sent.sent_ns[order] - window_start_ns) / 1e9,
        size_bits=size_bits.astype(np.int32),
        border_s=border_s,
        last_of_request=None if sent.last_of_request is None else sent.last_of_request[order],
    )
    last = samples.last_border
    counts = tuple(
        BorderCount(
            seen=int(np.count_nonzero(found[:, k])),
            duplicates=duplicates,
            reordered=reordered,
            strangers=strangers,
            resized=resized,
            unseen=int(np.count_nonzero(~found[:, k] & (last > k))),
        )
        for k, (duplicates, reordered, strangers, resized) in enumerate(raw)
    )
    return Match(
        samples=samples,
        borders=counts,
        lost_before=int(np.count_nonzero(last == -1)),
        lost_in={name: int(np.count_nonzero(last == d)) for d, name in enumerate(domains)},
        residual_s=_residual_s(samples),
    )


class _Places:
    """Where each sequence number stands in the sender's record."""

    def __init__(self, tenant: str, sequence: IntArray) -> None:
        self._order = np.argsort(sequence, kind="stable")
        self._sorted = sequence[self._order]
        twice = self._sorted[:-1][self._sorted[1:] == self._sorted[:-1]]
        if twice.size:
            raise FidelityError(f"tenant {tenant}: its sender recorded packet {twice[0]} twice, expected once")

    def of(self, sequence: IntArray) -> npt.NDArray[np.intp]:
        """Index in the sender's record, -1 where it has no such packet."""
        if self._sorted.size == 0:
            return np.full(sequence.size, -1, np.intp)
        at = np.minimum(np.searchsorted(self._sorted, sequence), self._sorted.size - 1)
        return np.where(self._sorted[at] == sequence, self._order[at], -1)


def _residual_s(samples: TenantSamples) -> float:
    parts = samples.lateness_s + samples.access_s + samples.domain_s.sum(axis=1)
    difference: FloatArray = np.abs(parts - samples.latency_s)
    complete = difference[np.isfinite(difference)]
    return float(complete.max(initial=0.0))


@numba.njit(cache=True)
def _first_sightings(
    at: npt.NDArray[np.intp], time_ns: IntArray, sequence: IntArray, seen_ns: IntArray, found: BoolArray
) -> tuple[int, int]:
    """Fills in when each packet was first seen; returns how often one was seen again, and how many were overtaken."""
    duplicates, reordered, largest = 0, 0, -1
    for i in range(at.size):
        if found[at[i]]:
            duplicates += 1
            continue
        found[at[i]] = True
        seen_ns[at[i]] = time_ns[i]
        if sequence[i] < largest:
            reordered += 1
        else:
            largest = sequence[i]
    return duplicates, reordered
