"""The verdict of a tenant follows the data, unless the host or the tenant's own breach overrules them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from testbed.audit.conformance import METER_GRAIN_S
from testbed.report.tenant_record import BoundRecord, TenantRecord
from testbed.run.assemble import observe
from testbed.run.judge import Observed, beyond_contract, judge_tenant, run_verdict
from testbed.run.window import Counted
from testbed.scenario.model import Misbehaviour, PoissonArrivals, Promise, Reservation, Tenant
from testbed.telemetry.lag import replay
from testbed.telemetry.match import Match
from testbed.telemetry.samples import TenantSamples

N = 40_000
RATE_BPS = 10_000_000
SIZE = 4_000
PROMISE = Promise(deadline_s=0.02, epsilon=0.001)
BUCKET = Reservation(rate_bps=RATE_BPS, meter_rate_bps=9_000_000, burst_bits=400_000, queue_bits=800_000)
TENANT = Tenant("alpha", PoissonArrivals(1000.0, SIZE), "east", BUCKET, PROMISE)


def observed(
    latency_s: Callable[[np.random.Generator, int], np.ndarray], gap_s: float = 1e-3, seed: int = 1
) -> Observed:
    """A window of two domains, the first with all of the delay."""
    rng = np.random.default_rng(seed)
    intended = np.cumsum(rng.exponential(gap_s, N))
    latency = latency_s(rng, N)
    border = np.stack([intended, intended + latency, intended + latency], axis=1)
    samples = TenantSamples(
        tenant="alpha", number=1, domains=("west", "east"), window_start_ns=0, sequence=np.arange(N),
        intended_s=intended, sent_s=intended, size_bits=np.full(N, SIZE, np.int32), border_s=border,
    )  # fmt: skip
    lost = int(np.count_nonzero(np.isnan(latency)))
    found = Match(samples, (), 0, {"west": lost, "east": 0}, 0.0)
    return Observed(found, replay(samples, RATE_BPS, (0.005, 0.005)), 0, lost, N * gap_s)


def fast(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.exponential(0.001, n)


def often_late(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(rng.random(n) < 0.01, 0.1, 0.001)


def often_lost(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(rng.random(n) < 0.01, np.nan, 0.001)


def bound(value_s: float) -> BoundRecord:
    return BoundRecord(bound_s=value_s, network_bound_s=value_s, method="lundberg", assumptions=(), parts=())


@pytest.mark.parametrize(
    ("latency", "valid", "gap_s", "verdict"),
    [
        (fast, True, 1e-3, "PASS"),
        (often_late, True, 1e-3, "FAIL"),
        (often_lost, True, 1e-3, "FAIL"),
        (often_late, False, 1e-3, "INVALID"),
        (fast, False, 1e-3, "INVALID"),
        (often_late, True, 1e-4, "EXCUSED"),
        (fast, False, 1e-4, "INVALID"),
    ],
    ids=["kept", "late", "lost", "late on a bad host", "kept on a bad host", "flooding", "flooding on a bad host"],
)
def test_the_verdict_is(latency: Callable[..., np.ndarray], valid: bool, gap_s: float, verdict: str) -> None:
    assert judge_tenant(TENANT, [observed(latency, gap_s)], None, valid=valid).verdict == verdict


@pytest.mark.parametrize(
    ("tenant", "valid", "verdict"),
    [(TENANT, True, "UNDETERMINED"), (TENANT, False, "INVALID"), (replace(TENANT, promise=None), True, "NONE")],
    ids=["promised", "promised on a bad host", "not promised"],
)
def test_who_sent_nothing_is_not_judged(tenant: Tenant, valid: bool, verdict: str) -> None:
    nothing = replace(observed(fast), outside=np.zeros(N, dtype=np.bool_))
    found = judge_tenant(tenant, [nothing], bound(0.02), valid=valid)
    assert (found.verdict, found.n, found.p999_s, found.promised_s) == (verdict, 0, None, None)
    assert not found.bound_broken


def test_a_clock_that_was_set_back_does_not_keep_the_row_from_being_written() -> None:
    def early(rng: np.random.Generator, n: int) -> np.ndarray:
        return fast(rng, n) - np.where(np.arange(n) < n // 2, 0.0, 1.0)

    found = judge_tenant(TENANT, [observed(early)], bound(0.02), valid=False)
    assert (found.verdict, found.n, found.p50_s) == ("INVALID", N, pytest.approx(0.0, abs=1e-3))


def test_best_effort_is_promised_nothing() -> None:
    nobody = Tenant("alpha", PoissonArrivals(1000.0, SIZE), "east")
    found = judge_tenant(nobody, [observed(often_late)], None, valid=True)
    assert (found.verdict, found.misses, found.conformance) == ("NONE", 0, None)


@pytest.mark.parametrize(("bound_s", "valid", "broken"), [(0.5, True, False), (0.05, True, True), (0.05, False, False)])
def test_a_bound_below_the_lower_limit_of_a_valid_measurement_is_broken(
    bound_s: float, valid: bool, broken: bool
) -> None:
    found = judge_tenant(TENANT, [observed(often_late)], bound(bound_s), valid=valid)
    assert found.p999_lower_s == pytest.approx(0.1)
    assert found.bound_broken is broken


def test_a_bound_is_held_against_the_limit_and_not_the_estimate() -> None:
    found = judge_tenant(TENANT, [observed(fast)], None, valid=True)
    assert found.p999_s is not None
    assert found.p999_lower_s is not None
    between = (found.p999_lower_s + found.p999_s) / 2
    assert not judge_tenant(TENANT, [observed(fast)], bound(between), valid=True).bound_broken


def test_a_bound_is_held_against_the_percentile_that_it_was_made_for() -> None:
    loose = replace(TENANT, promise=Promise(0.2, 0.1))
    found = judge_tenant(loose, [observed(often_late)], None, valid=True)
    assert found.promised_s is not None
    assert found.promised_lower_s is not None
    assert found.p999_lower_s is not None
    assert found.promised_lower_s <= found.promised_s < found.p999_lower_s
    between, below = (found.promised_s + found.p999_lower_s) / 2, 0.9 * found.promised_lower_s
    assert not judge_tenant(loose, [observed(often_late)], bound(between), valid=True).bound_broken
    assert judge_tenant(loose, [observed(often_late)], bound(below), valid=True).bound_broken


def test_a_tenant_beyond_its_contract_is_still_owed_the_bound_that_counts_its_meter() -> None:
    """Of a flood one packet in two is dropped, and no bound promises these anything; of what passes 1 % are late."""
    flood = replace(TENANT, misbehaviour=Misbehaviour("flood", offered_bps=2 * RATE_BPS))

    def dropping(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.where(rng.random(n) < 0.5, np.nan, often_late(rng, n))

    seen = observed(dropping, gap_s=1e-4)
    seen = replace(seen, meter_dropped=seen.queue_dropped, forgiven=seen.queue_dropped, queue_dropped=0)
    above, below = (judge_tenant(flood, [seen], bound(bound_s), valid=True) for bound_s in (0.2, 0.05))
    assert (above.verdict, above.bound_broken, above.promised_lower_s) == ("EXCUSED", False, None)
    assert (below.verdict, below.bound_broken) == ("EXCUSED", True)
    assert below.held_lower_s == pytest.approx(0.1)


def test_a_loss_that_is_no_breach_of_the_contract_is_nothing_that_a_bound_forgives() -> None:
    """Of 1 % that are lost 0.7 % broke the contract: the rest is more than one in a thousand."""
    seen = observed(often_lost, gap_s=1e-4)
    lost = seen.queue_dropped
    most = replace(seen, meter_dropped=lost, forgiven=lost - 3 * N // 1000, queue_dropped=0)
    every = replace(seen, meter_dropped=lost, forgiven=lost, queue_dropped=0)
    found = [judge_tenant(TENANT, [one], bound(1.0), valid=True) for one in (every, most)]
    assert [row.verdict for row in found] == ["EXCUSED", "EXCUSED"]
    assert [row.bound_broken for row in found] == [False, True]


@pytest.mark.parametrize(("gap_s", "forgiven"), [(1e-3, 0), (1e-4, 502)], ids=["conforming", "flooding"])
def test_a_tenant_that_keeps_its_contract_is_not_forgiven_what_its_meter_drops(gap_s: float, forgiven: int) -> None:
    """502 in its first domain, 7 in the second; both count as its meters' drops."""
    match = observed(fast, gap_s).match
    window = SimpleNamespace(
        matches={"alpha": match},
        grown=lambda domain, _: Counted(N, 502 if domain == "west" else 7, N, 0),
        duration_s=1.0,
        faults=(),
    )
    seen = observe(TENANT, SimpleNamespace(window=window, terms={}))  # type: ignore[arg-type]
    assert (seen.meter_dropped, seen.forgiven) == (509, forgiven)


