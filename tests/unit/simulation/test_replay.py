"""A run's packets replayed from its folder: the network's part is what the simulator does not know."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from testbed.management.sizing import DRAIN_BPS
from testbed.report.record import read_record, write_record
from testbed.run.progress import Silent
from testbed.scenario.model import PoissonArrivals
from testbed.simulation import pipeline
from testbed.simulation.host_time import HostTimes
from testbed.simulation.network import Network
from testbed.simulation.pipeline import Options, simulate_scenario
from testbed.simulation.replay import Replayed, replay_run
from testbed.telemetry import request_samples, samples
from tests.unit.simulation import systems
from tests.unit.simulation.systems import BURSTY, DOMAINS, mixed
from tests.unit.simulation.test_requests import vision

FloatArray = npt.NDArray[np.float64]


def simulated(out: Path, *, without: str = "") -> Path:
    """Packets of all kinds but one, and requests."""
    tenants = [tenant for tenant in mixed().tenants if tenant.name != without]
    scenario = replace(mixed(), tenants=(*tenants, vision()))
    return simulate_scenario(scenario, Options(out=out, replications=2, page=False), Silent())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated run, whose packets the simulator must find again exactly."""
    return simulated(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def of(replayed: list[Replayed], tenant: str) -> Replayed:
    return next(one for one in replayed if one.tenant == tenant)


def shift(folder: Path, tenant: str, late_s: Callable[[FloatArray], FloatArray]) -> None:
    """Replace what the borders saw of a tenant's packets or requests, [n, D + 1]."""
    for window in read_record(folder).windows:
        if tenant in window.requests:
            path = folder / window.requests[tenant]
            asked = request_samples.read(path)
            request_samples.write(path, replace(asked, out_s=late_s(asked.out_s)))
            continue
        path = folder / window.samples[tenant]
        seen, replay = samples.read(path)
        samples.write(path, replace(seen, border_s=late_s(seen.border_s)), replay)


def test_a_simulated_run_replayed_is_itself(folder: Path) -> None:
    replayed = replay_run(folder)
    names = [*(tenant.name for tenant in mixed().tenants), "vision"]
    assert [(one.window, one.tenant) for one in replayed] == [(window, name) for window in (1, 2) for name in names]
    for one in replayed:
        assert len(one.measured_s) > 200
        assert np.array_equal(np.isfinite(one.measured_s), np.isfinite(one.simulated_s))
        assert np.nanmax(np.abs(one.measured_s - one.simulated_s)) < 1e-9


def test_requests_are_replayed_as_they_were_seen_and_not_as_they_were_due(copy: Path) -> None:
    for window in read_record(copy).windows:
        path = copy / window.requests["vision"]
        seen = request_samples.read(path)
        request_samples.write(path, replace(seen, intended_s=seen.intended_s - 0.5, sent_s=seen.sent_s - 0.5))
    one = of(replay_run(copy), "vision")
    assert np.abs(one.measured_s - one.simulated_s).max() < 1e-9


def test_packets_that_the_first_meter_dropped_are_left_out_and_counted(folder: Path) -> None:
    flood = of(replay_run(folder), "flood")
    dropped, would_drop = flood.metered
    assert dropped == would_drop > 1000
    assert np.isfinite(flood.measured_s).all()


def test_packets_that_a_queue_may_have_dropped_are_replayed_with_their_meter(copy: Path) -> None:
    record = read_record(copy)
    lost = [
        one.model_copy(update={"conformance": one.conformance.model_copy(update={"queue_dropped": 1})})
        if one.conformance
        else one
        for one in record.tenants
    ]
    write_record(copy, record.model_copy(update={"tenants": tuple(lost)}))
    flood = of(replay_run(copy), "flood")
    assert flood.metered == (0, 0)
    assert np.array_equal(np.isfinite(flood.measured_s), np.isfinite(flood.simulated_s))
    assert np.isnan(flood.simulated_s[:, 1]).sum() > 1000


def test_switches_that_hold_everything_up_alike_leave_no_difference(copy: Path) -> None:
    window = read_record(copy).windows[0]
    for tenant in (*window.samples, *window.requests):
        shift(copy, tenant, lambda border_s: border_s + 0.3e-3 * np.arange(border_s.shape[1]))
    for one in replay_run(copy):
        assert np.median(one.host_s) == pytest.approx(0.3e-3 * (one.measured_s.shape[1] - 1), abs=1e-7)
        measured_s, simulated_s = one.quantiles()
        assert simulated_s == pytest.approx(measured_s, rel=1e-3)


def test_what_a_networks_port_takes_to_send_is_its_hosts_time(copy: Path) -> None:
    record = read_record(copy)
    alone = {one.tenant: one.host_s for one in replay_run(copy)}
    assert np.median(alone["bursty"]) == pytest.approx(0, abs=1e-9)
    write_record(copy, record.model_copy(update={"kind": "network"}))
    for one in replay_run(copy):
        measured_s, simulated_s = one.quantiles()
        assert simulated_s == pytest.approx(measured_s, rel=0.03, abs=20e-6), one.tenant
        if one.tenant == "bursty":
            assert np.median(one.host_s) == pytest.approx(2 * BURSTY.size_bits / DRAIN_BPS, abs=0.1e-6)


def test_a_host_that_pauses_is_found_with_the_bursts_that_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is away for up to 20 ms: who reserves meets it again, with what it makes of queues."""
    rng = np.random.default_rng(7)
    at_s = np.arange(0.0, 6.0, 0.1e-3)
    away_s = 0.2e-3 + np.where(rng.random(at_s.size) < 3e-4, 20e-3, 0.0)
    until_s = np.maximum.accumulate(at_s + away_s)
    host = HostTimes(*(np.rint(values * 1e12).astype(np.int64) for values in (at_s, until_s - at_s)))
    ready = pipeline.network

    def paused(*args: object) -> Network:
        made = ready(*args)  # type: ignore[arg-type]
        hops = tuple(replace(hop, host=host) for hop in made.system.hops)
        return replace(made, system=replace(made.system, hops=hops))

    monkeypatch.setattr(pipeline, "network", paused)
    folder = simulated(tmp_path, without="flood")
    for one in replay_run(folder):
        if one.tenant == "bulk":
            continue
        measured_s, simulated_s = one.quantiles()
        assert simulated_s == pytest.approx(measured_s, rel=0.03), one.tenant
        assert measured_s[2] > 15e-3, one.tenant


def test_a_queue_that_is_not_the_simulators_is_found(copy: Path) -> None:
    """Waiting that is a twentieth longer shows, whatever the host took."""

    def longer(border_s: FloatArray) -> FloatArray:
        waits_s = np.diff(border_s, axis=1)
        waits_s = np.where(waits_s > np.nanmin(waits_s, axis=0) + 50e-6, 1.05 * waits_s, waits_s) + 0.3e-3
        return np.column_stack([border_s[:, 0], border_s[:, [0]] + np.cumsum(waits_s, axis=1)])

    for tenant in read_record(copy).windows[0].samples:
        shift(copy, tenant, longer)
    measured_s, simulated_s = of(replay_run(copy), "bursty").quantiles()
    assert (measured_s / simulated_s - 1)[1:] == pytest.approx([0.05, 0.05], abs=0.01)


def test_waiting_in_a_queue_that_is_always_full_is_not_its_hosts_time(tmp_path: Path) -> None:
    """Who comes to it when it is full never passes it at once, and waits a twentieth longer than in the simulator."""
    shared = replace(DOMAINS[1], link_rate_bps=4_000_000, shared_queue_bits=160_000)
    full = systems.scenario(
        systems.tenant("flood", PoissonArrivals(1000.0, 8_000), None),
        systems.tenant("visitor", PoissonArrivals(100.0, 8_000), None, present_s=((1.0, 10.0),)),
        duration_s=10.0,
        domains=(DOMAINS[0], shared),
    )
    folder = simulate_scenario(full, Options(out=tmp_path, page=False), Silent())
    visitor = of(replay_run(folder), "visitor")
    assert np.nanmin(np.diff(visitor.simulated_s, axis=1)[:, 1]) > 30e-3

    def longer(border_s: FloatArray) -> FloatArray:
        waits_s = np.diff(border_s, axis=1)
        waits_s[:, 1] *= np.where(waits_s[:, 1] > 5e-3, 1.05, 1.0)
        return np.column_stack([border_s[:, 0], border_s[:, [0]] + np.cumsum(waits_s, axis=1)])

    for name in ("flood", "visitor"):
        shift(folder, name, longer)
    for one in replay_run(folder):
        measured_s, simulated_s = one.quantiles((0.5, 0.99))
        assert measured_s / simulated_s - 1 == pytest.approx([0.05, 0.05], abs=0.005)


def test_packets_that_a_border_did_not_see_are_left_out(copy: Path) -> None:
    path = copy / read_record(copy).windows[0].samples["bulk"]
    seen, replay = samples.read(path)
    border_s = seen.border_s.copy()
    border_s[::3, 0] = np.nan
    samples.write(path, replace(seen, border_s=border_s), replay)
    assert len(of(replay_run(copy), "bulk").simulated_s) == len(seen) - len(range(0, len(seen), 3))


def test_where_every_packet_is_lost_nothing_is_said() -> None:
    lost = Replayed("nobody", 1, np.full((3, 2), np.nan), np.zeros((3, 2)), np.empty(0))
    assert np.isnan(lost.quantiles()).all()
