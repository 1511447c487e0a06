"""The tail-risk envelope: what one domain promises one tenant, as data.

Guardrails hold surely and are enforced by meters and queues; the stochastic part bounds how often, and by how much, the
domain lags behind them. Integers only on the wire, so that a promise has one byte string; floats in SI units as
properties for those who calculate. Whether anybody signed an envelope, and whether it is still valid, is not known
here (`testbed.envelope.store`).

Sizes are L2 frames without FCS. The lingering excess Y of a packet is defined in docs/envelope.md: how far the domain
is behind an ideal FIFO of the named rate plus the latency, kept in memory until that FIFO has idled for as long.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from testbed.envelope import strict_json
from testbed.envelope.errors import ExpiredError, MalformedError, NotYetValidError
from testbed.envelope.fields import DIGEST, ONE_IN_PPM, SENTENCE, Problems, Record, members, require_schema
from testbed.envelope.guardrails import Guardrails
from testbed.envelope.tail import ExcessTail, Stochastic

PAYLOAD_TYPE = "application/vnd.tail-risk-envelope+json"
SCHEMA_VERSION = 1


class Stage(StrEnum):
    """Which of a domain's resources a promise is about."""

    NETWORK = "network"
    COMPUTE = "compute"


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom and what a promise is for, within its domain.

    Attributes:
        tenant: Who may use it.
        tenant_class: Kind of treatment, e.g. `reserved`.
        service: What is served, e.g. `packet-forwarding` or the name of a model.
        stage: Network or compute.
    """

    tenant: str
    tenant_class: str
    service: str
    stage: Stage

    def __post_init__(self) -> None:
        """Raises `MalformedError` for anything that is no identifier."""
        problems = Problems("subject")
        problems.name("tenant", self.tenant)
        problems.name("tenant_class", self.tenant_class)
        problems.name("service", self.service)
        problems.kind("stage", self.stage, Stage)
        problems.check()

    def __str__(self) -> str:
        return f"{self.tenant}/{self.tenant_class}/{self.service}/{self.stage}"

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "tenant": self.tenant,
            "tenant_class": self.tenant_class,
            "service": self.service,
            "stage": str(self.stage),
        }

    @classmethod
    def from_dict(cls, document: strict_json.Json) -> Self:
        """Inverse of `to_dict`; raises `MalformedError`."""
        found = members(document, "subject", ("tenant", "tenant_class", "service", "stage"))
        stage = _STAGES.get(found["stage"]) if isinstance(found["stage"], str) else None
        if stage is None:
            raise MalformedError(f"subject.stage: found {found['stage']!r}, expected one of {sorted(_STAGES)}")
        return cls(found["tenant"], found["tenant_class"], found["service"], stage)


_STAGES = {str(stage): stage for stage in Stage}


@dataclass(frozen=True, slots=True)
class Validity(Record):
    """When an envelope may be used.

    Attributes:
        not_before_s: First second, Unix time.
        not_after_s: Last second, Unix time.
    """

    not_before_s: int
    not_after_s: int

    def __post_init__(self) -> None:
        """Raises `MalformedError` for an empty or unreal interval."""
        problems = Problems("validity")
        problems.integer("not_before_s", self.not_before_s, 0)
        problems.integer("not_after_s", self.not_after_s, 0)
        if not problems and self.not_after_s < self.not_before_s:
            problems.add(f"not_after_s {self.not_after_s} is before not_before_s {self.not_before_s}; exchange them")
        problems.check()

    def require(self, now_s: float, what: str) -> None:
        """Check that a moment lies inside.

        Raises:
            NotYetValidError: Too early, or no moment at all (NaN).
            ExpiredError: Too late.
        """
        # Every comparison with NaN is false, so each is asked for what must hold and not for what must not.
        if not now_s >= self.not_before_s:
            raise NotYetValidError(f"{what}: valid from {self.not_before_s}, now is {now_s:.0f}; check the clock")
        if not now_s <= self.not_after_s:
            raise ExpiredError(f"{what}: valid until {self.not_after_s}, now is {now_s:.0f}; ask for a new one")


@dataclass(frozen=True, slots=True)
class Evidence(Record):
    """Where the figures come from, so that an auditor can ask for the samples and repeat the sum.

    Attributes:
        digest: SHA-256 of the samples, lower-case hexadecimal (`testbed.envelope.calibration.digest`).
        n: Samples.
        n_effective: Independent samples that say as much.
        method: How the limits follow from the samples, in one sentence.
        confidence_ppm: Confidence with which all limits hold together.
    """

    digest: str
    n: int
    n_effective: int
    method: str
    confidence_ppm: int

    def __post_init__(self) -> None:
        """Raises `MalformedError` naming every field out of range."""
        problems = Problems("evidence")
        problems.text("digest", self.digest, DIGEST, "64 lower-case hexadecimal digits")
        problems.integer("n", self.n, 1)
        problems.integer("n_effective", self.n_effective, 1)
        problems.text("method", self.method, SENTENCE, "up to 160 printable ASCII characters without quotes")
        problems.integer("confidence_ppm", self.confidence_ppm, 500_000, ONE_IN_PPM - 1)
        if not problems and self.n_effective > self.n:
            problems.add(f"n_effective {self.n_effective} is above n {self.n}; samples never say more than they are")
        problems.check()

    @property
    def confidence(self) -> float:
        """Confidence as a share."""
        return self.confidence_ppm / 1e6


@dataclass(frozen=True, slots=True)
class Envelope:
    """One promise of one domain.

    Attributes:
        domain: Who promises; only keys of this domain may sign it.
        subject: To whom, and about what.
        guardrails: What holds surely.
        stochastic: What holds with probability; None where the domain declares no impairment, so that every packet
            leaves within the guardrails.
        validity: When.
        version: Number of the offer. Everything a domain offers one tenant at once carries the same number, and a
            later offer a larger one.
        evidence: What the figures rest on; required with a stochastic part.
    """

    domain: str
    subject: Subject
    guardrails: Guardrails
    stochastic: Stochastic | None
    validity: Validity
    version: int
    evidence: Evidence | None

    def __post_init__(self) -> None:
        """Raises `MalformedError` naming every field out of range and every contradiction."""
        problems = Problems("envelope")
        problems.name("domain", self.domain)
        problems.kind("subject", self.subject, Subject)
        problems.kind("guardrails", self.guardrails, Guardrails)
        problems.kind("stochastic", self.stochastic, Stochastic, optional=True)
        problems.kind("validity", self.validity, Validity)
        problems.integer("version", self.version, 1)
        problems.kind("evidence", self.evidence, Evidence, optional=True)
        if not problems and self.stochastic is not None:
            if self.evidence is None:
                problems.add("a stochastic part without evidence; sign the digest and number of its samples")
            if self.stochastic.tail.rate_bps > self.guardrails.reserved_rate_bps:
                problems.add(
                    f"tail.rate_bps {self.stochastic.tail.rate_bps} is above reserved_rate_bps "
                    f"{self.guardrails.reserved_rate_bps}; calibrate at a rate that is reserved"
                )
        problems.check()

    @property
    def latency_s(self) -> float:
        """T in seconds."""
        return self.guardrails.latency_s

    @property
    def tail(self) -> ExcessTail | None:
        """Tail of the lingering excess, None where there is none."""
        return None if self.stochastic is None else self.stochastic.tail

    @property
    def loss_probability(self) -> float:
        """Probability that a conforming packet is lost: the smaller of estimate and cap."""
        cap = self.guardrails.loss_cap_ppb
        return (cap if self.stochastic is None else min(cap, self.stochastic.loss_ppb)) / 1e9

    @property
    def error_probability(self) -> float:
        """Probability that a conforming request ends in an error: the smaller of estimate and cap."""
        cap = self.guardrails.error_cap_ppb
        return (cap if self.stochastic is None else min(cap, self.stochastic.error_ppb)) / 1e9

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes: the name of exactly this promise."""
        return hashlib.sha256(strict_json.dumps(self.to_dict())).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "schema": SCHEMA_VERSION,
            "domain": self.domain,
            "subject": self.subject.to_dict(),
            "guardrails": self.guardrails.to_dict(),
            "stochastic": None if self.stochastic is None else self.stochastic.to_dict(),
            "validity": self.validity.to_dict(),
            "version": self.version,
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
        }

    @classmethod
    def from_dict(cls, document: strict_json.Json) -> Self:
        """Inverse of `to_dict`.

        Raises:
            MalformedError: Another schema, unknown or missing members, or values no envelope may have.
        """
        require_schema(document, "envelope", SCHEMA_VERSION)
        found = members(document, "envelope", _ENVELOPE_MEMBERS)
        stochastic, evidence = found["stochastic"], found["evidence"]
        return cls(
            domain=found["domain"],
            subject=Subject.from_dict(found["subject"]),
            guardrails=Guardrails.from_dict(found["guardrails"]),
            stochastic=None if stochastic is None else Stochastic.from_dict(stochastic),
            validity=Validity.from_dict(found["validity"]),
            version=found["version"],
            evidence=None if evidence is None else Evidence.from_dict(evidence),
        )


_ENVELOPE_MEMBERS = frozenset(
    {"schema", "domain", "subject", "guardrails", "stochastic", "validity", "version", "evidence"}
)
