"""A server that is made worse on purpose while a real network is measured, and what the run's folder says of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from testbed.emulation.network import TandemNetwork
from testbed.emulation.supervisor import Child
from testbed.report.record import read_record
from testbed.run.pipeline import Options, run
from testbed.run.progress import Silent
from testbed.scenario.loader import load
from testbed.telemetry import request_samples
from tests.integration.conftest import Command
from tests.integration.test_requests import SCENARIO

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(300)]

PLAN = {
    "seed": 7,
    "impairments": [
        {"kind": "slow-down", "toS": 1e6, "factor": 3},
        {"kind": "wrong-answers", "toS": 1e6, "rate": 0.25},
    ],
}


def test_what_a_server_suffered_is_in_the_record_the_samples_the_report_and_the_audit(
    testbed: Command, tmp_path: Path
) -> None:
    plan, file = tmp_path / "plan.json", tmp_path / "asking.yaml"
    plan.write_text(json.dumps(PLAN), encoding="utf-8")
    file.write_text(SCENARIO, encoding="utf-8")
    start = TandemNetwork.start

    def impaired(network: TandemNetwork, name: str, command: Sequence[str], **more: Any) -> Child:
        more_arguments = ["--impair", str(plan)] if name.startswith("server-") else []
        return start(network, name, [*command, *more_arguments], **more)

    with mock.patch.object(TandemNetwork, "start", impaired):
        folder = run(load(file), Options(out=tmp_path / "out"), Silent())
    record = read_record(folder)
    (vision,), (window,) = record.tenants, record.windows
    assert vision.requests is not None
    # All of it holds whether or not the host kept up: it is what the server says.
    assert [(each.kind, each.amount, each.seed, each.tenants) for each in window.impairments] == [
        ("slow-down", 3.0, 7, ("vision",)),
        ("wrong-answers", 0.25, 7, ("vision",)),
    ]
    touched = vision.requests.impaired
    assert touched["slow-down"] == vision.requests.answered > 0
    assert 0.1 < touched["wrong-answers"] / vision.requests.answered < 0.4
    assert vision.requests.accuracy is not None
    assert vision.requests.accuracy < 0.95
    samples = request_samples.read(folder / window.requests["vision"]).due()
    assert samples.lost_time_s is not None
    answered = np.isfinite(samples.latency_s)
    lost = samples.lost_time_s[answered, 2] / samples.compute_s[answered]
    assert np.median(lost) == pytest.approx(2 / 3, abs=0.05)
    assert "Servers made worse on purpose" in (folder / "report.html").read_text(encoding="utf-8")
    audited = json.loads(testbed("audit", str(folder), "--json").stdout)["tenants"]["vision"]
    assert audited["requests"]["impaired"] == touched
    assert "server slowed down on purpose" in audited["causes"]
    assert any("Its server was made worse on purpose in window 1" in said for said in audited["findings"])
