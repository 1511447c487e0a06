from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from testbed.telemetry import fidelity, lag
from testbed.telemetry.capture import CaptureCounts
from testbed.telemetry.fidelity import Gate, Ledger
from testbed.telemetry.host import Change
from testbed.telemetry.idle_path import IdlePath
from testbed.telemetry.match import BorderCount, Match
from testbed.telemetry.samples import Replay, TenantSamples
from testbed.telemetry.stalls import StallRecord
from tests.unit.telemetry import tandem

QUIET = Change(
    elapsed_s=60.0,
    idle_share={0: 0.5, 1: 0.4},
    steal_share=0.001,
    throttled_share=0.0,
    some_share={"cpu": 0.1, "memory": 0.0, "io": 0.05},
    full_share={"cpu": 0.0, "memory": 0.0, "io": 0.02},
    clock_step_s=1e-6,
    backlog_drops=0,
    socket_drops={"d1i-up": 0, "d1e-dn": 0},
    settings=(),
)
BORDER = BorderCount(seen=4, duplicates=0, reordered=0, strangers=0, resized=0, unseen=0)
SAMPLES = tandem.window(np.arange(4.0), np.arange(4.0)[:, None] + [0.0, 0.01, 0.02])
CAPTURED = CaptureCounts(captured=10, received=10, dropped=0)


def stalled(late_ns: list[int], *, unrecorded: int = 0) -> list[Gate]:
    record = StallRecord(
        core=0,
        ticks=15_000,
        start_ns=0,
        end_ns=60_000_000_000,
        at_ns=np.arange(len(late_ns)),
        late_ns=np.array(late_ns, np.int64),
        unrecorded=unrecorded,
    )
    return fidelity.stalls([record])


def host(**changed: object) -> list[Gate]:
    return fidelity.host(dataclasses.replace(QUIET, **changed))  # type: ignore[arg-type]


def clock(step_s: float, *offsets_ns: int) -> Gate:
    """The gate on clocks that were so far apart in turn, and by `step_s` in the end."""
    moves = (np.arange(1 + len(offsets_ns)) * 4_000_000, np.array([0, *offsets_ns], np.int64))
    record = StallRecord(0, 15_000, 0, 60_000_000_000, np.empty(0, np.int64), np.empty(0, np.int64), 0, *moves)
    return fidelity.clock(step_s, [record])


def uncompared() -> Gate:
    """The same of two cores, the second of which never had a reading of both that nothing came into."""
    none = np.empty(0, np.int64)
    records = [StallRecord(core, 15_000, 0, 60_000_000_000, none, none, 0) for core in (0, 1)]
    moved = dataclasses.replace(records[0], clock_at_ns=np.zeros(1, np.int64), clock_offset_ns=np.zeros(1, np.int64))
    return fidelity.clock(0.0, [moved, records[1]])


def late(seconds: float, packets: int) -> list[Gate]:
    sent = np.zeros(2000)
    sent[:packets] = seconds
    return fidelity.lateness("a", sent)


def matched(residual_s: float = 0.0, **changed: int) -> list[Gate]:
    borders = (BORDER, dataclasses.replace(BORDER, **changed), BORDER)
    return fidelity.matching("a", Match(SAMPLES, borders, 0, {"d0": 0, "d1": 0}, residual_s))


def replayed(samples: TenantSamples, *, latency_s: float = 0.0, burst_bits: float = 0.0) -> Replay:
    return lag.replay(samples, 10e6, [latency_s] * len(samples.domains), burst_bits=burst_bits)


def test_a_replay_counts_what_links_take_and_a_long_link_hides_no_slow_queue() -> None:
    def gate(slower: float, links_s: float) -> Gate:
        samples = batch(slower=slower, late_s=5.0)
        replayed = lag.replay(samples, 10e6, [5.0], links_s=links_s)
        return fidelity.replay("a", samples, replayed, queues_s=5.0)

    assert gate(0.0, links_s=5.0).ok
    assert not gate(0.0, links_s=0.0).ok
    assert not gate(0.04, links_s=5.0).ok


def batch(*, slower: float = 0.0, late_s: float = 0.0) -> TenantSamples:
    """2,000 packets at once through one domain of 10 Mb/s: the last but one waits 2.2 s."""
    wait = np.arange(2000) * 1.12e-3 * (1 + slower) + late_s
    return tandem.window(np.zeros(2000), np.stack([np.zeros(2000), wait], axis=1))


def granted(samples: TenantSamples) -> Gate:
    return fidelity.host_allowance("a", samples, replayed(samples), queues_s=0.001, host_s=0.008, share=0.001)


def lagging(packets: int) -> Gate:
    samples = batch()
    samples.border_s[:packets, 1] += 0.01
    return granted(samples)


