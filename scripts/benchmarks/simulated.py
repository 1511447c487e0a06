"""Simulations in a process of their own, which does nothing else, so that what they take of memory can be told.

`python -m benchmarks.simulated window PACKETS` simulates a window of one tenant in FIFO domains, `... crowd TENANTS
PACKETS` a scenario file of many into a run folder; either prints what it took as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from testbed.report.record import read_record
from testbed.run.progress import Silent
from testbed.scenario.loader import load
from testbed.scenario.model import OnOffArrivals, PoissonArrivals
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.pipeline import Options, simulate_scenario
from testbed.simulation.system import Hop, Scheduler, Source, System
from testbed.simulation.window import Plan, simulate

LINK_BPS = 10_000_000
HOPS = 3
LOAD = 0.8
BITS = 8000


def equal_tenants(model: PoissonArrivals | OnOffArrivals, tenants: int) -> System:
    """Tenants that send alike through FIFO domains."""
    per_s = model.rate_per_s if isinstance(model, PoissonArrivals) else LOAD * LINK_BPS / BITS
    sources = tuple(Source(f"tenant-{k}", k, model, per_s, HOPS, PS_PER_S) for k in range(1, tenants + 1))
    link_bps = float(LINK_BPS * tenants)
    return System(sources, tuple(Hop(f"domain-{d}", Scheduler.FIFO, link_bps) for d in range(HOPS)))


def window(packets: float) -> Mapping[str, float]:
    """One window of one tenant, arrivals and counting included."""
    model = PoissonArrivals(LOAD * LINK_BPS / BITS, BITS)
    began = time.perf_counter()
    outcome = simulate(equal_tenants(model, 1), Plan(1, 1, packets / model.rate_per_s, 1.0))
    return {
        "packets": outcome.packets,
        "packet_hops": outcome.packet_hops,
        "seconds": time.perf_counter() - began,
    }


def crowd_file(tenants: int) -> str:
    """A scenario file: bursty tenants with a reservation and a promise each, two thirds of every link reserved."""
    domains = "".join(
        f"  - {{name: domain-{d}, link-rate: {tenants * 150} kbit/s, compute: {str(d == HOPS).lower()}}}\n"
        for d in range(1, HOPS + 1)
    )
    members = "".join(
        f"  - name: t{k}\n"
        "    arrivals: {model: on-off, peak: 200 kbit/s, mean-on: 50 ms, mean-off: 150 ms, size: 1000 B}\n"
        "    reservation: {rate: 100 kbit/s}\n"
        "    promise: {deadline: 2 s, epsilon: 0.01}\n"
        for k in range(tenants)
    )
    return f"name: crowd\nallow-zero-delay: true\ndomains:\n{domains}tenants:\n{members}"


def crowd(tenants: int, packets: int) -> Mapping[str, float]:
    """A scenario file of many tenants, read, simulated and judged into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "crowd.yaml")
        file.write_text(crowd_file(tenants), encoding="utf-8")
        began = time.perf_counter()
        options = Options(out=Path(folder, "runs"), packets=packets, recorded_packets=tenants * 100, page=False)
        record = read_record(simulate_scenario(load(file), options, Silent()))
        elapsed = time.perf_counter() - began
    simulated = record.timings_s["drawing arrivals"] + record.timings_s["serving"]
    return {
        "packets": record.packets or 0,
        "packet_hops": (record.packet_hops_per_s or 0.0) * record.timings_s["serving"],
        "seconds": simulated,
        "other_seconds": elapsed - simulated,
        "broken": sum(found.bound_broken for found in record.tenants),
        "bounds": sum(found.bound_s is not None for found in record.tenants),
    }


def peak_gib() -> float:
    """Most memory that this program has held since it began; that of its parent is in `ru_maxrss` of a child, too."""
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM")]
    return int(line.split()[1]) / 2**20


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    found = window(float(numbers[0])) if what == "window" else crowd(int(numbers[0]), int(numbers[1]))
    print(json.dumps({**found, "peak_gib": peak_gib()}))
