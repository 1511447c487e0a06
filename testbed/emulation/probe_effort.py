"""How long and with which frames a domain is probed: enough to resolve every rate, never more than a switch can take.

A userspace switch takes at most 32 packets a port on each of its rounds, and a round grows with the number of ports; so
the frames offered per second have one budget for all tenants together. What a meter lets through crosses every domain
behind it as well, at the cost of the same processor, so that many domains behind make the budget smaller. The more
tenants share it, the larger their frames and the longer the drives. Sending and judging happen elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from controller.plan import sharers
from controller.program import DomainProgram, Meter, Queue, Rule
from testbed.emulation.probe_checks import METER_LATENESS_S
from testbed.emulation.probe_traffic import LARGEST_FRAME_BYTES, SMALLEST_FRAME_BYTES

_FRAMES_PER_S = 15_000
_MOST_FRAMES_PER_S = 20_000
"""What a switch takes and passes on, in a busy minute; more than the budget where meters let through more than that."""
_DOMAINS_AT_EASE = 3
FRAMES_OF_A_BUCKET = 64
_TENANTS_AT_EASE = 16
_MOST_FLOODS = 12
_OVERLOAD = 1.1
_OVERLOADED, _LEAST_OVERLOADED, _EMPTIED = 1.5, 1.2, 1.3
"""Of a meter's rate, at ease and where a switch takes hardly more, and of its bucket, what is offered to empty it."""
_LONGEST_EMPTYING_S = 5.0
_GRAINS_OF_A_RATE = 40
"""Twice as many frames, or moments of lateness, as a check of a rate allows for at each end of what it watches."""


