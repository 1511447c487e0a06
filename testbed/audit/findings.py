"""Findings about a table or a run, as statements to be signed, and the same findings computed again by whoever doubts.

What a statement holds is `testbed.audit.statements`' and where it is kept `testbed.audit.ledger`'s. Here is only which
statements a piece of evidence gives rise to, and how a statement found in a log is held against evidence: the question
is taken from the statement, the answer is computed anew, and the bytes are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from testbed.audit.contracts import DomainEvidence
from testbed.audit.evidence import CONFIDENCE, RunEvidence, promised_confidence
from testbed.audit.record import Promise
from testbed.audit.statements import agrees, compliance_statement, contract_statement, evidence_digest
from testbed.audit.table import read_series
from testbed.envelope import strict_json

WHOLE_TABLE = "everyone"
"""Subject of a finding about a table that names no tenants."""

_PLAIN = "".join(map(chr, range(32, 127))).translate(str.maketrans("", "", '"\\%'))


class Outcome(StrEnum):
    """What became of a finding that was computed again."""

    SAME = "SAME"
    """The evidence gives the same bytes."""
    DIFFERS = "DIFFERS"
    """The evidence is the one named and gives another finding."""
    ELSEWHERE = "ELSEWHERE"
    """The finding rests on other evidence than what was presented."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """One finding of a log, held against evidence.

    Attributes:
        line: Its line in the log, from 1.
        about: What it is about, for a reader.
        outcome: What came of it.
    """

    line: int
    about: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Series that compliance rests on by subject, and the family that contracts rest on."""

    series: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64] | None]]
    contracts: tuple[DomainEvidence, ...]


def table_statements(path: Path, promise: Promise) -> Iterator[strict_json.Json]:
    """One finding for each tenant of a table.

    Raises:
        TableError: A file that cannot be audited.
    """
    for subject, (latency_s, runs) in _of_table(path).series.items():
        yield _compliance(subject, latency_s, runs, promise, CONFIDENCE)


def run_statements(evidence: RunEvidence) -> Iterator[strict_json.Json]:
    """One finding for each promise that a valid run could judge, and one for all envelopes together.

    Nothing comes from an invalid run, and none about the promise to a tenant that broke its own contract.
    """
    if not evidence.valid:
        return
    for tenant in evidence.record.tenants:
        broke = evidence.nonconforming.get(tenant.name, 0) > 0
        crossing = evidence.crossings.get(tenant.name)
        if crossing is None or tenant.deadline_s is None or tenant.epsilon is None or broke:
            continue
        promise = Promise(tenant.deadline_s, tenant.epsilon)
        confidence = promised_confidence(evidence.record, tenant.name)
        yield _compliance(tenant.name, crossing.latency_s, crossing.runs, promise, confidence)
    if evidence.contracts:
        yield contract_statement(evidence.contracts, round(CONFIDENCE * 1e6))


def recompute(findings: Sequence[strict_json.Json], source: RunEvidence | Path) -> tuple[Recomputed, ...]:
    """Compute every finding of a log again from evidence.

    Args:
        findings: As `testbed.audit.ledger.verify` returned them.
        source: A run's evidence, or a table of latencies.

    Raises:
        TableError: A file that cannot be audited.
    """
    evidence = _of_run(source) if isinstance(source, RunEvidence) else _of_table(source)
    return tuple(
        Recomputed(line, _about(finding), _outcome(finding, evidence)) for line, finding in enumerate(findings, start=1)
    )


def _of_table(path: Path) -> _Evidence:
    found = {_subject(series.tenant): (series.latency_s, series.runs) for series in read_series(path)}
    return _Evidence(found, ())


def _of_run(run: RunEvidence) -> _Evidence:
    series = {_subject(name): (crossing.latency_s, crossing.runs) for name, crossing in run.crossings.items()}
    return _Evidence(series, run.contracts)


def _subject(tenant: str | None) -> str:
    """A tenant's name in the letters that a signed document may hold."""
    return WHOLE_TABLE if tenant is None else quote(tenant, safe=_PLAIN)


def _compliance(
    subject: str,
    latency_s: npt.NDArray[np.float64],
    runs: npt.NDArray[np.int64] | None,
    promise: Promise,
    confidence: float,
) -> strict_json.Json:
    return compliance_statement(
        subject,
        latency_s,
        deadline_ns=round(promise.deadline_s * 1e9),
        epsilon_ppb=round(promise.epsilon * 1e9),
        confidence_ppm=round(confidence * 1e6),
        runs=runs,
    )


def _about(finding: dict[str, Any]) -> str:
    if finding["kind"] == "compliance":
        return f"promise to {finding['subject']}: {finding['verdict']}"
    verdicts = ", ".join(f"{item['domain']} for {item['tenant']} {item['verdict']}" for item in finding["findings"])
    return f"envelopes: {verdicts}"


def _outcome(finding: dict[str, Any], evidence: _Evidence) -> Outcome:
    if finding["kind"] == "compliance":
        latency_s, runs = evidence.series.get(finding["subject"], (np.empty(0), None))
        if not latency_s.size or finding["evidence"] != evidence_digest(_answered(latency_s), runs):
            return Outcome.ELSEWHERE
        again = compliance_statement(
            finding["subject"],
            latency_s,
            deadline_ns=finding["deadline_ns"],
            epsilon_ppb=finding["epsilon_ppb"],
            confidence_ppm=finding["confidence_ppm"],
            runs=runs,
        )
    else:
        again = contract_statement(evidence.contracts, finding["confidence_ppm"])
        if _digests(again) != _digests(finding):
            return Outcome.ELSEWHERE
    return Outcome.SAME if agrees(finding, again) else Outcome.DIFFERS


def _digests(contracts: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(item["evidence"], item["lag_evidence"]) for item in contracts["findings"]]


def _answered(latency_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The series as a compliance statement digests it: what was never answered took infinitely long."""
    return np.where(np.isnan(latency_s), np.inf, latency_s)
