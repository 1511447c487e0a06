"""Which runs are cleaned, and that neither a damaged one nor a stranger's directory gets in the way."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from testbed.cli.app import app
from testbed.emulation import clean, journal
from testbed.emulation.journal import Journal
from testbed.errors import CleanupError, PreflightError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def dead_run(root: Path, runid: str, made: Path | None = None) -> Path:
    """The journal of a run whose process is gone, with one directory still there."""
    directory = root / runid
    directory.mkdir(parents=True)
    owner = replace(Journal.create(root.parent / "live").owner, runid=runid, start_ticks=0)
    opened = Journal(owner, directory)
    if made is not None:
        opened.make_directory(made)
    return directory


def damaged_run(root: Path, runid: str) -> Path:
    directory = dead_run(root, runid)
    (directory / "journal.jsonl").write_text("nonsense\n")
    return directory


def test_a_damaged_journal_is_reported_and_the_runs_before_and_after_it_are_cleaned(root: Path, tmp_path: Path) -> None:
    dead_run(root, "000001", tmp_path / "first")
    damaged = damaged_run(root, "000002")
    dead_run(root, "000003", tmp_path / "third")
    first, second, third = clean.clean(root)
    assert clean.present(first) == (f"directory {tmp_path / 'first'}",)
    assert clean.present(third) == (f"directory {tmp_path / 'third'}",)
    assert clean.present(second) == ()
    assert "000002/journal.jsonl is damaged" in second.problems[0]
    assert sorted(path.name for path in root.iterdir()) == ["000002"]
    assert (damaged / "journal.jsonl").read_text() == "nonsense\n"
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "third").exists()


def test_a_run_that_is_alive_is_left_alone(root: Path, tmp_path: Path) -> None:
    opened = Journal.create(root)
    made = opened.make_directory(tmp_path / "made")
    assert clean.clean(root) == ()
    assert clean.left_behind(root) == ()
    assert made.is_dir()


def test_looking_changes_nothing(root: Path, tmp_path: Path) -> None:
    dead_run(root, "000001", tmp_path / "made")
    damaged_run(root, "000002")
    before = sorted(tmp_path.rglob("*"))
    first, second = clean.left_behind(root)
    assert clean.present(first) == (f"directory {tmp_path / 'made'}",)
    assert second.problems
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_run_is_left_alone(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "abcdef").symlink_to(elsewhere)
    (root / "note").write_text("mine")
    (root / "somebody").mkdir()
    (stranger,) = clean.clean(root)
    assert (stranger.runid, clean.present(stranger)) == ("somebody", ())
    assert "is no run's directory" in stranger.problems[0]
    assert elsewhere.is_dir()
    assert sorted(path.name for path in root.iterdir()) == ["abcdef", "note", "somebody"]


def test_a_host_without_any_run_has_nothing_to_clean(root: Path) -> None:
    assert clean.clean(root) == ()
    assert clean.left_behind(root) == ()


def test_another_users_runs_are_refused_with_a_remedy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead_run(root, "000001")

    def refuse(_: Path) -> Iterator[None]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(journal, "locked", refuse)
    with pytest.raises(PreflightError, match=r"\(Permission denied\); run as root"):
        clean.clean(root)


@pytest.fixture
def command(root: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr(clean.left_behind, "__defaults__", (root,))
    monkeypatch.setattr(clean.clean, "__defaults__", (root,))
    return CliRunner()


def invoke(command: CliRunner, *options: str) -> Result:
    return command.invoke(app, ["clean", *options])


def test_the_command_says_what_it_undid_before_it_fails_for_what_it_could_not(
    command: CliRunner, root: Path, tmp_path: Path
) -> None:
    damaged_run(root, "000001")
    dead_run(root, "000002", tmp_path / "made")
    result = invoke(command)
    assert result.stdout == f"run 000001: nothing was there\nrun 000002:\n  undone: directory {tmp_path / 'made'}\n"
    assert isinstance(result.exception, CleanupError)
    assert len(result.exception.problems) == 1


def test_the_command_answers_with_json_problems_and_all(command: CliRunner, root: Path, tmp_path: Path) -> None:
    dead_run(root, "000001", tmp_path / "made")
    damaged_run(root, "000002")
    result = invoke(command, "--json", "--dry-run")
    answer = json.loads(result.stdout)
    assert answer["dry_run"] is True
    first, second = answer["runs"]
    assert first == {"runid": "000001", "undone": [f"directory {tmp_path / 'made'}"], "problems": []}
    assert "damaged" in second["problems"][0]
    assert isinstance(result.exception, CleanupError)
    assert (tmp_path / "made").is_dir()


def test_the_command_has_nothing_to_say_where_nothing_was_left(command: CliRunner) -> None:
    result = invoke(command)
    assert (result.exit_code, result.stdout) == (0, "nothing to clean: no run left anything behind\n")
