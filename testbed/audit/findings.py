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

import numpy as np
import numpy.typing as npt

from testbed.audit.attribution import BOOTSTRAP_SEED
from testbed.audit.contracts import ContractVerdict, DomainEvidence, judge_contracts
from testbed.audit.crossing import Crossing
from testbed.audit.evidence import CONFIDENCE, RunEvidence, promised_confidence
from testbed.audit.folder import had_kept
from testbed.audit.record import Promise
from testbed.audit.spared import Stretch
from testbed.audit.statements import (
    Breach,
    agrees,
    attribution_statement,
    compliance_statement,
    contract_statement,
    evidence_digest,
    plain,
)
from testbed.audit.table import read_series
from testbed.envelope import strict_json

WHOLE_TABLE = "everyone"
"""Subject of a finding about a table that names no tenants."""


class Outcome(StrEnum):
    """What became of a finding that was computed again."""

    SAME = "SAME"
    """The evidence gives the same bytes."""
    DIFFERS = "DIFFERS"
    """The evidence is the one named and gives another finding."""
    ELSEWHERE = "ELSEWHERE"
    """The finding rests on other evidence than what was presented, or is of a kind that is not known here."""


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
    """What findings about a promise and about its tail rest on, and what faults took out of it."""

    latency_s: npt.NDArray[np.float64]
    runs: npt.NDArray[np.int64] | None
    places: Mapping[str, npt.NDArray[np.float64]]
    causes: Mapping[str, npt.NDArray[np.float64]] | None = None
    breaches: tuple[Breach, ...] = ()
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
    """A finding about the promise to each tenant of a table, and one about its tail where that can be shared out.

    Raises:
        TableError: A file that cannot be audited.
    """
    for subject, (series,) in _of_table(path).series.items():
        yield _compliance(subject, series, promise, CONFIDENCE)
        yield from _attribution(subject, series, round(CONFIDENCE * 1e6))


def run_statements(evidence: RunEvidence) -> Iterator[strict_json.Json]:
    """Findings about each promise that a valid run could judge and about its tail, and one for all envelopes together.

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
        for series in found.series[subject]:
            yield from _attribution(subject, series, round(confidence * 1e6))
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
    found = {_subject(rows.tenant): (_Series(rows.latency_s, rows.runs, rows.parts),) for rows in read_series(path)}
    return _Evidence(found, ())


def _of_run(run: RunEvidence) -> _Evidence:
    broken = _broken(run.contracts), _broken(run.unspared)
    series = {_subject(name): tuple(_series(run, name, *broken)) for name in run.crossings}
    left_out = {_subject(name): spared.stretches for name, spared in run.spared.items()}
    families = [_Family(run.contracts, left_out), _Family(run.unspared, {})]
    return _Evidence(series, tuple(family for family in families if family.contracts))


def _series(
    run: RunEvidence, tenant: str, broken: Sequence[DomainEvidence], unspared: Sequence[DomainEvidence]
) -> Iterator[_Series]:
    """What is judged of a tenant with the envelopes broken in it, then, if it is less, everything."""

    def of(crossing: Crossing, broken: Sequence[DomainEvidence], left_out: tuple[Stretch, ...] = ()) -> _Series:
        return _Series(
            latency_s=crossing.latency_s,
            runs=crossing.runs,
            places=crossing.places(),
            causes=crossing.causes(),
            breaches=tuple(
                Breach(item.envelope, crossing.excess_s(item.envelope), had_kept(crossing, item))
                for item in broken
                if item.envelope.subject.tenant == tenant
            ),
            left_out=left_out,
        )

    spared = run.spared.get(tenant)
    yield of(run.judged(tenant), broken, spared.stretches if spared else ())
    if spared:
        yield of(run.crossings[tenant], unspared)


def _broken(family: Sequence[DomainEvidence]) -> list[DomainEvidence]:
    """The envelopes that are broken among all that are judged together."""
    found = judge_contracts(family, CONFIDENCE) if family else ()
    judged = zip(family, found, strict=True)
    return [item for item, finding in judged if finding.verdict is ContractVerdict.BROKEN]


def _subject(tenant: str | None) -> str:
    return WHOLE_TABLE if tenant is None else plain(tenant)


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


def _attribution(
    subject: str, series: _Series, confidence_ppm: int, seed: int = BOOTSTRAP_SEED
) -> Iterator[strict_json.Json]:
    """The finding about a tail, if there is one and it was cut into parts."""
    if not series.places:
        return
    found = attribution_statement(
        subject,
        series.latency_s,
        series.places,
        causes=series.causes,
        breaches=series.breaches,
        confidence_ppm=confidence_ppm,
        seed=seed,
        runs=series.runs,
        left_out=series.left_out,
    )
    if found is not None:
        yield found


def _about(finding: dict[str, Any]) -> str:
    kind = finding.get("kind")
    if kind == "compliance":
        return f"promise to {finding['subject']}: {finding['verdict']}"
    if kind == "attribution":
        return f"tail of {finding['subject']}: {finding['by_place']['named'] or 'nobody'} is named"
    if kind != "contracts":
        return f"a finding of kind {kind}, which is not known here"
    verdicts = ", ".join(f"{item['domain']} for {item['tenant']} {item['verdict']}" for item in finding["findings"])
    return f"envelopes: {verdicts}"


def _outcome(finding: dict[str, Any], evidence: _Evidence) -> Outcome:
    compute = {"compliance": _promise_again, "attribution": _tail_again, "contracts": _family_again}
    known = compute.get(finding.get("kind", ""))
    again = [] if known is None else list(known(finding, evidence))
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


def _tail_again(finding: dict[str, Any], evidence: _Evidence) -> Iterator[strict_json.Json]:
    """The finding about a tail, from each series with the digests that it names."""
    for series in evidence.series.get(finding["subject"], ()):
        if finding["evidence"] == evidence_digest(_answered(series.latency_s), series.runs):
            for again in _attribution(finding["subject"], series, finding["confidence_ppm"], finding["seed"]):
                if _cut(again) == _cut(finding):
                    yield again


def _cut(tail: dict[str, Any]) -> list[str]:
    """Digests of the parts that latencies were cut into."""
    cuts = (tail["by_place"], tail["by_cause"])
    return [part["evidence"] for cut in cuts if cut is not None for part in cut["parts"]]


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
