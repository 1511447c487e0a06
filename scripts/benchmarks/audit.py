"""The audit: false certificates, power, coverage, false alarms, detection, attribution and speed on known processes.

Every verdict is tried where the truth is known and worst: at a miss rate of exactly epsilon, where PASS and FAIL are
both errors. The peer of a row is the method that takes samples for independent.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from benchmarks.figures import Figure, at_least, at_most
from testbed.audit import known
from testbed.audit.attribution import attribute
from testbed.audit.compliance import Verdict, judge, lower_limit, upper_limit
from testbed.audit.contracts import ContractVerdict, DomainEvidence, judge_contracts
from testbed.audit.folder import audit_run
from testbed.audit.quantile import quantile
from testbed.audit.record import Promise
from testbed.audit.sequential import Monitor
from testbed.audit.table import audit_table
from testbed.audit.tail import tail_quantiles
from testbed.envelope.descriptor import Envelope
from testbed.envelope.tail import Stochastic
from tests.integration import slow_domain
from tests.unit.envelope import samples

EPSILON = 0.001
SIZES = (10_000, 30_000, 100_000, 300_000)
CERTIFIES = 2995
"""Independent samples without a miss that certify epsilon at 95 %."""
FIXED_TEST = 8038
"""Samples that a fixed-size test of power .8 needs to tell a doubled miss rate."""

PROCESSES = {
    process.name: process
    for process in (
        known.exponential(),
        known.lognormal(),
        known.pareto(),
        known.hiccups(),
        *(known.mm1(load) for load in (0.3, 0.5, 0.7, 0.9)),
        known.on_off_tandem(load=0.6, burst=5),
        known.on_off_tandem(load=0.7, burst=20),
        known.arma_lognormal(),
    )
}
_DEPENDENT = [name for name, process in PROCESSES.items() if not process.independent]
_CERTIFIED = ["iid exponential", *_DEPENDENT]
_WATCHED = ["iid exponential", "M/M/1 load 0.5", "M/M/1 load 0.9"]

Task = Callable[[np.random.Generator], tuple[float, ...]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--replications", type=int, default=2000,
        help="series per row; 2000 are good for one point either way at 5 %% (95 %% of the time), and take hours",
    )  # fmt: skip
    parser.add_argument("--only", action="append", choices=sorted(_SECTIONS), help="a section; repeat for more")
    parser.add_argument("--process", action="append", choices=sorted(PROCESSES), help="rows of one process; repeat")
    parser.add_argument("--size", action="append", type=int, choices=SIZES, help="certification at this n; repeat")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--network", metavar="RUNS", type=int, default=0,
        help="run an emulated network with one slow domain so many times as well: as root, a minute and a half each",
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure, section by section."""
    for name, section in _SECTIONS.items():
        if not options.only or name in options.only:
            yield from section(options)


def _repeat(options: argparse.Namespace, task: Task, share: float = 1.0) -> np.ndarray:
    """What a task says of independent draws, one row each; `share` of the replications asked for."""
    seeds = np.random.SeedSequence(20_260_101).spawn(max(20, math.ceil(options.replications * share)))
    if options.workers == 1:
        return np.array([task(np.random.default_rng(seed)) for seed in seeds], dtype=float)
    # Forked, so that what was computed once (a simulated truth) is shared.
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        return np.array(pool.map(partial(_seeded, task), seeds, chunksize=8), dtype=float)


def _percent(truths: np.ndarray) -> float:
    return 100 * float(truths.mean())


def _precision(truths: np.ndarray) -> str:
    """How many series are behind a percentage, and how far it may be off, 95 % of the time."""
    return f"{truths.size} series, +- {196 * float(truths.std()) / math.sqrt(truths.size):.1f} points"