def late_at_the_edge(packets: int) -> Gate:
    samples = batch()
    late = dataclasses.replace(samples, intended_s=np.where(np.arange(len(samples)) < packets, -0.01, 0.0))
    return granted(late)


def outlying(seconds: float, packets: int) -> Gate:
    samples = batch()
    samples.border_s[-packets:, 1] += seconds
    return fidelity.tail_shift("a", samples, replayed(samples))


def one(gate: Gate) -> list[Gate]:
    return [gate]


ROWS: dict[str, tuple[str, Callable[[], Iterable[Gate]], Callable[[], Iterable[Gate]]]] = {
    "a core that was away for long": (
        "longest stall, core 0",
        lambda: stalled([90_000_000]),
        lambda: stalled([110_000_000]),
    ),
    "a core that was often late": (
        "stalled share, core 0",
        lambda: stalled([1_000_000] * 2900),
        lambda: stalled([1_000_000] * 3100),
    ),
    "a core that was late more often than could be recorded": (
        "stalled share, core 0",
        lambda: stalled([1_000_000]),
        lambda: stalled([1_000_000], unrecorded=1),
    ),
    "a core without idle time": ("CPU idle", host, lambda: host(idle_share={0: 0.6, 1: 0.02})),
    "no core known to be idle": ("CPU idle", host, lambda: host(idle_share={})),
    "stolen time": ("CPU steal", host, lambda: host(steal_share=0.03)),
    "a throttled control group": ("CPU throttling", host, lambda: host(throttled_share=0.002)),
    "tasks that waited for the CPU": (
        "cpu pressure",
        lambda: host(some_share={"cpu": 0.5}),
        lambda: host(some_share={"cpu": 0.7}),
    ),
    "tasks that waited for memory": ("memory pressure", host, lambda: host(full_share={"memory": 0.02})),
    "tasks that waited for the disk": ("io pressure", host, lambda: host(full_share={"io": 0.4})),
    "a clock set forward": ("clock step", lambda: one(clock(1e-6)), lambda: one(clock(0.001))),
    "a clock set back": ("clock step", lambda: one(clock(1e-6)), lambda: one(clock(-0.001))),
    "a clock set forward and back again": (
        "clock step",
        lambda: one(clock(1e-6, 400_000, 0)),
        lambda: one(clock(1e-6, 1_000_000, 0)),
    ),
    "clocks that a core never compared": ("clock step", lambda: one(clock(0.0)), lambda: one(uncompared())),
    "clocks that nobody compared": ("clock step", lambda: one(clock(0.0)), lambda: one(fidelity.clock(0.0, []))),
    "a full input queue": ("backlog drops", host, lambda: host(backlog_drops=1)),
    "a setting that changed": ("host settings", host, lambda: host(settings=("net.core.x was 1 and is 2",))),
    "a sender that was often late": ("sender lateness p99.9, a", lambda: late(0.003, 1), lambda: late(0.003, 3)),
    "a sender that was very late once": (
        "sender lateness, largest, a",
        lambda: late(0.09, 1),
        lambda: late(0.11, 1),
    ),
    "a capture that dropped": (
        "capture drops",
        lambda: one(fidelity.captures({"d1i-up": CAPTURED})),
        lambda: one(fidelity.captures({"d1i-up": dataclasses.replace(CAPTURED, dropped=1)})),
    ),
    "a capture that was ended before it had written all": (
        "capture drops",
        lambda: one(fidelity.captures({"d1i-up": CAPTURED})),
        lambda: one(fidelity.captures({"d1i-up": dataclasses.replace(CAPTURED, received=11)})),
    ),
    "a socket that dropped": (
        "socket drops",
        host,
        lambda: host(socket_drops={"d1i-up": 2}),
    ),
    "a packet that one border did not see": ("borders agree, a", matched, lambda: matched(unseen=1)),
    "a packet seen twice": ("borders agree, a", matched, lambda: matched(duplicates=1)),
    "a packet that changed its size": ("borders agree, a", matched, lambda: matched(resized=1)),
    "a packet from nowhere": ("borders agree, a", matched, lambda: matched(strangers=1)),
    "a packet that was overtaken": ("first in, first out, a", matched, lambda: matched(reordered=1)),
    "parts that do not add up": ("residual, a", lambda: matched(5e-7), lambda: matched(2e-6)),
    "a packet that went to a controller": (
        "packet-ins",
        lambda: one(fidelity.packet_ins(0)),
        lambda: one(fidelity.packet_ins(1)),
    ),
    "a packet that missed its flow": (
        "upcalls",
        lambda: one(fidelity.upcalls(0, 0)),
        lambda: one(fidelity.upcalls(1, 0)),
    ),
    "a configuration that changed": (
        "configuration",
        lambda: one(fidelity.configuration("configuration", [])),
        lambda: one(fidelity.configuration("configuration", ["d1 meter 1 rate was 9 and is 7"])),
    ),
    "a counter that is one packet short": (
        "queues",
        lambda: one(fidelity.ledger("queues", [Ledger("d1i-up, a", 46_078, 46_078)])),
        lambda: one(fidelity.ledger("queues", [Ledger("d1i-up, a", 46_078, 46_077)])),
    ),
    "counters that are wrong by the same number in both directions": (
        "queues",
        lambda: one(fidelity.ledger("queues", [Ledger("a", 5, 5), Ledger("b", 7, 7)])),
        lambda: one(fidelity.ledger("queues", [Ledger("a", 5, 6), Ledger("b", 7, 6)])),
    ),
    "packets late at the first domain": (
        "host allowance, a",
        lambda: one(late_at_the_edge(2)),
        lambda: one(late_at_the_edge(3)),
    ),
    "lag beyond the declared latency": ("host allowance, a", lambda: one(lagging(2)), lambda: one(lagging(3))),
    "an idle path that takes longer than queues declare": (
        "idle path, a",
        lambda: one(fidelity.idle_path("a", IdlePath(np.array([1e-3, 2e-3, 9e-3])), 2e-3)),
        lambda: one(fidelity.idle_path("a", IdlePath(np.array([1e-3]), np.array([1e-3, 2.1e-3, 2.2e-3])), 2e-3)),
    ),
    "a network slower than its ideal": (
        "replay, a",
        lambda: one(fidelity.replay("a", batch(slower=0.029), replayed(batch(slower=0.029)), queues_s=0.0)),
        lambda: one(fidelity.replay("a", batch(slower=0.031), replayed(batch(slower=0.031)), queues_s=0.0)),
    ),
    "a network faster than its ideal": (
        "replay, a",
        lambda: one(fidelity.replay("a", batch(slower=-0.029), replayed(batch(slower=-0.029)), queues_s=0.0)),
        lambda: one(fidelity.replay("a", batch(slower=-0.031), replayed(batch(slower=-0.031)), queues_s=0.0)),
    ),
    "outliers that moved the tail": ("tail shift, a", lambda: one(outlying(0.5, 1)), lambda: one(outlying(0.5, 9))),
}


