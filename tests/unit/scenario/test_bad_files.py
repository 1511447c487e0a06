"""The words a reader gets for a bad scenario file, compared with golden files in `bad/`.

UPDATE_GOLDEN=1 writes the golden files anew; read the difference as a stranger before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.errors import ScenarioError
from testbed.scenario import document
from testbed.scenario.loader import load
from testbed.scenario.problems import ScenarioFileError

BAD = Path(__file__).parent / "bad"


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(ScenarioFileError) as caught:
        load(path)
    return caught.value.problems


@pytest.mark.parametrize("name", sorted(path.stem for path in BAD.glob("*.yaml")))
def test_everything_wrong_with_a_file_is_reported_in_these_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    text = "\n".join(problems(Path(f"{name}.yaml"))).replace(str(BAD), "FOLDER") + "\n"
    golden = BAD / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_no_golden_file_is_left_without_its_scenario() -> None:
    assert {path.stem for path in BAD.glob("*.txt")} == {path.stem for path in BAD.glob("*.yaml")}


def test_findings_come_in_the_order_of_the_file_with_their_lines() -> None:
    with pytest.raises(ScenarioFileError) as caught:
        load(BAD / "impossible.yaml")
    lines = [finding.line or 0 for finding in caught.value.findings]
    assert lines == sorted(lines)
    assert len(lines) > 20


@pytest.mark.parametrize(
    ("write", "words"),
    [
        pytest.param(lambda path: path.parent, "no such file", id="a file that is not there"),
        pytest.param(lambda path: path.mkdir(), "not a regular file", id="a folder"),
        pytest.param(lambda path: path.write_bytes(b"name: \xff"), "not UTF-8 at offset 6", id="another encoding"),
        pytest.param(lambda path: path.write_bytes(b"name: \x01"), "a character that YAML", id="a control character"),
        pytest.param(
            lambda path: path.write_bytes(b"#" * (document.LARGEST_FILE_BYTES + 1)), "1,000,001 bytes", id="a huge file"
        ),
        pytest.param(lambda path: path.write_text("[" * 5_000), "nested too deeply", id="a pit of brackets"),
        pytest.param(lambda path: path.write_text("a: &a\n" + "- " * 30 + "x"), "nested too deeply", id="many levels"),
    ],
)
def test_what_is_no_scenario_file_at_all_is_refused_with_a_reason(write: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    write(path)  # type: ignore[operator]
    assert any(words in problem for problem in problems(path))


def test_an_alias_bomb_costs_no_more_than_its_text(tmp_path: Path) -> None:
    levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 15))
    path = tmp_path / "bomb.yaml"
    path.write_text(f"l0: &l0 [x]\n{levels}\n")
    assert sum("unknown key" in problem for problem in problems(path)) == 15


def test_an_error_is_a_scenario_error_that_prints_every_problem() -> None:
    with pytest.raises(ScenarioError) as caught:
        load(BAD / "syntax.yaml")
    assert str(caught.value) == "\n".join(caught.value.problems)
