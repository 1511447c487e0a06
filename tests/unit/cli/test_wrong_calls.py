"""Wrong files and folders, as a stranger meets them: one line that says what is wrong, expected and to be done."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from testbed.cli import main
from testbed.report.record import RECORD_NAME
from testbed.run.progress import Silent
from testbed.scenario.loader import load
from testbed.simulation.pipeline import Options, simulate_scenario

Wrong = Callable[..., str]
TOPOLOGIES = Path(__file__).parents[3] / "topologies"

SMALL = """
name: small
seed: 1
warm-up: 1 s
duration: 1 s
domains: [{name: only, link-rate: 20 Mbit/s, compute: true}]
tenants:
  - name: steady
    arrivals: {model: poisson, rate: 1 Mbit/s, size: 200 B}
    reservation: {rate: 4 Mbit/s, burst: 20 kB}
    promise: {deadline: 50 ms, epsilon: 0.02}
"""
PARQUET = "window-1/steady.parquet"


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Wrong:
    """Type a command that is wrong: the only line it prints, with the folder's name cut off."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["testbed", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert (ended.value.code, printed.out) == (2, "")
        (line,) = printed.err.splitlines()
        assert line.startswith("testbed: ")
        return line.removeprefix("testbed: ")

    return call


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small simulation."""
    folder = tmp_path_factory.mktemp("simulated")
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    return simulate_scenario(load(folder / "small.yaml"), Options(out=folder, page=False), Silent())


@pytest.fixture
def folder(simulated: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(simulated, tmp_path / "run"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "file: found nothing in it; expected a scenario"),
        ("just text", '1: scenario: found "just text"; expected a scenario with the keys name'),
        ("a: [1, 2\nb: }", "2: syntax: found text that is not YAML"),
        ("seed: 1\nseed: 2", "2: key seed: found a second seed beside the one in line 1"),
        (b"\xff\xfe", "file: found a byte that is not UTF-8 at offset 0"),
        (None, "file: found no such file; expected a scenario file"),
    ],
)
def test_a_sweep_says_of_a_file_that_is_no_scenario_what_every_verb_says(
    wrong: Wrong, tmp_path: Path, text: str | bytes | None, line: str
) -> None:
    file = tmp_path / "wrong.yaml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = wrong("sweep", file, "--grid", "load=0.5", "--out", tmp_path / "sweep")
    assert said.startswith(str(file))
    assert said.removeprefix(str(file)).lstrip(": ").startswith(line)


@pytest.mark.parametrize("tenants", ["5", "[x]", "[{name: a, arrivals: fast}]", "[{name: a, arrivals: {file: 3}}]"])
def test_a_sweep_of_tenants_that_are_none_is_refused_by_the_scenario(
    wrong: Wrong, tmp_path: Path, tenants: str
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(SMALL.partition("tenants:")[0] + f"tenants: {tenants}\n", encoding="utf-8")
    assert f"{file}:" in wrong("sweep", file, "--grid", "load=0.5", "--out", tmp_path / "sweep")


def test_a_key_below_an_entry_without_a_name_leads_nowhere(wrong: Wrong, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("tenants: [x]\n", encoding="utf-8")
    said = wrong("sweep", file, "--grid", "tenants.a.rate=5", "--out", tmp_path / "sweep")
    assert f"found no a of tenants.a.rate in {file}, expected a path of keys and names" in said


@pytest.mark.parametrize("verb", [["bound"], ["simulate"], ["sweep", "--grid", "load=1"]])
def test_a_federation_where_a_scenario_is_expected_is_called_one(wrong: Wrong, verb: list[str]) -> None:
    said = wrong(*verb, TOPOLOGIES / "federation.yaml")
    assert "found a federation, whose tenants reserve nothing until they are planned, expected a scenario" in said
    assert "use testbed run" in said


def test_a_scenario_where_a_federation_is_expected_is_called_one(wrong: Wrong) -> None:
    said = wrong("plan", TOPOLOGIES / "demo.yaml")
    assert "found a scenario, whose domains and reservations are chosen already, expected a federation" in said
    assert "use testbed bound or run" in said


@pytest.mark.parametrize("verb", ["report", "audit"])
def test_samples_that_are_gone_are_named_with_what_to_do(wrong: Wrong, folder: Path, verb: str) -> None:
    (folder / PARQUET).unlink()
    said = wrong(verb, folder)
    assert (
        said == f"{folder / PARQUET}: found no such file, expected samples; take the folder from a backup, or run again"
    )


def test_samples_that_were_cut_off_are_no_reason_to_call_a_run_invalid(wrong: Wrong, folder: Path) -> None:
    (folder / PARQUET).write_bytes((folder / PARQUET).read_bytes()[:100])
    said = wrong("report", folder)
    assert said.startswith(f"{folder / PARQUET}: not a Parquet file that can be read (")
    assert said.endswith("; take the folder from a backup, or run again")


def test_samples_without_a_column_are_said_to_lack_it(wrong: Wrong, folder: Path) -> None:
    table = pq.read_table(folder / PARQUET)
    pq.write_table(table.drop_columns(["sent_s"]), folder / PARQUET)
    assert wrong("audit", folder).startswith(f"{folder / PARQUET}: found no column sent_s, expected one; take the")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", "not JSON (Expecting property name"),
        ("[1]", "found list, expected the record of a run"),
        ('{"schema_version": 1}', "run_id: Field required, and 8 more"),
        ('{"schema_version": 999}', "schema version 999, this testbed reads 1; use the version that wrote it"),
    ],
)
def test_a_record_that_is_none_is_refused_in_one_line(wrong: Wrong, tmp_path: Path, record: str, said: str) -> None:
    (tmp_path / RECORD_NAME).write_text(record, encoding="utf-8")
    line = wrong("report", tmp_path)
    assert line.startswith(f"{tmp_path / RECORD_NAME}: {said}")
    assert ("take it from a backup" in line) == ("use the version" not in line)


def test_a_record_whose_envelope_was_edited_is_not_believed(wrong: Wrong, folder: Path) -> None:
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    signature = record["envelopes"][0]["dsse"]["signatures"][0]
    signature["sig"] = ("B" if signature["sig"][0] == "A" else "A") + signature["sig"][1:]
    (folder / RECORD_NAME).write_text(json.dumps(record), encoding="utf-8")
    said = wrong("audit", folder)
    assert "envelope of only for steady: signature by key" in said
    assert "take the record from whoever ran it" in said
