"""Random scenarios, simulated: nobody is later, or loses more, than the bound that the simulation itself shows."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.report.record import read_record
from testbed.run.progress import Silent
from testbed.scenario.loader import load
from testbed.scenario.model import Promise
from testbed.simulation.choices import Choices
from testbed.simulation.known import known
from testbed.simulation.network import network
from testbed.simulation.pipeline import Options, simulate_scenario
from testbed.simulation.system import Scheduler

PACKETS = 60_000
CONFIDENCE = 0.9999


def arrivals(draw: random.Random, kbps: int) -> dict[str, Any]:
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
        ]
    )


def tenant(draw: random.Random, name: str, site: str) -> tuple[dict[str, Any], int]:
    """A tenant, and how much it reserves of every link, kbit/s."""
    kbps = draw.choice([200, 500, 1000])
    found: dict[str, Any] = {"name": name, "site": site, "arrivals": arrivals(draw, kbps)}
    if draw.random() < 0.15:
        return found, 0
    if draw.random() < 0.2:
        found["arrivals"] = {"model": "poisson", "rate": "1280 kbit/s", "size": "4 kB"}
        work = {"mean": f"{draw.choice([0.5, 1, 3])} ms", "cv": draw.choice([0, 0.3, 1])}
        found["requests"] = {"model": "digits-small", "timeout": "60 s", "work": work}
        kbps = 1600
    # A modulated tenant sends 1.15 times as much.
    rate = int(1.16 * kbps / draw.choice([0.4, 0.6, 0.8, 0.9])) + 10
    found["reservation"] = {"rate": f"{rate} kbit/s"}
    if draw.random() < 0.3 and "requests" not in found:
        found["reservation"] |= {"burst": f"{draw.choice([20, 50, 200])} kbit"}
    if draw.random() < 0.2:
        found["reservation"] |= {"queue": f"{draw.choice([8, 40])} kB"}
    found["promise"] = {"deadline": "60 s", "epsilon": draw.choice([0.01, 0.001])}
    return found, rate


def document(draw: random.Random) -> Mapping[str, Any]:
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


@pytest.mark.parametrize("seed", range(10))
def test_no_bound_of_a_random_scenario_is_broken(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - nothing here is a secret
    file = tmp_path / "random.yaml"
    file.write_text(json.dumps(document(draw)), encoding="utf-8")
    scenario = load(file)
    asking = sum(each.requests is not None for each in scenario.tenants)
    scheduler = Scheduler.RESERVED if asking > 1 else draw.choice([Scheduler.RESERVED, Scheduler.ISOLATED])
    choices = Choices(scheduler, metered=draw.random() < 0.75)
    bounds = network(scenario, choices, known(scenario)).bounds
    promised = {
        each.name: Promise(bounds[each.name].bound_s, each.promise.epsilon, CONFIDENCE)
        for each in scenario.tenants
        if each.promise is not None and each.name in bounds
    }
    held_to_them = replace(
        scenario, tenants=tuple(replace(each, promise=promised.get(each.name)) for each in scenario.tenants)
    )
    options = Options(out=tmp_path / "runs", packets=PACKETS, recorded_packets=2 * PACKETS, choices=choices, page=False)
    record = read_record(simulate_scenario(held_to_them, options, Silent()))
    assert {row.name: row.verdict for row in record.tenants if row.verdict == "FAIL"} == {}
