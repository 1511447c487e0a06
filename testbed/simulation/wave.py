"""Packets on their way between two servers, as parallel arrays in the order in which they arrive there.

A wave is whatever a server could decide on so far; packets keep their identity from one wave to the next. Which server
comes next, and what is counted at the end, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

TimeArray = npt.NDArray[np.int64]
IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Wave:
    """Packets in the order of their arrival at the next server; n packets.

    Attributes:
        time_ps: Arrival there, non-decreasing, int64[n].
        born_ps: Intended send time, int64[n].
        number: Number of the packet in the window, in the order of arrival at the first domain, int64[n].
        size_bits: L2 frame without FCS, int32[n].
        tenant: Index of the tenant, int32[n].
        ends: Whether the packet completes a request, bool[n].
    """

    time_ps: TimeArray
    born_ps: TimeArray
    number: IndexArray
    size_bits: npt.NDArray[np.int32]
    tenant: npt.NDArray[np.int32]
    ends: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.time_ps.size)

    @classmethod
    def empty(cls) -> Wave:
        """No packets."""
        return cls(*_fields(0))

    def at(self, time_ps: TimeArray) -> Wave:
        """The same packets at other times."""
        return Wave(time_ps, self.born_ps, self.number, self.size_bits, self.tenant, self.ends)

    def take(self, index: IndexArray) -> Wave:
        """The packets at some positions, in that order."""
        taken = Wave(*_fields(index.size))
        _gather(index, *self.arrays(), *taken.arrays())
        return taken

    def where(self, chosen: npt.NDArray[np.bool_]) -> Wave:
        """The packets for which `chosen` is true."""
        return self.take(np.flatnonzero(chosen))

    def arrays(self) -> tuple[npt.NDArray[np.generic], ...]:
        """Its arrays, in the order in which the constructor takes them."""
        return (self.time_ps, self.born_ps, self.number, self.size_bits, self.tenant, self.ends)


def merge(waves: Sequence[Wave]) -> Wave:
    """Packets of several waves in the order of their times; at the same time in that of the waves."""
    joined = join(waves)
    return joined.take(np.argsort(joined.time_ps, kind="stable"))


def join(waves: Sequence[Wave]) -> Wave:
    """Waves one after the other, whatever their times."""
    filled = [wave for wave in waves if len(wave)]
    if len(filled) == 1:
        return filled[0]
    if not filled:
        return Wave.empty()
    return Wave(
        np.concatenate([wave.time_ps for wave in filled]),
        np.concatenate([wave.born_ps for wave in filled]),
        np.concatenate([wave.number for wave in filled]),
        np.concatenate([wave.size_bits for wave in filled]),
        np.concatenate([wave.tenant for wave in filled]),
        np.concatenate([wave.ends for wave in filled]),
    )


def _fields(
    n: int,
) -> tuple[TimeArray, TimeArray, IndexArray, npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    return (
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.empty(n, np.bool_),
    )


@numba.njit(cache=True)
def _gather(  # noqa: PLR0917 - compiled functions take no keywords
    index: IndexArray,
    time: TimeArray,
    born: TimeArray,
    number: IndexArray,
    size: npt.NDArray[np.int32],
    tenant: npt.NDArray[np.int32],
    ends: npt.NDArray[np.bool_],
    time_out: TimeArray,
    born_out: TimeArray,
    number_out: IndexArray,
    size_out: npt.NDArray[np.int32],
    tenant_out: npt.NDArray[np.int32],
    ends_out: npt.NDArray[np.bool_],
) -> None:
    for j in range(index.size):
        i = index[j]
        time_out[j] = time[i]
        born_out[j] = born[i]
        number_out[j] = number[i]
        size_out[j] = size[i]
        tenant_out[j] = tenant[i]
        ends_out[j] = ends[i]
