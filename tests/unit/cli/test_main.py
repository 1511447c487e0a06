"""What every verb has in common: errors as lines, exit codes, the version, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

import testbed
from testbed.cli import app as command
from testbed.cli.exits import Exit, exit_of_error, exit_of_verdict
from testbed.cli.watching import Interrupt
from testbed.errors import (
    CleanupError,
    EnvelopeError,
    FidelityError,
    InterruptedRunError,
    PreflightError,
    ReservationError,
    ScenarioError,
    TestbedError,
)

CODES = {
    ScenarioError: 2,
    PreflightError: 2,
    EnvelopeError: 1,
    ReservationError: 3,
    FidelityError: 3,
    CleanupError: 1,
    InterruptedRunError: 130,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_every_kind_of_error_has_its_exit_code(kind: type[TestbedError], code: int) -> None:
    assert exit_of_error(kind("wrong")) == code


def test_no_kind_of_error_is_without_a_documented_exit_code() -> None:
    named = {kind for kind in TestbedError.__subclasses__() if kind.__module__ == TestbedError.__module__}
    assert named == set(CODES)


@pytest.mark.parametrize(
    ("verdict", "code"), [("PASS", 0), ("FAIL", 1), ("INVALID", 3), ("UNDETERMINED", 4), ("EXCUSED", 0), ("NONE", 0)]
)
def test_every_verdict_has_its_exit_code(verdict: str, code: int) -> None:
    assert exit_of_verdict(verdict) == code


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (
            CleanupError(["one is wrong", "two is [wrong]"]),
            Exit.FAIL,
            "testbed: one is wrong\ntestbed: two is [wrong]\n",
        ),
        (OSError(28, "No room", "runs"), Exit.WRONG_COMMAND, "testbed: [Errno 28] No room: 'runs'\n"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, ""),
    ],
    ids=["an error of ours", "what the host refuses", "Ctrl-C"],
)
def test_problems_are_printed_a_line_each_and_nothing_is_traced_back(
    raised: BaseException,
    code: Exit,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr(command, "app", fail)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert (ended.value.code, capsys.readouterr().err) == (code, said)


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(command.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"testbed {testbed.__version__}\n")


@pytest.mark.parametrize("verb", ["validate", "run", "bound", "report", "doctor", "clean", "envelope"])
def test_every_verb_explains_itself(verb: str) -> None:
    listed = CliRunner().invoke(command.app, ["--help"]).stdout
    assert verb in listed
    result = CliRunner().invoke(command.app, [verb, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_a_verb_that_does_not_exist_is_a_wrong_command() -> None:
    assert CliRunner().invoke(command.app, ["walk"]).exit_code == Exit.WRONG_COMMAND


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_breaks_off(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = Interrupt()
    assert not asked()
    os.kill(os.getpid(), number)
    assert asked()
    assert "once more breaks off" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_ctrl_c_while_the_verbs_are_imported_is_quiet() -> None:
    program = """
import sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from testbed.cli import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_a_mistyped_verb_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(command.app, ["validat"])
    assert result.exit_code == Exit.WRONG_COMMAND
    assert "Did you mean 'validate'?" in result.stderr


@pytest.mark.parametrize(
    ("verb", "without"), [("clean", ("matplotlib", "scipy", "numba")), ("run", ("matplotlib", "scipy.stats"))]
)
def test_a_verb_brings_only_its_own_modules(verb: str, without: tuple[str, ...]) -> None:
    program = f"import sys; from testbed.cli import main; sys.argv[1:] = [{verb!r}, '--help']\ntry: main()\nfinally: "
    program += f"print([name for name in {without!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("\n[]\n")
