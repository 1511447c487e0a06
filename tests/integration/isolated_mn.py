"""Runs Mininet's `mn` where its habits do no harm: it kills by name, deletes every bridge, and removes /tmp/*.log.

Started through `command`, this program is process 1 of a pid namespace, with network, mounts and Open vSwitch of its
own. It copies its standard input to `mn` as lines of its command prompt. Afterwards it says, in a line of JSON, how
`mn` ended and what is left of the things `mn` could see.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = Path("/run/checkout")
OVS = Path("/run/openvswitch")
LOG = Path("/tmp/inside.log")  # noqa: S108  # the very place that mn clears
TALK = Path("/run/talk.py")
# Echoes, or sends and counts what comes back intact; needs nothing but a Python.
_TALK = """
import hashlib, socket, sys
role, address = sys.argv[1:]
message = hashlib.sha256(b"tandem").digest() * 50_000
if role == "serve":
    with socket.create_server((address, 9001)) as server:
        peer = server.accept()[0]
        while part := peer.recv(65536):
            peer.sendall(part)
else:
    while True:
        try:
            peer = socket.create_connection((address, 9001), timeout=10)
            break
        except ConnectionRefusedError:
            pass
    back = bytearray()
    for start in range(0, len(message), 64_000):
        peer.sendall(message[start : start + 64_000])
        while len(back) < min(start + 64_000, len(message)):
            back += peer.recv(65536)
    print("echoed", sum(a == b for a, b in zip(back, message, strict=True)), "of", len(message), "bytes")
"""


def command(*arguments: str) -> list[str]:
    """Argument list that runs `mn ARGUMENTS` in isolation."""
    isolation = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*isolation, sys.executable, str(Path(__file__).resolve()), *arguments]


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _prepare() -> None:
    _run("mount", "-t", "tmpfs", "tmpfs", "/run")
    CHECKOUT.mkdir()
    _run("mount", "--bind", str(ROOT), str(CHECKOUT))
    os.chdir(CHECKOUT)
    _run("mount", "-t", "tmpfs", "tmpfs", "/tmp")  # noqa: S108
    for setting in ("/proc/sys/kernel", "/proc/sys/fs"):
        # Limits of the whole machine, which mn raises and never restores.
        _run("mount", "--bind", setting, setting)
        _run("mount", "-o", "remount,ro,bind", setting)
    LOG.touch()
    TALK.write_text(_TALK)
    _run("ip", "link", "set", "lo", "up")
    OVS.mkdir()
    database = OVS / "conf.db"
    _run("ovsdb-tool", "create", str(database), "/usr/share/openvswitch/vswitch.ovsschema")
    daemon = ("--detach", "--pidfile", "-vconsole:off")
    _run("ovsdb-server", str(database), f"--remote=punix:{OVS}/db.sock", *daemon)
    _run("ovs-vsctl", "--no-wait", "init")
    _run("ovs-vswitchd", f"--log-file={OVS}/ovs-vswitchd.log", *daemon)


def main() -> None:
    """Prepare, run, and say what is left."""
    prompt = sys.stdin.read()
    _prepare()
    ended = subprocess.run(
        ["mn", *sys.argv[1:]], input=prompt, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    bridges = subprocess.run(["ovs-vsctl", "list-br"], check=True, capture_output=True, text=True).stdout
    print(
        json.dumps({"status": ended.returncode, "said": ended.stdout, "bridges": bridges.split(), "log": LOG.exists()})
    )


if __name__ == "__main__":
    main()
