"""Whose the tail is: a domain known to be slow, on made-up delays and on an emulated network, named and accused or not.

The sections `attribution` and `network` of the benchmark `audit`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, at_least, at_most
from benchmarks.repeats import percent, precision
from testbed.audit import known
from testbed.audit.attribution import attribute
from testbed.audit.clusters import decluster
from testbed.audit.compliance import lower_limit, upper_limit
from testbed.audit.contracts import ContractVerdict, DomainEvidence, judge_contracts
from testbed.audit.evidence import read_evidence
from testbed.audit.folder import audit_evidence
from testbed.envelope.descriptor import Envelope
from testbed.envelope.tail import Stochastic
from tests.integration import slow_domain
from tests.unit.envelope import samples

_DOMAINS = ("north", "east", "south", "west")
_GUILTY = "south"

_CLUSTERS = 50
"""Slow events that a domain shall be named from."""


def _envelope(domain: str) -> Envelope:
    """Promises exactly what the wait in an M/M/1 queue of load .5 and service time 1 ms does: .5 exp(-500 x)."""
    tail = samples.tail(exceedance_ppb=500_000_000, decay_micro_per_s=500_000_000, x_min_ns=0, x_max_ns=25_000_000)
    guardrails = samples.guardrails(
        latency_ns=1_000_000, host_allowance_ns=0, delay_cap_ns=10_000_000_000, loss_cap_ppb=0
    )
    return samples.envelope(domain=domain, guardrails=guardrails, stochastic=Stochastic(tail, 0, 0))


def _waits(n: int, rng: np.random.Generator) -> np.ndarray:
    """Waits in an M/M/1 queue of load .5 and mean service time 1 ms, from equilibrium on."""
    service = rng.standard_exponential(n)
    first = 0.0 if rng.random() > 0.5 else float(rng.exponential(2.0))
    waits: np.ndarray = known.lindley(service, rng.exponential(2.0, n), first) - service
    return np.asarray(np.maximum(waits, 0.0) * 1e-3)


def _injected(n: int, share: float, size: float, rng: np.random.Generator) -> np.ndarray:
    """Delays of a share of the requests, exponential with mean 30 ms, in runs of geometric length."""
    starts = np.flatnonzero(rng.random(n) < share / size)
    delay = np.zeros(n)
    for start, length, pause in zip(
        starts, rng.geometric(1 / size, starts.size), rng.exponential(0.03, starts.size), strict=True
    ):
        delay[start : start + length] = np.maximum(delay[start : start + length], pause)
    return delay


def _excess(n: int, share: float, size: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    excess = {name: _waits(n, rng) for name in _DOMAINS}
    excess[_GUILTY] += _injected(n, share, size, rng)
    return excess


def delays(n: int, share: float, size: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Seconds that each request spent in each of four domains, one of which delays a share of them in such clumps."""
    return {name: values + 1e-3 for name, values in _excess(n, share, size, rng).items()}


def _blame(n: int, share: float, size: float, rng: np.random.Generator) -> tuple[float, ...]:
    excess = _excess(n, share, size, rng)
    found = attribute({name: values + 1e-3 for name, values in excess.items()})
    contracts = judge_contracts([DomainEvidence(_envelope(name), values) for name, values in excess.items()])
    broken = {finding.domain for finding in contracts if finding.verdict is ContractVerdict.BROKEN}
    return (
        found.named == _GUILTY,
        found.named not in {_GUILTY, None},
        _GUILTY in broken,
        bool(broken - {_GUILTY}),
        found.named is not None,
        bool(broken),
    )


def attribution(options: argparse.Namespace) -> Iterator[Figure]:
    for share in (0.005, 0.02, 0.05):
        for size in (1.0, 10.0):
            # Some 100 clusters on average, so that at least 50 are all but certain.
            n = max(10_000, round(100 * size / share))
            what = f"{share:.1%} of {n:,} requests delayed, {'one by one' if size == 1 else f'some {size:g} at a time'}"
            said = options.repeats.until_known(f"blame, {what}", partial(_blame, n, share, size), (0, 1, 2, 3))
            named, wrong, accused, innocent = said.T[:4]
            note = "four domains, three exactly as slow as promised; delays of mean 30 ms"
            for name, truths, make, target in (
                ("culprit named", named, at_least, 95),
                ("another domain named", wrong, at_most, 5),
                ("envelope called BROKEN", accused, at_least, 95),
                ("an envelope that held called BROKEN", innocent, at_most, 5),
            ):
                yield make(f"{name}, {what}", percent(truths), target, "%", note=f"{note}; {precision(truths)}")
    named, broken = options.repeats.until_known("blame, all alike", partial(_blame, 20_000, 0.0, 1.0), (4, 5)).T[4:]
    note = "n = 20,000"
    yield at_most("a domain named where all are alike", percent(named), 5, "%", note=f"{note}; {precision(named)}")
    yield at_most(
        "any of four envelopes kept exactly called BROKEN",
        percent(broken),
        5,
        "%",
        note=f"{note}; {precision(broken)}",
    )