@pytest.mark.parametrize(("name", "holds", "breaches"), ROWS.values(), ids=ROWS.keys())
def test_a_gate_holds_up_to_its_limit_and_breaches_beyond_it(
    name: str, holds: Callable[[], Iterable[Gate]], breaches: Callable[[], Iterable[Gate]]
) -> None:
    before = {gate.name: gate for gate in holds()}
    after = {gate.name: gate for gate in breaches()}
    assert before[name].ok, before[name]
    assert not after[name].ok, after[name]
    assert all(gate.ok for other, gate in after.items() if other != name) or name == "longest stall, core 0"


def test_an_isolated_run_does_not_ask_for_what_it_leaves_to_others() -> None:
    busy = dataclasses.replace(QUIET, idle_share={0: 0.0, 1: 0.0}, some_share={**QUIET.some_share, "cpu": 1.0})
    asked = {gate.name: gate.ok for gate in fidelity.host(busy)}
    isolated = {gate.name: gate.ok for gate in fidelity.host(busy, isolated=True)}
    assert {name for name, ok in asked.items() if not ok} == {"CPU idle", "cpu pressure"}
    assert isolated == {name: True for name in asked if asked[name]}


def test_where_cores_are_kept_awake_what_does_so_waits_for_the_cpu_and_idle_time_is_still_asked_for() -> None:
    busy = dataclasses.replace(QUIET, idle_share={0: 0.0, 1: 0.0}, some_share={**QUIET.some_share, "cpu": 1.0})
    assert [gate.name for gate in fidelity.host(busy, awake=True) if not gate.ok] == ["CPU idle"]
    assert "memory pressure" in {gate.name for gate in fidelity.host(busy, awake=True)}


def test_every_gate_of_a_quiet_host_holds() -> None:
    assert [gate for gate in (*host(), clock(QUIET.clock_step_s)) if not gate.ok] == []


def test_a_value_that_is_not_a_number_never_holds() -> None:
    assert not Gate.at_most("x", float("nan"), 1.0, "").ok
    assert not Gate.at_least("x", float("nan"), 0.0, "").ok


def test_a_breach_names_what_it_found() -> None:
    rows = [Ledger("d1i-up, tenant a", 5, 6), Ledger("d1e-dn, tenant b", 70, 50)]
    assert fidelity.ledger("queues", rows).detail == (
        "d1e-dn, tenant b: found 50, expected 70; d1i-up, tenant a: found 6, expected 5"
    )
    assert fidelity.captures({"s3": dataclasses.replace(CAPTURED, dropped=4)}).detail == (
        "4 s3 (10 captured of 10 received, 4 dropped, 0 by the interface, 0 before the filter)"
    )


