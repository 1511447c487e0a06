"""A run's packets replayed from its folder: the network's part is what the simulator does not know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.report.record import read_record
from testbed.run.progress import Silent
from testbed.simulation.pipeline import Options, simulate_scenario
from testbed.simulation.replay import Replayed, replay_run
from testbed.telemetry import samples
from tests.unit.simulation.systems import mixed
from tests.unit.simulation.test_requests import vision


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated run, whose packets the simulator must find again exactly."""
    out = tmp_path_factory.mktemp("runs")
    return simulate_scenario(mixed(), Options(out=out, replications=2, page=False), Silent())


def test_a_simulated_run_replayed_is_itself(folder: Path) -> None:
    replayed = replay_run(folder)
    assert [(one.window, one.tenant) for one in replayed] == [
        (window, tenant.name) for window in (1, 2) for tenant in mixed().tenants
    ]
    for one in replayed:
        assert np.array_equal(np.isfinite(one.measured_s), np.isfinite(one.simulated_s))
        assert np.nanmax(np.abs(one.measured_s - one.simulated_s)) < 1e-9


def test_simulated_requests_replayed_are_themselves(tmp_path: Path) -> None:
    asking = vision()
    folder = simulate_scenario(
        replace(mixed(), tenants=(*mixed().tenants, asking)), Options(tmp_path, page=False), Silent()
    )
    one = next(found for found in replay_run(folder) if found.tenant == "vision")
    assert one.measured_s.size > 200
    assert np.abs(one.measured_s - one.simulated_s).max() < 1e-9


def test_the_hosts_time_is_that_of_packets_that_wait_for_nobody(folder: Path) -> None:
    """Switches that take 0.3 ms a domain, whoever waits, are found and leave no difference."""
    record = read_record(folder)
    for window in record.windows:
        path = folder / window.samples["bursty"]
        seen, replay = samples.read(path)
        slower = seen.border_s + 0.3e-3 * np.arange(seen.border_s.shape[1])
        samples.write(path, replace(seen, border_s=slower), replay)
    bursty = next(one for one in replay_run(folder) if one.tenant == "bursty")
    assert bursty.host_s == pytest.approx(0.6e-3, abs=1e-9)
    measured_s, simulated_s = bursty.quantiles()
    assert simulated_s == pytest.approx(measured_s, rel=1e-6)


def test_a_host_whose_time_varies_moves_quantiles_as_a_random_time_does() -> None:
    """A median between packets that wait and packets that do not is where a constant in place of the law is wrong."""
    rng = np.random.default_rng(4)
    waits = np.where(rng.random(40_000) < 0.55, 0.0, rng.exponential(0.01, 40_000))
    host = rng.gamma(2.0, 0.5e-3, waits.size)
    one = Replayed("bursty", 1, waits + host, waits)
    measured_s, simulated_s = one.quantiles()
    assert simulated_s == pytest.approx(measured_s, rel=0.03)
    constant = np.quantile(waits, 0.5) + one.host_s
    assert abs(constant / measured_s[0] - 1) > 0.3


def test_packets_that_a_border_did_not_see_are_left_out(folder: Path) -> None:
    path = folder / read_record(folder).windows[0].samples["bulk"]
    seen, replay = samples.read(path)
    border_s = seen.border_s.copy()
    border_s[::3] = np.nan
    samples.write(path, replace(seen, border_s=border_s), replay)
    bulk = next(one for one in replay_run(folder) if one.tenant == "bulk")
    assert bulk.simulated_s.size == len(seen) - len(range(0, len(seen), 3))


def test_where_every_packet_is_lost_nothing_is_said_of_the_host() -> None:
    lost = Replayed("nobody", 1, np.full(3, np.nan), np.full(3, 1e-3))
    assert np.isnan(lost.host_s)
    assert np.isnan(Replayed("all wait", 1, np.array([np.nan, 2e-3]), np.array([0.0, 1e-3])).quantiles()[1]).all()
