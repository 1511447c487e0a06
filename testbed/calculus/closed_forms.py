"""The closed forms of the MGF literature at a given theta, for comparing this package with others.

No bound of this package is computed here: its own sums are never larger. Each form takes theta, the flow's sigma and
rho and the servers' rates at that theta (left-over rates, where there is cross traffic; all sigmas added up), and
gives the delay for epsilon in slots, or in seconds where time is continuous. The sources are Fidler (2006), Beck's
thesis (2016) and Nikolaus & Schmitt (2017, 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from scipy.special import gammaln

from testbed.calculus.errors import CalculusError, UnstableError


def _gap(rho: float, rate: float) -> float:
    if not rho < rate:
        raise UnstableError(f"rho(theta) < service rate fails: {rho:g} against {rate:g}; take a smaller theta")
    return rate - rho


def discrete_geometric(theta: float, sigma: float, rho: float, rate: float, epsilon: float) -> float:
    """One server in slots, the geometric series summed from u = 0."""
    return (sigma - math.log(epsilon * -math.expm1(-theta * _gap(rho, rate))) / theta) / rate


def discrete_integral(theta: float, sigma: float, rho: float, rate: float, epsilon: float) -> float:
    """One server in slots, the series bounded by an integral."""
    return (sigma - math.log(epsilon * theta * _gap(rho, rate)) / theta) / rate


def continuous_geometric(theta: float, sigma: float, rho: float, rate: float, epsilon: float) -> float:
    """One server in continuous time with the best discretisation step: the Chernoff bound of this package."""
    step = math.log(rate / rho) / (theta * _gap(rho, rate))
    return (step * rho + sigma - math.log(epsilon * -math.expm1(-theta * step * (rate - rho))) / theta) / rate


def continuous_integral(theta: float, sigma: float, rho: float, rate: float, epsilon: float) -> float:
    """One server in continuous time with the step 1/(theta R) and the series bounded by an integral."""
    step = 1.0 / (theta * rate)
    return (step * rate + sigma - math.log(epsilon * theta * step * _gap(rho, rate)) / theta) / rate


def arrival_rate_tandem(theta: float, sigma: float, rho: float, rates: Sequence[float], epsilon: float) -> float:
    """Servers in tandem in slots, decaying with rho instead of the service rate."""
    series = math.fsum(math.log(-math.expm1(-theta * _gap(rho, rate))) for rate in rates)
    return (theta * sigma - series - math.log(epsilon)) / (theta * rho)


def rate_difference_tandem(theta: float, sigma: float, rho: float, rates: Sequence[float], epsilon: float) -> float:
    """Servers in tandem in slots, dividing by differences of rates; ties lower the slowest rate."""
    slowest = min(rates)
    index = rates.index(slowest)
    others = [rate for position, rate in enumerate(rates) if position != index]
    if any(math.isclose(rate, slowest, rel_tol=1e-12) for rate in others):
        slowest -= 0.5 * _gap(rho, slowest)
    log_gamma = -math.log(-math.expm1(-theta * _gap(rho, slowest)))
    log_gamma -= math.fsum(math.log(-math.expm1(-theta * (rate - slowest))) for rate in others)
    return (theta * sigma + log_gamma - math.log(epsilon)) / (theta * slowest)


def convolved_chain(theta: float, sigma: float, rho: float, rates: Sequence[float], epsilon: float) -> float:
    """Servers of distinct rates convolved two by two into one server, then the geometric series."""
    rate = rates[0]
    for other in rates[1:]:
        sigma -= math.log(-math.expm1(-theta * abs(rate - other))) / theta
        rate = min(rate, other)
    return discrete_geometric(theta, sigma, rho, rate, epsilon)


def explicit_tandem(theta: float, sigma: float, rho: float, rates: Sequence[float], epsilon: float) -> float:
    """Servers of distinct rates in tandem in slots, by partial fractions; cancels when rates are close."""

    def probability(delay: float) -> float:
        terms = []
        for j, rate in enumerate(rates):
            fraction = math.exp(theta * (sigma - rate * delay)) / -math.expm1(theta * (rho - rate))
            for k, other in enumerate(rates):
                if k != j:
                    fraction /= -math.expm1(theta * (rate - other))
            terms.append(fraction)
        return math.fsum(terms)

    return _invert(probability, epsilon)


def analytic_combinatorics_tandem(
    theta: float, sigma: float, rho: float, rates: Sequence[float], epsilon: float
) -> float:
    """Servers in tandem in slots, the slowest rate with its multiplicity and the others as a factor."""
    slowest = min(rates)
    ties = sum(math.isclose(rate, slowest, rel_tol=1e-12) for rate in rates)
    log_factor = theta * (sigma + rho) - math.fsum(
        math.log(-math.expm1(-theta * (rate - slowest)))
        for rate in rates
        if not math.isclose(rate, slowest, rel_tol=1e-12)
    )
    log_one = math.log(-math.expm1(-theta * _gap(rho, slowest)))

    def probability(delay: float) -> float:
        inner = math.fsum(
            math.exp(gammaln(delay + ties - i) - gammaln(delay + 1.0) - gammaln(ties - i) - (i + 1) * log_one)
            for i in range(ties)
        )
        return math.exp(log_factor - theta * slowest * (delay + 1.0)) * inner

    return _invert(probability, epsilon)


def _invert(probability: Callable[[float], float], epsilon: float) -> float:
    low, high = 0.0, 1.0
    while probability(high) > epsilon:
        low, high = high, 2.0 * high
        if math.isinf(high):
            raise CalculusError("the form does not fall below epsilon at any delay")
    while high - low > 1e-13 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if probability(middle) <= epsilon else (middle, high)
    return high
