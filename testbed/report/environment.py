"""What of the host's environment was not the same before and after a window, for a reader; gates judge it elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.report.record import WindowRecord

_GROWING = ("backlog_drops", "throttled_ns")


@dataclass(frozen=True)
class Row:
    """One figure of the environment, as text.

    Attributes:
        name: What it is.
        before: Before the window; empty where only the change means something.
        after: After it, or the change.
        differs: Whether a setting is not what it was.
    """

    name: str
    before: str
    after: str
    differs: bool = False


def environment_rows(window: WindowRecord) -> tuple[Row, ...]:
    """Settings and modules that changed, then load and what the host spent its time on; empty without a record."""
    before, after = window.environment_before, window.environment_after
    if not before or not after:
        return ()
    return (*_settings(before, after), *_modules(before, after), *_figures(before, after))


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Row]:
    old, new = before.get("settings", {}), after.get("settings", {})
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    for name in changed:
        yield Row(name, old.get(name, "not there"), new.get(name, "not there"), differs=True)
    yield Row("settings", f"{len(old)} recorded", f"{len(changed)} changed")


def _modules(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Row]:
    old, new = set(before.get("modules", ())), set(after.get("modules", ()))
    for name in sorted(old ^ new):
        first, last = ("loaded", "gone") if name in old else ("not there", "loaded")
        yield Row(f"module {name}", first, last, differs=True)
    yield Row("kernel modules", f"{len(old)} loaded", f"{len(new)} loaded")


def _figures(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Row]:
    elapsed_ns = after["monotonic_ns"] - before["monotonic_ns"]
    first, last = (", ".join(f"{load:.2f}" for load in end["load"]) for end in (before, after))
    yield Row("load over 1, 5, 15 minutes", first, last)
    for old, new in zip(before["cores"], after["cores"], strict=True):
        ticks = max(1, new["total"] - old["total"])
        idle, stolen = (new["idle"] - old["idle"]) / ticks, (new["steal"] - old["steal"]) / ticks
        yield Row(f"core {new['core']}", "", f"{idle:.1%} idle, {stolen:.2%} stolen")
    for name, waited_us in after["some_us"].items():
        share = 1000 * (waited_us - before["some_us"].get(name, 0)) / elapsed_ns
        yield Row(f"{name} pressure", "", f"some task waited {share:.1%} of the time")
    for name in _GROWING:
        yield Row(name.replace("_", " "), "", f"{after[name] - before[name]:+,}")
    step_ns = after["clock_offset_ns"] - before["clock_offset_ns"]
    yield Row("realtime against monotonic clock", "", f"{step_ns / 1e3:+,.0f} µs")
