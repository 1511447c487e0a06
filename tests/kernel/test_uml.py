"""`scripts/uml` runs a command as if it had run here, and leaves nothing of it here but what was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest

from tests.integration.conftest import ROOT

pytestmark = [pytest.mark.network, pytest.mark.emulated]

UML = str(ROOT / "scripts" / "uml")


def uml(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([UML, *arguments], capture_output=True, text=True, check=False, timeout=120, cwd=cwd)


@pytest.fixture
def own() -> Iterator[list[Path]]:
    """Files of this machine's own, one of them where temporary files lie: a checkout may be there."""
    with ExitStack() as stack:
        folders = ("/var/tmp", "/tmp")  # noqa: S108 - these very places are meant
        yield [Path(stack.enter_context(NamedTemporaryFile(dir=folder, prefix="uml-")).name) for folder in folders]


def test_exit_code_output_and_files_come_back_and_nothing_else_reaches_the_machine(
    tmp_path: Path, own: list[Path]
) -> None:
    for file in own:
        file.write_text("of this machine\n")
    places = [folder / f"uml-{os.getpid()}" for folder in (Path("/"), Path("/etc"), ROOT, tmp_path.parent)]
    script = """
set -e
printf 'two words\\n%s\\n' "$GIVEN"
for place in "$@"; do echo written >"$place"; cat "$place" >&2; done
ls -d /sys/module/openvswitch /sys/module/sch_htb /sys/module/sch_netem
for file in $OWN; do cat "$file"; rm "$file"; test ! -e "$file"; done
echo kept >"$OUT/file"
exit 41
"""
    given = ["env", f"OUT={tmp_path}", "GIVEN=a 'b' \"c\"", f"OWN={own[0]} {own[1]}"]
    ended = uml("--out", str(tmp_path), "--", *given, "bash", "-c", script, "script", *map(str, places))
    assert ended.returncode == 41, ended
    modules = ["/sys/module/openvswitch", "/sys/module/sch_htb", "/sys/module/sch_netem"]
    seen = ["of this machine"] * len(own)
    assert ended.stdout.splitlines() == ["two words", "a 'b' \"c\"", *["written"] * len(places), *modules, *seen]
    assert (tmp_path / "file").read_text() == "kept\n"
    assert "Linux version" in (tmp_path / "kernel.log").read_text()
    assert [place for place in places if place.exists()] == []
    assert [file.read_text() for file in own] == ["of this machine\n"] * len(own)


def test_processes_that_take_turns_keep_their_own_vector_registers() -> None:
    """The kernel gives a process its registers back whole, or what it computed with is another's."""
    compute = """
import sys, time
import numpy as np
numbers = np.random.default_rng(int(sys.argv[1])).random(4096)
first = float(np.dot(numbers, numbers))
until = time.monotonic() + 2.0
while time.monotonic() < until:
    assert float(np.dot(numbers, numbers)) == first
"""
    script = (
        'for seed in 1 2 3; do "$0" -c "$1" $seed & pids+=" $!"; done; for pid in $pids; do wait $pid || exit 1; done'
    )
    ended = uml("--", "bash", "-c", script, sys.executable, compute)
    assert ended.returncode == 0, ended


def test_a_call_without_a_command_says_how_to_call_it() -> None:
    ended = uml("--memory", "1G")
    assert ended.returncode == 2
    assert "scripts/uml [--memory 2G] [--out DIR] -- COMMAND" in ended.stderr


def test_a_kernel_that_cannot_start_is_an_error_with_its_own_words() -> None:
    ended = uml("--memory", "1", "--", "true")
    assert ended.returncode == 2
    assert "the emulated kernel ended before the command did" in ended.stderr
