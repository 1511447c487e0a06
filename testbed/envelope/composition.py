"""From the envelopes of a path to one end-to-end promise.

A path is the list of its parts, so composing is concatenation: associative, and every figure can be traced to the
signed envelope it came from. What the tenant may send only tightens from part to part; what the domains add, adds up.
Three rules add the lingering excesses, which differ in what they assume of the domains' dependence. Delay bounds, which
also need the tenant's arrivals, are `testbed.calculus`'s business.

Sources: docs/envelope.md, "Composition"; the union and its optimal split are the convolution of exponentials under
(min, +), the independent rule is a phase-type distribution (Neuts, "Matrix-Geometric Solutions", 1981, chapter 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from testbed.envelope.descriptor import Envelope, Stage, Validity
from testbed.envelope.errors import MixAndMatchError, WrongRateError
from testbed.envelope.fields import ONE_IN_PPB, ONE_IN_PPM
from testbed.envelope.guardrails import Guardrails
from testbed.envelope.store import require_one_offer
from testbed.envelope.tail import ExcessTail

FloatArray = NDArray[np.float64]

_PRICE_TOLERANCE = 1e-12
"""Of the logarithm of the common marginal."""


class Rule(StrEnum):
    """How the excesses of the parts are added.

    Attributes:
        SAMPLE_PATH: On every sample path no excess is above its cap. Assumes nothing and risks nothing.
        UNION: The probabilities of the parts add up, at the best split of the excess. Assumes nothing about dependence.
        INDEPENDENT: The excesses of different parts are independent of each other. Parts that share a process, a
            processor or an accelerator are not.
    """

    SAMPLE_PATH = "sample-path"
    UNION = "union"
    INDEPENDENT = "independent"


@dataclass(frozen=True, slots=True)
class Source:
    """One part of a path, by name: which promise of whom, and the digest of exactly these figures."""

    domain: str
    subject: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class Path:
    """Verified envelopes in the order in which a packet meets them.

    Attributes:
        parts: One or more envelopes, issued to be used together.
    """

    parts: tuple[Envelope, ...]

    def __post_init__(self) -> None:
        """Raises `MixAndMatchError` for parts that were not issued together, twice the same subject, or none."""
        if not self.parts:
            raise MixAndMatchError("path: found no envelopes, expected at least one")
        require_one_offer(self.parts)
        subjects = [(part.domain, part.subject) for part in self.parts]
        if len(set(subjects)) != len(subjects):
            raise MixAndMatchError(f"path: found one subject twice in {[str(s) for _, s in subjects]}, expected once")

    @classmethod
    def of(cls, parts: Iterable[Envelope]) -> Self:
        """A path from envelopes in order."""
        return cls(tuple(parts))

    def then(self, other: Path) -> Path:
        """This path followed by another one."""
        return Path((*self.parts, *other.parts))

    @property
    def sources(self) -> tuple[Source, ...]:
        """Provenance of every figure."""
        return tuple(Source(part.domain, str(part.subject), part.version, part.digest) for part in self.parts)

    @property
    def rate_bps(self) -> int:
        """The rate R of the path: the smallest that is reserved on it."""
        return min(part.guardrails.reserved_rate_bps for part in self.parts)

    def require_one_rate(self) -> None:
        """Check that every tail was measured at the rate of the path.

        Raises:
            WrongRateError: One was measured at another rate.
        """
        smallest = self.rate_bps
        for part, tail in self._tails():
            if tail.rate_bps != smallest:
                raise WrongRateError(
                    f"domain {part.domain}: its tail was measured at {tail.rate_bps} bit/s, the path's smallest rate "
                    f"is {smallest}; ask for a calibration at {smallest}"
                )

    @property
    def guardrails(self) -> Guardrails:
        """What holds surely from end to end.

        Rates, peak, packet, burst and load are no larger than in any part; a server takes whole requests, which are
        larger than any packet, so where there are networks the largest packet is theirs (`largest_request_bits`). The
        burst is what the tenant may send into
        the first part so that every later meter still sees no more than its own burst, after the earlier parts held
        packets back as long as they may. Latencies, caps on excess and shares of loss and error add up.

        Raises:
            MixAndMatchError: A later part's meter is too small for what the earlier parts let through.
        """
        found = [part.guardrails for part in self.parts]
        reserved, meter = min(g.reserved_rate_bps for g in found), min(g.meter_rate_bps for g in found)
        carried = [part.guardrails for part in self.parts if part.subject.stage is Stage.NETWORK] or found
        largest_packet = min(g.largest_packet_bits for g in carried)
        burst = min(_entry_bursts(found, meter))
        if burst < largest_packet:
            raise MixAndMatchError(
                f"path: the meters leave a burst of {burst} bits, less than one packet of {largest_packet}; ask each "
                "later domain for more, by the meter rate times the latencies and caps before it"
            )
        load_bps = min(g.load_cap_ppm * g.reserved_rate_bps for g in found)
        return Guardrails(
            reserved_rate_bps=reserved,
            meter_rate_bps=meter,
            peak_rate_bps=min((g.peak_rate_bps for g in found if g.peak_rate_bps is not None), default=None),
            burst_bits=burst,
            latency_ns=sum(g.latency_ns for g in found),
            host_allowance_ns=sum(g.host_allowance_ns for g in found),
            largest_packet_bits=largest_packet,
            delay_cap_ns=sum(g.delay_cap_ns for g in found),
            loss_cap_ppb=min(ONE_IN_PPB, sum(g.loss_cap_ppb for g in found)),
            error_cap_ppb=min(ONE_IN_PPB, sum(g.error_cap_ppb for g in found)),
            load_cap_ppm=min(ONE_IN_PPM, load_bps // reserved),
        )

    @property
    def largest_request_bits(self) -> int | None:
        """Largest request that every server of the path takes; None where none computes."""
        computing = (part.guardrails for part in self.parts if part.subject.stage is Stage.COMPUTE)
        return min((rails.largest_packet_bits for rails in computing), default=None)

    @property
    def validity(self) -> Validity:
        """When all parts are valid.

        Raises:
            MixAndMatchError: They never are at once.
        """
        start = max(part.validity.not_before_s for part in self.parts)
        end = min(part.validity.not_after_s for part in self.parts)
        if end < start:
            raise MixAndMatchError(f"path: one part ends at {end} before another begins at {start}; ask for new offers")
        return Validity(start, end)

    @property
    def confidence(self) -> float:
        """With which all evidence of the path holds together (Bonferroni); 1 where no part rests on samples."""
        doubts = (1 - part.evidence.confidence for part in self.parts if part.stochastic and part.evidence)
        return max(0.0, 1 - math.fsum(doubts))

    @property
    def loss_probability(self) -> float:
        """Probability that a packet is lost in some part, at most."""
        return min(1.0, math.fsum(part.loss_probability for part in self.parts))

    @property
    def error_probability(self) -> float:
        """Probability that some part answers with an error, at most."""
        return min(1.0, math.fsum(part.error_probability for part in self.parts))

    def excess_exceedance(self, x_s: float, rule: Rule) -> float:
        """Limit of P(sum of the lingering excesses > x_s) for a packet that is not lost.

        Raises:
            WrongRateError: Tails measured at different rates.
        """
        return self._exceedance(self._terms(), x_s, rule)

    def excess_quantile_s(self, epsilon: float, rule: Rule) -> float:
        """The sum of the excesses that is exceeded with probability at most epsilon, seconds."""
        terms = self._terms()
        low, high = 0.0, self._cap_s
        if self._exceedance(terms, low, rule) <= epsilon:
            return low
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self._exceedance(terms, middle, rule) <= epsilon else (middle, high)
        return high

    def _exceedance(self, terms: _Terms, x_s: float, rule: Rule) -> float:
        if x_s >= self._cap_s:
            return 0.0
        if rule is Rule.SAMPLE_PATH:
            return 1.0
        exceeds = terms.union(x_s)
        if rule is Rule.INDEPENDENT:
            exceeds = min(exceeds, terms.independent(x_s))
        return min(1.0, exceeds)

    def _terms(self) -> _Terms:
        """What the tails add up from, provided that all of them speak of the path's rate."""
        self.require_one_rate()
        return _Terms.of(self._tails())

    @property
    def _cap_s(self) -> float:
        """No sum of excesses is above it: parts without a stochastic part have none, the others their cap."""
        return math.fsum(part.guardrails.delay_cap_s for part, _ in self._tails())

    def _tails(self) -> Iterator[tuple[Envelope, ExcessTail]]:
        return ((part, part.tail) for part in self.parts if part.tail is not None)

    def to_dict(self, epsilon: float = 1e-3) -> dict[str, Any]:
        """A summary in JSON; not a wire format, since nobody signs a sum of other people's promises.

        Args:
            epsilon: Probability at which the sum of the excesses is given.
        """
        return {
            "guardrails": self.guardrails.to_dict(),
            "largest_request_bits": self.largest_request_bits,
            "validity": self.validity.to_dict(),
            "rate_bps": self.rate_bps,
            "confidence": self.confidence,
            "loss_probability": self.loss_probability,
            "error_probability": self.error_probability,
            "epsilon": epsilon,
            "excess_s": {str(rule): self.excess_quantile_s(epsilon, rule) for rule in Rule},
            "sources": [
                {"domain": s.domain, "subject": s.subject, "version": s.version, "digest": s.digest}
                for s in self.sources
            ],
        }


