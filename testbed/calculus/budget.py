"""The risk budget of a path: who may take how much of a probability or of a delay, and what a little more costs.

Delays of domains are bounded by exponential tails and nothing is known about their dependence. At the optimum every
domain above its floor has the same marginal mu: one second more saves mu of probability, wherever it is spent
(docs/calculus.md, "Risk budget").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from testbed.calculus import waterfill
from testbed.calculus.errors import CalculusError, require_probability
from testbed.calculus.numeric import FloatArray
from testbed.calculus.service.promised import ExcessTail


@dataclass(frozen=True, slots=True)
class Share:
    """What one domain takes of a budget.

    Attributes:
        domain: Its name.
        delay_s: Its delay.
        epsilon: The probability that it exceeds that delay.
        price_per_s: Probability saved by one second more for this domain.
        nine_s: Seconds by which this domain's delay must grow to divide its probability by ten.
    """

    domain: str
    delay_s: float
    epsilon: float
    price_per_s: float
    nine_s: float


@dataclass(frozen=True, slots=True)
class RiskBudget:
    """An optimal split.

    Attributes:
        delay_s: Sum of the delays.
        epsilon: Sum of the probabilities.
        price_per_s: The common multiplier: probability that one second more of end-to-end delay saves.
        nine_s: Seconds of end-to-end delay that one more nine costs at the optimum.
        shares: One for each domain, in path order.
    """

    delay_s: float
    epsilon: float
    price_per_s: float
    nine_s: float
    shares: tuple[Share, ...]


def budget_for_risk(domains: Mapping[str, ExcessTail], epsilon: float) -> RiskBudget:
    """The smallest total delay whose probabilities add up to at most epsilon.

    Args:
        domains: Tails by name, in path order; caps are not used.
        epsilon: Total probability.

    Raises:
        CalculusError: No domain, or epsilon is no probability.
    """
    require_probability("epsilon", epsilon)
    log_m, decay, floor = _arrays(domains)
    return _budget(domains, log_m, decay, waterfill.for_risk(log_m, decay, floor, epsilon))


def budget_for_delay(domains: Mapping[str, ExcessTail], delay_s: float) -> RiskBudget:
    """The smallest total probability whose delays add up to at most delay_s.

    Raises:
        CalculusError: No domain, or the deadline lies below the sum of the floors.
    """
    log_m, decay, floor = _arrays(domains)
    if not delay_s >= floor.sum():
        raise CalculusError(
            f"sum of x_min <= deadline fails: {floor.sum():g} against {delay_s:g} s; the tails say nothing below x_min"
        )
    return _budget(domains, log_m, decay, waterfill.for_delay(log_m, decay, floor, delay_s))


def _arrays(domains: Mapping[str, ExcessTail]) -> tuple[FloatArray, FloatArray, FloatArray]:
    if not domains:
        raise CalculusError("a risk budget has 0 domains; expected at least 1")
    tails = list(domains.values())
    return (
        np.log([tail.prefactor for tail in tails]),
        np.array([tail.decay_per_s for tail in tails]),
        np.array([tail.x_min_s for tail in tails]),
    )


def _budget(
    domains: Mapping[str, ExcessTail], log_m: FloatArray, decay: FloatArray, split: waterfill.Split
) -> RiskBudget:
    risks = np.exp(log_m - decay * split.delay_s)
    price = math.exp(float(split.log_price))
    marginals = np.minimum(risks * decay, price)
    shares = tuple(
        Share(name, float(delay), float(risk), float(marginal), math.log(10.0) / float(rate))
        for name, delay, risk, marginal, rate in zip(domains, split.delay_s, risks, marginals, decay, strict=True)
    )
    active = risks * decay >= price * (1.0 - 1e-9)
    width = float((1.0 / decay[active]).sum())
    return RiskBudget(float(split.delay_s.sum()), float(risks.sum()), price, math.log(10.0) * width, shares)
