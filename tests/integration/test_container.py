"""`scripts/container`: a Dockerfile followed without a container engine, on a Debian of a few programs made by hand."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.controller_lab import wait_for

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("sh", "cat", "ls", "mkdir", "touch", "ip", "rm", "hostname", "readlink")
DOCKERFILE = """\
# A comment, and instructions over several lines.
FROM debian:bookworm-slim
ENV GREETING=hello NAME="two words"
WORKDIR /checkout/here
COPY . .
RUN cat kept.txt >made.txt && \\
    echo "$GREETING" >>made.txt
CMD ["cat", "made.txt"]
"""

pytestmark = [pytest.mark.network, pytest.mark.untimed]


class Checkout:
    """A checkout with the script, and beside it a tree whose plain Debian is there already."""

    def __init__(self, folder: Path) -> None:
        self.root, self.tree = folder / "checkout", folder / "tree"
        (self.root / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "container", self.root / "scripts" / "container")
        self.write("Dockerfile", DOCKERFILE)
        self.write(".dockerignore", "left-out.txt\n**/__pycache__\n")
        self.write("kept.txt", "kept\n")
        self.write("left-out.txt", "left out\n")
        self._plain(self.tree / "base-bookworm")

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def command(self, *arguments: str) -> list[str]:
        return [str(self.root / "scripts" / "container"), "--tree", str(self.tree), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False, timeout=60)

    @staticmethod
    def _plain(target: Path) -> None:
        for folder in ("bin", "dev", "proc", "sys", "tmp", "etc"):
            (target / folder).mkdir(parents=True)
        for name in PROGRAMS:
            program = Path(shutil.which(name) or name)
            shutil.copy(program, target / "bin" / name)
            needed = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
            for library in map(Path, re.findall(r"(/\S+)", needed)):
                (target / library.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, target / library.relative_to("/"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("container"))


def test_instructions_are_followed_and_the_files_own_command_is_the_default(checkout: Checkout) -> None:
    ended = checkout.run()
    assert (ended.returncode, ended.stdout) == (0, "kept\nhello\n"), ended.stderr


def test_the_command_gets_the_directory_the_environment_and_what_was_copied(checkout: Checkout) -> None:
    ended = checkout.run("--env", "MORE=more", "--", "sh", "-c", 'echo "$PWD $NAME $MORE"; ls; exit 7')
    assert ended.returncode == 7, ended.stderr
    place, *names = ended.stdout.splitlines()
    assert place == "/checkout/here two words more"
    assert names == ["Dockerfile", "kept.txt", "made.txt", "scripts"]


def test_namespaces_are_the_commands_own(checkout: Checkout) -> None:
    kinds = ("mnt", "pid", "ipc", "uts", "net", "cgroup")
    ended = checkout.run("--", "readlink", *(f"/proc/self/ns/{kind}" for kind in kinds))
    assert all(Path(f"/proc/self/ns/{kind}").readlink().name not in ended.stdout for kind in kinds)
    assert len(ended.stdout.splitlines()) == len(kinds), ended.stderr
    seen = checkout.run("--", "sh", "-c", "hostname; ip -brief link; cat /dev/null; ls /dev/net; cat /proc/1/comm")
    name, link, tun, first = seen.stdout.splitlines()
    assert (name, link.split()[0], tun, first) == ("container", "lo", "tun", "sh")


def test_what_a_command_writes_is_thrown_away_and_volumes_stay(checkout: Checkout, tmp_path: Path) -> None:
    assert checkout.run("--", "touch", "/checkout/here/new", "/new").returncode == 0
    assert "new" not in checkout.run("--", "ls", "/", "/checkout/here").stdout.split()
    kept = ("--volume", f"{tmp_path}:/kept")
    assert checkout.run(*kept, "--", "touch", "/kept/new").returncode == 0
    assert (tmp_path / "new").exists()
    assert checkout.run("--volume", f"{tmp_path}:/kept:ro", "--", "rm", "/kept/new").returncode != 0
    assert (tmp_path / "new").exists()
    assert sorted(path.name for path in checkout.tree.iterdir()) == ["base-bookworm", "image", "image.json"]
    assert str(checkout.tree) not in Path("/proc/self/mounts").read_text()


def test_asked_to_end_it_ends_the_command_and_leaves_no_layer(checkout: Checkout) -> None:
    said = checkout.root.parent / "said"
    said.mkdir()
    command = [*checkout.command("--volume", f"{said}:/said"), "--", "sh", "-c", "touch /said/here && cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        wait_for((said / "here").exists, "the command in the tree", deadline_s=60)
        running.terminate()
        assert running.wait(timeout=30) == 128 + signal.SIGTERM
    assert list(checkout.tree.glob("layer.*")) == []
    assert str(checkout.tree) not in Path("/proc/mounts").read_text()


def test_the_image_is_made_again_only_when_something_in_it_changed(checkout: Checkout) -> None:
    assert "RUN" not in checkout.run().stderr
    checkout.write("left-out.txt", "changed\n")
    assert "RUN" not in checkout.run().stderr
    checkout.write("kept.txt", "changed\n")
    ended = checkout.run()
    assert ("RUN" in ended.stderr, ended.stdout) == (True, "changed\nhello\n")


@pytest.mark.parametrize(
    ("dockerfile", "says"),
    [
        ("FROM alpine:3\n", "expected FROM debian:RELEASE first"),
        ("FROM debian:bookworm\nHEALTHCHECK NONE\n", "Dockerfile:2: found HEALTHCHECK, expected one of FROM, ENV,"),
        ("FROM debian:bookworm\nCOPY a b\n", "Dockerfile:2: found COPY a b, expected COPY . ."),
        ("FROM debian:bookworm\nRUN exit 3\n", "Dockerfile:2: RUN ended with status 3"),
    ],
)
def test_what_cannot_be_followed_is_named_and_leaves_no_image(tmp_path: Path, dockerfile: str, says: str) -> None:
    made = Checkout(tmp_path)
    made.write("Dockerfile", dockerfile)
    ended = made.run("--", "ls")
    assert ended.returncode == 2
    assert says in ended.stderr.splitlines()[-1]
    assert ended.stderr.endswith("nothing was run\n")
    assert not (made.tree / "image").exists()
