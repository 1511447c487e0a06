"""Each domain delays and loses at random what it says, or what the command says of it, and nobody is promised that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from testbed.cli.impairments import impairments
from testbed.errors import PreflightError, ScenarioError
from testbed.run.preflight import require_unimpaired
from testbed.scenario import summary
from testbed.scenario.dictionary import from_dict, to_dict
from testbed.scenario.loader import load
from testbed.scenario.model import ExcessLatency, Scenario
from testbed.simulation.choices import Choices
from testbed.simulation.impairment import Excess, Exponential
from testbed.simulation.network import network
from testbed.simulation.window import Plan, simulate
from tests.unit.simulation.commands import ended

ROUGH = """
name: rough
duration: 10 s
allow-zero-delay: true
domains:
  - {name: west, link-rate: 400 Mbit/s, compute: true}
  - {name: mid, link-rate: 400 Mbit/s, excess: {mean: 5 ms, share: 0.02}}
  - {name: east, link-rate: 400 Mbit/s, loss: 0.05, compute: true}
tenants:
  - name: near
    site: west
    arrivals: {model: poisson, rate: 1 Mbit/s, size: 500 B}
    reservation: {rate: 2 Mbit/s}
    promise: {deadline: 200 ms, epsilon: 0.01}
  - name: far
    arrivals: {model: poisson, rate: 1 Mbit/s, size: 500 B}
    reservation: {rate: 2 Mbit/s}
    promise: {deadline: 200 ms, epsilon: 0.1}
"""
FAR = 1


@pytest.fixture
def rough(tmp_path: Path) -> Scenario:
    path = tmp_path / "rough.yaml"
    path.write_text(ROUGH, encoding="utf-8")
    return load(path)


def crossed(scenario: Scenario, choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """Of the tenant that crosses everything: seconds in each domain, and the share of its packets lost in each."""
    (passage,) = simulate(network(scenario, choices).system, Plan(2, 1, 60.0, 60.0)).passages
    border = passage.border_ps[passage.rows(FAR)]
    seen = border >= 0
    lost = 1 - seen[:, 1:].sum(axis=0) / seen[:, :-1].sum(axis=0)
    delay_s = np.diff(border[seen.all(axis=1)], axis=1) / 1e12
    return delay_s, lost


def test_domains_do_what_they_say_each_for_itself(rough: Scenario) -> None:
    delay_s, lost = crossed(rough, Choices())
    assert lost[:2].tolist() == [0.0, 0.0]
    assert lost[2] == pytest.approx(0.05, rel=0.1)
    late = (delay_s > 1e-3).mean(axis=0)
    assert late[0] < 0.001
    assert late[2] < 0.05, "what was held up together comes out together, and waits for its own rate"
    # A packet that is late holds up those behind it: so many are delayed by more than a millisecond.
    assert 0.02 * np.exp(-0.2) < late[1] < 0.1


def test_what_a_command_says_of_a_domain_counts_more_than_what_it_says_of_all_or_the_file(rough: Scenario) -> None:
    choices = Choices(**impairments(["west=1", "mid=0"], ["west=0.5"], ["0.02", "east=0"]))
    west, mid, east = network(rough, choices).system.hops
    assert west.excess == Excess(0.5, Exponential(1e-3))
    assert (mid.excess, east.excess) == (None, None)
    assert (west.loss, mid.loss, east.loss) == (0.02, 0.02, 0.0)
    west, mid, east = network(rough, Choices(**impairments(["3"], [], []))).system.hops
    assert {hop.excess for hop in (west, mid, east)} == {Excess(1.0, Exponential(3e-3))}
    assert [hop.loss for hop in (west, mid, east)] == [0.0, 0.0, 0.05]


def test_they_arrive_round_trip_are_described_and_are_refused_on_a_network(rough: Scenario) -> None:
    assert [domain.excess for domain in rough.domains] == [None, ExcessLatency(5e-3, 0.02), None]
    assert [domain.loss for domain in rough.domains] == [0.0, 0.0, 0.05]
    assert from_dict(json.loads(json.dumps(to_dict(rough)))) == rough
    assert set(to_dict(rough)["domains"][0]) == {"name", "link_rate_bps", "link_delay_s", "compute"}
    described = "\n".join(summary.lines(rough))
    assert "late: 5 ms at 0.02" in described
    assert "loses 0.05" in described
    with pytest.raises(PreflightError, match="domains mid, east: found random excess latency or loss"):
        require_unimpaired(rough)


def test_only_whose_path_is_unimpaired_has_a_bound(rough: Scenario) -> None:
    assert set(network(rough, Choices()).bounds) == {"near"}
    assert set(network(rough, Choices(**impairments(["0"], [], ["0"]))).bounds) == {"near", "far"}
    assert not network(rough, Choices(**impairments(["west=1"], [], []))).bounds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((["west=fast"], [], []), r"--excess-ms: found 'west=fast', expected a number from 0 to"),
        (([], [], ["1.5"]), r"--loss: found '1\.5', expected a number from 0 to 1, or DOMAIN="),
        ((["1", "2"], [], []), "--excess-ms: found two values for every domain"),
        ((["1"], ["west=0.5"], []), "--excess-share: found a share for west and no latency"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: tuple[list[str], ...], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        impairments(*options)


def test_a_domain_that_is_not_there_is_refused(rough: Scenario) -> None:
    with pytest.raises(ScenarioError, match="impaired domains: found wset, expected one of west, mid, east"):
        network(rough, Choices(**impairments([], [], ["wset=0.1"])))


def test_the_command_says_why_there_is_no_bound(rough: Scenario, tmp_path: Path) -> None:
    assert rough.source is not None
    done = ended("simulate", str(rough.source), "--loss", "west=0", "--no-page", "--out", str(tmp_path))
    assert "no bound: far: no envelope says what impairs mid, east" in " ".join(done.stdout.split())
