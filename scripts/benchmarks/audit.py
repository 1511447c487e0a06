"""The audit: false certificates, power, coverage, false alarms, detection, attribution and speed on known processes.

Every verdict is tried where the truth is known and worst: at a miss rate of exactly epsilon, where PASS and FAIL are
both errors. The peer of a row is the method that takes samples for independent.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from benchmarks import blame
from benchmarks.figures import Figure, at_least, at_most
from benchmarks.repeats import Repeats, percent, precision
from testbed.audit import known
from testbed.audit.compliance import Verdict, judge, lower_limit, upper_limit
from testbed.audit.quantile import quantile
from testbed.audit.record import Promise
from testbed.audit.sequential import Monitor
from testbed.audit.table import audit_table
from testbed.audit.tail import tail_quantiles

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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--replications", type=int, default=4000,
        help="series per row at most; fewer where one point either way (95 %% of the time) takes fewer",
    )  # fmt: skip
    parser.add_argument("--only", action="append", choices=sorted(_SECTIONS), help="a section; repeat for more")
    parser.add_argument("--process", action="append", choices=sorted(PROCESSES), help="rows of one process; repeat")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", metavar="FILE", type=Path, help="keep every series' result here, and go on from them")
    parser.add_argument(
        "--network", metavar="RUNS", type=int, default=0,
        help="run an emulated network with one slow domain so many times as well: as root, half a minute each",
    )  # fmt: skip
    parser.add_argument(
        "--runs", metavar="FOLDER", type=Path, help="keep the runs of the network here, and repeat none that is there"
    )


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure, section by section."""
    options.repeats = Repeats(options.replications, options.workers, options.keep, Path(known.__file__).parent)
    for name, section in _SECTIONS.items():
        if not options.only or name in options.only:
            yield from section(options)


