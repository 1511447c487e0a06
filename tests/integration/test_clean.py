"""A run killed with -9, then `testbed clean`: what the run made is gone, and the rest of the host is as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.emulation import processes
from testbed.emulation.journal import RUNS
from tests.integration.conftest import ROOT, Command
from tests.integration.controller_lab import laboratory, wait_for

pytestmark = pytest.mark.network

SMOKE = ROOT / "topologies" / "smoke.yaml"
# As near to a run's own names as a stranger's can be.
FOREIGN = "tlt-foreign-test"
LINK = "tlttest0"


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def settings() -> dict[str, str]:
    """Settings of the network and limits of the machine that a network emulator may have reason to change."""
    folders = (Path("/proc/sys/net"), Path("/proc/sys/fs"), Path("/proc/sys/kernel/pty"), Path("/proc/sys/vm"))
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if os.access(path, os.R_OK | os.W_OK) and path.stat().st_mode & 0o600 == 0o600:
            try:
                found[str(path)] = path.read_text()
            except OSError:
                continue
    return found


@dataclass(frozen=True)
class Host:
    """Everything of the host that a run could have touched, outside its own namespace."""

    namespaces: str
    links: str
    qdiscs: str
    foreign_links: str
    foreign_classes: str
    bridges: str
    settings: dict[str, str]
    processes: dict[int, int | None]
    folder: dict[str, str]
    runs: list[str]


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Callable[[], Host]]:
    """Bystanders of every kind, and how they are now."""
    inside = ("ip", "netns", "exec", FOREIGN)
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        output("ip", "netns", "add", FOREIGN)
        stack.callback(output, "ip", "netns", "delete", FOREIGN)
        output("ip", "link", "add", LINK, "type", "veth", "peer", "name", f"{LINK}p", "netns", FOREIGN)
        output("tc", "qdisc", "add", "dev", LINK, "root", "handle", "1:", "htb", "default", "10")
        output("tc", "class", "add", "dev", LINK, "parent", "1:", "classid", "1:10", "htb", "rate", "5mbit")
        output(*inside, "ip", "link", "add", "d1i", "type", "bridge")
        output(*inside, "tc", "qdisc", "add", "dev", f"{LINK}p", "root", "pfifo", "limit", "7")
        children = [
            stack.enter_context(subprocess.Popen(["sleep", "600"])),
            # Of the names that a run's own processes have.
            stack.enter_context(subprocess.Popen(["ovs-vswitchd", "600"], executable="/bin/sleep")),
            stack.enter_context(subprocess.Popen([*inside, "sleep", "600"])),
        ]
        for child in children:
            stack.callback(child.kill)
        wait_for(lambda: Path(f"/proc/{children[2].pid}/comm").read_text() == "sleep\n", "the foreign process")
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        (temporary / "tlt-notes.log").write_text("mine")

        def now() -> Host:
            return Host(
                namespaces=output("ip", "netns", "list"),
                links=output("ip", "-oneline", "address", "show"),
                qdiscs=output("tc", "qdisc", "show") + output("tc", "class", "show", "dev", LINK),
                foreign_links=output(*inside, "ip", "-oneline", "link", "show"),
                foreign_classes=output(*inside, "tc", "qdisc", "show"),
                bridges=lab.vsctl("list-br") + lab.vsctl("list-ports", "d0i") + lab.ofctl("dump-ports-desc", "d0i"),
                settings=settings(),
                processes={child.pid: processes.start_ticks(child.pid) for child in children},
                folder={path.name: path.read_text() for path in temporary.iterdir()},
                runs=sorted(path.name for path in RUNS.iterdir()) if RUNS.is_dir() else [],
            )

        yield now


def test_after_a_kill_and_a_cleaning_the_host_is_as_it_was(
    testbed: Command, look: Callable[[], Host], tmp_path: Path
) -> None:
    before = look()
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from testbed.cli import main; main()", "run", str(SMOKE), "--out", str(out)]
    victim = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )
    try:
        wait_for(lambda: bool(list(out.glob("*/window-0/*.pcap"))) or victim.poll() is not None, "traffic in the run")
        assert victim.poll() is None
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    (runid,) = set(look().runs) - set(before.runs)
    marks = [processes.marked_with(line["mark"]) for line in journal_of(runid) if line["kind"] == "marked"]
    assert f"tlt-{runid}" in output("ip", "netns", "list")

    looked = testbed("clean", "--dry-run", "--json")
    assert [run["runid"] for run in json.loads(looked.stdout)["runs"]] == [runid]
    assert f"tlt-{runid}" in output("ip", "netns", "list")
    cleaned = testbed("clean")
    assert cleaned.returncode == 0, cleaned.stderr
    assert f"undone: network namespace tlt-{runid}" in cleaned.stdout
    assert len(marks) == 1
    assert look() == before
    assert testbed("clean").stdout == "nothing to clean: no run left anything behind\n"


def test_no_process_of_a_killed_run_outlives_the_cleaning(testbed: Command, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.spine"]
    victim = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert victim.stdout is not None
        runid = json.loads(victim.stdout.readline())["runid"]
        (mark,) = (line["mark"] for line in journal_of(runid) if line["kind"] == "marked")
        named = [line["command"] for line in journal_of(runid) if line["kind"] == "process"]
        assert any(command.startswith("ovs-vswitchd") for command in named)
        assert any("-m controller" in command for command in named)
    finally:
        victim.kill()
        victim.communicate()
    wait_for(lambda: processes.marked_with(mark) == [], "the end of the children, which die with the run")
    # One that did not: forked, and the run killed before it was in the journal.
    name, value = mark.split("=")
    with subprocess.Popen(["sleep", "600"], env={**os.environ, name: value}) as stray:
        wait_for(lambda: processes.marked_with(mark) == [stray.pid], "the stray child")
        assert testbed("clean").returncode == 0
        assert stray.wait() == -signal.SIGKILL
    assert not (RUNS / runid).exists()


def journal_of(runid: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (RUNS / runid / "journal.jsonl").read_text().splitlines()]