def test_a_short_wait_is_held_to_the_declared_latency_and_a_long_one_to_3_percent() -> None:
    def gate(late_s: float, latency_s: float) -> Gate:
        samples = tandem.window(np.arange(2000.0), np.arange(2000.0)[:, None] + [0.0, late_s])
        return fidelity.replay("a", samples, replayed(samples), queues_s=latency_s)

    assert gate(0.0009, 0.0).ok, "less than a switch's own forwarding cannot be resolved"
    assert not gate(0.0011, 0.0).ok
    assert gate(0.0040, 0.005).ok
    assert not gate(0.0060, 0.005).ok
    slow = batch(slower=0.04)
    assert not fidelity.replay("a", slow, replayed(slow), queues_s=1.0).ok, "a declared latency excuses no long wait"


def test_the_burst_that_a_real_queue_sends_at_once_belongs_to_the_ideal() -> None:
    samples = batch(late_s=-0.08)
    samples.border_s[:, 1] = np.maximum(samples.border_s[:, 1], 0.0)
    assert not fidelity.replay("a", samples, replayed(samples), queues_s=0.0).ok
    assert fidelity.replay("a", samples, replayed(samples, burst_bits=0.08 * 10e6), queues_s=0.0).ok


def test_a_window_without_packets_breaches_no_gate_of_delays() -> None:
    samples = tandem.window(np.empty(0), np.empty((0, 2)))
    replay = replayed(samples)
    gates = [
        fidelity.host_allowance("a", samples, replay, queues_s=0.0, host_s=0.001, share=0.001),
        fidelity.replay("a", samples, replay, queues_s=0.0),
        fidelity.tail_shift("a", samples, replay),
        *fidelity.lateness("a", samples.lateness_s),
    ]
    assert [gate.value for gate in gates] == [0.0] * 5


def test_lost_packets_take_no_part_in_quantiles_of_delay() -> None:
    samples = batch()
    samples.border_s[::7, 1] = np.nan
    replay = replayed(samples)
    assert np.isfinite(
        [fidelity.replay("a", samples, replay, queues_s=0.0).value, fidelity.tail_shift("a", samples, replay).value]
    ).all()


TENANTS = {
    "bursts of 5 ms, p99.9 near 90 ms": tandem.Tenant(5e-3, 7.5e-3, 20e6, 10e6),
    "bursts of 1 ms, p99.9 near 17 ms": tandem.Tenant(1e-3, 1.5e-3, 20e6, 10e6),
    "bursts of 1 ms at 40 Mb/s, p99.9 near 19 ms": tandem.Tenant(1e-3, 3e-3, 40e6, 16e6),
}


def delay_gates(samples: TenantSamples, tenant: tandem.Tenant) -> list[Gate]:
    replay = lag.replay(samples, tenant.rate_bps, (2e-3,) * 3, burst_bits=tenant.burst_bits)
    return [fidelity.replay("a", samples, replay, queues_s=6e-3), fidelity.tail_shift("a", samples, replay)]


@pytest.mark.parametrize("tenant", TENANTS.values(), ids=TENANTS.keys())
def test_noise_of_a_software_switch_alone_breaches_nothing(tenant: tandem.Tenant) -> None:
    for seed in range(4):
        assert [gate for gate in delay_gates(tandem.measured(tenant, seed), tenant) if not gate.ok] == []


@pytest.mark.parametrize("where", ["machine", "sender", "domain"])
@pytest.mark.parametrize("tenant", TENANTS.values(), ids=TENANTS.keys())
def test_a_stall_that_moves_a_p999_by_more_than_3_percent_is_caught_wherever_it_strikes(
    tenant: tandem.Tenant, where: str
) -> None:
    usual = fidelity.quantile(tandem.measured(tenant, 1).latency_s)
    moved, harmless = 0, 0
    for length_s in (0.005, 0.02, 0.1):
        for begin_s in np.linspace(1.0, 58.0, 6):
            samples = tandem.measured(tenant, 1, (float(begin_s), length_s), where)
            move = fidelity.quantile(samples.latency_s) / usual - 1
            caught = not all(gate.ok for gate in delay_gates(samples, tenant))
            if abs(move) > 0.03:
                moved += 1
                assert caught, f"a stall of {length_s} s at {begin_s} s moved the p99.9 by {move:.1%}"
            elif abs(move) < 0.005:
                harmless += 1
                assert not caught, f"a stall of {length_s} s at {begin_s} s moved the p99.9 by only {move:.1%}"
    assert moved >= 3
    assert harmless >= 3
