"""`testbed simulate` and `testbed sweep`: options that would be without effect beside others are refused by name."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from testbed.cli.app import app

DEMO = Path(__file__).resolve().parents[3] / "topologies" / "demo.yaml"


def said(*asked: str) -> str:
    """What a command that is refused prints, without the frame around it."""
    ended = CliRunner().invoke(app, list(asked))
    assert ended.exit_code == 2
    return " ".join(ended.stderr.replace("│", " ").split())


def test_a_simulation_that_goes_on_takes_no_other_folder(tmp_path: Path) -> None:
    folders = ["--resume", str(tmp_path / "old"), "--out", str(tmp_path / "new")]
    found = said("simulate", str(DEMO), "--packets", "1000", "--no-page", *folders)
    assert "--out" in found
    assert "found --resume" in found
    assert not any(tmp_path.iterdir())


def test_a_sweep_on_ray_takes_no_number_of_processes(tmp_path: Path) -> None:
    asked = ["--grid", "load=0.5", "--packets", "1000", "--out", str(tmp_path / "sweep")]
    found = said("sweep", str(DEMO), *asked, "--ray", "--workers", "1")
    assert "--workers" in found
    assert "found --ray" in found
    assert not any(tmp_path.iterdir())
