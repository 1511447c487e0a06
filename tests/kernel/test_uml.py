"""`scripts/uml` runs a command as if it had run here, and leaves nothing of it here but what was asked for."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT

pytestmark = pytest.mark.network

UML = str(ROOT / "scripts" / "uml")


def uml(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([UML, *arguments], capture_output=True, text=True, check=False, timeout=120, cwd=cwd)


@pytest.fixture
def victim() -> Iterator[Path]:
    """A file of this machine's own, outside the places that the emulated machine has of its own."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="uml-") as file:
        yield Path(file.name)


def test_exit_code_output_and_files_come_back_and_nothing_else_reaches_the_machine(
    tmp_path: Path, victim: Path
) -> None:
    places = [folder / f"uml-{os.getpid()}" for folder in (Path("/"), Path("/etc"), ROOT, tmp_path.parent)]
    script = """
set -e
printf 'two words\\n%s\\n' "$GIVEN"
for place in "$@"; do echo written >"$place"; cat "$place" >&2; done
ls -d /sys/module/openvswitch /sys/module/sch_htb /sys/module/sch_netem
rm "$0" && test ! -e "$0"
echo kept >"$OUT/file"
exit 41
"""
    given = ["env", f"OUT={tmp_path}", "GIVEN=a 'b' \"c\""]
    ended = uml("--out", str(tmp_path), "--", *given, "bash", "-c", script, str(victim), *map(str, places))
    assert ended.returncode == 41, ended
    modules = ["/sys/module/openvswitch", "/sys/module/sch_htb", "/sys/module/sch_netem"]
    assert ended.stdout.splitlines() == ["two words", "a 'b' \"c\"", *["written"] * len(places), *modules]
    assert (tmp_path / "file").read_text() == "kept\n"
    assert "Linux version" in (tmp_path / "kernel.log").read_text()
    assert [place for place in places if place.exists()] == []
    assert victim.exists()


def test_a_call_without_a_command_says_how_to_call_it() -> None:
    ended = uml("--memory", "1G")
    assert ended.returncode == 2
    assert "scripts/uml [--memory 2G] [--out DIR] -- COMMAND" in ended.stderr


def test_a_kernel_that_cannot_start_is_an_error_with_its_own_words() -> None:
    ended = uml("--memory", "1", "--", "true")
    assert ended.returncode == 2
    assert "the emulated kernel ended before the command did" in ended.stderr
