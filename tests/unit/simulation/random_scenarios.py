"""Random scenarios, simulated and held against the bounds that the simulation itself shows.

Of one to four domains and one to six tenants: every arrival model, traces of small packets, floods, short buckets and
queues, long links, excess latency, requests (in bursts, and beside others that come and go), meters on and off. A
bound is held against exactly what it promises (`testbed.simulation.judge.is_broken`): what a tenant's own meters drop
is left out, and nothing else.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.report.record import read_record
from testbed.report.tenant_record import BoundRecord
from testbed.run.progress import Silent
from testbed.scenario.loader import load
from testbed.scenario.model import Tenant
from testbed.simulation.choices import Choices
from testbed.simulation.estimate import design_effect, quantile
from testbed.simulation.judge import is_broken, spoken_of
from testbed.simulation.pipeline import Options, simulate_scenario
from testbed.simulation.system import Scheduler
from testbed.simulation.tally import METER, QUEUE, Tally
from testbed.simulation.windows import tally_of

TRACE_NAME = "packets.csv"
TRACE_KBPS = 500
_TRACE_ROWS = 3000
_TRACE_BYTES = (66, 200, 1000, 1500)


@dataclass(frozen=True)
class Held:
    """One tenant of a simulated scenario that has a bound.

    Attributes:
        tenant: It.
        bound: Its bound.
        place: Its place in the tally.
        tally: What was counted.
    """

    tenant: Tenant
    bound: BoundRecord
    place: int
    tally: Tally

    @property
    def metered(self) -> int:
        """What its meters dropped."""
        return int(self.tally.lost[self.place, METER])

    @property
    def overflowed(self) -> int:
        """What its queues dropped."""
        return int(self.tally.lost[self.place, QUEUE])

    @property
    def quantile_s(self) -> float | None:
        """The percentile that its bound is made for, of what the bound speaks of.

        Infinite where queues dropped more than that leaves; None where too few were sent.
        """
        own = spoken_of(self.tenant, self.place, self.tally)
        epsilon = self.tenant.promise.epsilon if self.tenant.promise else 1e-3
        if int(own.lost[0, QUEUE]) > max(1.0, epsilon * int(own.n[0])):
            return math.inf
        return quantile(own, 0, 1 - epsilon, design_effect(own, 0)).estimate_s

    def is_broken(self, confidence: float) -> bool:
        """Whether the counts show so."""
        return is_broken(self.tenant, self.place, self.tally, self.bound, confidence)


def arrivals(draw: random.Random, kbps: int) -> dict[str, Any]:
    """An arrival process of about that mean rate."""
    size, bursty = f"{draw.choice([200, 500, 1400])} B", draw.choice([1.5, 2, 4, 8])
    on, low = draw.choice([2, 5, 20]), draw.choice([0, 0.3])
    states = [{"rate": f"{low * kbps} kbit/s", "stay": f"{on} ms"}, {"rate": f"{2 * kbps} kbit/s", "stay": f"{on} ms"}]
    return draw.choice(
        [
            {"model": "poisson", "rate": f"{kbps} kbit/s", "size": size},
            {
                "model": "on-off",
                "peak": f"{kbps * bursty} kbit/s",
                "mean-on": f"{on} ms",
                "mean-off": f"{on * (bursty - 1)} ms",
                "size": size,
            },
            {"model": "renewal", "rate": f"{kbps} kbit/s", "gap": "gamma", "cv": draw.choice([0.7, 2]), "size": size},
            {"model": "renewal", "rate": f"{kbps} kbit/s", "gap": "hyperexponential", "cv": 2, "size": size},
            {"model": "mmpp", "states": states, "size": size},
            {"model": "trace", "file": TRACE_NAME, "format": "packets", "speed-up": kbps / TRACE_KBPS},
        ]
    )


def calls(draw: random.Random) -> dict[str, Any]:
    """An arrival process of requests: smooth, in bursts, or there for so long that a server hardly rests in between."""
    on_ms, bursty = draw.choice([(20, 4), (200, 2), (5000, 1.05)])
    return draw.choice(
        [
            {"model": "poisson", "rate": "1280 kbit/s", "size": "4 kB"},
            {
                "model": "on-off",
                "peak": f"{1280 * bursty} kbit/s",
                "mean-on": f"{on_ms} ms",
                "mean-off": f"{on_ms * (bursty - 1):.0f} ms",
                "size": "4 kB",
            },
        ]
    )


def trace() -> str:
    """Frames of unequal sizes, as a file, some `TRACE_KBPS` of them."""
    draw = random.Random(0)  # noqa: S311 - nothing here is a secret
    per_s = 1000 * TRACE_KBPS / (8 * sum(_TRACE_BYTES) / len(_TRACE_BYTES))
    time_s, rows = 0.0, []
    for _ in range(_TRACE_ROWS):
        rows.append(f"{time_s:.6f},{draw.choice(_TRACE_BYTES)}\n")
        time_s += draw.expovariate(per_s)
    return "time_s,size_bytes\n" + "".join(rows)


def tenant(draw: random.Random, name: str, site: str) -> tuple[dict[str, Any], int]:
    """A tenant, and how much it reserves of every link, kbit/s."""
    kbps = draw.choice([200, 500, 1000])
    found: dict[str, Any] = {"name": name, "site": site, "arrivals": arrivals(draw, kbps)}
    if draw.random() < 0.15:
        return found, 0
    if draw.random() < 0.2:
        found["arrivals"] = calls(draw)
        work = {"mean": f"{draw.choice([0.5, 1, 3])} ms", "cv": draw.choice([0, 0.3, 1])}
        found["requests"] = {"model": "digits-small", "timeout": "60 s", "work": work}
        kbps = 1600
    # A modulated tenant sends 1.15 times as much.
    rate = int(1.16 * kbps / draw.choice([0.4, 0.6, 0.8, 0.9])) + 10
    found["reservation"] = {"rate": f"{rate} kbit/s"}
    if draw.random() < 0.3 and "requests" not in found:
        found["reservation"] |= {"burst": f"{draw.choice([20, 50, 200])} kbit"}
    if "requests" in found and draw.random() < 0.3:
        found["reservation"] |= {"burst": f"{draw.choice([200, 500, 1000])} kbit"}
    if "requests" in found and draw.random() < 0.7:
        found["reservation"] |= {"queue": f"{draw.choice([100, 500, 2000, 8000])} kB"}
    elif draw.random() < 0.2:
        found["reservation"] |= {"queue": f"{draw.choice([8, 40])} kB"}
    if draw.random() < 0.15 and found["arrivals"]["model"] != "renewal" and "requests" not in found:
        found["misbehaviour"] = {"kind": "flood", "offered": f"{3 * rate} kbit/s"}
    found["promise"] = {"deadline": "60 s", "epsilon": draw.choice([0.01, 0.001])}
    return found, rate


def document(draw: random.Random) -> Mapping[str, Any]:
    """A scenario file."""
    names = [f"d{number}" for number in range(1, draw.randint(1, 4) + 1)]
    drawn = [tenant(draw, f"t{k}", draw.choice([names[-1], *names])) for k in range(draw.randint(1, 6))]
    reserved = sum(rate for _, rate in drawn)
    domains: list[dict[str, Any]] = []
    for name in names:
        link = {
            "name": name,
            "link-rate": f"{max(1000, int(reserved * draw.choice([1.02, 1.3])))} kbit/s",
            "compute": True,
        }
        link["link-delay"] = draw.choice(["0 ms", "1 ms", "10 ms"])
        if draw.random() < 0.15:
            link["excess"] = {"mean": "2 ms", "share": 0.05}
        domains.append(link)
    return {
        "name": "random",
        "seed": draw.randrange(1000),
        "allow-zero-delay": True,
        "domains": domains,
        "tenants": [each for each, _ in drawn],
    }


def simulated(seed: int, packets: int, folder: Path) -> list[Held]:
    """A random scenario, simulated: its tenants that have a bound.

    Args:
        seed: Decides which.
        packets: How many are sent, about.
        folder: Receives its file and the folder of its simulation.
    """
    draw = random.Random(seed)  # noqa: S311 - nothing here is a secret
    file = folder / "random.yaml"
    (folder / TRACE_NAME).write_text(trace(), encoding="utf-8")
    file.write_text(json.dumps(document(draw)), encoding="utf-8")
    scenario = load(file)
    asking = sum(each.requests is not None for each in scenario.tenants)
    scheduler = Scheduler.RESERVED if asking > 1 else draw.choice([Scheduler.RESERVED, Scheduler.ISOLATED])
    choices = Choices(scheduler, metered=draw.random() < 0.75)
    options = Options(out=folder / "runs", packets=packets, recorded_packets=1000, choices=choices, page=False)
    found = simulate_scenario(scenario, options, Silent())
    record, tally = read_record(found), tally_of(found / "window-1")
    tenants = {each.name: each for each in scenario.tenants}
    return [
        Held(tenants[row.name], row.bound, place, tally)
        for place, row in enumerate(record.tenants)
        if row.bound is not None
    ]
