"""Options that impair domains: a value for all of them, or DOMAIN=VALUE for one, as often as wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from testbed.errors import ScenarioError
from testbed.simulation.impairment import Excess

EVERY = ""
"""Stands for every domain that has no value of its own."""


def by_domain(option: str, texts: Sequence[str], *, most: float) -> dict[str, float]:
    """The values of an option, by domain.

    Args:
        option: Its name, for messages.
        texts: As they were given.
        most: Largest value that makes sense; the smallest is 0.

    Raises:
        ScenarioError: No number in that range, or a domain that is named twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        domain, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= most:
            raise ScenarioError(
                f"{option}: found {text!r}, expected a number from 0 to {most:g}, or DOMAIN= and one; correct it"
            )
        if domain in found:
            whom = f"domain {domain}" if domain else "every domain"
            raise ScenarioError(f"{option}: found two values for {whom}, expected one; delete the other")
        found[domain] = value
    return found


def impairments(excess_ms: Sequence[str], excess_share: Sequence[str], loss: Sequence[str]) -> dict[str, Any]:
    """What the options choose, as arguments of `testbed.simulation.network.Choices`.

    Args:
        excess_ms: Means of random excess latencies.
        excess_share: Shares of the packets that have one.
        loss: Probabilities of losing a packet.

    Raises:
        ScenarioError: A value that makes no sense, or a share of packets without an excess latency.
    """
    means_ms = by_domain("--excess-ms", excess_ms, most=1e7)
    shares = by_domain("--excess-share", excess_share, most=1.0)
    if alone := sorted(set(shares) - set(means_ms)):
        raise ScenarioError(
            f"--excess-share: found a share for {', '.join(alone) or 'every domain'} and no latency, expected "
            "--excess-ms for the same; add it"
        )
    excess = {
        domain: Excess.exponential(mean_ms / 1e3, shares.get(domain, shares.get(EVERY, 1.0)))
        for domain, mean_ms in means_ms.items()
    }
    return {"excess": excess.get(EVERY), "excess_in": _named(excess), **_lost(by_domain("--loss", loss, most=1.0))}


def _lost(probabilities: Mapping[str, float]) -> dict[str, Any]:
    return {"loss": probabilities.get(EVERY), "loss_in": _named(probabilities)}


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    return {domain: value for domain, value in values.items() if domain != EVERY}
