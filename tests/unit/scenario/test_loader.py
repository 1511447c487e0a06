"""What a good scenario file becomes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from testbed.errors import ScenarioError
from testbed.scenario import summary
from testbed.scenario.definition import schema, schema_text
from testbed.scenario.dictionary import from_dict, to_dict
from testbed.scenario.loader import load
from testbed.scenario.model import (
    Arrivals,
    Datapath,
    Domain,
    Misbehaviour,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    Promise,
    Reservation,
    Scenario,
    Tenant,
    TraceArrivals,
)
from tests.unit.scenario.strategies import as_yaml, documents

TOPOLOGIES = Path(__file__).parents[3] / "topologies"
BAD = Path(__file__).parent / "bad"
VALIDATOR = jsonschema.Draft202012Validator(schema())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenarios")


def load_text(text: str, folder: Path) -> Scenario:
    path = folder / "scenario.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def test_every_value_of_a_file_arrives_in_si_units(tmp_path: Path) -> None:
    text = """
    name: all
    seed: 3
    warm-up: 2 s
    duration: 1.5 min
    datapath: userspace
    allow-zero-delay: true
    domains:
      - {name: near, link-rate: 40 Mbit/s, link-delay: 2.5 ms, compute: true}
      - {name: far, link-rate: 5 MB/s}
    tenants:
      - name: alpha
        site: near
        arrivals: {model: on-off, peak: 20 Mbit/s, mean-on: 5 ms, mean-off: 7500 us, size: 1400 B}
        reservation: {rate: 10 Mbit/s, meter-rate: 9 Mbit/s, burst: 400 kbit, queue: 100 kB}
        promise: {deadline: 0.2 s, epsilon: 1e-3, confidence: 0.9}
        misbehaviour: {kind: flood, offered: 40 Mbit/s}
      - name: bulk
        arrivals: {model: poisson, rate: 250 packets/s, size: 8 kbit}
    """
    assert load_text(text, tmp_path) == Scenario(
        name="all",
        domains=(Domain("near", 40_000_000, 0.0025, compute=True), Domain("far", 40_000_000)),
        tenants=(
            Tenant(
                "alpha",
                OnOffArrivals(20e6, 0.005, 0.0075, 11_200),
                "near",
                Reservation(10_000_000, 9_000_000, 400_000, 800_000),
                Promise(0.2, 0.001, 0.9),
                Misbehaviour("flood", offered_bps=40e6),
            ),
            Tenant("bulk", PoissonArrivals(250.0, 8000), "near"),
        ),
        seed=3,
        warmup_s=2.0,
        duration_s=90.0,
        datapath=Datapath.USERSPACE,
        allow_zero_delay=True,
        source=tmp_path / "scenario.yaml",
    )


def test_a_shared_queue_strengths_and_times_of_presence_arrive_round_trip_and_are_described(tmp_path: Path) -> None:
    text = """
    name: shared
    duration: 30 s
    domains: [{name: only, link-rate: 20 Mbit/s, shared-queue: 250 kB, compute: true}]
    tenants:
      - name: victim
        arrivals: &bursty {model: on-off, peak: 20 Mbit/s, mean-on: 5 ms, mean-off: 45 ms, size: 1400 B}
        misbehaviour: {kind: correlated, group: storm, strength: 1}
      - name: other
        arrivals: *bursty
        misbehaviour: {kind: correlated, group: storm, strength: 0.25}
      - name: guest
        arrivals: *bursty
        present: [{from: 0 s, until: 2.5 s}, {from: 20 s, until: 30 s}]
    """
    found = load_text(text, tmp_path)
    assert found.domains[0].shared_queue_bits == 2_000_000
    assert [tenant.misbehaviour and tenant.misbehaviour.strength for tenant in found.tenants] == [1.0, 0.25, None]
    assert found.tenants[2].present_s == ((0.0, 2.5), (20.0, 30.0))
    assert from_dict(json.loads(json.dumps(to_dict(found)))) == found
    described = "\n".join(summary.lines(found))
    for words in (
        "one queue of 2 Mbit",
        "the group storm, with strength 0.25",
        "comes 2 times",
        "12.5 s of the window",
    ):
        assert words in described


def test_a_tenant_without_a_site_is_served_by_the_last_domain_that_offers_compute(tmp_path: Path) -> None:
    offering = "{name: a, link-rate: 1 Mbit/s, compute: true}, {name: b, link-rate: 1 Mbit/s, compute: true}"
    domains = f"[{offering}, {{name: c, link-rate: 1 Mbit/s}}]"
    tenants = "[{name: t, arrivals: {model: poisson, rate: 1 kbit/s, size: 100 B}}]"
    scenario = load_text(f"name: n\ndomains: {domains}\ntenants: {tenants}\n", tmp_path)
    assert scenario.tenants[0].site == "b"
    assert [domain.name for domain in scenario.path(scenario.tenants[0])] == ["a", "b"]


def test_a_trace_is_found_beside_its_scenario_file_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "t.csv").write_text("time_s,size_bytes\n" + "".join(f"{i / 100},1000\n" for i in range(200)))
    replayed = "{model: trace, file: traces/t.csv, format: packets, speed-up: 2}"
    tenant = f"{{name: t, arrivals: {replayed}, reservation: {{rate: 3 Mbit/s}}}}"
    monkeypatch.chdir("/")
    domains = "[{name: a, link-rate: 9 Mbit/s, compute: true}]"
    scenario = load_text(f"name: n\ndomains: {domains}\ntenants: [{tenant}]\n", tmp_path)
    arrivals, reservation = scenario.tenants[0].arrivals, scenario.tenants[0].reservation
    assert arrivals == TraceArrivals(tmp_path / "traces" / "t.csv", "packets", 2.0, 0, 8 * 1514)
    # 100 packets of 8 kbit a second, twice as fast: a mean of 1.6 Mbit/s, half-way to 3 Mbit/s.
    assert reservation is not None
    assert reservation.meter_rate_bps == 2_300_000


def arrivals_of(text: str, folder: Path) -> Arrivals:
    tenants = f"[{{name: t, arrivals: {text}}}]"
    return load_text(f"name: n\ndomains: {DOMAIN}\ntenants: {tenants}\n", folder).tenants[0].arrivals


DOMAIN = "[{name: a, link-rate: 9 Mbit/s, compute: true}]"


def test_states_of_a_modulated_process_follow_each_other_in_turn_or_by_their_weights(tmp_path: Path) -> None:
    two = "{rate: 100 packets/s, stay: 2 s}, {rate: 8 Mbit/s, stay: 500 ms}"
    turns = arrivals_of(f"{{model: mmpp, size: 1000 B, states: [{two}]}}", tmp_path)
    assert turns == MmppArrivals((100.0, 1000.0), ((0.0, 0.5), (2.0, 0.0)), 8000)
    third = "{rate: 0 packets/s, stay: 100 ms, next: [3, 1, 0]}"
    weighted = arrivals_of(f"{{model: mmpp, size: 1000 B, states: [{two}, {third}]}}", tmp_path)
    assert weighted == MmppArrivals((100.0, 1000.0, 0.0), ((0, 0.5, 0), (0, 0, 2.0), (7.5, 2.5, 0)), 8000)


@pytest.mark.parametrize("name", ["demo", "smoke", "delay"])
def test_the_shipped_scenarios_are_valid_and_satisfy_the_schema(name: str) -> None:
    path = TOPOLOGIES / f"{name}.yaml"
    scenario = load(path)
    VALIDATOR.validate(YAML(typ="safe").load(path))
    assert scenario.name == name
    assert from_dict(json.loads(json.dumps(to_dict(scenario)))) == scenario


def test_the_schema_that_ships_is_the_one_the_loader_checks_against() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert json.loads(schema_text()) == schema(), "run: python -m testbed.scenario.definition > .../schema.json"


@given(documents())
@settings(max_examples=150)
def test_a_valid_document_loads_satisfies_the_schema_and_round_trips(folder: Path, document: dict[str, Any]) -> None:
    VALIDATOR.validate(document)
    scenario = load_text(as_yaml(document), folder)
    assert from_dict(json.loads(json.dumps(to_dict(scenario)))) == scenario
    assert len(summary.lines(scenario)) >= 2 + len(scenario.tenants)
    for tenant in scenario.tenants:
        if tenant.reservation is not None and tenant.mean_bps is not None:
            assert tenant.mean_bps < tenant.reservation.meter_rate_bps < tenant.reservation.rate_bps
            assert tenant.reservation.meter_rate_bps % 1000 == 0
            assert tenant.reservation.burst_bits % 1000 == 0


@given(documents(), st.data())
@settings(max_examples=300)
def test_whatever_the_schema_refuses_the_loader_refuses_too(
    folder: Path, document: dict[str, Any], data: st.DataObject
) -> None:
    places = list(_places(document))
    parent, key = data.draw(st.sampled_from(places))
    action = data.draw(st.sampled_from(["delete", "rename", "replace"]))
    value = parent.pop(key) if isinstance(parent, dict) else parent[key]
    if action == "rename" and isinstance(parent, dict):
        parent[f"{key}x"] = value
    elif action == "replace" or isinstance(parent, list):
        parent[key] = data.draw(st.sampled_from([None, True, 7, -1, 0.5, "x y", "5 ms", "5 Mbit/s", "5 B", [], {}]))
    if not VALIDATOR.is_valid(document):
        with pytest.raises(ScenarioError):
            load_text(as_yaml(document), folder)


def _places(value: object) -> Any:
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield value, key
            yield from _places(item)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield value, index
            yield from _places(item)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda data: data.pop("seed"), "missing keys ['seed']", id="a missing key"),
        pytest.param(lambda data: data.update(colour=1), "unknown keys ['colour']", id="an unknown key"),
        pytest.param(lambda data: data.update(datapath="usb"), "'usb'", id="an unknown datapath"),
        pytest.param(
            lambda data: data["tenants"][0]["arrivals"].update(model="magic"), "'magic'", id="an unknown arrival model"
        ),
        pytest.param(lambda data: data["tenants"][0]["promise"].pop("epsilon"), "Promise", id="a damaged promise"),
        pytest.param(lambda data: data.update(domains=7), "domains", id="something that is no list"),
        pytest.param(
            lambda data: data.update(tenants=["x"]),
            "tenants: found no list of mappings",
            id="something that is no mapping",
        ),
    ],
)
def test_damaged_scenario_data_is_refused(damage: Any, words: str) -> None:
    data = json.loads(json.dumps(to_dict(load(TOPOLOGIES / "demo.yaml"))))
    damage(data)
    with pytest.raises(ScenarioError) as caught:
        from_dict(data)
    assert words in str(caught.value)


def test_a_scenario_built_in_python_has_no_source_and_still_round_trips() -> None:
    scenario = replace(load(TOPOLOGIES / "smoke.yaml"), source=None)
    assert from_dict(to_dict(scenario)) == scenario
