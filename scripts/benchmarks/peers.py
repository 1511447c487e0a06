"""Programs to measure beside: each peer in a virtual environment of its own under `.venv-peers`, never shipped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_HOME = Path(__file__).resolve().parents[2] / ".venv-peers"


def environment(name: str, *requirements: str, of: str = sys.executable) -> Path:
    """The Python of an environment that holds exactly `requirements`, pinned; made once and kept while they stay so.

    Args:
        name: Of the environment.
        requirements: What is in it.
        of: The Python it is made with.

    Raises:
        subprocess.CalledProcessError: The environment could not be made; pip says why on standard error.
    """
    home = _HOME / name
    stamp = home / ".requirements"
    python = home / "bin" / "python"
    wanted = "\n".join((of, sys.version, *requirements))
    if not (stamp.is_file() and stamp.read_text() == wanted):
        subprocess.run([of, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        stamp.write_text(wanted)
    return python


def ask(python: Path, program: str, *arguments: str, timeout_s: float = 600) -> dict[str, float]:
    """What a program prints as one JSON object, run by `python` in isolation (`-I`)."""
    run = subprocess.run(
        [str(python), "-I", "-c", program, *arguments], check=True, capture_output=True, text=True, timeout=timeout_s
    )
    answer: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return answer
