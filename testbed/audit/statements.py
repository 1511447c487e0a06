"""Findings as documents of integers that anyone with the same evidence computes again, byte for byte.

A statement names the digest of its evidence, the question and the answer, nothing else: no time, no host, no float. So
a domain that is blamed takes the samples, computes the statement and compares bytes. Signing and keeping statements is
for `testbed.audit.ledger`.
"""

from __future__ import annotations

import hashlib
import math
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from testbed.audit.attribution import BOOTSTRAP_SEED, Attribution, Share, attribute
from testbed.audit.causes import Counterfactual
from testbed.audit.clusters import as_series, run_boundaries
from testbed.audit.compliance import judge
from testbed.audit.contracts import ContractFinding, DomainEvidence, Statement, judge_contracts
from testbed.audit.record import completed
from testbed.audit.spared import Stretch
from testbed.envelope import strict_json
from testbed.envelope.descriptor import Envelope
from testbed.envelope.units import ns_up

SCHEMA_VERSION = 1

_PLAIN = "".join(map(chr, range(32, 127))).translate(str.maketrans("", "", '"\\%'))
_EVIDENCE = b"tail-latency-testbed evidence 1\n"


def evidence_digest(series: npt.ArrayLike, runs: npt.ArrayLike | None = None) -> str:
    """SHA-256 of a series in one canonical form.

    Every value is a little-endian double with one spelling of NaN and of zero; where runs start follows. The names of
    the runs do not matter.

    Args:
        series: Seconds in order; NaN where there is none.
        runs: Run id of each value, values of one run together.

    Returns:
        Lower-case hexadecimal.
    """
    values = np.array(series, dtype="<f8", copy=True) + 0.0
    values[np.isnan(values)] = np.nan
    starts = run_boundaries(runs, values.size)
    header = b"%d %d\n" % (values.size, starts.size)
    return hashlib.sha256(_EVIDENCE + header + values.tobytes() + starts.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Breach:
    """An envelope that was broken, and what its domain's excess did to the tenant.

    Attributes:
        envelope: As it was signed.
        excess_s: How far each sample lagged behind it, NaN where it did not cross that stage; seconds, [n].
        had_kept: What would have been.
    """

    envelope: Envelope
    excess_s: npt.ArrayLike
    had_kept: Counterfactual


def plain(name: str) -> str:
    """A name in the letters that a signed document may hold, others percent-encoded."""
    return urllib.parse.quote(name, safe=_PLAIN)


def compliance_statement(
    subject: str,
    latency_s: npt.ArrayLike,
    *,
    deadline_ns: int,
    epsilon_ppb: int,
    confidence_ppm: int = 950_000,
    runs: npt.ArrayLike | None = None,
    left_out: Sequence[Stretch] = (),
) -> strict_json.Json:
    """The finding about one tenant's promise.

    Args:
        subject: Name of the tenant.
        latency_s: Latencies in seconds in order of intended sending; NaN or inf: never answered.
        deadline_ns: Promised latency.
        epsilon_ppb: Promised largest share of misses.
        confidence_ppm: Of each one-sided limit.
        runs: Run id of each sample if several independent runs are pooled.
        left_out: What faults took out of the evidence; a statement without any does not speak of it.
    """
    series = as_series(latency_s)
    found = judge(series, deadline_ns / 1e9, epsilon_ppb / 1e9, confidence_ppm / 1e6, runs)
    effect = found.design_effect
    return {
        "schema": SCHEMA_VERSION,
        "kind": "compliance",
        "subject": subject,
        "deadline_ns": deadline_ns,
        "epsilon_ppb": epsilon_ppb,
        "confidence_ppm": confidence_ppm,
        "evidence": evidence_digest(series, runs),
        "n": found.n,
        "misses": found.misses,
        "design_effect_ppm": None if effect is None else math.ceil(effect * 1e6),
        "miss_rate_upper_ppb": math.ceil(found.miss_rate_upper * 1e9),
        "miss_rate_lower_ppb": math.floor(found.miss_rate_lower * 1e9),
        "verdict": str(found.verdict),
        **_left_out({subject: left_out}),
    }


def contract_statement(
    evidence: Sequence[DomainEvidence],
    confidence_ppm: int = 950_000,
    left_out: Mapping[str, Sequence[Stretch]] = MappingProxyType({}),
) -> strict_json.Json:
    """The findings about a family of envelopes, judged together as `testbed.audit.contracts` does.

    Args:
        evidence: All domains and tenants that are looked at together.
        confidence_ppm: With which no envelope that holds is called BROKEN.
        left_out: What faults took out of the evidence, by tenant.
    """
    found = judge_contracts(evidence, confidence_ppm / 1e6)
    return {
        "schema": SCHEMA_VERSION,
        "kind": "contracts",
        "confidence_ppm": confidence_ppm,
        "findings": [_contract(item, finding) for item, finding in zip(evidence, found, strict=True)],
        **_left_out(left_out),
    }


def attribution_statement(
    subject: str,
    latency_s: npt.ArrayLike,
    places: Mapping[str, npt.ArrayLike],
    *,
    causes: Mapping[str, npt.ArrayLike] | None = None,
    breaches: Sequence[Breach] = (),
    confidence_ppm: int = 950_000,
    seed: int = BOOTSTRAP_SEED,
    runs: npt.ArrayLike | None = None,
    left_out: Sequence[Stretch] = (),
) -> strict_json.Json | None:
    """The finding about whose a tenant's tail is, by place and by cause, as `testbed.audit.attribution` shares it out.

    Shares and levels are rounded to the nearest part per million and times to the nearest nanosecond: a limit that is
    exactly nothing would else depend on the last digit of a sum.

    Args:
        subject: Name of the tenant.
        latency_s: Latencies in seconds in order of intended sending; NaN or inf: never answered; [n].
        places: Name to seconds spent there, [n] each; what they leave of the latency becomes a place of its own.
        causes: Cause to seconds, which add up to the latency, [n] each; None where they cannot be told apart.
        breaches: Envelopes of the tenant that were broken.
        confidence_ppm: Of every interval and of what is named.
        seed: Of the bootstrap.
        runs: Run id of each sample if several independent runs are pooled.
        left_out: What faults took out of the evidence; a statement without any does not speak of it.

    Returns:
        None where there is no tail to share out.
    """
    series = as_series(latency_s)

    def shared(parts: Mapping[str, npt.ArrayLike]) -> strict_json.Json:
        found = attribute(parts, confidence=confidence_ppm / 1e6, runs=runs, seed=seed)
        return _shares(found, {name: evidence_digest(part, runs) for name, part in parts.items()})

    try:
        by_place = shared(completed(series, places))
        by_cause = None if causes is None else shared(causes)
    except ValueError:
        return None
    return {
        "schema": SCHEMA_VERSION,
        "kind": "attribution",
        "subject": subject,
        "confidence_ppm": confidence_ppm,
        "seed": seed,
        "evidence": evidence_digest(series, runs),
        "n": series.size,
        "by_place": by_place,
        "by_cause": by_cause,
        "counterfactuals": [_counterfactual(breach, runs) for breach in breaches],
        **_left_out({subject: left_out}),
    }


def _shares(found: Attribution, digests: Mapping[str, str]) -> strict_json.Json:
    """Everyone's shares of one way to cut the latency; `unshared` have none to share out."""

    def ppm(share: Share) -> strict_json.Json:
        limits = {"share_ppm": share.share, "lower_ppm": share.lower, "upper_ppm": share.upper}
        return {name: None if value is None else round(value * 1e6) for name, value in limits.items()}

    return {
        "level_ppm": round(found.level * 1e6),
        "excess_ns": round(found.excess_s * 1e9),
        "clusters": found.clusters,
        "unshared": found.left_out,
        "named": None if found.named is None else plain(found.named),
        "parts": [
            {
                "name": plain(name),
                "evidence": digests[name],
                "euler": ppm(blame.euler),
                "shapley": ppm(blame.shapley),
            }
            for name, blame in found.blame.items()
        ],
    }


def _counterfactual(breach: Breach, runs: npt.ArrayLike | None) -> strict_json.Json:
    found = breach.had_kept
    measured, kept = (
        round(seconds * 1e9) if math.isfinite(seconds) else None for seconds in (found.measured_s, found.kept_s)
    )
    return {
        "domain": breach.envelope.domain,
        "stage": str(breach.envelope.subject.stage),
        "envelope": breach.envelope.digest,
        "evidence": evidence_digest(breach.excess_s, runs),
        "level_ppm": round(found.level * 1e6),
        "measured_ns": measured,
        "kept_ns": kept,
        "roughly": found.roughly,
    }


def agrees(statement: strict_json.Json, recomputed: strict_json.Json) -> bool:
    """Whether a statement is, byte for byte, what the evidence says."""
    return strict_json.dumps(statement) == strict_json.dumps(recomputed)


def _left_out(stretches: Mapping[str, Sequence[Stretch]]) -> strict_json.Json:
    said = [
        {
            "tenant": tenant,
            "fault": stretch.fault,
            "window": stretch.window,
            "first_ns": round(stretch.first_s * 1e9),
            "last_ns": round(stretch.last_s * 1e9),
            "n": stretch.n,
        }
        for tenant, found in stretches.items()
        for stretch in found
    ]
    return {"left_out": said} if said else {}


def _contract(evidence: DomainEvidence, finding: ContractFinding) -> strict_json.Json:
    return {
        "domain": finding.domain,
        "tenant": finding.tenant,
        "envelope": evidence.envelope.digest,
        "evidence": evidence_digest(evidence.excess_s, evidence.runs),
        "lag_evidence": None if evidence.lag_s is None else evidence_digest(evidence.lag_s, evidence.runs),
        "n": finding.n,
        "errors": evidence.errors,
        "nonconforming": finding.nonconforming,
        "host_share_ppb": math.ceil(evidence.host_share * 1e9),
        "p_value_ppb": math.ceil(finding.p_value * 1e9),
        "adjusted_p_value_ppb": math.ceil(finding.adjusted_p_value * 1e9),
        "statements": [_statement(statement) for statement in finding.statements],
        "verdict": str(finding.verdict),
    }


def _statement(statement: Statement) -> strict_json.Json:
    return {
        "name": statement.name,
        "x_ns": None if statement.x_s is None else ns_up(statement.x_s),
        "promised_ppb": math.ceil(statement.promised * 1e9),
        "measured_ppb": math.ceil(statement.measured * 1e9),
        "upper_ppb": math.ceil(statement.upper * 1e9),
    }
