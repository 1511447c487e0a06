"""What a bound hands back: the number, the theorem, what it assumes, what it is made of, and what was rejected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from testbed.calculus.tails import Per

PartKind: TypeAlias = Literal["queue", "latency", "excess", "loss"]


@dataclass(frozen=True, slots=True)
class Part:
    """One term of a bound.

    Attributes:
        domain: The domain that owns the term; "own burst" for the tenant's own queue.
        kind: What the term is.
        delay_s: Seconds of the bound that it takes.
        epsilon: Probability that it takes; 0 for a sure term.
        price_per_s: Probability that one second more for this term would save; 0 for a sure term.
    """

    domain: str
    kind: PartKind
    delay_s: float
    epsilon: float
    price_per_s: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One method that was tried.

    Attributes:
        method: Its name.
        delay_s: Its bound; infinite when it gives none.
        note: Why it gives none, or empty.
    """

    method: str
    delay_s: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """What one domain (or the tenant's own queue) takes of the delay and of the risk."""

    domain: str
    epsilon: float
    delay_s: float
    price_per_s: float


@dataclass(frozen=True, slots=True)
class DelayBound:
    """An end-to-end delay that is exceeded with probability at most epsilon.

    Attributes:
        delay_s: The bound on the wait: from the arrival of a packet to its departure from the last domain, with the
            packet's own transmission counted only as far as a domain's latency holds it.
        sojourn_s: The same with the packet's own transmission in the last domain added; None when packet sizes have no
            bound and no theorem covers it.
        epsilon: Probability of exceeding it, losses included.
        per: Whether the probability counts packets or time.
        method: The theorem that gave the smallest bound.
        exact: Whether the bound is the quantile itself.
        rate_bps: The service rate it is computed at.
        assumptions: What must hold, each a clause.
        parts: The terms; their delays add up to delay_s and their probabilities to at most epsilon.
        candidates: Every method tried, the best first.
    """

    delay_s: float
    sojourn_s: float | None
    epsilon: float
    per: Per
    method: str
    exact: bool
    rate_bps: float
    assumptions: tuple[str, ...]
    parts: tuple[Part, ...]
    candidates: tuple[Candidate, ...]

    @property
    def rejected(self) -> tuple[Candidate, ...]:
        """The candidates that are not the bound."""
        return tuple(candidate for candidate in self.candidates if candidate.method != self.method)

    @property
    def budget(self) -> tuple[BudgetLine, ...]:
        """Delay and risk per domain, in path order, the tenant's own queue first."""
        lines: dict[str, BudgetLine] = {}
        for part in self.parts:
            old = lines.get(part.domain, BudgetLine(part.domain, 0.0, 0.0, 0.0))
            lines[part.domain] = BudgetLine(
                part.domain,
                old.epsilon + part.epsilon,
                old.delay_s + part.delay_s,
                max(old.price_per_s, part.price_per_s),
            )
        return tuple(lines.values())

    def explain(self) -> str:
        """The bound in sentences and a table, for a person."""
        subject = "packets" if self.per == "packet" else "the time"
        relation = "is exceeded by exactly" if self.exact else "is exceeded by at most"
        theorem = f"{self.method} at {self.rate_bps:g} bit/s"
        lines = [f"A delay of {_time(self.delay_s)} {relation} {self.epsilon:.3g} of {subject} ({theorem})."]
        if self.sojourn_s is not None and self.sojourn_s > self.delay_s:
            lines.append(f"With the packet's own transmission in the last domain it is {_time(self.sojourn_s)}.")
        lines.append("It is made of:")
        for part in self.parts:
            risk = "surely" if part.epsilon == 0.0 else f"but for {part.epsilon:.3g}"
            price = f"; one ms more would save {part.price_per_s * 1e-3:.3g}" if part.price_per_s > 0.0 else ""
            lines.append(f"  {part.domain} ({part.kind}): {_time(part.delay_s)}, {risk}{price}")
        lines.append("It assumes that " + "; ".join(self.assumptions) + ".")
        for candidate in self.rejected:
            value = "no bound" if math.isinf(candidate.delay_s) else _time(candidate.delay_s)
            note = f" ({candidate.note})" if candidate.note else ""
            lines.append(f"Rejected: {candidate.method}, {value}{note}.")
        return "\n".join(lines)


def _time(seconds: float) -> str:
    """A duration with the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1.0 or unit == "us":
            return f"{seconds * scale:.4g} {unit}"
    raise AssertionError("the last unit takes everything")
