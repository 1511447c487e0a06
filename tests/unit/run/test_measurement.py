"""Nothing that a run has measured is lost by what comes after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controller.client import CallError
from testbed.errors import FidelityError, PreflightError
from testbed.run import measurement
from testbed.run.measurement import Evidence, Steps
from testbed.run.progress import Silent
from testbed.scenario.loader import load

SCENARIO = replace(load(Path(__file__).parents[3] / "topologies" / "smoke.yaml"), cooldown_s=1.0)


@pytest.mark.parametrize(
    "failure",
    [
        FidelityError("the host was away"),
        PreflightError("a sender was not ready"),
        CallError("connection", ["no answer"]),
        OSError("no space left"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_window_whose_cool_down_fails_is_kept(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    window = SimpleNamespace(complete=True)
    stage = SimpleNamespace(
        network=SimpleNamespace(scenario=SCENARIO), shapers=dict, play=lambda *_, **__: window
    )  # fmt: skip
    monkeypatch.setattr(measurement, "_cool_down", fail)
    monkeypatch.setattr(measurement, "_site", lambda *_: None)
    monkeypatch.setattr(measurement.Injector, "of", lambda *_, **__: SimpleNamespace(done=()))
    monkeypatch.setattr(measurement, "terms_of", lambda *_: {})
    monkeypatch.setattr(measurement, "gates_of", lambda *_: ())
    reservations: Any = SimpleNamespace(drift=tuple)
    measured = measurement._measure(Evidence(), stage, reservations, 2, Steps(Silent(), lambda: False))  # type: ignore[arg-type]
    assert next(measured).window is window
    with pytest.raises(type(failure)):
        next(measured)
