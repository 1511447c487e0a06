"""What is broken on purpose in a measured window, when, and what must come of it.

A fault belongs to a scenario as its tenants do: the same file breaks the same thing at the same moment again. Which
tenants fail by it is stated beforehand, so that a run can be wrong about it. How a fault is done to a network is
`testbed.run.faults`', and whether its expectations were met `testbed.run.expectations`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from testbed.scenario.units import RATE, TIME, quantity


class FaultKind(StrEnum):
    """What is done."""

    LINK_DOWN = "link-down"
    RATE_CHANGE = "rate-change"
    LOSS = "loss"
    DELAY = "delay"
    CONTROLLER_KILLED = "controller-killed"
    SWITCH_KILLED = "switch-killed"
    AGENT_KILLED = "agent-killed"
    SERVER_KILLED = "server-killed"
    SERVER_SLOWED = "server-slowed"
    SERVER_WRONG = "server-wrong"
    CLOCK_STEPPED = "clock-stepped"
    DISK_FULL = "disk-full"


IMPAIRED_KINDS = frozenset({FaultKind.SERVER_SLOWED, FaultKind.SERVER_WRONG})
"""Done by a domain's inference server to itself."""
SERVER_KINDS = IMPAIRED_KINDS | {FaultKind.SERVER_KILLED}
"""Done to a domain's inference server, so to everyone who asks it."""


@dataclass(frozen=True)
class Fault:
    """One fault of a measured window; times count from the window's start.

    Attributes:
        name: Unique among the faults.
        kind: What is done.
        at_s: When it begins at the earliest.
        spread_s: It begins at a moment drawn uniformly from this long after `at_s`.
        for_s: How long it lasts; 0 for a disk, which stays full until the run ends.
        recovery_s: How long after its end the tenants that fail may go on failing.
        domain: Whose part of the network it is done to.
        tenant: Whose queue, where it is one tenant's alone.
        rate_bps: Rate the queue is lowered to, None where nothing is lowered.
        share: Share of the packets that is lost or of the answers that are wrong, None where none is.
        delay_s: How much longer the way becomes, None where it does not.
        ready_s: How long what is started again may take to be ready, None where nothing is or no limit is stated.
        step_s: How far the host's clock is set forward, None where it is not.
        factor: How many times as long computations take, None where they take as long as ever.
        fails: Tenants that must break their promise while it lasts; everyone else with a promise must keep it.
    """

    name: str
    kind: FaultKind
    at_s: float
    for_s: float
    recovery_s: float
    spread_s: float = 0.0
    domain: str | None = None
    tenant: str | None = None
    rate_bps: int | None = None
    share: float | None = None
    delay_s: float | None = None
    step_s: float | None = None
    ready_s: float | None = None
    factor: float | None = None
    fails: tuple[str, ...] = ()

    def describe(self) -> str:
        """What is done to whom, in a few words."""
        to = "" if self.rate_bps is None else f" to {quantity(self.rate_bps, RATE)}"
        items = "answers" if self.kind is FaultKind.SERVER_WRONG else "packets"
        to += "" if self.share is None else f" of {self.share:.0%} of the {items}"
        to += "" if self.factor is None else f" to {self.factor:g} times as long"
        to += "" if self.delay_s is None else f" of {quantity(self.delay_s, TIME)} more"
        to += "" if self.step_s is None else f" by {quantity(self.step_s, TIME)}"
        whom = [f"domain {self.domain}"] if self.domain else []
        whom += [f"tenant {self.tenant}"] if self.tenant else []
        return f"{self.kind.replace('-', ' ')}{to}" + (f", {', '.join(whom)}" if whom else "")


def begin_s(faults: Sequence[Fault], seed: int, window: int) -> tuple[float, ...]:
    """When each fault begins in a window, seconds from its start, in the order of `faults`.

    Args:
        faults: Of one scenario.
        seed: Root of the window's random streams.
        window: Its number.
    """
    drawn = (np.random.default_rng((seed, window, number, 0xFA)).random() for number in range(len(faults)))
    return tuple(fault.at_s + float(part) * fault.spread_s for fault, part in zip(faults, drawn, strict=True))
