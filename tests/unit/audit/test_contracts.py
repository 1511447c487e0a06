"""Envelopes against what was measured in their own domain, a family at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from testbed.audit.contracts import ContractVerdict, DomainEvidence, holm, judge_contracts
from testbed.envelope.descriptor import Envelope
from testbed.envelope.tail import Stochastic
from tests.unit.envelope import samples

N = 40_000


def envelope(domain: str = "north", *, impaired: bool = True, loss_ppb: int = 1_000_000) -> Envelope:
    """P(Y > x) <= .01 exp(-1000 (x - 1 ms)) up to 4 ms, at most 20 ms, loss at most 1e-3, no errors."""
    tail = samples.tail(exceedance_ppb=10_000_000, decay_micro_per_s=1_000_000_000, x_max_ns=4_000_000)
    return samples.envelope(
        domain=domain,
        guardrails=samples.guardrails(
            latency_ns=5_000_000, host_allowance_ns=1_000_000, delay_cap_ns=20_000_000, loss_cap_ppb=1_000_000
        ),
        stochastic=Stochastic(tail, loss_ppb, 0) if impaired else None,
        version=1,
        evidence=samples.evidence() if impaired else None,
    )


def conforming(rng: np.random.Generator, n: int = N, scale: float = 1.0) -> np.ndarray:
    """Excess exactly as frequent as the envelope allows (times scale), independent from packet to packet."""
    probability = rng.random(n)
    tail = 1e-3 + np.log(np.maximum(0.01 * scale / probability, 1.0)) / 1000
    return np.where(probability < 0.01 * scale, np.minimum(tail, 4e-3), rng.random(n) * 1e-4)


def test_an_envelope_kept_exactly_is_seldom_called_broken() -> None:
    rng = np.random.default_rng(1)
    family = [[DomainEvidence(envelope(f"d{i}"), conforming(rng)) for i in range(4)] for _ in range(60)]
    accused = sum(any(f.verdict is ContractVerdict.BROKEN for f in judge_contracts(items)) for items in family)
    # Nominal 5 % for the whole family; three standard deviations of 60 repetitions are 8 points.
    assert accused <= 0.13 * 60


def test_the_domain_that_broke_its_envelope_is_the_one_accused() -> None:
    rng = np.random.default_rng(2)
    items = [DomainEvidence(envelope(f"d{i}"), conforming(rng, scale=2.0 if i == 2 else 0.3)) for i in range(4)]
    found = judge_contracts(items)
    assert [f.verdict is ContractVerdict.BROKEN for f in found] == [False, False, True, False]
    assert "d2 broke its envelope for alice: excess beyond" in found[2].reason
    assert found[2].p_value > 0
    assert found[2].adjusted_p_value == pytest.approx(4 * found[2].p_value, rel=1e-9, abs=0)


def test_clustered_excess_of_the_promised_frequency_is_no_breach() -> None:
    # The same frequency in bursts of 60 packets: 400 packets beyond 1 ms are seven events.
    rng = np.random.default_rng(3)
    accused = 0
    for _ in range(40):
        excess = np.repeat(conforming(rng, N // 60), 60)
        accused += judge_contracts([DomainEvidence(envelope(), excess)])[0].verdict is ContractVerdict.BROKEN
    assert accused <= 0.15 * 40


def test_an_envelope_kept_by_far_is_certified() -> None:
    rng = np.random.default_rng(4)
    item = DomainEvidence(replace(envelope(), version=2), conforming(rng, 200_000, scale=0.01))
    found = judge_contracts([item])[0]
    assert found.verdict is ContractVerdict.HELD
    assert all(s.upper <= s.promised for s in found.statements)


def test_too_few_packets_certify_nothing_and_contradict_nothing() -> None:
    found = judge_contracts([DomainEvidence(envelope(), conforming(np.random.default_rng(5), 500, scale=0.5))])[0]
    assert found.verdict is ContractVerdict.UNDETERMINED
    assert "cannot certify" in found.reason


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"excess": 0.021}, "delay cap"),
        ({"lost": 200}, "loss"),
        ({"errors": 1}, "error"),
    ],
)
def test_each_statement_of_an_envelope_is_tested(change: dict[str, Any], broken: str) -> None:
    rng = np.random.default_rng(6)
    excess = conforming(rng, scale=0.3)
    if "excess" in change:
        excess[100] = change["excess"]
    if "lost" in change:
        excess[rng.choice(N, change["lost"], replace=False)] = math.nan
    found = judge_contracts([DomainEvidence(envelope(), excess, errors=change.get("errors", 0))])[0]
    assert found.verdict is ContractVerdict.BROKEN
    assert f"alice: {broken}" in found.reason


def test_a_promise_of_no_impairment_is_broken_by_one_packet() -> None:
    excess = np.zeros(N)
    assert judge_contracts([DomainEvidence(envelope(impaired=False), excess)])[0].p_value == 1
    excess[7] = 1e-5
    found = judge_contracts([DomainEvidence(envelope(impaired=False), excess)])[0]
    assert found.verdict is ContractVerdict.BROKEN
    assert "later than promised: 2.5e-05 of the packets, at most 0 promised" in found.reason


def test_the_least_that_a_domain_was_behind_certifies_nothing_and_still_accuses() -> None:
    rng = np.random.default_rng(4)
    requests = DomainEvidence(envelope(), conforming(rng, 200_000, scale=0.01), what="requests", least=True)
    (kept,) = judge_contracts([requests])
    assert kept.verdict is ContractVerdict.UNDETERMINED
    assert "requests tell only the least that it was behind" in kept.reason
    (broken,) = judge_contracts([replace(requests, excess_s=conforming(rng, 200_000, scale=2.0))])
    assert broken.verdict is ContractVerdict.BROKEN


def test_silence_certifies_nothing_unless_something_shows_how_packets_cling() -> None:
    # Excess in one burst of 5,000 in ten million packets would be seen here once in 250 times.
    silent = np.zeros(N)
    unknown = judge_contracts([DomainEvidence(envelope(), silent)])[0]
    assert unknown.verdict is ContractVerdict.UNDETERMINED
    rng = np.random.default_rng(8)
    independent, clinging = rng.exponential(1e-3, N), np.repeat(rng.exponential(1e-3, N // 400), 400)
    assert judge_contracts([DomainEvidence(envelope(), silent, independent)])[0].verdict is ContractVerdict.HELD
    clung = judge_contracts([DomainEvidence(envelope(), silent, clinging)])[0]
    assert clung.verdict is ContractVerdict.UNDETERMINED
    assert max(s.upper for s in clung.statements) > 0.01


def test_a_lag_of_other_packets_is_refused() -> None:
    with pytest.raises(ValueError, match="lag of north"):
        judge_contracts([DomainEvidence(envelope(), np.zeros(5), np.zeros(6))])


def test_a_tenant_that_broke_its_own_contract_excuses_the_domain_and_leaves_the_family() -> None:
    rng = np.random.default_rng(7)
    broken = conforming(rng, scale=3.0)
    excused, accused = judge_contracts(
        [DomainEvidence(envelope("a"), broken, nonconforming=12), DomainEvidence(envelope("b"), broken)]
    )
    assert excused.verdict is ContractVerdict.EXCUSED
    assert "alice sent 12 packets beyond its token bucket" in excused.reason
    assert accused.verdict is ContractVerdict.BROKEN
    assert accused.adjusted_p_value == accused.p_value


def test_holm_multiplies_by_what_is_left_and_never_reverses_an_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("excess", [[], [[0.1]], [0.1, -0.1]])
def test_excess_that_is_no_series_is_refused(excess: list[float]) -> None:
    with pytest.raises(ValueError, match="excess of north"):
        judge_contracts([DomainEvidence(envelope(), excess)])


def test_more_errors_than_packets_are_refused() -> None:
    with pytest.raises(ValueError, match="errors of north"):
        judge_contracts([DomainEvidence(envelope(), [0.1], errors=2)])
