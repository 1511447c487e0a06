"""What the report says of the host before and after a window."""

from __future__ import annotations

from typing import Any

from testbed.report.environment import Row, environment_rows
from testbed.report.record import WindowRecord


def environment(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "monotonic_ns": 0,
        "clock_offset_ns": 5_000,
        "cores": [{"core": 0, "total": 100, "idle": 50, "steal": 1}],
        "throttled_ns": 7,
        "some_us": {"cpu": 1_000},
        "load": [0.5, 0.4, 0.3],
        "backlog_drops": 3,
        "settings": {"d1i qdisc at root": "htb", "net.core.rmem_max": "1"},
        "modules": ["tun", "veth"],
    }
    return plain | changes


AFTER = environment(
    monotonic_ns=10_000_000_000,
    clock_offset_ns=4_000,
    cores=[{"core": 0, "total": 300, "idle": 200, "steal": 5}],
    some_us={"cpu": 1_001_000},
    load=[1.5, 0.6, 0.3],
    backlog_drops=5,
)


def rows(before: dict[str, Any], after: dict[str, Any]) -> tuple[Row, ...]:
    window = WindowRecord(
        index=1, seed=1, duration_s=10, valid=True, samples={}, environment_before=before, environment_after=after
    )
    return environment_rows(window)


def test_what_the_host_did_is_shown_for_the_time_between() -> None:
    assert rows(environment(), AFTER) == (
        Row("settings", "2 recorded", "0 changed"),
        Row("kernel modules", "2 loaded", "2 loaded"),
        Row("load over 1, 5, 15 minutes", "0.50, 0.40, 0.30", "1.50, 0.60, 0.30"),
        Row("core 0", "", "75.0% idle, 2.00% stolen"),
        Row("cpu pressure", "", "some task waited 10.0% of the time"),
        Row("backlog drops", "", "+2"),
        Row("throttled ns", "", "+0"),
        Row("realtime against monotonic clock", "", "-1 µs"),
    )


def test_settings_and_modules_that_are_not_what_they_were_come_first_and_are_marked() -> None:
    settings = {"net.core.rmem_max": "2", "d1i qdisc at 1:": "pfifo"}
    found = rows(environment(), {**AFTER, "settings": settings, "modules": ["openvswitch", "veth"]})
    assert [row for row in found if row.differs] == [
        Row("d1i qdisc at 1:", "not there", "pfifo", differs=True),
        Row("d1i qdisc at root", "htb", "not there", differs=True),
        Row("net.core.rmem_max", "1", "2", differs=True),
        Row("module openvswitch", "not there", "loaded", differs=True),
        Row("module tun", "loaded", "gone", differs=True),
    ]
    assert Row("settings", "2 recorded", "3 changed") in found


def test_a_window_without_a_record_of_its_host_has_nothing_to_show() -> None:
    assert rows({}, {}) == ()