def network(options: argparse.Namespace) -> Iterator[Figure]:
    """The same on a real data plane of two domains, with one queue slower than was signed for and without."""
    if not options.network:
        return
    slow, kept = slow_domain.SLOW, slow_domain.KEPT
    signed = f"a queue at {slow_domain.RATE} for {slow_domain.SIGNED_BPS // 1_000_000} Mbit/s signed"
    with tempfile.TemporaryDirectory(prefix="bench-audit-") as scratch:
        home = options.runs or Path(scratch)
        said = _runs(home / "slowed", slow_domain.run_slowed, options.network)
        note = f"{signed}; of {options.network} runs of 20 s"
        enough = sum(s.clusters >= _CLUSTERS for s in said)
        clusters = f"{note}; at least {_CLUSTERS} slow events in {enough} of the VALID ones"
        yield _told("slow domain of a network named", [s.named == slow for s in said], at_least, 95, clusters)
        yield _told("its other domain named", [s.named == kept for s in said], at_most, 5, note)
        yield _told("its slow domain's envelope called BROKEN", [slow in s.broken for s in said], at_least, 95, note)
        yield _told("its other domain's envelope called BROKEN", [kept in s.broken for s in said], at_most, 5, note)
        honest = math.ceil(options.network / 3)
        said = _runs(home / "honest", slow_domain.run_honest, honest)
        note = f"nobody slow; of {honest} runs of 20 s"
        blamed = [s.named in {slow, kept} for s in said]
        yield _told("a domain of a network named without a slow one", blamed, at_most, 5, note)
        yield _told("an envelope called BROKEN without a slow domain", [bool(s.broken) for s in said], at_most, 5, note)


@dataclass(frozen=True)
class _Said:
    """What the audit says of one run of the network: who is named, and whose envelopes are BROKEN.

    Attributes:
        named: The domain, or other place, that certainly holds the largest share of the tail.
        broken: Domains.
        clusters: Slow events of the domain that is slow where one is.
    """

    named: str | None
    broken: frozenset[str]
    clusters: int


def _runs(home: Path, run: Callable[..., Path], number: int) -> list[_Said]:
    """What is said of the VALID ones of so many runs, each with its own seed; a run that is there is not repeated."""
    found = []
    for seed in range(1, number + 1):
        place = home / f"{seed}"
        folders = [path.parent for path in place.glob("*/run.json")] or [run(place, seed=seed)]
        evidence = read_evidence(folders[0])
        if not evidence.valid:
            continue
        (tenant,) = (t for t in audit_evidence(evidence).tenants if t.tenant == slow_domain.TENANT)
        slow = next(e for e in evidence.contracts if e.envelope.domain == slow_domain.SLOW)
        late = np.flatnonzero(np.asarray(slow.excess_s) > 0)
        found.append(
            _Said(
                tenant.audit.attribution.named if tenant.audit.attribution else None,
                frozenset(c.domain for c in tenant.contracts if c.verdict is ContractVerdict.BROKEN),
                decluster(late, np.size(slow.excess_s)).sizes.size if late.size else 0,
            )
        )
    return found


def _told(name: str, truths: Sequence[bool], goal: Callable[..., Figure], target: float, note: str) -> Figure:
    """A percentage of VALID runs, judged by its one-sided 95 % limits: a target that so few cannot show is not reached.

    Not a number, which reaches no target, where there are none.
    """
    found = np.array(truths, dtype=float)
    if not found.size:
        return goal(name, math.nan, target, "%", note=f"no VALID run; {note}")
    counts = float(found.sum()), found.size
    limits = 100 * lower_limit(*counts, 0.95), 100 * upper_limit(*counts, 0.95)
    shown = f"the true share is {limits[0]:.0f} to {limits[1]:.0f} % (one-sided 95 % each way)"
    return goal(name, percent(found), target, "%", note=f"{found.size} VALID runs, {shown}; {note}", limits=limits)
