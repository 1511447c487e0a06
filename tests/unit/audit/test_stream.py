"""A stream of one tenant or of many: whose samples go where, whose alarm it is, and what a bad line is called."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from testbed.audit.record import Promise
from testbed.audit.sequential import WARM_UP, Monitor
from testbed.audit.stream import Watch
from testbed.audit.table import TableError

PROMISE = Promise(0.08, 0.001)


def rows(n: int, broken: tuple[str, ...] = ("bob",), tenants: tuple[str, ...] = ("alice", "bob")) -> Iterator[str]:
    """A table of tenants in turn, of whom some miss 80 ms, or are never answered, in 2 % each."""
    yield "time_s,tenant,latency_s\n"
    rng = np.random.default_rng(1)
    for i in range(n):
        for tenant in tenants:
            drawn, latency = rng.random(), repr(float(rng.exponential(0.005)))
            if tenant in broken and drawn < 0.04:
                latency = "" if drawn < 0.02 else "0.2"
            yield f"{i / 100},{tenant},{latency}\n"


def test_each_tenant_is_watched_on_its_own_and_the_alarm_names_it() -> None:
    watch = Watch({"alice": PROMISE, "bob": PROMISE, "idle": PROMISE})
    alarms = list(watch.follow(rows(5000)))
    assert [tenant for tenant, _ in alarms] == ["bob"]
    bob, alice = watch.monitors["bob"], watch.monitors["alice"]
    assert bob.alarm == alarms[0][1]
    # Its own samples alone are counted, up to its alarm, and the others are watched on.
    assert bob.samples == bob.alarm.sample < alice.samples == 5000
    assert watch.monitors["idle"].samples == 0


def test_a_tenant_sees_what_its_own_stream_would_have_shown() -> None:
    watch, alone = Watch({}, PROMISE), Monitor(0.08, 0.001)
    list(watch.follow(rows(3000, broken=())))
    for line in rows(3000, broken=()):
        _, tenant, latency = line.strip().split(",")
        if tenant == "alice":
            alone.observe(float(latency))
    assert set(watch.monitors) == {"alice", "bob"}
    assert (watch.monitors["alice"].evidence, watch.monitors["alice"].memory) == (alone.evidence, alone.memory)


def test_tenants_without_a_promise_are_counted_and_not_watched() -> None:
    watch = Watch({"alice": PROMISE})
    assert list(watch.follow(rows(2000))) == []
    assert (set(watch.monitors), watch.unwatched) == ({"alice"}, 2000)


def test_a_promise_of_its_own_goes_before_the_one_to_all() -> None:
    watch = Watch({"bob": Promise(1.0, 0.1)}, PROMISE)
    assert list(watch.follow(rows(5000))) == []
    strict = Watch({"bob": Promise(0.001, 0.1)}, PROMISE)
    assert [tenant for tenant, _ in strict.follow(rows(5000, broken=()))] == ["bob"]


def test_the_probability_of_any_false_alarm_is_at_most_the_sum() -> None:
    watch = Watch(dict.fromkeys("abc", PROMISE), false_alarm_rate=0.01)
    assert watch.family_false_alarm_rate == pytest.approx(0.03)
    assert Watch({str(number): PROMISE for number in range(30)}).family_false_alarm_rate == 1.0


def test_an_endless_stream_is_left_when_nobody_is_left_to_alarm_about() -> None:
    lines = rows(10**9, broken=("alice", "bob"))
    assert {tenant for tenant, _ in Watch({"alice": PROMISE, "bob": PROMISE}).follow(lines)} == {"alice", "bob"}
    assert next(lines)


def test_a_table_without_tenants_is_one_stream_and_its_empty_lines_are_misses() -> None:
    watch = Watch({}, PROMISE)
    lines = ["latency_s\n", *(["0.001\n"] * 99 + ["\n"]) * 300]
    assert [tenant for tenant, _ in watch.follow(lines)] == [None]
    assert Watch({}, PROMISE).family_false_alarm_rate == 0
    assert list(Watch({}, PROMISE).follow([])) == []


@pytest.mark.parametrize(
    ("watch", "lines", "said"),
    [
        (Watch({"alice": PROMISE}), ["0.1\n"], "line 1 is '0.1', expected the names of columns"),
        (Watch({"alice": PROMISE}, PROMISE), ["latency_s\n"], "expected the names of columns"),
        (Watch({"alice": PROMISE}), [], "expected the names of columns"),
        (Watch({}, PROMISE), ["tenant,delay\n"], "found columns tenant, delay, expected latency_s"),
        (Watch({}, PROMISE), ["tenant,latency_s\n", "a,0.1,2\n"], "line 2 has 3 cells, expected 2"),
        (Watch({}, PROMISE), ["tenant,latency_s\n", "a,0.1\n", "a,slow\n"], "line 3 is 'slow'"),
    ],
)
def test_a_stream_that_cannot_be_watched_is_one_error(watch: Watch, lines: list[str], said: str) -> None:
    with pytest.raises(TableError, match=said):
        list(watch.follow(lines))


def test_a_promise_that_cannot_be_watched_is_named() -> None:
    with pytest.raises(ValueError, match=r"tenant bob: watch: found .* epsilon 0\.5"):
        Watch({"alice": PROMISE, "bob": Promise(0.08, 0.5)})


def test_memory_is_constant_for_each_tenant_and_the_warm_up_is_given_back() -> None:
    watch, most = Watch({}, PROMISE), 0
    tenants = tuple("abcde")
    for number, line in enumerate(rows(2 * WARM_UP, broken=(), tenants=tenants)):
        assert not list(watch.follow(["tenant,latency_s\n", line.split(",", 1)[1]])) if number else True
        most = max(most, sum(monitor._warm_up.nbytes for monitor in watch.monitors.values()))
    assert most <= len(tenants) * WARM_UP * 8
    assert len(watch.monitors) == len(tenants)
    assert all(monitor._warm_up.nbytes == 0 for monitor in watch.monitors.values())
    assert all(sum(part.nbytes for part in monitor._state) < 3000 for monitor in watch.monitors.values())
