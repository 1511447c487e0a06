"""Shipped scenarios as an emulated processor carries them, and what a run of one is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from testbed.report.record import RunRecord
from testbed.scenario.loader import load
from testbed.scenario.model import Datapath, Scenario
from testbed.scenario.slow_down import slowed
from tests.integration.conftest import ROOT, is_noise

TOPOLOGIES = ROOT / "topologies"
HOW: Mapping[str, tuple[float, float, float]] = {
    "chat": (4, 5, 20),
    "delay": (16, 2, 5),
    "demo": (40, 1, 3),
    "faults": (8, 3, 8),
    "requests": (16, 2, 5),
    "smoke": (8, 2, 5),
}
"""How many times slower, and warm-up and window in the scenario's own seconds; `kernel` has a module of its own."""


def shortened(name: str, **changed: Any) -> Scenario:
    """What is to be run of a shipped scenario, with these fields instead of its own."""
    factor, warmup_s, duration_s = HOW[name]
    told = {"warmup_s": warmup_s, "duration_s": duration_s, **changed}
    scenario = replace(load(TOPOLOGIES / f"{name}.yaml"), **told)
    return replace(slowed(scenario, factor), datapath=Datapath.KERNEL)


def judged(record: RunRecord) -> RunRecord:
    """Nothing but the host took a verdict away; what was installed acted, and no bound is below its measurement."""
    breached = [(gate.name, gate.value, gate.limit, gate.detail) for gate in record.gates if not gate.holds]
    print(record.verdict, breached, record.faults, record.timings_s)
    assert record.datapath == "kernel"
    assert [name for name, *_ in breached if not is_noise(name)] == []
    assert all(probe.ok for probe in record.probes)
    assert not any(tenant.bound_broken for tenant in record.tenants)
    assert all(tenant.n > 0 for tenant in record.tenants)
    return record
