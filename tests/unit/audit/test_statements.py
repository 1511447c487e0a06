"""Findings that a domain computes again from the evidence, byte for byte."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from testbed.audit import known
from testbed.audit.contracts import DomainEvidence
from testbed.audit.ledger import append, verify
from testbed.audit.statements import agrees, compliance_statement, contract_statement, evidence_digest
from testbed.envelope.keys import SigningKey
from tests.unit.audit.test_contracts import conforming, envelope

SERIES = known.mm1(0.5).draw(20_000, np.random.default_rng(1))


def test_the_same_evidence_gives_the_same_bytes() -> None:
    first = compliance_statement("alice", SERIES, deadline_ns=20_000_000_000, epsilon_ppb=1_000_000)
    second = compliance_statement("alice", SERIES.tolist(), deadline_ns=20_000_000_000, epsilon_ppb=1_000_000)
    assert agrees(first, second)


def test_one_changed_sample_changes_the_statement() -> None:
    changed = SERIES.copy()
    changed[100] = math.nextafter(changed[100], math.inf)
    first, second = (
        compliance_statement("alice", series, deadline_ns=20_000_000_000, epsilon_ppb=1_000_000)
        for series in (SERIES, changed)
    )
    assert not agrees(first, second)
    assert {name for name in first if first[name] != second[name]} == {"evidence"}


def test_a_digest_has_one_spelling_of_what_is_missing_and_of_zero_and_ignores_names_of_runs() -> None:
    assert evidence_digest([0.0, math.nan]) == evidence_digest([-0.0, -math.nan])
    assert evidence_digest([1.0, 2.0], ["a", "b"]) == evidence_digest([1.0, 2.0], [7, 3])
    assert evidence_digest([1.0, 2.0], [1, 2]) != evidence_digest([1.0, 2.0])
    assert evidence_digest([1.0, 2.0, 3.0], [1, 1, 2]) != evidence_digest([1.0, 2.0, 3.0], [1, 2, 2])


def test_a_blamed_domain_recomputes_the_finding_in_the_log(tmp_path: Path) -> None:
    key, log = SigningKey.generate(), tmp_path / "findings.log"
    family = [
        DomainEvidence(envelope(f"d{i}"), conforming(np.random.default_rng(i), scale=1 + 2 * i)) for i in range(2)
    ]
    append(log, contract_statement(family), key)
    (found,) = verify(log, {key.key_id: key.public_key}).findings
    assert [item["verdict"] for item in found["findings"]] == ["UNDETERMINED", "BROKEN"]
    assert agrees(found, contract_statement(family))
    assert not agrees(found, contract_statement(family[::-1]))


def test_limits_round_to_the_side_that_claims_less() -> None:
    found = compliance_statement("alice", SERIES, deadline_ns=20_000_000_000, epsilon_ppb=1_000_000)
    assert found["miss_rate_upper_ppb"] > found["miss_rate_lower_ppb"] >= 0
    assert found["design_effect_ppm"] >= 1_000_000
    short = compliance_statement("alice", [0.1] * 100, deadline_ns=20_000_000_000, epsilon_ppb=1_000_000)
    assert (short["design_effect_ppm"], short["miss_rate_upper_ppb"], short["verdict"]) == (
        None,
        1_000_000_000,
        "UNDETERMINED",
    )
