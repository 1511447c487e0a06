"""Bounds of random scenarios, simulated: none is broken, and how near they come.

Every scenario is drawn from its seed (`tests.unit.simulation.random_scenarios`), simulated under `reserved` or
`isolated`, and each of its bounds held against exactly what it promises. With so many tenants chance alone puts some
percentile above its bound; scenarios in which that happens, or in which a queue drops packets of requests that have a
bound, are simulated again for much longer.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, at_most
from testbed.errors import PreflightError
from tests.unit.simulation.random_scenarios import Held, simulated

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One tenant with a bound.

    Attributes:
        seed: Of its scenario.
        asks: Whether it sends requests.
        metered: Whether its meter dropped something.
        ratio: Its percentile over its bound, infinite where queues dropped too much; None where that cannot be told.
        broken: Whether the lower confidence limit of the share that is later is above what was promised.
        overflowed: What its queues dropped.
    """

    seed: int
    asks: bool
    metered: bool
    ratio: float | None
    broken: bool
    overflowed: int


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenarios", type=int, default=330, help="random scenarios, with the seeds from 0 on")
    parser.add_argument("--packets", type=int, default=60_000, help="packets of each")
    parser.add_argument("--again", type=int, default=200, help="times as long, where a percentile was above its bound")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    rows = _rows(range(options.scenarios), options.packets, options.workers)
    if not rows:
        raise PreflightError(
            f"--scenarios {options.scenarios}: found no tenant with a bound among them, expected one; draw more"
        )
    above = [row for row in rows if row.ratio is not None and row.ratio > 1]
    broken = [row for row in rows if row.broken]
    note = f"{options.packets:,} packets of each, seeds 0 to {options.scenarios - 1}"
    yield Figure("random scenarios", options.scenarios, note=note)
    for name, asks in (("packets", False), ("requests", True)):
        own = [row for row in rows if row.asks is asks]
        ratios = [row.ratio for row in own if row.ratio is not None]
        dropping = sum(row.metered for row in own)
        yield Figure(f"bounds of tenants that send {name}", len(own), note=f"meters of {dropping} of them dropped some")
        if ratios:
            note = f"least {min(ratios):.2f}, largest {max(ratios):.2f}, of {len(ratios)} that could be told"
            yield Figure(f"percentile of {name} over its bound, median", median(ratios), note=note)
    # Each is held against its bound at 95 % confidence, so chance alone may put one in twenty above.
    note = f"seeds {_seeds(broken)}; {len(above)} percentiles above their bounds, seeds {_seeds(above)}"
    yield at_most("bounds below a lower limit", 100 * len(broken) / len(rows), 5.0, "%", note=note)
    yield Figure("packets that found a queue full, of tenants with a bound that send packets", _overflowed(rows, False))
    # Queues of requests must hold all that is not later than the bound.
    full = [row for row in rows if row.asks and row.overflowed]
    note = f"seeds {_seeds(full)}"
    yield at_most("the same of tenants that send requests", _overflowed(rows, True), 0, note=note)
    doubted = sorted({row.seed for row in (*above, *broken, *full)})
    longer = _rows(doubted, options.again * options.packets, options.workers)
    note = f"{len(doubted)} scenarios, {options.again * options.packets:,} packets of each"
    if told := [(row.ratio, row) for row in longer if row.ratio is not None]:
        ratio, row = max(told, key=itemgetter(0))
        what = f"{'requests' if row.asks else 'packets'} of seed {row.seed}"
        yield Figure("percentile over its bound in those, largest", ratio, note=f"{what}; {note}")
    still = [row for row in longer if row.broken]
    yield at_most("bounds broken in scenarios simulated longer", len(still), 0, note=f"{note}; seeds {_seeds(still)}")


def _rows(seeds: Sequence[int], packets: int, workers: int) -> list[Row]:
    with ProcessPoolExecutor(workers) as pool:
        return [row for rows in pool.map(partial(_scenario, packets=packets), seeds) for row in rows]


def _overflowed(rows: Sequence[Row], asks: bool) -> int:
    return sum(row.overflowed for row in rows if row.asks is asks)


def _scenario(seed: int, packets: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return [_row(seed, held) for held in simulated(seed, packets, Path(folder))]


def _row(seed: int, held: Held) -> Row:
    found_s = held.quantile_s
    return Row(
        seed=seed,
        asks=held.tenant.requests is not None,
        metered=held.metered > 0,
        ratio=None if found_s is None else found_s / held.bound.bound_s,
        broken=held.is_broken(CONFIDENCE),
        overflowed=held.overflowed,
    )


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(str(seed) for seed in sorted({row.seed for row in rows})) or "none"