@dataclass(frozen=True)
class Effort:
    """Durations and sizes for one domain.

    Attributes:
        program: What is probed.
        domains_behind: How many domains the probe's frames go on to cross.
        stretch: Factor on all durations, for another try on a host that stalled; and with as much more time for each of
            them, the frames are fewer: a host that is slow may have had too many.
        slow_down: How many times slower the scenario is than it was written: the host takes as many times fewer frames,
            and its pauses are to matter as much less.
    """

    program: DomainProgram
    domains_behind: int = 0
    stretch: float = 1.0
    slow_down: float = 1.0

    @property
    def _budget(self) -> float:
        return _FRAMES_PER_S / self.slow_down / self.stretch**2

    @property
    def _crowd(self) -> float:
        return self.stretch * self.slow_down * max(1.0, len(self.program.rules) / _TENANTS_AT_EASE)

    @property
    def frames_per_s(self) -> float:
        """The budget of what is sent through the meters."""
        return self._budget * min(1.0, _DOMAINS_AT_EASE / (1 + self.domains_behind))

    @property
    def _most_bps(self) -> float:
        """What a switch takes in the largest frames."""
        return 8 * LARGEST_FRAME_BYTES * _MOST_FRAMES_PER_S / self.slow_down

    @cached_property
    def _meters(self) -> list[Meter]:
        return [rule.meter for rule in self.program.rules if rule.meter is not None]

    @property
    def _metered_bps(self) -> int:
        return 1000 * sum(meter.rate_kbps for meter in self._meters)

    @cached_property
    def _overloaded(self) -> float:
        """How much more than its rate every meter is offered: less where all of them together are much for a switch."""
        ease = _LEAST_OVERLOADED / _OVERLOADED * self._most_bps / self._metered_bps
        return max(_LEAST_OVERLOADED, min(_OVERLOADED, ease))

    @cached_property
    def emptying_s(self) -> float:
        """How long an overload may take to empty every full bucket: longer where the switch would take no more."""
        usual_s = 0.2 * self._crowd
        if not self._meters:
            return usual_s
        left_bps = self._most_bps - self._overloaded * self._metered_bps
        bits = _EMPTIED * 1000 * sum(meter.burst_kbit for meter in self._meters)
        return max(usual_s, min(_LONGEST_EMPTYING_S, bits / left_bps if left_bps > 0 else math.inf))

    @cached_property
    def rate_drive_s(self) -> float:
        """How long empty meters are watched: long enough to tell the rate of the slowest from whole frames."""
        grains_s = (8 * self.overload(meter)[0] / (meter.rate_kbps * 1000) + METER_LATENESS_S for meter in self._meters)
        return max(0.5 * self._crowd, self.stretch * _GRAINS_OF_A_RATE * max(grains_s, default=0.0))

    @property
    def most_floods(self) -> int:
        """How often a meter is flooded of whose bucket earlier ones did not tell enough."""
        return max(2, round(_MOST_FLOODS / self.slow_down))

    @property
    def ahead_s(self) -> float:
        """How much of its rate a class is given beforehand, so that a pause of the sender leaves it a backlog."""
        return 0.02 * self.slow_down

    @property
    def lead_s(self) -> float:
        """How long classes are kept busy before they are watched."""
        return 0.03 * self.slow_down

    @property
    def queue_drive_s(self) -> float:
        """How long backlogged classes are watched."""
        return 0.3 * self._crowd

    def flood(self, meter: Meter) -> tuple[int, int]:
        """Frame size in bytes and number of frames that show a full bucket, and also one that is far too large."""
        size = _frame_bytes(meter.burst_kbit * 1000 / FRAMES_OF_A_BUCKET)
        rate = meter.rate_kbps * 1000
        late = rate * 3 * METER_LATENESS_S
        # While a flood is taken in the bucket fills up again, and more of it passes.
        refilled = min(0.75, rate / (8 * size * _MOST_FRAMES_PER_S / self.slow_down))
        return size, int((1.2 * meter.burst_kbit * 1000 + late) / (1 - refilled) / (8 * size)) + 10

    def overload(self, meter: Meter) -> tuple[int, float]:
        """Frame size in bytes and frames per second that empty a full bucket in time and keep it empty."""
        rate, bucket = meter.rate_kbps * 1000, meter.burst_kbit * 1000
        offered = self._overloaded * rate + _EMPTIED * bucket / self.emptying_s
        size = _frame_bytes(max(offered / self._share_of(self.frames_per_s), bucket / FRAMES_OF_A_BUCKET))
        return size, offered / (8 * size)

    def busy_bps(self) -> dict[int, float]:
        """What keeps each class busy, by rule number: its own rate, or an even and ample share of what is left over.

        Tenants that share a class bring an even part of its rate each.
        """
        rest = [rule for rule in self.program.rules if not is_reserved(rule.queue)]
        left = self.program.link_rate_bps - reserved_bps(self.program.rules)
        shared = sharers(self.program.rules)
        return {
            rule.number: rule.queue.rate_bps / len(shared[rule.queue])
            if is_reserved(rule.queue)
            else max(rule.queue.rate_bps, min(rule.queue.ceil_bps, 1.3 * left / len(rest)))
            for rule in self.program.rules
        }

    def busy(self, rate_bps: float) -> tuple[int, float]:
        """Frame size in bytes and frames per second that keep a class of this rate backlogged."""
        offered = _OVERLOAD * rate_bps
        size = _frame_bytes(offered / self._share_of(self._budget))
        return size, offered / (8 * size)

    def ports_together(self, ports: Sequence[str]) -> list[Sequence[str]]:
        """The ports in groups whose frames together stay within the budget."""
        per_port = sum(self.busy(rate)[1] for rate in self.busy_bps().values())
        together = max(1, int(4 * self._budget / per_port))
        return [ports[start : start + together] for start in range(0, len(ports), together)]

    def _share_of(self, frames_per_s: float) -> float:
        """Frames per second for each tenant; at least as many as resolve a rate to a percent."""
        return max(frames_per_s / max(4, len(self.program.rules)), 100 / self.queue_drive_s)


def is_reserved(queue: Queue) -> bool:
    """Whether the class has its rate for itself and no more."""
    return queue.rate_bps == queue.ceil_bps


def reserved_bps(rules: Sequence[Rule]) -> int:
    """Sum of the reserved rates, each class counted once."""
    return sum(queue.rate_bps for queue in sharers(rules) if is_reserved(queue))


def _frame_bytes(bits: float) -> int:
    """The frame size nearest to `bits` that a probe can send."""
    return max(SMALLEST_FRAME_BYTES, min(LARGEST_FRAME_BYTES, int(bits / 8)))
