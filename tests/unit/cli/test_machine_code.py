"""Where compiled code is kept for a user who can write neither the package nor a home, and until when."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import testbed
from testbed.cli import machine_code
from testbed.errors import PreflightError

SETTING = "NUMBA_CACHE_DIR"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package beside which nobody, root included, can keep anything, of a user without a home or caches."""
    folder = tmp_path / "package"
    folder.mkdir()
    for name in ("__init__.py", "__pycache__", "nobody"):
        (folder / name).touch()
    (folder / "loops.py").write_text("import numba\n\n@numba.njit(cache=True)\ndef one():\n    return 1\n")
    monkeypatch.setenv("HOME", str(folder / "nobody"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(SETTING, raising=False)
    monkeypatch.setattr(testbed, "__file__", str(folder / "__init__.py"))
    return folder


def test_a_private_folder_serves_where_nothing_else_can_be_written_and_goes_with_the_command(package: Path) -> None:
    program = f"""
import os, sys
import testbed
testbed.__file__ = {str(package / "__init__.py")!r}
from testbed.cli.machine_code import ensure_place
ensure_place()
sys.path.insert(0, {str(package.parent)!r})
import package.loops
assert package.loops.one() == 1
place = os.environ[{SETTING!r}]
print(oct(os.stat(place).st_mode & 0o777), bool(os.listdir(place)), place)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    mode, kept, place = ended.stdout.split()
    assert (mode, kept) == ("0o700", "True")
    assert not Path(place).exists()


@pytest.mark.parametrize("variable", [SETTING, "XDG_CACHE_HOME", "HOME"])
def test_a_folder_that_the_user_can_write_is_left_to_numba(
    package: Path, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert package.is_dir()
    monkeypatch.setenv(variable, str(tmp_path / "not" / "yet"))
    before = os.environ.get(SETTING)
    machine_code.ensure_place()
    assert os.environ.get(SETTING) == before


def test_the_packages_own_folders_do(package: Path) -> None:
    (package / "__pycache__").unlink()
    machine_code.ensure_place()
    assert SETTING not in os.environ


@pytest.mark.usefixtures("package")
def test_no_room_for_temporary_files_either_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(PreflightError, match=f"nowhere to keep compiled code.*No usable temporary.*set {SETTING}"):
        machine_code.ensure_place()


SOURCES = {
    "sizes.py": "ROOM = 1\n",
    "steps.py": "from package import sizes\nSTEP = sizes.ROOM\n",
    "loops.py": "import numba\nfrom package import steps\n\n@numba.njit(cache=True)\ndef one(): return steps.STEP\n",
    "others.py": "import numba\n\n@numba.njit(cache=True)\ndef two():\n    return 2\n",
}


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of which compiled code is kept beside its modules."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name, text in SOURCES.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(testbed, "__file__", str(folder / "__init__.py"))
    assert called(folder) == "1 2"
    return folder


def called(folder: Path) -> str:
    program = "from package.loops import one; from package.others import two; print(one(), two())"
    path = {"PYTHONPATH": str(folder.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=path, capture_output=True, text=True, check=True).stdout.strip()


def kept(folder: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in folder.rglob("*.nbi")}


def test_compiled_code_goes_when_a_constant_it_took_from_afar_has_changed(compiled: Path) -> None:
    (compiled / "sizes.py").write_text("ROOM = 7\n")
    assert called(compiled) == "1 2", "numba itself does not notice"
    machine_code.forget_stale()
    assert kept(compiled) == {"others"}
    assert called(compiled) == "7 2"


def test_compiled_code_stays_while_nothing_that_it_needs_has_changed(compiled: Path) -> None:
    (compiled / "unrelated.py").write_text("import package.sizes\n")
    machine_code.forget_stale()
    machine_code.forget_stale()
    assert kept(compiled) == {"loops", "others"}


def test_compiled_code_of_a_module_that_is_gone_goes_too(compiled: Path) -> None:
    (compiled / "others.py").unlink()
    (compiled / "unrelated.py").touch()
    machine_code.forget_stale()
    assert kept(compiled) == {"loops"}


def test_two_commands_that_begin_together_do_not_hurt_each_other(
    compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (compiled / "sizes.py").write_text("ROOM = 7\n")
    stat = Path.stat

    def late(path: Path, **how: Any) -> os.stat_result:
        """The other command has been quicker."""
        if path.suffix == ".nbi" and path.name.startswith("loops"):
            path.unlink(missing_ok=True)
        return stat(path, **how)

    def gone(_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "stat", late)
    monkeypatch.setattr(os, "utime", gone)
    machine_code.forget_stale()
    assert kept(compiled) == {"others"}


def test_where_nothing_was_compiled_there_is_nothing_to_forget(package: Path) -> None:
    (package / "__pycache__").unlink()
    machine_code.forget_stale()