def _chosen(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    return [name for name in names if not options.process or name in options.process]


def _seeded(task: Task, seed: np.random.SeedSequence) -> tuple[float, ...]:
    return task(np.random.default_rng(seed))


@cache
def _true_effect(name: str, rate: float = EPSILON, total: int = 100_000_000, block: int = 200_000) -> float:
    """Variance over mean of the misses in long blocks: the design effect itself, from a simulation of its own."""
    process, rng = PROCESSES[name], np.random.default_rng(1)
    if process.independent:
        return 1.0
    deadline_s = process.quantile_s(1 - rate)
    at_once = 10 * block
    counts = [(process.draw(at_once, rng) > deadline_s).reshape(-1, block).sum(axis=1) for _ in range(total // at_once)]
    missed = np.concatenate(counts)
    return float(missed.var() / missed.mean())


# False certificates, and what honesty costs.


def _certify(name: str, n: int, deadline_s: float, effect: float, rng: np.random.Generator) -> tuple[float, ...]:
    found = judge(PROCESSES[name].draw(n, rng), deadline_s, EPSILON)
    naive = upper_limit(found.misses, n, 0.95) <= EPSILON
    knows = upper_limit(math.ceil(found.misses / effect), n / effect, 0.95)
    knows -= lower_limit(math.floor(found.misses / effect), n / effect, 0.95)
    width = (found.miss_rate_upper - found.miss_rate_lower) / knows
    return found.verdict is Verdict.PASS, found.verdict is Verdict.FAIL, width, naive


def _certification(options: argparse.Namespace) -> Iterator[Figure]:
    for name in _chosen(options, _CERTIFIED):
        deadline_s, effect = PROCESSES[name].quantile_s(1 - EPSILON), _true_effect(name)
        failed, widths = [], []
        for n in options.size or SIZES:
            task = partial(_certify, name, n, deadline_s, effect)
            passes, fails, width, naive = _repeat(options, task).T
            failed.append(_percent(fails))
            widths.append(float(np.median(width)))
            undetermined = 1 - float(passes.mean() + fails.mean())
            yield at_most(
                f"false certificates, {name}, n = {n:,}", _percent(passes), 7, "%",
                peer="taken for independent", peer_value=_percent(naive),
                note=f"true rate exactly epsilon, nominal 5 %; {_precision(passes)}; UNDETERMINED {undetermined:.1%}; "
                f"D {effect:.3g}",
            )  # fmt: skip
        yield at_most(f"false accusations, {name}", max(failed), 7, "%", note="worst of the sizes; nominal 5 %")
        by_size = ", ".join(f"{width:.2f}" for width in widths)
        yield at_most(
            f"interval width over that of one that knows D, {name}", max(widths), 1.5, note=f"median by size: {by_size}"
        )


def _power(options: argparse.Namespace) -> Iterator[Figure]:
    for name in _chosen(options, _CERTIFIED):
        effect = _true_effect(name)
        n = math.ceil(5 * CERTIFIES * effect)
        deadline_s = PROCESSES[name].quantile_s(1 - EPSILON / 10)
        passes = _repeat(options, partial(_certify, name, n, deadline_s, effect), 0.1)[:, 0]
        yield at_least(
            f"power, {name}, n = {n:,}", _percent(passes), 80, "%",
            note=f"true rate epsilon / 10, n = 5 x {CERTIFIES} x D, D {effect:.3g}; {passes.size} series",
        )  # fmt: skip


# Coverage of p99.9.


def _cover(name: str, n: int, truth_s: float, rng: np.random.Generator) -> tuple[float, ...]:
    series = PROCESSES[name].draw(n, rng)
    found = quantile(series, 0.999)
    held = (found.lower_s or 0) <= truth_s <= (math.inf if found.upper_s is None else found.upper_s)
    below = (found.one_sided_lower_s or 0) <= truth_s
    beyond = math.floor(n * 0.001)
    half = round(1.96 * math.sqrt(beyond))
    ordered = np.partition(series, [n - 1 - beyond - half, n - 1 - beyond + half])
    naive = ordered[n - 1 - beyond - half] <= truth_s <= ordered[n - 1 - beyond + half]
    return held, below, found.upper_s is None, naive


def _coverage(options: argparse.Namespace) -> Iterator[Figure]:
    for name in _chosen(options, PROCESSES):
        truth_s = PROCESSES[name].quantile_s(0.999)
        for n in (30_000, 100_000):
            held, below, open_above, naive = _repeat(options, partial(_cover, name, n, truth_s)).T
            yield at_least(
                f"coverage of p99.9, {name}, n = {n:,}", _percent(held), 93, "%",
                peer="taken for independent", peer_value=_percent(naive),
                note=f"95 % interval; {_precision(held)}; one-sided lower {below.mean():.1%}; "
                f"no upper limit in {open_above.mean():.1%}",
            )  # fmt: skip


def _cover_tail(name: str, n: int, truth_s: tuple[float, float], rng: np.random.Generator) -> tuple[float, ...]:
    found = tail_quantiles(PROCESSES[name].draw(n, rng), (0.999, 0.9999))
    return tuple(
        value
        for model, truth in zip(found, truth_s, strict=True)
        for value in (
            model.estimate_s is not None,
            model.lower_s is not None and model.upper_s is not None and model.lower_s <= truth <= model.upper_s,
        )
    )


def _tails(options: argparse.Namespace) -> Iterator[Figure]:
    for name in _chosen(options, PROCESSES):
        process = PROCESSES[name]
        truth_s = (process.quantile_s(0.999), process.quantile_s(0.9999))
        found = _repeat(options, partial(_cover_tail, name, 30_000, truth_s), 0.25)
        for level, answered, held in (("p99.9", *found[:, :2].T), ("p99.99", *found[:, 2:].T)):
            covered = f"{held.sum() / answered.sum():.1%} of its 95 % intervals" if answered.any() else "nothing, then,"
            yield Figure(
                f"fitted tail answers at {level}, {name}, n = 30,000", _percent(answered), "%",
                note=f"{covered} hold the truth; {answered.size} series",
            )  # fmt: skip


# The live alarm.


def _watch(name: str, rate: float, n: int, rng: np.random.Generator) -> tuple[float, ...]:
    process = PROCESSES[name]
    series, deadline_s = process.draw(n, rng), process.quantile_s(1 - rate)
    monitor = Monitor(deadline_s, EPSILON)
    alarm = monitor.observe(series)
    at = np.flatnonzero(series > deadline_s) + 1
    # The same question to a bet on every single sample; its wealth peaks where a miss comes.
    wealth = np.arange(1, at.size + 1) * math.log1p(1 - EPSILON) + (at - np.arange(1, at.size + 1)) * math.log1p(
        -EPSILON
    )
    return alarm.sample if alarm else math.inf, wealth.max(initial=0) >= math.log(20)


def _alarms(options: argparse.Namespace) -> Iterator[Figure]:
    for name in _chosen(options, _WATCHED):
        sample, naive = _repeat(options, partial(_watch, name, EPSILON, 1_000_000)).T
        yield at_most(
            f"false alarms, {name}", _percent(np.isfinite(sample)), 5, "%",
            peer="bets on every sample", peer_value=_percent(naive),
            note=f"a look after every one of 1e6 samples, true rate exactly epsilon; {_precision(np.isfinite(sample))}",
        )  # fmt: skip
    sample = _repeat(options, partial(_watch, "iid exponential", 2 * EPSILON, 100_000)).T[0]
    yield at_most(
        "median detection of a doubled miss rate", float(np.median(sample)), 1.5 * FIXED_TEST, "samples",
        peer="fixed-size test of power .8", peer_value=FIXED_TEST, note="iid",
    )  # fmt: skip
    for rate in (5, 20):
        sample = _repeat(options, partial(_watch, "M/M/1 load 0.5", rate * EPSILON, 300_000), 0.1).T[0]
        yield Figure(
            f"median detection of a {rate}-fold miss rate, M/M/1 load 0.5", float(np.median(sample)), "samples"
        )


# Whose the tail is.

_DOMAINS = ("north", "east", "south", "west")
_GUILTY = "south"


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
    return np.maximum(waits, 0.0) * 1e-3


def _injected(n: int, share: float, size: float, rng: np.random.Generator) -> np.ndarray:
    """Delays of a share of the requests, exponential with mean 30 ms, in runs of geometric length."""
    starts = np.flatnonzero(rng.random(n) < share / size)
    delay = np.zeros(n)
    for start, length, pause in zip(
        starts, rng.geometric(1 / size, starts.size), rng.exponential(0.03, starts.size), strict=True
    ):
        delay[start : start + length] = np.maximum(delay[start : start + length], pause)
    return delay


def _blame(n: int, share: float, size: float, rng: np.random.Generator) -> tuple[float, ...]:
    excess = {name: _waits(n, rng) for name in _DOMAINS}
    excess[_GUILTY] += _injected(n, share, size, rng)
    found = attribute({name: values + 1e-3 for name, values in excess.items()})
    contracts = judge_contracts([DomainEvidence(_envelope(name), values) for name, values in excess.items()])
    broken = {finding.domain for finding in contracts if finding.verdict is ContractVerdict.BROKEN}
    return (
        found.named == _GUILTY,
        found.named not in {_GUILTY, None},
        _GUILTY in broken,
        bool(broken - {_GUILTY}),
    )


def _attribution(options: argparse.Namespace) -> Iterator[Figure]:
    for share in (0.005, 0.02, 0.05):
        for size in (1.0, 10.0):
            # Some 100 clusters on average, so that at least 50 are all but certain.
            n = max(10_000, round(100 * size / share))
            said = _repeat(options, partial(_blame, n, share, size))
            named, wrong, accused, innocent = map(_percent, said.T)
            what = f"{share:.1%} of {n:,} requests delayed, {'one by one' if size == 1 else f'some {size:g} at a time'}"
            note = f"four domains, three exactly as slow as promised; delays of mean 30 ms; {len(said)} series"
            yield at_least(f"culprit named, {what}", named, 95, "%", note=note)
            yield at_most(f"another domain named, {what}", wrong, 5, "%", note=note)
            yield at_least(f"envelope called BROKEN, {what}", accused, 95, "%", note=note)
            yield at_most(f"an envelope that held called BROKEN, {what}", innocent, 5, "%", note=note)
    alike = _repeat(options, partial(_blame, 20_000, 0.0, 1.0))
    named, broken = (_percent(alike[:, columns].max(axis=1)) for columns in (slice(0, 2), slice(2, 4)))
    yield at_most("a domain named where all are alike", named, 5, "%", note="n = 20,000")
    yield at_most("any of four envelopes kept exactly called BROKEN", broken, 5, "%", note="n = 20,000")


def _network(options: argparse.Namespace) -> Iterator[Figure]:
    """The same on a real data plane: one queue of two domains is slower than was signed for."""
    named, wrong, accused, innocent = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="bench-audit-") as scratch:
        for seed in range(1, options.network + 1):
            folder = slow_domain.run_slowed(Path(scratch), seed=seed)
            if slow_domain.broken_gates(folder):
                continue
            (tenant,) = (t for t in audit_run(folder).tenants if t.tenant == slow_domain.TENANT)
            broken = {c.domain for c in tenant.contracts if c.verdict is ContractVerdict.BROKEN}
            culprit = tenant.audit.attribution.named if tenant.audit.attribution else None
            named.append(culprit == slow_domain.SLOW)
            wrong.append(culprit not in {slow_domain.SLOW, None})
            accused.append(slow_domain.SLOW in broken)
            innocent.append(slow_domain.KEPT in broken)
    if options.network:
        note = (
            f"{len(named)} VALID of {options.network} runs of 50 s; a queue at {slow_domain.RATE} for 4 Mbit/s signed"
        )
        yield at_least("slow domain of an emulated network named", _share(named), 95, "%", note=note)
        yield at_most("its other domain named", _share(wrong), 5, "%", note=note)
        yield at_least("its slow domain's envelope called BROKEN", _share(accused), 95, "%", note=note)
        yield at_most("its other domain's envelope called BROKEN", _share(innocent), 5, "%", note=note)


def _share(truths: Sequence[bool]) -> float:
    """Percent; not a number, which reaches no target, where there was nothing to count."""
    return _percent(np.array(truths)) if truths else math.nan


# Speed.


def _speed(options: argparse.Namespace) -> Iterator[Figure]:
    del options
    n, rng = 1_000_000, np.random.default_rng(1)
    parts = {name: _waits(n, rng) + 1e-3 for name in _DOMAINS}
    parts[_GUILTY] += _injected(n, 0.005, 10, rng)
    columns = {"latency_s": sum(parts.values()), **{f"domain_{name}_s": values for name, values in parts.items()}}
    table = pa.table(columns)
    with tempfile.TemporaryDirectory() as folder:
        for suffix, write in (("parquet", pyarrow.parquet.write_table), ("csv", pyarrow.csv.write_csv)):
            path = Path(folder) / f"latencies.{suffix}"
            write(table, path)
            audit_table(path, Promise(0.08, EPSILON))
            began = time.perf_counter()
            audit_table(path, Promise(0.08, EPSILON))
            spent_s = time.perf_counter() - began
            yield at_most(f"a million requests over four domains audited, {suffix}", spent_s, 10, "s")
    latency_s = columns["latency_s"]
    for size in (1, 100):
        monitor = Monitor(0.08, EPSILON)
        chunks = [latency_s[i : i + size] for i in range(0, 100_000, size)]
        monitor.observe(latency_s[:2000])
        began = time.perf_counter()
        for chunk in chunks:
            monitor.observe(chunk)
        rate = 100_000 / (time.perf_counter() - began)
        yield at_least(f"streaming, {size} at a time", rate, 100_000, "samples/s")


_SECTIONS = {
    "certification": _certification,
    "power": _power,
    "coverage": _coverage,
    "tails": _tails,
    "alarms": _alarms,
    "attribution": _attribution,
    "network": _network,
    "speed": _speed,
}
