"""How large a meter's bucket is, from what it has let through at several moments of a flood.

A bucket fills up while a flood empties it, and how much comes back depends on when the switch took the frames in,
which nobody is told. But a meter that is read while the flood comes in says what had been met by then, so every
refill is known to the time between two looks, however long the flood takes altogether. Arithmetic without a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self


@dataclass(frozen=True)
class Look:
    """A meter at some moment of a flood.

    Attributes:
        earliest_s: CLOCK_MONOTONIC before it was read.
        latest_s: And after.
        met: Frames of the flood that had come to it.
        dropped: How many of them it had dropped.
    """

    earliest_s: float
    latest_s: float
    met: int
    dropped: int

    @property
    def passed(self) -> int:
        """Frames of the flood that it had let through."""
        return self.met - self.dropped


@dataclass(frozen=True)
class BucketBounds:
    """What a full bucket holds, in bits: at least `low` and at most `high`, infinite where no flood was cut."""

    low: float = 0.0
    high: float = math.inf

    def and_also(self, other: Self) -> BucketBounds:
        """What is left by both."""
        return BucketBounds(max(self.low, other.low), min(self.high, other.high))


def bucket_bounds(looks: Sequence[Look], *, rate_bps: float, frame_bits: int) -> BucketBounds:
    """What one flood of equal frames says of a bucket that gets tokens at a known rate.

    Between two moments no more passes than a full bucket and the refill. And what passes up to a drop is all that the
    bucket held when it was full for the last time, and all that came back since, less than a frame excepted. When a
    frame was met is known to lie between the look before it was counted and the look that counts it. Where nothing of
    the flood was met, nothing passes.

    Args:
        looks: In order of time; the first from before the flood, with nothing met.
        rate_bps: The meter's rate.
        frame_bits: Size of each frame.
    """
    low, high = 0.0, math.inf if looks[-1].met else 0.0
    begun_bits, full_bits = math.inf, -math.inf
    for before, look in pairwise(looks):
        before_bits, look_bits = before.passed * frame_bits, look.passed * frame_bits
        begun_bits = min(begun_bits, before_bits - rate_bps * before.earliest_s)
        full_bits = max(full_bits, rate_bps * look.latest_s - before_bits)
        low = max(low, look_bits - rate_bps * look.latest_s - begun_bits)
        if look.dropped > before.dropped:
            high = min(high, look_bits + frame_bits - rate_bps * before.earliest_s + full_bits)
    return BucketBounds(low, high)
