"""Sums over all ways in which a flow's traffic can be spread over independent servers in tandem, without cancellation.

Chernoff's bound for h servers is `prefactor sum_{u >= 1} y^u H(u + k)`: y the growth of the arrivals in a slot, k the
delay in slots, and H(n) the sum over all ways to divide n slots among the servers, in order, of the product of x_j for
each slot of server j and g_j for each server that serves at all. With g = 1 it is the complete homogeneous symmetric
polynomial. The textbook forms divide by differences of rates and lose every digit when two servers are nearly alike.
Here a division of slots is a path through an automaton that remembers the last server, so H(n) is an entry of a power
of a non-negative triangular matrix: nothing is ever subtracted, and equal rates are no special case.

All arrays are batched over leading axes (theta, usually); servers are on the last axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from testbed.calculus.numeric import FloatArray

IntArray = NDArray[np.int64]

_MOST_BITS = 40
_LARGEST_EXPONENT = 300.0
_UNDERFLOW = 1e-300


@dataclass(frozen=True)
class Tandem:
    """The sums of one system at a batch of thetas.

    Attributes:
        log_prefactor: ln of what multiplies the sum, shape (...).
        log_y: ln of the arrivals' growth in a slot, shape (...).
        log_x: ln of x of each server, shape (..., servers); a server is stable where log_x + log_y < 0.
        log_g: ln of g of each server, shape (..., servers).
    """

    log_prefactor: FloatArray
    log_y: FloatArray
    log_x: FloatArray
    log_g: FloatArray

    @cached_property
    def stable(self) -> NDArray[np.bool_]:
        """Where the sum converges, shape (...)."""
        finite = np.isfinite(self.log_prefactor) & np.all(np.isfinite(self.log_g) & np.isfinite(self.log_x), axis=-1)
        settled = np.all(self.log_x + self.log_y[..., None] < 0.0, axis=-1)
        # A theta at which exp would overflow is given up: another one is always nearly as good.
        small = (self.log_y < _LARGEST_EXPONENT) & np.all(self.log_g < _LARGEST_EXPONENT, axis=-1)
        return np.asarray(finite & settled & small)

    @cached_property
    def _slot(self) -> FloatArray:
        """Transition matrix of the automaton for one slot, shape (..., servers, servers)."""
        x = np.exp(np.where(self.stable[..., None], self.log_x, -1.0))
        entered = np.exp(np.where(self.stable[..., None], self.log_x + self.log_g, -1.0))
        servers = x.shape[-1]
        later = np.triu(np.ones((servers, servers)), 1)
        return np.asarray(x[..., None, :] * np.eye(servers) + entered[..., None, :] * later)

    @cached_property
    def _first(self) -> FloatArray:
        """Weights of the first slot, shape (..., 1, servers)."""
        return np.asarray(np.exp(np.where(self.stable[..., None], self.log_x + self.log_g, -1.0))[..., None, :])

    @cached_property
    def _rest(self) -> FloatArray:
        """Sum over u >= 1 of y^u slot^{u-1} 1: back substitution in a triangular system, shape (..., servers, 1)."""
        y = np.exp(np.where(self.stable, self.log_y, 0.0))[..., None]
        slot = self._slot
        servers = slot.shape[-1]
        column = np.zeros((*slot.shape[:-1], 1))
        for row in range(servers - 1, -1, -1):
            tail = (slot[..., row : row + 1, row + 1 :] @ column[..., row + 1 :, :])[..., 0, :]
            column[..., row, :] = y * (1.0 + tail) / (1.0 - y * slot[..., row, row, None])
        return column

    def log_sum(self, slots: IntArray | int) -> FloatArray:
        """Ln of prefactor times the sum, for a delay of an integer number of slots; shape (...), inf where unstable."""
        weights = self._first
        remaining = np.broadcast_to(np.asarray(slots, dtype=np.int64), self.log_prefactor.shape).copy()
        power = self._slot
        while True:
            odd = (remaining & 1).astype(np.bool_)
            weights = np.where(odd[..., None, None], weights @ power, weights)
            remaining >>= 1
            if not remaining.any():
                break
            power = power @ power
        return self._value(weights)

    def slots_for(self, log_epsilon: FloatArray | float) -> tuple[IntArray, FloatArray]:
        """The fewest slots of delay whose bound is at most epsilon.

        Args:
            log_epsilon: ln of the probability, broadcastable to (...).

        Returns:
            The number of slots, shape (...), and the same interpolated between integers so that it varies smoothly
            with theta (to search by, not to report); the latter infinite where unstable.
        """
        powers = [self._slot]
        while self._above(self._first @ powers[-1], log_epsilon).any() and len(powers) < _MOST_BITS:
            powers.append(powers[-1] @ powers[-1])
        weights = self._first
        above = self._above(weights, log_epsilon)
        slots = np.zeros(self.log_prefactor.shape, dtype=np.int64)
        for bit in range(len(powers) - 1, -1, -1):
            farther = weights @ powers[bit]
            accept = above & self._above(farther, log_epsilon)
            weights = np.where(accept[..., None, None], farther, weights)
            slots += accept.astype(np.int64) << bit
        # `slots` is now the last delay that is too short; one more is enough.
        here, there = self._value(weights), self._value(weights @ self._slot)
        with np.errstate(invalid="ignore"):
            fraction = np.clip((here - log_epsilon) / (here - there), 0.0, 1.0)
        smooth = np.where(above, slots + fraction, 0.0)
        return slots + above, np.where(self.stable, smooth, np.inf)

    @cached_property
    def _lost(self) -> FloatArray:
        """More than what entries that underflow to zero can have contributed, shape (...)."""
        entering = np.exp(np.where(self.stable[..., None], np.maximum(self.log_g, 0.0), 0.0)).max(axis=-1)
        with np.errstate(over="ignore"):
            return np.asarray(_UNDERFLOW * entering * self._rest.max(axis=(-2, -1)))

    def _value(self, weights: FloatArray) -> FloatArray:
        value = self.log_prefactor + np.log((weights @ self._rest)[..., 0, 0] + self._lost)
        return np.where(self.stable, value, np.inf)

    def _above(self, weights: FloatArray, log_epsilon: FloatArray | float) -> NDArray[np.bool_]:
        return np.asarray(self.stable & (self._value(weights) > log_epsilon))
