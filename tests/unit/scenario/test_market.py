"""A federation file is read as scenario files are: everything that is wrong at once, in words kept in golden files.

UPDATE_GOLDEN=1 writes the golden files anew; read the difference as a stranger before committing it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from testbed.scenario.federation import Intent
from testbed.scenario.market import is_market, load, schema, schema_text
from testbed.scenario.model import FULL_FRAME_BITS, PoissonArrivals
from testbed.scenario.problems import ScenarioFileError

BAD = Path(__file__).parent / "bad_federations"
SHIPPED = Path(__file__).parents[3] / "topologies/federation.yaml"


@pytest.mark.parametrize("name", sorted(path.stem for path in BAD.glob("*.yaml")))
def test_everything_wrong_with_a_file_is_reported_in_these_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(ScenarioFileError) as caught:
        load(Path(f"{name}.yaml"))
    text = "\n".join(caught.value.problems) + "\n"
    golden = BAD / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_the_shipped_federation_is_what_it_says() -> None:
    found = load(SHIPPED)
    assert found.segments == ("access", "metro", "core")
    assert {operator.segment for operator in found.operators} == set(found.segments)
    assert found.intents[0] == Intent(
        "archive", "digits", 0.99, 0.4, 0.01, PoissonArrivals(40.0, 64_000), 5.0, domains=None
    )
    site = found.operators[0].site
    assert site is not None
    assert (site.models[0].accuracy, site.models[0].work_s) == (0.876, 0.001)
    assert found.operators[0].packet_bits == FULL_FRAME_BITS


def test_what_is_left_out_is_derived(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(
        "name: small\n"
        "segments:\n"
        "  - name: only\n"
        "    operators:\n"
        "      - {name: only, link-rate: 100 Mbit/s, price: 1,"
        " site: {workers: 1, price: 1, models: [{name: digits-small, task: digits, work: 1 ms}]}}\n"
        "intents:\n"
        "  - {name: one, task: digits, deadline: 1 s, epsilon: 0.01, price: 1,"
        " arrivals: {model: poisson, rate: 1 requests/s, size: 1 kB}}\n"
    )
    operator = load(path).operators[0]
    assert (operator.reservable_bps, operator.classes, operator.drain_bps) == (100_000_000, 64, 4e8)


def test_a_federation_and_a_scenario_are_told_apart() -> None:
    assert is_market(SHIPPED)
    assert not is_market(SHIPPED.with_name("demo.yaml"))
    assert not is_market(SHIPPED.with_name("missing.yaml"))


def test_the_shipped_schema_is_the_definitions_and_fits_the_shipped_file() -> None:
    assert json.loads(schema_text()) == json.loads(json.dumps(schema()))
    document = YAML(typ="safe", pure=True).load(SHIPPED.read_text())
    jsonschema.validate(document, schema())


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    document = YAML(typ="safe", pure=True).load((BAD / "everything.yaml").read_text())
    assert len(list(jsonschema.Draft202012Validator(schema()).iter_errors(document))) > 5
