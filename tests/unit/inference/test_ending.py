"""Health on broken bytes, and signals that come while models load."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from inference_server.server import Settings
from tests.unit.inference.serving import LONG_S, serving, until

SOON_S = 10.0
"""How long an end may take on a busy machine; what loads here would never be done."""


def test_bytes_that_are_no_request_of_health_are_the_clients_mistake() -> None:
    settings = Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu")
    with serving(settings) as running, running.channel() as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError, match="found 3 bytes that are no HealthCheckRequest") as caught:
            check(b"\xff\xff\xff", timeout=LONG_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError, match="found 3 bytes that are no HealthCheckRequest") as caught:
            next(channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\xff\xff\xff", timeout=LONG_S))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert check(b"", timeout=LONG_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_still_loads_at_once_with_one_line(tmp_path: Path, number: signal.Signals) -> None:
    description, socket = tmp_path / "models" / "endless" / "model.json", tmp_path / "socket"
    description.parent.mkdir(parents=True)
    os.mkfifo(description)
    command = [sys.executable, "-m", "inference_server", "--listen", "127.0.0.1:0", "--device", "cpu"]
    command += ["--models", "endless", "--repository", str(tmp_path / "models"), "--impairment-socket", str(socket)]
    found: list[int] = []

    def loads() -> bool:
        """Whether the server reads the description, which then goes on as long as its other end is open."""
        try:
            found.append(os.open(description, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO or running.poll() is not None:
                raise
        return bool(found)

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            until(loads)
            begin = time.monotonic()
            running.send_signal(number)
            said, why = running.communicate(timeout=SOON_S)
        finally:
            running.kill()
            for descriptor in found:
                os.close(descriptor)
    assert time.monotonic() - begin < SOON_S
    assert (running.returncode, said) == (128 + number, "")
    assert why == f"inference_server: {number.name} while models were loaded: ended before it was ready\n"
    assert not socket.exists()
