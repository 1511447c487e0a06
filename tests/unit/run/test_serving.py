"""What a warm-up lets a domain sign of its server, and that a bound says what was signed and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from testbed.envelope.descriptor import Envelope, Stage, Validity
from testbed.envelope.errors import WrongRateError
from testbed.errors import FidelityError
from testbed.management.bounds import HOST_RISK
from testbed.management.request_bounds import bound_requests
from testbed.management.requests import ComputeReservation, served_rate_bps, turn_s
from testbed.management.sealing import Computation, compute_envelope
from testbed.run.calibrate import DOMAIN_FLOOR_S, HEADROOM, PATH_CAP_S
from testbed.run.excess import computed_under, refuted
from testbed.run.requests import RequestOutcome
from testbed.run.serving import computation, computations, server_calibration
from testbed.traffic.request_demand import least_wire_bits
from tests.unit.run.test_requests import ASKED, COMPUTE_S, OUT, RATE_BPS, TENANT, outcome, server, terms

FloatArray = npt.NDArray[np.float64]

ALONE = ComputeReservation(1, 0.5, COMPUTE_S)
LARGEST_BITS = math.ceil(OUT.wire_bits(64_000))
REFUSED = 8


def warm_up(late_s: float | FloatArray = 0.0, duration_s: float = 200.0, *, refused: int = 0) -> RequestOutcome:
    """A warm-up in which the server ends each request that much, and a hair, later than a millisecond after it came."""
    seen = outcome(duration_s)
    stamps, status = seen.match.samples.server_s.copy(), seen.match.samples.status.copy()
    stamps[:, 3] += late_s + np.random.default_rng(9).exponential(1e-5, len(stamps))
    status[:refused], stamps[:refused] = REFUSED, np.nan
    return replace(seen, match=replace(seen.match, samples=replace(seen.match.samples, server_s=stamps, status=status)))


def promised(seen: RequestOutcome, share: ComputeReservation = ALONE) -> Computation:
    return computation(TENANT, ASKED, share, seen, network_bps=RATE_BPS)


def signed(found: Computation) -> Envelope:
    return compute_envelope(TENANT.site, found, version=3, validity=Validity(0, 10))


def pauses(share: float, seconds: float, seed: int = 3) -> FloatArray:
    rng = np.random.default_rng(seed)
    n = len(outcome().record.schedule)
    return np.where(rng.random(n) < share, rng.exponential(seconds, n), 0.0)


def test_a_share_is_promised_at_the_speed_measured_with_one_request_of_each_other_tenant_in_its_way() -> None:
    found = signed(promised(warm_up(), ComputeReservation(1, 0.5, COMPUTE_S, (2e-3, 3e-3))))
    rails = found.guardrails
    assert (found.domain, found.subject.service, found.subject.stage) == ("east", "digits-small", Stage.COMPUTE)
    assert rails.reserved_rate_bps == pytest.approx(0.5 * LARGEST_BITS / COMPUTE_S, rel=1e-6)
    assert rails.largest_packet_bits == LARGEST_BITS
    assert rails.host_allowance_s == pytest.approx(DOMAIN_FLOOR_S)
    assert rails.latency_s == pytest.approx(COMPUTE_S + 5e-3 + DOMAIN_FLOOR_S)
    assert (rails.loss_cap_ppb, rails.error_cap_ppb, rails.delay_cap_s) == (0, 0, ASKED.timeout_s)


def test_a_share_beside_computations_that_take_longer_than_turns_go_by_is_promised_less() -> None:
    """Everybody is expected to take 1 s; others take three, and have a turn for each of ours."""
    assert turn_s(0.5, 1.0, 1.0, [(0.5, 1.0, 1.0)]) == 1.0
    assert turn_s(0.5, 1.0, 1.0, [(0.5, 3.0, 1.0)]) == 2.0
    fair, slow = (ComputeReservation(1, 0.5, COMPUTE_S, (COMPUTE_S,), turn) for turn in (COMPUTE_S, 2 * COMPUTE_S))
    usual_bps = promised(warm_up(), fair).rate_bps
    assert promised(warm_up(), slow).rate_bps == pytest.approx(usual_bps / 2, rel=1e-3)


def test_a_server_that_was_in_time_is_declared_without_impairment_and_the_samples_are_named() -> None:
    seen = warm_up()
    found = signed(promised(seen))
    assert found.stochastic is None
    assert found.evidence is not None
    assert found.evidence.n == len(seen.record.schedule)
    assert found.evidence.n_effective > 100
    few = signed(promised(warm_up(duration_s=1.0)))
    assert few.stochastic is None
    assert few.evidence is not None
    assert few.evidence.n_effective == 1


def test_what_the_host_adds_is_granted_up_to_a_cap_and_a_rare_pause_beyond_it_is_no_tail() -> None:
    late = np.zeros(len(outcome().record.schedule))
    late[::1000] = 8e-3
    granted = signed(promised(warm_up(late)))
    assert granted.guardrails.host_allowance_s == pytest.approx(HEADROOM * 8e-3, abs=2e-4)
    assert granted.stochastic is None
    late[:] = 0.0
    late[7] = 0.3
    rare = signed(promised(warm_up(late)))
    assert rare.guardrails.host_allowance_s <= PATH_CAP_S
    assert rare.stochastic is rare.evidence is None


def test_a_server_that_the_host_does_not_excuse_gets_a_tail_that_another_window_does_not_contradict() -> None:
    found = signed(promised(warm_up(pauses(0.01, 0.02))))
    assert found.tail is not None
    least_bits = float(least_wire_bits(np.int64(64_000)))
    assert found.tail.rate_bps == served_rate_bps(
        LARGEST_BITS, least_bits, 1.0, network_bps=RATE_BPS, server_bps=found.guardrails.reserved_rate_bps
    )
    counted_s = LARGEST_BITS / found.tail.rate_bps
    assert least_bits / RATE_BPS * (1 - 1e-6) <= counted_s <= least_bits / RATE_BPS, "so that network tails may be used"
    epsilon = 1e-3
    for late, broken in ((pauses(0.01, 0.02, seed=4), False), (pauses(0.04, 0.04, seed=5), True)):
        held_out = computed_under(warm_up(late).match.samples, found)
        assert bool(refuted([(found, held_out)], host_share=HOST_RISK * epsilon)) == broken


def test_refused_requests_are_in_the_promise_and_a_declaration_of_none_is_refuted_by_them() -> None:
    seen = warm_up(refused=40)
    found = signed(promised(seen))
    assert found.error_probability > 40 / len(seen.record.schedule)
    declared = replace(found, stochastic=None, guardrails=replace(found.guardrails, error_cap_ppb=0))
    (said,) = refuted([(declared, computed_under(seen.match.samples, declared))])
    assert "the server of east broke its envelope for alpha: error" in said.replace("The server", "the server")


def test_a_domain_that_declares_nothing_signs_a_tail_of_a_server_that_was_in_time_too() -> None:
    declared = server()
    seen = warm_up()
    kept = server_calibration(seen, declared, RATE_BPS, declares_none=True)
    measured = server_calibration(seen, declared, RATE_BPS, declares_none=False)
    assert kept is not None
    assert measured is not None
    assert kept.stochastic is None
    assert measured.stochastic is not None


def test_the_bound_is_that_of_the_signed_envelope_without_what_the_host_is_granted() -> None:
    bound = bound_requests(TENANT, terms(), host_s=0.0)
    usual = server().latency_s
    slower = bound_requests(TENANT, terms(server(latency_s=usual + 0.01)), host_s=0.0)
    granted = bound_requests(TENANT, terms(server(latency_s=usual + 0.01, host_allowance_s=0.01)), host_s=0.0)
    assert slower.bound_s - bound.bound_s == pytest.approx(0.01, rel=1e-6)
    assert granted.bound_s == pytest.approx(bound.bound_s, rel=1e-6)
    halved = bound_requests(TENANT, terms(server(8e-3, latency_s=usual, meter_rate_bps=8_000_000)), host_s=0.0)
    assert halved.bound_s > bound.bound_s, "a server slower than the network makes requests wait for each other"


def test_a_tail_that_is_signed_is_in_the_bound_and_one_of_another_rate_is_refused() -> None:
    tenant = replace(TENANT, promise=replace(TENANT.promise, epsilon=0.05)) if TENANT.promise else TENANT
    found = server_calibration(warm_up(pauses(0.01, 0.02)), server(), RATE_BPS, declares_none=True)
    assert found is not None
    assert found.stochastic is not None
    tailed = server(calibrated=(found.stochastic, found.evidence))
    with_tail = bound_requests(tenant, terms(tailed), host_s=0.0)
    assert with_tail.bound_s > bound_requests(tenant, terms(), host_s=0.0).bound_s
    answering = replace(terms(tailed), answer_bits=int(1.1 * LARGEST_BITS))
    with pytest.raises(WrongRateError, match="ask for a calibration on this path"):
        _ = answering.path


def test_nothing_is_asked_of_a_server_where_nobody_reserves() -> None:
    silent = warm_up()
    never = np.full_like(silent.match.samples.server_s, np.nan)
    silent = replace(silent, match=replace(silent.match, samples=replace(silent.match.samples, server_s=never)))
    alone = SimpleNamespace(tenants=(replace(TENANT, reservation=None, promise=None),), slow_down=1.0)
    on_paper = SimpleNamespace(envelopes=lambda _: [])
    assert computations(alone, on_paper, {TENANT.name: silent}) == {}  # type: ignore[arg-type]
    reserving = SimpleNamespace(tenants=(TENANT,), slow_down=1.0)
    with pytest.raises(FidelityError, match="no request was answered during the warm-up"):
        computations(reserving, on_paper, {TENANT.name: silent})  # type: ignore[arg-type]
