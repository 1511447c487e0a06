"""What goes wrong in undoing a run, and what becomes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from controller.client import CallError
from testbed.errors import CleanupError, InterruptedRunError, ReservationError
from testbed.run.undoing import noted


@contextmanager
def made(name: str, undone: list[str], error: Exception | None = None) -> Iterator[str]:
    try:
        yield name
    finally:
        undone.append(name)
        if error is not None:
            raise error


@pytest.mark.parametrize(
    "error",
    [
        ReservationError(["domain core: not given back", "domain metro: not given back"]),
        CleanupError(["namespace x could not be removed", "repeat with testbed clean"]),
        CallError("connection", ["call health: the controller closed the connection"]),
    ],
)
def test_each_thing_that_could_not_be_undone_is_noted_and_the_rest_is_undone(
    error: ReservationError | CleanupError | CallError,
) -> None:
    problems: list[str] = []
    undone: list[str] = []
    with ExitStack() as stack:
        assert stack.enter_context(noted(made("network", undone, OSError("no such link")), problems)) == "network"
        stack.enter_context(noted(made("reservations", undone, error), problems))
    assert undone == ["reservations", "network"]
    assert problems == [*error.problems, "OSError: no such link"]


def test_an_error_that_nobody_foresaw_is_noted_with_its_kind_and_logged_with_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems: list[str] = []
    with caplog.at_level(logging.ERROR), noted(made("ledger", [], KeyError("rules")), problems):
        pass
    assert problems == ["KeyError: 'rules'"]
    assert "Traceback" in caplog.text


def test_where_there_is_nothing_to_keep_an_error_in_undoing_is_raised() -> None:
    problems: list[str] = []
    with (
        pytest.raises(CleanupError, match="still there"),
        noted(made("network", [], CleanupError("still there")), problems),
    ):
        raise InterruptedRunError("interrupted")
    assert problems == []


def test_an_error_in_making_is_no_error_in_undoing() -> None:
    @contextmanager
    def impossible() -> Iterator[None]:
        raise ReservationError("no room")
        yield

    problems: list[str] = []
    with pytest.raises(ReservationError, match="no room"), noted(impossible(), problems):
        raise AssertionError("there is nothing to be used")
    assert problems == []