def _chosen(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    return [name for name in names if not options.process or name in options.process]


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


def _certify(
    name: str, sizes: Sequence[int], deadline_s: float, effect: float, rng: np.random.Generator
) -> tuple[float, ...]:
    """PASS, FAIL, relative width and the peer's PASS for each size; shorter series begin the longest."""
    series = PROCESSES[name].draw(sizes[-1], rng)
    said: list[float] = []
    for n in sizes:
        found = judge(series[:n], deadline_s, EPSILON)
        naive = upper_limit(found.misses, n, 0.95) <= EPSILON
        knows = upper_limit(math.ceil(found.misses / effect), n / effect, 0.95)
        knows -= lower_limit(math.floor(found.misses / effect), n / effect, 0.95)
        width = (found.miss_rate_upper - found.miss_rate_lower) / knows
        said += [found.verdict is Verdict.PASS, found.verdict is Verdict.FAIL, width, naive]
    return tuple(said)


def _certification(options: argparse.Namespace) -> Iterator[Figure]:
    judged = [4 * place + column for place in range(len(SIZES)) for column in (0, 1)]
    for name in _chosen(options, _CERTIFIED):
        deadline_s, effect = PROCESSES[name].quantile_s(1 - EPSILON), _true_effect(name)
        task = partial(_certify, name, SIZES, deadline_s, effect)
        said = options.repeats.until_known(f"certification, {name}", task, judged)
        failed, widths = [], []
        for n, (passes, fails, width, naive) in zip(SIZES, np.split(said.T, len(SIZES)), strict=True):
            failed.append(fails)
            widths.append(float(np.median(width)))
            undetermined = 1 - float(passes.mean() + fails.mean())
            yield at_most(
                f"false certificates, {name}, n = {n:,}", percent(passes), 7, "%",
                peer="taken for independent", peer_value=percent(naive),
                note=f"true rate exactly epsilon, nominal 5 %; {precision(passes)}; UNDETERMINED {undetermined:.1%}; "
                f"D {effect:.3g}",
            )  # fmt: skip
        most = max(failed, key=percent)
        yield at_most(
            f"false accusations, {name}", percent(most), 7, "%",
            note=f"worst of the sizes; nominal 5 %; {precision(most)}",
        )  # fmt: skip
        by_size = ", ".join(f"{width:.2f}" for width in widths)
        yield at_most(
            f"interval width over that of one that knows D, {name}", max(widths), 1.5, note=f"median by size: {by_size}"
        )


def _power(options: argparse.Namespace) -> Iterator[Figure]:
    for name in _chosen(options, _CERTIFIED):
        effect = _true_effect(name)
        n = math.ceil(5 * CERTIFIES * effect)
        deadline_s = PROCESSES[name].quantile_s(1 - EPSILON / 10)
        task = partial(_certify, name, (n,), deadline_s, effect)
        # Ten points above its target or more, so that three either way decide.
        passes = options.repeats.until_known(f"power, {name}", task, (0,), points=3)[:, 0]
        yield at_least(
            f"power, {name}, n = {n:,}", percent(passes), 80, "%",
            note=f"true rate epsilon / 10, n = 5 x {CERTIFIES} x D, D {effect:.3g}; {precision(passes)}",
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
            task = partial(_cover, name, n, truth_s)
            held, below, open_above, naive = options.repeats.until_known(f"coverage, {name}, {n}", task, (0, 1)).T
            yield at_least(
                f"coverage of p99.9, {name}, n = {n:,}", percent(held), 93, "%",
                peer="taken for independent", peer_value=percent(naive),
                note=f"95 % interval; {precision(held)}; one-sided lower {below.mean():.1%}; "
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
        found = options.repeats.until_known(f"tails, {name}", partial(_cover_tail, name, 30_000, truth_s), (1, 3))
        for level, answered, held in (("p99.9", *found[:, :2].T), ("p99.99", *found[:, 2:].T)):
            covers = held[answered > 0]
            covered = f"{covers.mean():.1%} of its 95 % intervals hold the truth" if covers.size else "none, then"
            behind = f"; {precision(covers)}" if covers.size else ""
            yield Figure(
                f"fitted tail answers at {level}, {name}, n = 30,000", percent(answered), "%",
                note=f"of {answered.size} series; {covered}{behind}",
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
    return alarm.sample if alarm else math.inf, wealth.max(initial=0) >= math.log(20), alarm is not None


def _alarms(options: argparse.Namespace) -> Iterator[Figure]:
    for name in _chosen(options, _WATCHED):
        task = partial(_watch, name, EPSILON, 1_000_000)
        sample, naive, alarmed = options.repeats.until_known(f"alarms, {name}", task, (2,)).T
        yield at_most(
            f"false alarms, {name}", percent(alarmed), 5, "%",
            peer="bets on every sample", peer_value=percent(naive),
            note=f"a look after every one of 1e6 samples, true rate exactly epsilon; {precision(alarmed)}",
        )  # fmt: skip
    task = partial(_watch, "iid exponential", 2 * EPSILON, 100_000)
    sample = options.repeats.until_known("detection, iid", task, most=2000)[:, 0]
    yield at_most(
        "median detection of a doubled miss rate", float(np.median(sample)), 1.5 * FIXED_TEST, "samples",
        peer="fixed-size test of power .8", peer_value=FIXED_TEST, note=f"iid; {_median_interval(sample)}",
    )  # fmt: skip
    for rate in (5, 20):
        task = partial(_watch, "M/M/1 load 0.5", rate * EPSILON, 300_000)
        sample = options.repeats.until_known(f"detection, M/M/1, {rate}-fold", task, most=500)[:, 0]
        yield Figure(
            f"median detection of a {rate}-fold miss rate, M/M/1 load 0.5", float(np.median(sample)), "samples",
            note=_median_interval(sample),
        )  # fmt: skip


def _median_interval(values: np.ndarray) -> str:
    """Between the order statistics that hold the median 95 % of the time."""
    half = math.ceil(0.98 * math.sqrt(values.size))
    ordered, middle = np.sort(values), values.size // 2
    return f"{values.size} series, 95 % interval {ordered[middle - half]:,.0f} to {ordered[middle + half]:,.0f}"


# Speed.


def _speed(options: argparse.Namespace) -> Iterator[Figure]:
    del options
    n, rng = 1_000_000, np.random.default_rng(1)
    parts = blame.delays(n, 0.005, 10, rng)
    latency_s = np.sum(list(parts.values()), axis=0)
    columns = {"latency_s": latency_s, **{f"domain_{name}_s": values for name, values in parts.items()}}
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
    "attribution": blame.attribution,
    "network": blame.network,
    "speed": _speed,
}
