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
from testbed.audit.spared import Stretch
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
class _Series:
    """What a finding about a promise rests on, and what faults took out of it."""

    latency_s: npt.NDArray[np.float64]
    runs: npt.NDArray[np.int64] | None
    left_out: tuple[Stretch, ...] = ()


@dataclass(frozen=True, slots=True)
class _Family:
    """What a finding about envelopes rests on, and what faults took out of it, by tenant."""

    contracts: tuple[DomainEvidence, ...]
    left_out: Mapping[str, tuple[Stretch, ...]]


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Series by subject, and families of envelopes: what is judged first, then, if it is less, everything."""

    series: Mapping[str, tuple[_Series, ...]]
    families: tuple[_Family, ...]


def table_statements(path: Path, promise: Promise) -> Iterator[strict_json.Json]:
    """One finding for each tenant of a table.

    Raises:
        TableError: A file that cannot be audited.
    """
    for subject, (series,) in _of_table(path).series.items():
        yield _compliance(subject, series, promise, CONFIDENCE)


def run_statements(evidence: RunEvidence) -> Iterator[strict_json.Json]:
    """One finding for each promise that a valid run could judge, and one for all envelopes together.

    Where faults took something out of a promise, each of these is followed by the finding with nothing left out.
    Nothing comes from an invalid run, and none about the promise to a tenant that broke its own contract.
    """
    if not evidence.valid:
        return
    found = _of_run(evidence)
    for tenant in evidence.record.tenants:
        broke = evidence.nonconforming.get(tenant.name, 0) > 0
        if tenant.name not in evidence.crossings or tenant.deadline_s is None or tenant.epsilon is None or broke:
            continue
        promise = Promise.rounded(tenant.deadline_s, tenant.epsilon)
        confidence = promised_confidence(evidence.record, tenant.name)
        subject = _subject(tenant.name)
        for series in found.series[subject]:
            yield _compliance(subject, series, promise, confidence)
    for family in found.families:
        yield contract_statement(family.contracts, round(CONFIDENCE * 1e6), family.left_out)


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
    found = {_subject(rows.tenant): (_Series(rows.latency_s, rows.runs),) for rows in read_series(path)}
    return _Evidence(found, ())


def _of_run(run: RunEvidence) -> _Evidence:
    series = {_subject(name): tuple(_series(run, name)) for name in run.crossings}
    left_out = {_subject(name): spared.stretches for name, spared in run.spared.items()}
    families = [_Family(run.contracts, left_out), _Family(run.unspared, {})]
    return _Evidence(series, tuple(family for family in families if family.contracts))


def _series(run: RunEvidence, tenant: str) -> Iterator[_Series]:
    judged, whole, spared = run.judged(tenant), run.crossings[tenant], run.spared.get(tenant)
    yield _Series(judged.latency_s, judged.runs, spared.stretches if spared else ())
    if spared:
        yield _Series(whole.latency_s, whole.runs)


def _subject(tenant: str | None) -> str:
    """A tenant's name in the letters that a signed document may hold."""
    return WHOLE_TABLE if tenant is None else quote(tenant, safe=_PLAIN)


def _compliance(subject: str, series: _Series, promise: Promise, confidence: float) -> strict_json.Json:
    return compliance_statement(
        subject,
        series.latency_s,
        deadline_ns=promise.deadline_ns,
        epsilon_ppb=promise.epsilon_ppb,
        confidence_ppm=round(confidence * 1e6),
        runs=series.runs,
        left_out=series.left_out,
    )


def _about(finding: dict[str, Any]) -> str:
    if finding["kind"] == "compliance":
        return f"promise to {finding['subject']}: {finding['verdict']}"
    verdicts = ", ".join(f"{item['domain']} for {item['tenant']} {item['verdict']}" for item in finding["findings"])
    return f"envelopes: {verdicts}"


def _outcome(finding: dict[str, Any], evidence: _Evidence) -> Outcome:
    again = list(
        _promise_again(finding, evidence) if finding["kind"] == "compliance" else _family_again(finding, evidence)
    )
    if not again:
        return Outcome.ELSEWHERE
    return Outcome.SAME if any(agrees(finding, each) for each in again) else Outcome.DIFFERS


def _promise_again(finding: dict[str, Any], evidence: _Evidence) -> Iterator[strict_json.Json]:
    """The finding about a promise, from each series that has the digest it names."""
    for series in evidence.series.get(finding["subject"], ()):
        if finding["evidence"] == evidence_digest(_answered(series.latency_s), series.runs):
            yield compliance_statement(
                finding["subject"],
                series.latency_s,
                deadline_ns=finding["deadline_ns"],
                epsilon_ppb=finding["epsilon_ppb"],
                confidence_ppm=finding["confidence_ppm"],
                runs=series.runs,
                left_out=series.left_out,
            )


def _family_again(finding: dict[str, Any], evidence: _Evidence) -> Iterator[strict_json.Json]:
    """The finding about envelopes, from each family that has the digests it names."""
    for family in evidence.families:
        again = contract_statement(family.contracts, finding["confidence_ppm"], family.left_out)
        if _digests(again) == _digests(finding):
            yield again


def _digests(contracts: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(item["evidence"], item["lag_evidence"]) for item in contracts["findings"]]


def _answered(latency_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The series as a compliance statement digests it: what was never answered took infinitely long."""
    return np.where(np.isnan(latency_s), np.inf, latency_s)
