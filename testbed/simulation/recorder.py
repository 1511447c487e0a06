"""Remembers packets one by one, border by border, for as long as a run's folder has room for them.

The first packets of a window are recorded, all tenants for the same stretch of time; the others are only counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from testbed.simulation.wave import IndexArray, TimeArray, Wave

_FIRST_ROOM = 1 << 12


@dataclass(frozen=True, eq=False)
class Passage:
    """Recorded packets in the order of their sending; n packets over D domains.

    Attributes:
        born_ps: Intended send times, int64[n].
        size_bits: int32[n].
        tenant: Index of the tenant, int32[n].
        ends: Whether each completes a request, bool[n].
        border_ps: Time at border 0 (entry of the first domain) .. D, -1 where a packet was not seen, int64[n, D + 1].
    """

    born_ps: TimeArray
    size_bits: npt.NDArray[np.int32]
    tenant: npt.NDArray[np.int32]
    ends: npt.NDArray[np.bool_]
    border_ps: TimeArray

    def rows(self, tenant: int) -> IndexArray:
        """Places of one tenant's packets, in the order of their sending."""
        order, begins = self._by_tenant
        return order[begins[tenant] : begins[tenant + 1]] if tenant + 1 < begins.size else order[:0]

    @cached_property
    def _by_tenant(self) -> tuple[IndexArray, IndexArray]:
        """Places of all packets, tenant by tenant, and where each tenant's begin."""
        return np.argsort(self.tenant, kind="stable"), np.cumsum(np.append(0, np.bincount(self.tenant)))


class Recorder:
    """Follows the packets sent before `until_ps` through D domains."""

    def __init__(self, domains: int, until_ps: int) -> None:
        self._until_ps = until_ps
        self._entered = 0
        self._under_way = 0
        self._open = until_ps > 0
        self._waves: list[Wave] = []
        self._border = np.full((_FIRST_ROOM, domains + 1), -1, np.int64)

    def enter(self, wave: Wave) -> None:
        """Packets that arrive at the first domain; they are numbered from 0 on without a gap."""
        if not self._open:
            return
        recorded = int(np.searchsorted(wave.time_ps, self._until_ps))
        if recorded:
            kept = wave.take(np.arange(recorded))
            self._waves.append(kept)
            self._entered += recorded
            self._under_way += recorded
            self._make_room()
            self._border[kept.number, 0] = kept.time_ps
        self._open = recorded == len(wave) or self._under_way > 0

    def see(self, border: int, wave: Wave) -> None:
        """Packets that arrive at a border."""
        if self._open:
            known = wave.number < self._entered
            self._border[wave.number[known], border] = wave.time_ps[known]

    def leave(self, wave: Wave) -> None:
        """Packets of which nothing more will be heard."""
        if self._open:
            self._under_way -= int(np.count_nonzero(wave.number < self._entered))

    def passage(self) -> Passage:
        """Everything recorded."""
        n = self._entered
        waves = self._waves or [Wave.empty()]
        return Passage(
            born_ps=np.concatenate([wave.born_ps for wave in waves]),
            size_bits=np.concatenate([wave.size_bits for wave in waves]),
            tenant=np.concatenate([wave.tenant for wave in waves]),
            ends=np.concatenate([wave.ends for wave in waves]),
            border_ps=self._border[:n],
        )

    def _make_room(self) -> None:
        room = len(self._border)
        if self._entered > room:
            more = max(self._entered, 2 * room) - room
            self._border = np.concatenate((self._border, np.full((more, self._border.shape[1]), -1, np.int64)))
