"""What a wheel holds, and that the command works from one, far from any checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import testbed
from tests.integration.conftest import ROOT, Command

PACKAGES = ("testbed", "controller", "inference_server", "topologies")


def said(cwd: Path, *command: str | Path) -> str:
    """What a command prints that must succeed, with nothing of the caller's on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd, env=environment)
    return ended.stdout.strip()


def build(folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_a_wheel_holds_every_file_of_every_package_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], check=True, capture_output=True, text=True, cwd=ROOT)
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in listed.stdout.split() if (ROOT / name).exists()} <= held
    assert {name.split("/")[0] for name in held} == {*PACKAGES, f"tail_latency_testbed-{testbed.__version__}.dist-info"}


@pytest.mark.parametrize(
    "name",
    [
        *(f"{package}/py.typed" for package in PACKAGES),
        "testbed/scenario/schema.json",
        "testbed/report/template.html",
        "topologies/tandem.py",
        "topologies/demo.yaml",
        "topologies/smoke.yaml",
        "topologies/delay.yaml",
    ],
)
def test_a_wheel_holds_the_data_that_the_command_reads(wheel: Path, name: str) -> None:
    assert zipfile.ZipFile(wheel).read(name) == (ROOT / name).read_bytes()


def test_a_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    information = f"tail_latency_testbed-{testbed.__version__}.dist-info"
    metadata = Parser().parsestr(archive.read(f"{information}/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("tail-latency-testbed", testbed.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert archive.read(f"{information}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "testbed = testbed.cli:main" in archive.read(f"{information}/entry_points.txt").decode()


def test_the_command_the_citation_and_the_package_name_one_version(testbed: Command) -> None:
    from testbed import __version__  # noqa: PLC0415  # the fixture hides the package's name

    ended = testbed("--version")
    assert (ended.returncode, ended.stdout) == (0, f"testbed {__version__}\n")
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"


@pytest.mark.slow
def test_the_command_works_from_a_wheel_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    shipped = Path(said(tmp_path, python, "-c", "import topologies; print(topologies.__path__[0])"))
    assert shipped.is_relative_to(tmp_path)
    # Dependencies are borrowed from this environment; a path file inside it, such as the checkout's, is not followed.
    (shipped.parent / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert Path(said(tmp_path, python, "-c", "import testbed; print(testbed.__file__)")).is_relative_to(tmp_path)
    command = tmp_path / "venv" / "bin" / "testbed"
    for scenario in sorted(shipped.glob("*.yaml")):
        assert json.loads(said(tmp_path, command, "validate", "--json", scenario))["ok"]
    answer = json.loads(said(tmp_path, command, "bound", "--json", shipped / "demo.yaml"))
    bounds_s = {row["name"]: row["bound_s"] for row in answer["tenants"]}
    assert bounds_s.keys() == {"alpha", "bravo", "charlie", "vision"}
    assert all(0 < bound_s < 1 for bound_s in bounds_s.values())
    assert "--domain" in said(tmp_path, python, "-m", "controller", "--help")
