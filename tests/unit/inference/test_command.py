"""`python -m inference_server` as a process: one line when it is ready, and an end that answers what is in progress."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc._cython.cygrpc import ExecuteBatchError

from inference_server.__main__ import _HangUps, main
from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import Stamps
from tests.unit.inference.serving import LONG_S, infer, until
from tests.unit.inference.test_calls import call
from tests.unit.inference.test_text import request
from tests.unit.inference.test_triton import stream

BYTES = 512


def test_a_server_that_is_told_to_end_answers_the_call_in_progress_and_exits_with_0() -> None:
    command = [sys.executable, "-m", "inference_server", "--listen", "127.0.0.1:0", "--device", "cpu"]
    command += ["--models", "text-small", "--metrics", "127.0.0.1:0", "--drain-s", str(LONG_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            ready = json.loads(running.stdout.readline())
            assert list(ready) == ["ready", "listen", "models", "device", "metrics"]
            assert (ready["ready"], ready["models"], ready["device"]) == (True, ["text-small"], "cpu")
            with urllib.request.urlopen(f"http://{ready['metrics']}/metrics", timeout=LONG_S) as page:
                assert b"inference_queue_requests" in page.read()
            with grpc.insecure_channel(ready["listen"]) as channel:
                answers = stream(channel, iter([request(BYTES)]))
                assert next(answers).infer_response.outputs
                running.send_signal(signal.SIGTERM)
                until(lambda: not call(channel, "ServerReady", pb.ServerReadyRequest()).ready)
                refused_ns = time.monotonic_ns()
                with pytest.raises(grpc.RpcError, match="drains before it ends") as caught:
                    infer(channel)(request(1), timeout=LONG_S)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                *parts, whole = [answer.infer_response for answer in answers]
            said, why = running.communicate(timeout=LONG_S)
        finally:
            running.kill()
    assert (len(parts), len(whole.raw_output_contents[0])) == (BYTES - 1, BYTES)
    stamps = Stamps.read(whole)
    assert stamps is not None
    assert stamps.finished_ns > refused_ns, "it was still computed when the server began to end"
    assert (running.returncode, said, why) == (0, "", "")


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--repository", "repository {}: No such file or directory; expected a folder with one for each model, see "),
        ("--impair", "{}: No such file or directory; expected a file with seed and impairments, see "),
    ],
)
def test_a_file_that_is_not_there_is_named_with_what_was_expected(
    option: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    assert main(["--listen", "127.0.0.1:0", "--device", "cpu", option, str(gone)]) == 2
    assert capsys.readouterr().err == f"inference_server: {line.format(gone)}docs/inference.md\n"


@pytest.mark.parametrize(("error", "told"), [(ExecuteBatchError("gone"), False), (ValueError("broken"), True)])
def test_of_what_grpc_logs_only_clients_that_hung_up_are_kept_silent_about(error: Exception, told: bool) -> None:
    about = (type(error), error, None)
    record = logging.LogRecord(ExecuteBatchError.__module__, logging.ERROR, "", 0, "raised in core", (), about)
    assert _HangUps().filter(record) is told