def _entry_bursts(found: list[Guardrails], meter_rate_bps: int) -> Iterator[int]:
    """Burst at the entry of the path that arrives at each part's meter as that part's own burst."""
    held_ns = 0
    for guardrails in found:
        growth = -(-meter_rate_bps * held_ns // 10**9)
        yield guardrails.burst_bits - growth
        held_ns += guardrails.latency_ns + guardrails.delay_cap_ns


@dataclass(frozen=True, slots=True)
class _Terms:
    """Several tails, each shifted to begin at zero: P(Y_d - x_min > z) <= p exp(-theta z) up to a reach, level beyond.

    Attributes:
        log_p: ln of the probabilities at zero.
        decay: theta in 1/s.
        reach_s: How far each decays; infinite where the cap comes first, zero for a level tail.
        silent_s: Sum of the x_min, about which nothing is said.
    """

    log_p: FloatArray
    decay: FloatArray
    reach_s: FloatArray
    silent_s: float

    @classmethod
    def of(cls, tails: Iterable[tuple[Envelope, ExcessTail]]) -> Self:
        found = [(tail, part.guardrails.delay_cap_s) for part, tail in tails]
        silent_s = math.fsum(min(tail.x_min_s, cap_s) for tail, cap_s in found)
        # A tail that begins at the cap or above has nothing left to say: that part never lingers longer than its cap.
        heard = [(tail, cap_s) for tail, cap_s in found if tail.x_min_s < cap_s]
        return cls(
            np.array([math.log(tail.exceedance_ppb / ONE_IN_PPB) for tail, _ in heard]),
            np.array([tail.decay_per_s for tail, _ in heard]),
            np.array([math.inf if tail.x_max_s >= cap_s else tail.x_max_s - tail.x_min_s for tail, cap_s in heard]),
            silent_s,
        )

    def union(self, x_s: float) -> float:
        """Smallest sum of the probabilities over all ways to split x_s.

        At the optimum every part within its reach has the same marginal mu = p theta exp(-theta z), so the split
        follows from mu alone and mu from the sum of the split, which falls as mu grows.
        """
        spare_s = x_s - self.silent_s
        if spare_s < 0:
            return 1.0
        if self.reach_s.sum() <= spare_s:
            return self._risk(self.reach_s)
        marginal = self.log_p + np.log(self.decay)
        low, high = float((marginal - self.decay * np.minimum(self.reach_s, spare_s)).min()), float(marginal.max())
        while high - low > _PRICE_TOLERANCE:
            middle = (low + high) / 2
            low, high = (middle, high) if self._split(marginal, middle).sum() > spare_s else (low, middle)
        return self._risk(self._split(marginal, high))

    def _split(self, marginal: FloatArray, log_price: float) -> FloatArray:
        return np.asarray(np.clip((marginal - log_price) / self.decay, 0.0, self.reach_s))

    def _risk(self, split_s: FloatArray) -> float:
        return float(np.exp(self.log_p - self.decay * split_s).sum())

    def independent(self, x_s: float) -> float:
        """P(sum of B_d E_d > x_s), with B_d true with probability p_d and E_d exponential of rate theta_d.

        What lies beyond a reach is charged in full, as in a union.
        """
        spare_s = x_s - self.silent_s
        if spare_s < 0:
            return 1.0
        beyond = self._risk(self.reach_s)
        decaying = self.reach_s > 0
        p, theta = np.exp(self.log_p[decaying]), self.decay[decaying]
        start, generator = np.zeros(theta.size), np.diag(-theta)
        for stage in range(theta.size):
            skipped = np.concatenate(([1.0], np.cumprod(1 - p[stage + 1 :])))
            generator[stage, stage + 1 :] = theta[stage] * skipped[:-1] * p[stage + 1 :]
            start[stage] = np.prod(1 - p[:stage]) * p[stage]
        return beyond + float(start @ expm(generator * spare_s) @ np.ones(theta.size))
