"""Exit codes of the `testbed` command, and the errors and verdicts that lead to them."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from testbed.report.record import RunRecord


class Exit(IntEnum):
    """What a shell sees."""

    PASS = 0
    FAIL = 1
    WRONG_COMMAND = 2
    INVALID = 3
    UNDETERMINED = 4
    INTERRUPTED = 130


_BY_ERROR: dict[type[TestbedError], Exit] = {
    ScenarioError: Exit.WRONG_COMMAND,
    PreflightError: Exit.WRONG_COMMAND,
    EnvelopeError: Exit.FAIL,
    ReservationError: Exit.INVALID,
    FidelityError: Exit.INVALID,
    CleanupError: Exit.FAIL,
    InterruptedRunError: Exit.INTERRUPTED,
}


def exit_of_error(error: TestbedError) -> Exit:
    """The exit code of a verb that ended with `error`."""
    return next((code for kind, code in _BY_ERROR.items() if isinstance(error, kind)), Exit.WRONG_COMMAND)


def exit_of_verdict(verdict: str) -> Exit:
    """The exit code of a verdict; EXCUSED and NONE break no promise."""
    return Exit[verdict] if verdict in Exit.__members__ else Exit.PASS


def exit_of_record(record: RunRecord) -> Exit:
    """The exit code of a run or a simulation: a broken bound fails it whatever the verdict, unless it is partial."""
    if record.partial:
        return Exit.INTERRUPTED
    if any(tenant.bound_broken for tenant in record.tenants):
        return Exit.FAIL
    return exit_of_verdict(record.verdict)
