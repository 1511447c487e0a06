"""`scripts/setup`: what it refuses, what it starts (nothing), and what a second call does.

Every case runs a copy of the script in a mount namespace of its own, with stand-ins for apt, dpkg and Python, so that
nothing is installed and the machine's own /usr/sbin is never written to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\nPRETTY_NAME="Debian 12"\n'

pytestmark = [pytest.mark.network, pytest.mark.untimed]


@dataclass(frozen=True)
class Checkout:
    """A checkout with nothing but what the script reads, and stand-ins that write down how they were called."""

    root: Path
    log: Path

    def setup(
        self,
        *arguments: str,
        mounts: str = "",
        prefix: tuple[str, ...] = (),
        seen_at: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the script on a stand-in of Debian 12; `mounts` are commands that change what it finds."""
        release = self.root / "os-release"
        script = (
            f"mount -t tmpfs none /usr/sbin && mount --bind {release} /etc/os-release && {mounts or 'true'} && "
            'exec "$@"'
        )
        command = [
            "unshare",
            "--mount",
            "sh",
            "-ec",
            script,
            "sh",
            *prefix,
            str((seen_at or self.root) / "scripts" / "setup"),
        ]
        everything = {**self.environment, **(environment or {})}
        return subprocess.run(
            [*command, *arguments], env=everything, capture_output=True, text=True, check=False, timeout=60
        )

    @property
    def environment(self) -> dict[str, str]:
        """With stand-ins before programs, and nothing of the machine's own state."""
        path = f"{self.root / 'bin'}:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.root), "LOG": str(self.log), "XDG_STATE_HOME": str(self.root / "state")}

    def calls(self) -> list[str]:
        """What the stand-ins were called with, in order."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def stand_in(self, name: str, body: str, folder: str = "bin") -> None:
        """Write an executable shell script."""
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    found = Checkout(tmp_path, tmp_path / "log")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup", tmp_path / "scripts" / "setup")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "os-release").write_text(DEBIAN)
    # Everything but tcpdump is installed until apt-get has run, which brings a library along.
    found.stand_in(
        "dpkg-query",
        'if [ -n "$4" ]; then [ "$4" = tcpdump ] && [ ! -e "$LOG.apt" ] || printf installed; exit; fi\n'
        'echo "installed bash"; [ ! -e "$LOG.apt" ] || printf "installed %s\\n" libpcap tcpdump',
    )
    found.stand_in(
        "apt-get",
        'echo "apt-get $* policy:$(cat /usr/sbin/policy-rc.d 2>/dev/null | tail -1)" >>"$LOG"\n'
        'case "$*" in *install*) [ -z "$APT_FAILS" ] || exit 100; : >"$LOG.apt";;\n'
        '*--simulate*) printf "Remv %s [1]\\n" libpcap tcpdump $APT_NEEDED_BY;; *remove*) rm -f "$LOG.apt";; esac',
    )
    found.stand_in(
        "python",
        'case "$1" in -m) echo "python $*" >>"$LOG";; -VV) echo "Python 3.11.2";; esac',
        folder=".venv/bin",
    )
    return found


@pytest.mark.parametrize(
    ("mounts", "words"),
    [
        pytest.param(
            "printf 'ID=fedora\\nVERSION_ID=41\\nPRETTY_NAME=\"Fedora 41\"\\n' >/usr/sbin/r && "
            "mount --bind /usr/sbin/r /etc/os-release",
            "this is Fedora 41",
            id="another distribution",
        ),
        pytest.param(
            "printf 'ID=debian\\nVERSION_ID=11\\nPRETTY_NAME=\"Debian 11\"\\n' >/usr/sbin/r && "
            "mount --bind /usr/sbin/r /etc/os-release",
            "this is Debian 11",
            id="an older Debian",
        ),
        pytest.param(
            ": >/usr/sbin/r && mount --bind /usr/sbin/r /etc/os-release",
            "this is an unknown system",
            id="an unknown system",
        ),
        pytest.param("mount -t tmpfs none /dev/net", "/dev/net/tun cannot be opened", id="no tun device"),
    ],
)
def test_a_host_that_cannot_run_the_testbed_is_refused_in_one_line_before_anything_changes(
    checkout: Checkout, mounts: str, words: str
) -> None:
    result = checkout.setup(mounts=mounts)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.endswith("nothing was changed\n")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert checkout.calls() == []


def test_a_user_without_privileges_is_refused(checkout: Checkout) -> None:
    checkout.root.chmod(0o755)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    result = checkout.setup(mounts=f"mount --bind {checkout.root} /mnt", prefix=nobody, seen_at=Path("/mnt"))
    assert result.returncode == 2
    assert result.stderr.startswith("setup: this is user nobody, and networks need root")
    assert checkout.calls() == []


def test_missing_packages_are_installed_while_services_may_not_start(checkout: Checkout) -> None:
    result = checkout.setup(mounts="true")
    assert result.returncode == 0, result.stderr
    update, install, pip = checkout.calls()
    assert "update" in update
    assert "install --yes --no-install-recommends tcpdump" in install
    assert install.endswith("policy:exit 101"), "a service could have been started"
    assert pip.startswith("python -m pip install")


def test_the_ban_on_services_ends_when_the_installation_fails(checkout: Checkout) -> None:
    kept = checkout.root / "sbin"
    kept.mkdir()
    result = checkout.setup(mounts=f"mount --bind {kept} /usr/sbin", environment={"APT_FAILS": "1"})
    assert result.returncode not in {0, 2}
    assert any(call.endswith("policy:exit 101") for call in checkout.calls())
    assert list(kept.iterdir()) == []
    assert not (checkout.root / ".venv" / ".setup-stamp").exists()


def test_a_ban_that_a_killed_call_left_is_lifted_and_somebody_elses_is_kept(checkout: Checkout) -> None:
    sbin = checkout.root / "sbin"
    sbin.mkdir()
    policy = sbin / "policy-rc.d"
    mounts = f"mount --bind {sbin} /usr/sbin"
    policy.write_text("#!/bin/sh\n# written by tail-latency-testbed scripts/setup\nexit 101\n")
    assert checkout.setup(mounts=mounts).returncode == 0
    assert not policy.exists()
    (checkout.log.with_suffix(".apt")).unlink()
    policy.write_text("#!/bin/sh\nexit 0\n")
    assert checkout.setup(mounts=mounts).returncode == 0
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_a_second_call_installs_nothing_and_a_changed_pin_installs_again(checkout: Checkout) -> None:
    assert checkout.setup().returncode == 0
    before = checkout.calls()
    assert checkout.setup().returncode == 0
    assert checkout.calls() == before
    (checkout.root / "pyproject.toml").write_text("[project]\n# another pin\n")
    assert checkout.setup().returncode == 0
    assert len(checkout.calls()) == len(before) + 1
    assert "pip install" in checkout.calls()[-1]


def test_two_calls_at_once_install_once(checkout: Checkout) -> None:
    release, script = checkout.root / "os-release", checkout.root / "scripts" / "setup"
    inside = f"mount -t tmpfs none /usr/sbin && mount --bind {release} /etc/os-release && exec {script}"
    command = ["unshare", "--mount", "sh", "-ec", inside]
    running = [subprocess.Popen(command, env=checkout.environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert sum("pip install" in call for call in checkout.calls()) == 1


def test_an_image_is_set_up_without_a_tun_device(checkout: Checkout) -> None:
    result = checkout.setup("--image", mounts="mount -t tmpfs none /dev/net")
    assert result.returncode == 0, result.stderr
    assert checkout.calls()[-1].startswith("python -m pip install")


def test_undoing_removes_what_was_installed_with_all_it_brought_and_leaves_the_rest(checkout: Checkout) -> None:
    environments = [name for name in (ROOT / ".gitignore").read_text().split() if name.startswith(".venv")]
    assert len(environments) > 1
    for name in environments:
        (checkout.root / name).mkdir(exist_ok=True)
    (checkout.root / ".venv-mine").mkdir()
    assert checkout.setup().returncode == 0
    assert checkout.setup("--undo").returncode == 0
    assert [call for call in checkout.calls() if " remove --yes " in call] == [
        "apt-get -o DPkg::Lock::Timeout=120 -qq remove --yes libpcap tcpdump policy:"
    ]
    assert [path.name for path in checkout.root.glob(".venv*")] == [".venv-mine"]
    assert not list((checkout.root / "state").rglob("packages"))
    before = checkout.calls()
    assert checkout.setup("--undo").returncode == 0
    assert checkout.calls() == before


def test_undoing_is_refused_where_something_else_would_go_with_it(checkout: Checkout) -> None:
    assert checkout.setup().returncode == 0
    result = checkout.setup("--undo", environment={"APT_NEEDED_BY": "wireshark"})
    assert result.returncode == 2
    assert "would also remove wireshark: remove that first" in result.stderr
    assert result.stderr.endswith("nothing was changed\n")
    assert (checkout.root / ".venv").exists()
    assert not any(" remove --yes " in call for call in checkout.calls())


@pytest.mark.parametrize("arguments", [("--help",), ("--undo", "--image")])
def test_an_option_it_does_not_know_is_answered_with_those_it_does(
    checkout: Checkout, arguments: tuple[str, ...]
) -> None:
    result = checkout.setup(*arguments)
    assert result.returncode == 2
    assert [line.split()[1] for line in result.stderr.splitlines()[1:]] == ["--image", "--undo"]
    assert checkout.calls() == []


def test_the_script_has_a_name_for_every_program_that_a_run_needs() -> None:
    from testbed.emulation.network import _TOOLS  # noqa: PLC0415 - only this test knows both sides

    listed = (ROOT / "scripts" / "setup").read_text()
    assert all(package in listed for package in {*_TOOLS.values(), "tcpdump"})
    assert os.access(ROOT / "scripts" / "setup", os.X_OK)
