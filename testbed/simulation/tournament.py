"""Which of many classes goes next: a tournament tree, in which a change costs log2 of the number of classes.

The classes' keys are the leaves, and every inner node holds the smaller one of its two children's keys and whose it is.
Node 1 is the root, node n's children are 2n and 2n + 1.
"""

from __future__ import annotations

import numba
import numpy as np

from testbed.simulation.clock import NEVER
from testbed.simulation.fifo import Int32Array
from testbed.simulation.wave import TimeArray


@numba.njit(cache=True)
def tournament(classes: int) -> tuple[TimeArray, Int32Array]:
    """A tree of classes that are all absent.

    Returns:
        The key at each node, int64[2 width], and the class that it is of, int32[2 width], where width is a power of 2.
    """
    width = 2
    while width < classes:
        width *= 2
    key = np.full(2 * width, NEVER, np.int64)
    winner = np.zeros(2 * width, np.int32)
    for k in range(width):
        winner[width + k] = k
    for node in range(width - 1, 0, -1):
        winner[node] = winner[2 * node]
    return key, winner


@numba.njit(cache=True, inline="always")
def settle(key: TimeArray, winner: Int32Array, k: int, at: int) -> None:
    """Give class k another key, NEVER to be absent, and play its matches again; the lower class wins a draw."""
    node = (key.size >> 1) + k
    key[node] = at
    best, who = at, winner[node]
    while node > 1:
        other = node ^ 1
        # A right child's rival is the lower class and wins a draw.
        if key[other] < best + (node & 1):
            best, who = key[other], winner[other]
        node >>= 1
        key[node] = best
        winner[node] = who
