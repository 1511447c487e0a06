"""Why a request was slow, not only where: its latency cut into causes, and what it would have been otherwise.

The tenant's own burst is told from the domain's service by an ideal server fed the same arrivals: what a packet would
have waited there too is the tenant's doing. The pieces add up to the latency, so `testbed.audit.attribution` can share
out the tail among them as it does among domains. Nothing is measured or replayed here (`testbed.telemetry`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from testbed.audit.clusters import FloatArray, as_series
from testbed.envelope.tail import ExcessTail


class Cause(StrEnum):
    """Causes of delay that are no domain's service."""

    OWN_BURST = "tenant's own burst"
    TRANSPORT = "client's transport"
    INFERENCE_QUEUE = "inference queueing"
    COMPUTE = "compute"
    PAUSED = "server paused on purpose"
    SLOWED_DOWN = "server slowed down on purpose"
    NETWORK_BACK = "network back"
    RETRANSMISSION = "retransmission"
    HOST = "host artefact"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class DomainPassage:
    """One domain as each request crossed it, arrays of shape [n], NaN where it was not crossed.

    Attributes:
        delay_s: From entry to exit.
        own_wait_s: Wait, the request itself excluded, in an ideal server of the reserved rate fed the same arrivals.
    """

    delay_s: npt.ArrayLike
    own_wait_s: npt.ArrayLike


def separate(
    latency_s: npt.ArrayLike,
    domains: Mapping[str, DomainPassage],
    measured: Mapping[Cause, npt.ArrayLike] | None = None,
) -> dict[str, FloatArray]:
    """Cut latencies into each domain's own service, the tenant's own burst, and causes that were measured apart.

    Of a domain's delay, the tenant's own burst is never charged with more than the delay itself: a shaper with burst
    lets a packet leave before an ideal server would have started it.

    Args:
        latency_s: From intended sending to the answer, [n].
        domains: Each domain's passage, or that of another place where the tenant's own burst may wait.
        measured: Causes with a measurement of their own outside the domains: lateness of the sender for `HOST`, time in
            a server's queue, computing, and so on, [n] each.

    Returns:
        Name to seconds, [n]; they add up to the latency. A cause that took no time in any request is left out;
        `ELSEWHERE` holds what nothing accounts for.

    Raises:
        ValueError: Arrays of another length than the latencies.
    """
    latency = np.asarray(latency_s, dtype=np.float64)
    own_burst = np.zeros_like(latency)
    parts: dict[str, FloatArray] = {}
    for name, passage in domains.items():
        delay, wait = _matching(name, passage.delay_s, latency), _matching(name, passage.own_wait_s, latency)
        own_wait = np.minimum(wait, delay)
        own_burst += own_wait
        parts[name] = delay - own_wait
    causes = {Cause.OWN_BURST: own_burst} if domains else {}
    causes |= {cause: _matching(cause.value, seconds, latency) for cause, seconds in (measured or {}).items()}
    finished = np.isfinite(latency)
    parts |= {cause.value: seconds for cause, seconds in causes.items() if np.any(seconds[finished] != 0)}
    return add_up(latency, parts)


def add_up(
    latency_s: FloatArray, parts: Mapping[str, FloatArray], *, negligible_s: float = 1e-6
) -> dict[str, FloatArray]:
    """Complete parts by what they leave of the latency, unless that is nothing beyond rounding in any request.

    Of a request that was never answered every part is unknown, whatever was seen of it: what it spent in the domains
    that it did cross is no share of a latency that it does not have.
    """
    answered = np.isfinite(latency_s)
    known = {name: np.where(answered, seconds, np.nan) for name, seconds in parts.items()}
    rest = latency_s - np.sum(list(known.values()), axis=0)
    finished = np.isfinite(rest)
    if np.abs(rest[finished]).max(initial=0) <= negligible_s:
        return known
    return {**known, Cause.ELSEWHERE.value: rest}


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A quantile as it was, and as it would have been at best had one domain kept its envelope.

    Attributes:
        domain: Whose envelope.
        level: Quantile.
        measured_s: As measured.
        kept_s: With the domain's excess reduced to what its envelope allows.
        roughly: Whether the excess may have been larger than was measured.
    """

    domain: str
    level: float
    measured_s: float
    kept_s: float
    roughly: bool = False

    def __str__(self) -> str:
        """The finding in one sentence."""
        nearly = "or so" if self.roughly else "at best"
        return (
            f"Had {self.domain} kept its envelope, p{100 * self.level:g} would have been "
            f"{self.kept_s * 1e3:.4g} ms {nearly}; it was {self.measured_s * 1e3:.4g} ms."
        )


def counterfactual(
    domain: str,
    latency_s: npt.ArrayLike,
    excess_s: npt.ArrayLike,
    tail: ExcessTail | None,
    level: float = 0.999,
    *,
    roughly: bool = False,
) -> Counterfactual:
    """Reduce a domain's excess to what its envelope allows, and read off the quantile again.

    The k-th largest of n excesses may be as large as the envelope allows with probability k / n, and keeps its size
    where that is larger; each packet becomes faster by what its excess loses. What was never answered stays so.

    Args:
        domain: Whose excess it is.
        latency_s: Latencies in seconds, [n]; NaN or inf: never answered.
        excess_s: The domain's lingering excess in seconds, [n]; NaN where the packet did not cross it.
        tail: What the envelope allows; None if it allows no excess.
        level: Quantile in (0, 1).
        roughly: Whether the excess may have been larger than was measured.
    """
    latency = as_series(latency_s)
    excess = np.nan_to_num(_matching(domain, excess_s, latency), nan=0.0)
    rank = np.empty(excess.size)
    rank[np.argsort(-excess, kind="stable")] = np.arange(1, excess.size + 1) / excess.size
    surplus = np.maximum(0.0, excess - (0.0 if tail is None else _allowed(tail, rank)))
    kept = np.maximum(0.0, latency - surplus)
    return Counterfactual(domain, level, _quantile(latency, level), _quantile(kept, level), roughly)


def _allowed(tail: ExcessTail, probability: FloatArray) -> FloatArray:
    """Largest excess whose promised exceedance probability is at least the given one; infinite below the floor."""
    decays = tail.x_min_s + np.log(np.maximum(tail.exceedance(tail.x_min_s) / probability, 1.0)) / tail.decay_per_s
    return np.where(probability <= tail.floor, np.inf, decays)


def _quantile(latency: FloatArray, level: float) -> float:
    beyond = int(latency.size * (1 - level) + 1e-9)
    return float(np.partition(latency, latency.size - 1 - beyond)[latency.size - 1 - beyond])


def _matching(name: str, values: npt.ArrayLike, like: FloatArray) -> FloatArray:
    found = np.asarray(values, dtype=np.float64)
    if found.shape != like.shape:
        raise ValueError(f"{name}: found shape {found.shape}, expected {like.shape} as the latencies have")
    return found
