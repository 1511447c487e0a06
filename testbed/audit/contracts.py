"""Each domain's signed envelope against what was measured in that domain alone, many of them judged at once.

An envelope makes several statements: how often the lingering excess exceeds what, that it never exceeds its cap, how
much is lost, how much ends in an error. Each becomes a null hypothesis with a p-value on effective counts, and Holm's
procedure keeps the probability of accusing any domain that kept its word at most 1 - confidence over the whole family.
A domain is excused where the tenant broke its own contract, for the envelope speaks of conforming traffic only. No
envelope is certified from silence: where too little is seen to tell how slow packets cling together, it is not called
HELD, and one cluster is all that any number of packets beyond the promise counts as.
Whether one tail alone is contradicted is also asked, by the domain itself, in `testbed.envelope.heldout`; who caused a
slow request without breaking anything is for `testbed.audit.attribution`.

Sources: Holm, "A simple sequentially rejective multiple test procedure" (1979); Clopper and Pearson (1934).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from scipy.special import betainc

from testbed.audit.clusters import FloatArray, measure_dependence
from testbed.audit.compliance import upper_limit
from testbed.envelope.descriptor import Envelope, Stage
from testbed.envelope.tail import ExcessTail

_LEVELS = 8
_STEP = 4.0


class ContractVerdict(StrEnum):
    """What the measurement says about a domain's envelope."""

    HELD = "HELD"
    BROKEN = "BROKEN"
    UNDETERMINED = "UNDETERMINED"
    EXCUSED = "EXCUSED"