def test_what_a_meter_drops_that_refills_once_a_grain_is_a_breach_too() -> None:
    samples = observed(fast, 1e-4).match.samples
    told, drops = (beyond_contract(BUCKET, samples, grain_s=grain * METER_GRAIN_S) for grain in (1, -1))
    assert told < drops <= told + 2 * (RATE_BPS * METER_GRAIN_S // SIZE + 1)


def test_what_is_lost_behind_the_first_domain_is_never_forgiven() -> None:
    seen = observed(often_lost, gap_s=1e-4)
    lost = seen.queue_dropped
    borders = seen.match.samples.border_s.copy()
    borders[:, 1] = np.where(np.isnan(borders[:, 1]), borders[:, 0], borders[:, 1])
    later = replace(seen.match, samples=replace(seen.match.samples, border_s=borders))
    found = judge_tenant(TENANT, [replace(seen, match=later, forgiven=lost)], bound(1.0), valid=True)
    assert found.bound_broken


def test_where_a_model_is_relied_on_a_bound_speaks_of_all_packets_that_are_sent() -> None:
    """Of what passes, a tenth, 0.5 % are late: 0.05 % of what is sent, too many where only the meter is relied on."""

    def late(rng: np.random.Generator, n: int) -> np.ndarray:
        found = np.where(rng.random(n) < 0.005, 0.1, 0.001)
        return np.where(rng.random(n) < 0.9, np.nan, found)

    seen = observed(late, gap_s=1e-4)
    seen = replace(seen, meter_dropped=seen.queue_dropped, forgiven=seen.queue_dropped, queue_dropped=0)
    lawful = judge_tenant(TENANT, [seen], bound(0.05), valid=True)
    flood = replace(TENANT, misbehaviour=Misbehaviour("flood", offered_bps=2 * RATE_BPS))
    lawless = judge_tenant(flood, [seen], bound(0.05), valid=True)
    assert (lawful.bound_broken, lawless.bound_broken) == (False, True)


def test_windows_are_pooled_and_their_losses_added() -> None:
    found = judge_tenant(TENANT, [observed(often_lost, seed=s) for s in (1, 2)], None, valid=True)
    assert found.n == 2 * N
    assert found.lost == found.misses
    assert found.domains[0].lost == found.lost
    assert found.conformance is not None
    assert found.conformance.queue_dropped == found.lost


def test_too_few_samples_say_how_long_it_would_take() -> None:
    window = observed(fast)
    samples = window.match.samples
    short = TenantSamples(**{
        **{k: getattr(samples, k) for k in ("tenant", "number", "domains", "window_start_ns", "last_of_request")},
        **{k: getattr(samples, k)[:2000] for k in ("sequence", "intended_s", "sent_s", "size_bits", "border_s")},
    })  # fmt: skip
    few = Observed(Match(short, (), 0, {"west": 0, "east": 0}, 0.0), None, 0, 0, 2.0)
    found = judge_tenant(TENANT, [few], None, valid=True)
    assert found.verdict == "UNDETERMINED"
    assert found.samples_needed is not None
    assert found.seconds_needed == pytest.approx(found.samples_needed / 1000)


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        (["PASS", "UNDETERMINED"], "UNDETERMINED"),
        (["PASS", "FAIL", "UNDETERMINED"], "FAIL"),
        (["FAIL", "INVALID"], "INVALID"),
        (["PASS", "EXCUSED"], "PASS"),
        (["EXCUSED"], "EXCUSED"),
        ([], "NONE"),
    ],
)
def test_a_run_is_as_bad_as_its_worst_promise(verdicts: list[Any], worst: str) -> None:
    base = judge_tenant(TENANT, [observed(fast)], None, valid=True)
    rows: list[TenantRecord] = [base.model_copy(update={"verdict": verdict}) for verdict in verdicts]
    assert run_verdict(rows) == worst
    assert run_verdict(rows, valid=False) == "INVALID"
