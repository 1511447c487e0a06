"""`mn --custom topologies/tandem.py --topo tandem,D` as a user types it, and harmless to what is not its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration import isolated_mn
from tests.integration.controller_lab import laboratory

pytestmark = pytest.mark.network

BYSTANDER_LINK = "tlttest-eth0"


def mn(topology: str, *prompt: str) -> dict[str, Any]:
    """Run `mn` in isolation on Open vSwitch's userspace datapath, typing `prompt`."""
    command = isolated_mn.command(
        "--custom", "topologies/tandem.py", "--topo", topology, "--switch", "ovs,datapath=user", "--controller", "none"
    )
    typed = "".join(f"{line}\n" for line in (*prompt, "exit"))
    ended = subprocess.run(command, input=typed, capture_output=True, text=True, check=False, timeout=90)
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout))


@pytest.mark.untimed
@pytest.mark.parametrize(
    "domains", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2, 4, 5, 6, 7, 8))]
)
def test_ping_and_tcp_cross_a_tandem_of_any_length(domains: int) -> None:
    server = f"10.2.0.{domains}"
    ended = mn(
        f"tandem,{domains}",
        f"c1 ping -c 3 -W 5 {server}",
        f"s{domains} /usr/bin/python3 {isolated_mn.TALK} serve {server} &",
        f"c2 /usr/bin/python3 {isolated_mn.TALK} fetch {server}",
    )
    said = ended["said"]
    assert "3 packets transmitted, 3 received, 0% packet loss" in said, said
    assert "echoed 1600000 of 1600000 bytes" in said, said
    for i in range(1, domains + 1):
        assert f"d{i}i" in said
        assert f"d{i}e" in said
    assert f"d{domains + 1}i" not in said
    assert (ended["status"], ended["bridges"]) == (0, [])


@pytest.mark.untimed
@pytest.mark.parametrize(
    ("topology", "sentence"),
    [
        ("tandem,0", "ValueError: 0 domains and 2 clients: 1 to 8 domains, 1 to 1000 clients"),
        ("tandem,9", "ValueError: 9 domains and 2 clients: 1 to 8 domains, 1 to 1000 clients"),
        ("tandem,three", "ValueError: domains: found 'three', expected a whole number, as in --topo tandem,3"),
    ],
)
def test_a_length_that_cannot_be_is_refused_in_one_sentence(topology: str, sentence: str) -> None:
    ended = mn(topology)
    assert sentence in ended["said"]
    assert "Traceback" not in ended["said"]


# Not beside others: what a bystander stands for is the host's own, where those that look at it would find it.
@pytest.fixture
def bystanders(tmp_path: Path) -> Iterator[list[tuple[str, Any]]]:
    """What mn's cleanup would take from a host: each with a way to ask whether it is still there."""
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        # A program of a name that mn kills.
        program = tmp_path / "ping"
        shutil.copy("/bin/sleep", program)
        process = stack.enter_context(subprocess.Popen([program, "600"]))
        stack.callback(process.kill)
        log = Path("/tmp/tlt-test-bystander.log")  # noqa: S108  # the very place that mn clears
        log.touch()
        stack.callback(log.unlink)
        subprocess.run(["ip", "link", "add", BYSTANDER_LINK, "type", "veth", "peer", "name", "tlttest-p"], check=True)
        stack.callback(subprocess.run, ["ip", "link", "delete", BYSTANDER_LINK], check=True)
        link = Path("/sys/class/net") / BYSTANDER_LINK
        yield [
            ("bridges", lambda: lab.vsctl("list-br").split() == ["d0e", "d0i"]),
            ("process", lambda: process.poll() is None),
            ("log", log.exists),
            ("link", link.exists),
        ]


def test_what_mn_clears_away_after_an_error_is_its_own_and_nothing_outside(bystanders: list[tuple[str, Any]]) -> None:
    assert all(is_there() for _, is_there in bystanders)
    ended = mn("tandem,9")
    assert "Cleaning up" in ended["said"]
    assert not ended["log"], "mn's cleanup did not happen, so this test shows nothing"
    assert [name for name, is_there in bystanders if not is_there()] == []
