"""The stochastic part of an envelope: how often, and by how much, a domain falls behind its guardrails.

Sums over domains are not taken here (`testbed.envelope.composition`), nor is anything estimated
(`testbed.envelope.calibration`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from testbed.envelope import strict_json
from testbed.envelope.fields import ONE_IN_PPB, Problems, Record, members


@dataclass(frozen=True, slots=True)
class ExcessTail(Record):
    """Tail of the lingering excess at a named rate: P(Y > x) <= p exp(-theta (x - x_min)) for x_min <= x.

    Beyond `x_max_ns` nothing was supported by evidence, so the limit stays at its value there: a larger x is exceeded
    no more often. Equal `x_min_ns` and `x_max_ns` say one flat probability, as after a calibration without exceedance.

    Attributes:
        rate_bps: The rate R of the ideal FIFO against which Y was measured: the smallest on the tenant's path.
        exceedance_ppb: p, the limit of P(Y > x_min).
        decay_micro_per_s: theta, in millionths of 1/s.
        x_min_ns: Smallest excess about which the tail speaks.
        x_max_ns: Largest excess up to which it decays.
    """

    rate_bps: int
    exceedance_ppb: int
    decay_micro_per_s: int
    x_min_ns: int
    x_max_ns: int

    def __post_init__(self) -> None:
        """Raises `MalformedError` naming every field out of range."""
        problems = Problems("tail")
        problems.integer("rate_bps", self.rate_bps, 1)
        problems.integer("exceedance_ppb", self.exceedance_ppb, 1, ONE_IN_PPB)
        problems.integer("decay_micro_per_s", self.decay_micro_per_s, 1)
        problems.integer("x_min_ns", self.x_min_ns, 0)
        problems.integer("x_max_ns", self.x_max_ns, 0)
        if not problems and self.x_max_ns < self.x_min_ns:
            problems.add(f"x_max_ns {self.x_max_ns} is below x_min_ns {self.x_min_ns}; exchange or equalise them")
        problems.check()

    @property
    def decay_per_s(self) -> float:
        """Theta in 1/s."""
        return self.decay_micro_per_s / 1e6

    @property
    def x_min_s(self) -> float:
        """Smallest excess of the tail, seconds."""
        return self.x_min_ns / 1e9

    @property
    def x_max_s(self) -> float:
        """Largest excess of the decaying tail, seconds."""
        return self.x_max_ns / 1e9

    @property
    def multiplier(self) -> float:
        """M of the form M exp(-theta x); infinite where it overflows, so prefer `log_multiplier`."""
        return math.exp(self.log_multiplier) if self.log_multiplier < 700 else math.inf

    @property
    def log_multiplier(self) -> float:
        """Logarithm of M, which is ln p + theta x_min."""
        return math.log(self.exceedance_ppb / 1e9) + self.decay_per_s * self.x_min_s

    @property
    def floor(self) -> float:
        """The probability below which the tail never falls: its value at x_max."""
        return self.exceedance(self.x_max_s)

    def exceedance(self, x_s: float) -> float:
        """Limit of P(Y > x); 1 below `x_min_s`, where the tail is silent."""
        if x_s < self.x_min_s:
            return 1.0
        reach = min(x_s, self.x_max_s) - self.x_min_s
        return self.exceedance_ppb / 1e9 * math.exp(-self.decay_per_s * reach)


@dataclass(frozen=True, slots=True)
class Stochastic:
    """How often the domain falls behind its guardrails.

    Attributes:
        tail: Of the lingering excess of packets that enter the domain and leave it.
        loss_ppb: Probability that a conforming packet is lost.
        error_ppb: Probability that a conforming request is answered by an error.
    """

    tail: ExcessTail
    loss_ppb: int
    error_ppb: int

    def __post_init__(self) -> None:
        """Raises `MalformedError` naming every field out of range."""
        problems = Problems("stochastic")
        problems.kind("tail", self.tail, ExcessTail)
        problems.integer("loss_ppb", self.loss_ppb, 0, ONE_IN_PPB)
        problems.integer("error_ppb", self.error_ppb, 0, ONE_IN_PPB)
        problems.check()

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {"tail": self.tail.to_dict(), "loss_ppb": self.loss_ppb, "error_ppb": self.error_ppb}

    @classmethod
    def from_dict(cls, document: strict_json.Json) -> Self:
        """Inverse of `to_dict`; raises `MalformedError`."""
        found = members(document, "stochastic", cls.__dataclass_fields__)
        return cls(ExcessTail.from_dict(found["tail"]), found["loss_ppb"], found["error_ppb"])