@dataclass(frozen=True, slots=True)
class DomainEvidence:
    """What was measured in one stage of one domain for one tenant, in the order in which its packets were sent.

    Attributes:
        envelope: The promise.
        excess_s: Lingering excess of each packet that entered the domain, seconds; NaN where it was lost there.
        lag_s: How far behind the start of its service in the ideal server each of them left, seconds, the promised
            latency not taken off: it tells how slow packets cling together where hardly one has an excess. Below zero
            for those that left before. None if that was not measured.
        errors: Requests that entered and were answered by an error.
        nonconforming: Packets the tenant sent beyond its token bucket (`testbed.audit.conformance`).
        what: `packets`, or `requests` where only those are known; each counts as the packet that ends it.
        least: Whether the excess may have been larger than measured; then nothing is certified.
        runs: Run id of each packet if several independent runs are pooled.
        host_share: Share of the packets that the host which emulates the domain may delay beyond the envelope; added to
            every promised probability of excess, that of the cap, which is 0, too.
    """

    envelope: Envelope
    excess_s: npt.ArrayLike
    lag_s: npt.ArrayLike | None = None
    errors: int = 0
    nonconforming: int = 0
    what: str = "packets"
    least: bool = False
    runs: npt.ArrayLike | None = None
    host_share: float = 0.0

    @property
    def who(self) -> str:
        """Who promised, as sentences say it."""
        return _who(self.envelope.domain, self.envelope.subject.stage)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of an envelope and what became of it.

    Attributes:
        name: `excess`, `no impairment`, `delay cap`, `loss` or `error`.
        x_s: The excess it speaks about; None for loss and error.
        promised: Largest probability promised.
        measured: Share of the packets.
        upper: Upper confidence limit of the probability, 1 where nothing tells how exceedances cling together; for a
            sure statement 0, or 1 once contradicted.
        p_value: Probability of a share this large if the statement holds.
    """

    name: str
    x_s: float | None
    promised: float
    measured: float
    upper: float
    p_value: float


@dataclass(frozen=True, slots=True)
class ContractFinding:
    """One domain's envelope, judged together with all others of its family.

    Attributes:
        domain: Whose envelope.
        stage: What it is about.
        tenant: For whom.
        verdict: BROKEN if the data contradict it; HELD if every probability is certified and no sure statement was
            contradicted; EXCUSED if the tenant broke its own contract first.
        p_value: Of the envelope as a whole, for this envelope alone.
        adjusted_p_value: The same with Holm's correction for the family.
        n: Packets that entered.
        nonconforming: Packets that the tenant sent beyond its token bucket.
        statements: Every statement with its numbers.
        reason: The verdict in one sentence.
    """

    domain: str
    stage: Stage
    tenant: str
    verdict: ContractVerdict
    p_value: float
    adjusted_p_value: float
    n: int
    nonconforming: int
    statements: tuple[Statement, ...]
    reason: str

    @property
    def who(self) -> str:
        """Who promised, as sentences say it."""
        return _who(self.domain, self.stage)


def judge_contracts(evidence: Sequence[DomainEvidence], confidence: float = 0.95) -> tuple[ContractFinding, ...]:
    """Judge a family of envelopes.

    Args:
        evidence: One entry for each domain and tenant, all that are looked at together.
        confidence: With this probability no envelope that holds is called BROKEN, whatever the others do.

    Returns:
        One finding for each entry, in order.

    Raises:
        ValueError: Excess that is negative, empty or not one-dimensional, or more errors than packets.
    """
    statements = [_statements(item, confidence) for item in evidence]
    alone = [min(1.0, len(found) * min(s.p_value for s in found)) for found in statements]
    tested = [i for i, item in enumerate(evidence) if item.nonconforming == 0]
    adjusted = dict(zip(tested, holm([alone[i] for i in tested]), strict=True))
    return tuple(
        _finding(item, found, alone[i], adjusted.get(i, 1.0), 1 - confidence)
        for i, (item, found) in enumerate(zip(evidence, statements, strict=True))
    )


def excess_share_upper(excess_s: FloatArray, lag_s: FloatArray, runs: npt.ArrayLike | None, confidence: float) -> float:
    """Upper confidence limit of the share of packets with any excess; 1 where nothing tells how they cling together.

    Args:
        excess_s: Lingering excess of each packet that entered a domain, seconds; NaN where it was lost there.
        lag_s: As in `DomainEvidence`.
        runs: Run id of each packet if several independent runs are pooled.
        confidence: One-sided.
    """
    left = ~np.isnan(excess_s)
    packets = _Packets(excess_s[left], (lag_s[left],), None if runs is None else np.asarray(runs)[left], confidence)
    upper, _ = packets.limits(1.0, int(np.count_nonzero(packets.values > 0)), 0.0) if left.any() else (1.0, 1.0)
    return upper


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: reject those at most alpha, and any false rejection has probability at most alpha."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True, slots=True)
class _Packets:
    """One value for each packet, with what is needed to count exceedances honestly.

    `clinging` holds every series of the same packets that may show how they cling together.
    """

    values: FloatArray
    clinging: tuple[FloatArray, ...]
    runs: npt.ArrayLike | None
    confidence: float

    def exceed(self, name: str, x_s: float | None, promised: float, level: float) -> Statement:
        """The statement that values lie above a level with at most the promised probability."""
        count, n = int(np.count_nonzero(self.values > level)), self.values.size
        share = count / n if n else 0.0
        if promised <= 0:
            return Statement(name, x_s, 0.0, share, float(count > 0), float(count == 0))
        return Statement(name, x_s, promised, share, *self.limits(promised, count, level))

    def limits(self, promised: float, count: int, level: float | None = None) -> tuple[float, float]:
        """Upper confidence limit of a probability, and p-value of so large a count, on effective counts."""
        known = self._effect(level)
        # Where nothing tells how exceedances cling together, all of them are taken for one event.
        effect = max(1.0, float(count)) if known is None else known
        size, most, least = self.values.size / effect, math.ceil(count / effect), math.floor(count / effect)
        p_value = float(betainc(least, max(size - least, 0) + 1, promised)) if least else 1.0
        return (1.0 if known is None else upper_limit(most, size, self.confidence)), p_value

    def _effect(self, level: float | None) -> float | None:
        """The largest design effect that any series shows; None if none has exceedances enough to show one."""
        asked = [(self.values, level), *((series, None) for series in self.clinging)]
        found = [measure_dependence(series, at, self.runs) for series, at in asked if series.size]
        return max((dependence.design_effect for dependence in found if dependence is not None), default=None)


def _statements(evidence: DomainEvidence, confidence: float) -> tuple[Statement, ...]:
    excess = np.array(evidence.excess_s, dtype=np.float64, copy=True)
    if excess.ndim != 1 or excess.size == 0 or excess.min(initial=0, where=~np.isnan(excess)) < 0:
        raise ValueError(f"excess of {evidence.envelope.domain}: expected one series of non-negative seconds")
    if not 0 <= evidence.errors <= excess.size:
        raise ValueError(f"errors of {evidence.envelope.domain}: found {evidence.errors} of {excess.size} packets")
    lag = None if evidence.lag_s is None else np.asarray(evidence.lag_s, dtype=np.float64)
    if lag is not None and lag.shape != excess.shape:
        raise ValueError(f"lag of {evidence.envelope.domain}: found shape {lag.shape}, expected {excess.shape}")
    envelope, left = evidence.envelope, ~np.isnan(excess)
    runs = None if evidence.runs is None else np.asarray(evidence.runs)
    behind = () if lag is None else (np.where(left, lag, math.inf),)
    every = np.where(left, excess, math.inf)
    entered = _Packets(every, behind, runs, confidence)
    delivered = _Packets(
        excess[left], tuple(series[left] for series in behind), None if runs is None else runs[left], confidence
    )
    lost = _Packets(np.where(left, 0.0, math.inf), (every, *behind), runs, confidence)
    cap_s, tail, host = envelope.guardrails.delay_cap_s, envelope.tail, evidence.host_share
    statements = [
        delivered.exceed("delay cap", cap_s, host, cap_s),
        lost.exceed("loss", None, envelope.loss_probability, 0.5),
        _errors(envelope.error_probability, evidence.errors, entered),
    ]
    if tail is None:
        statements.append(delivered.exceed("no impairment", 0.0, host, 0.0))
    else:
        levels = _levels(tail, delivered.values.size)
        statements += [delivered.exceed("excess", x_s, min(1.0, tail.exceedance(x_s) + host), x_s) for x_s in levels]
    return tuple(statements)


def _errors(promised: float, errors: int, entered: _Packets) -> Statement:
    """Errors are known by number only, so they are taken to cling together as excess and losses do."""
    share = errors / entered.values.size
    if promised <= 0:
        return Statement("error", None, 0.0, share, float(errors > 0), float(errors == 0))
    return Statement("error", None, promised, share, *entered.limits(promised, errors))


def _levels(tail: ExcessTail, n: int) -> list[float]:
    """Excesses at which the promise falls by a factor each, down to one expected packet, and its end.

    They follow from the promise and the number of packets alone, so that the p-values account for all of them.
    """
    levels = [tail.x_min_s]
    while len(levels) < _LEVELS:
        x_s = levels[-1] + math.log(_STEP) / tail.decay_per_s
        if x_s >= tail.x_max_s or tail.exceedance(x_s) * n < 1:
            break
        levels.append(x_s)
    return levels if tail.x_max_s == levels[-1] else [*levels, tail.x_max_s]


def _finding(
    evidence: DomainEvidence, statements: tuple[Statement, ...], p_value: float, adjusted: float, alpha: float
) -> ContractFinding:
    envelope, n, what, who = evidence.envelope, np.size(evidence.excess_s), evidence.what, evidence.who
    tenant = envelope.subject.tenant
    worst = min(statements, key=lambda s: (s.p_value, s.promised - s.measured))
    open_ = next((s for s in statements if s.upper > s.promised), None)
    uncontradicted = f"Nothing contradicts the envelope of {who} for {tenant}"
    if evidence.nonconforming:
        verdict = ContractVerdict.EXCUSED
        reason = (
            f"{who} is excused: {tenant} sent {evidence.nonconforming} {what} beyond its token bucket, and the "
            "envelope speaks of conforming traffic only."
        )
    elif adjusted <= alpha:
        verdict = ContractVerdict.BROKEN
        reason = (
            f"{who} broke its envelope for {tenant}: {_said(worst, evidence)}, p = {adjusted:.2g} after correction for "
            "everything tested together."
        )
    elif open_ is not None:
        verdict = ContractVerdict.UNDETERMINED
        reason = f"{uncontradicted}, but {n} {what} cannot certify {_said(open_, evidence)}."
    elif evidence.least:
        verdict = ContractVerdict.UNDETERMINED
        reason = f"{uncontradicted}, but {what} tell only the least that it was behind."
    else:
        verdict = ContractVerdict.HELD
        reason = f"{who} kept its envelope for {tenant}: {n} {what} certify every promised probability."
    return ContractFinding(
        domain=envelope.domain,
        stage=envelope.subject.stage,
        tenant=tenant,
        verdict=verdict,
        p_value=p_value,
        adjusted_p_value=adjusted,
        n=n,
        nonconforming=evidence.nonconforming,
        statements=statements,
        reason=reason[0].upper() + reason[1:] if reason.startswith("the ") else reason,
    )


def _who(domain: str, stage: Stage) -> str:
    return domain if stage is Stage.NETWORK else f"the server of {domain}"


def _said(statement: Statement, evidence: DomainEvidence) -> str:
    beyond = f" beyond {statement.x_s * 1e3:.4g} ms" if statement.x_s else ""
    promised = "promised"
    if evidence.host_share and statement.x_s is not None:
        promised = "allowed, the host's share included"
    name = "later than promised" if statement.name == "no impairment" else statement.name
    return (
        f"{name}{beyond}: {statement.measured:.3g} of the {evidence.what}, at most {statement.promised:.3g} {promised}"
    )
