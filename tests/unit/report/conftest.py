"""A run folder made by hand: two tenants, one window, exponential latencies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.report.record import GateRecord, RunRecord, WindowRecord
from testbed.report.tenant_record import BoundPart, BoundRecord, DomainDelay, TenantRecord
from testbed.telemetry.lag import replay
from testbed.telemetry.samples import TenantSamples, write

FolderMaker = Callable[..., tuple[Path, RunRecord]]


def tenant(**changes: Any) -> TenantRecord:
    """A tenant whose promise holds; `changes` replace fields."""
    values: dict[str, Any] = {
        "name": "alpha", "n": 20_000, "misses": 3, "lost": 2, "p999_s": 0.0692, "p999_interval_s": (0.064, 0.075),
        "p999_lower_s": 0.065, "ideal_p999_s": 0.0690, "promised_s": 0.0692,
        "promised_interval_s": (0.064, 0.075), "promised_lower_s": 0.065, "ideal_promised_s": 0.0690,
        "bound_s": 0.0791, "bound_method": "lundberg",
        "deadline_s": 0.12, "epsilon": 0.001, "verdict": "PASS", "reason": "3 misses in 20,000",
        "bound": BoundRecord(
            bound_s=0.0791, network_bound_s=0.078, method="lundberg", assumptions=("independent increments",),
            parts=(BoundPart(name="queueing", delay_s=0.0731), BoundPart(name="west", delay_s=0.006)),
            rejected={"chernoff": 0.0912}, curve=((1e-1, 0.026), (1e-2, 0.0526), (1e-3, 0.0791), (1e-4, 0.105)),
        ),
        "domains": (
            DomainDelay(domain="west", mean_s=0.008, p999_s=0.06, tail_mean_s=0.06, lag_share=0.0001, lost=0),
            DomainDelay(domain="east", mean_s=0.002, p999_s=0.012, tail_mean_s=0.009, lag_share=0.0, lost=2),
        ),
    }  # fmt: skip
    return TenantRecord.model_validate(values | changes)


def write_samples(path: Path, latency_s: np.ndarray) -> None:
    """A window of one domain in which packets took this long."""
    sent_s = np.arange(latency_s.size) * 1e-3
    size_bits = np.full(latency_s.size, 8000, np.int32)
    border_s = np.stack([sent_s, sent_s + latency_s], axis=1)
    window = TenantSamples("t", 1, ("west",), 0, np.arange(latency_s.size), sent_s, sent_s, size_bits, border_s)
    write(path, window, replay(window, 10e6, [0.001]))


@pytest.fixture
def run_folder(tmp_path: Path) -> FolderMaker:
    """Write a folder with the given tenants and gates; returns it with its record."""

    def make(*tenants: TenantRecord, gates: tuple[GateRecord, ...] = (), **changes: Any) -> tuple[Path, RunRecord]:
        rng = np.random.default_rng(1)
        samples = {}
        for item in tenants:
            latency = rng.exponential(0.01, item.n)
            latency[:: max(item.n // max(item.lost, 1), 1)][: item.lost] = np.nan
            samples[item.name] = f"{item.name}.parquet"
            write_samples(tmp_path / samples[item.name], latency)
        record = RunRecord.model_validate({
            "run_id": "0123ab", "name": "demo", "kind": "network", "created": "2026-01-01T00:00:00Z",
            "testbed_version": "0.1.0", "command": ("testbed", "run", "demo file.yaml"), "datapath": "userspace",
            "verdict": "PASS", "scenario": {"name": "demo"}, "tenants": tenants, "gates": gates,
            "windows": (WindowRecord(index=0, seed=1, duration_s=60.0, valid=True, samples=samples),),
        } | changes)  # fmt: skip
        return tmp_path, record

    return make
