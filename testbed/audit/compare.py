"""Two runs side by side: what was different about them, and which differences between their delays are more than noise.

Each run's quantiles and miss rate come with limits that know how samples cling together; a difference lies between the
limits' differences, and it is more than noise where that interval does not hold zero. All intervals of one comparison
hold together at the stated confidence (Bonferroni over the two runs, all tenants and all figures), so two runs of the
same thing differ somewhere in at most one comparison of twenty. Runs that share their seeds share their workload, whose
chance is in both: the intervals are then wider than they need be, never too narrow. Nothing here judges a promise.

Source: Miller, "Simultaneous Statistical Inference" (1981), section 1.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbed.audit.compliance import judge
from testbed.audit.crossing import Crossing
from testbed.audit.evidence import CONFIDENCE, RunEvidence, read_evidence
from testbed.audit.quantile import quantiles
from testbed.audit.record import Promise
from testbed.errors import TestbedError
from testbed.report.record import RunRecord
from testbed.report.tenant_record import TenantRecord

_LEVELS = (0.5, 0.99)
_EXTREME = 0.999
"""Compared of a tenant that was promised nothing; of another it is the promised percentile."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Something that was not the same; None: it was not there."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of one tenant in both runs.

    Attributes:
        tenant: Name.
        figure: `p50`, `p99`, ... in seconds, or `miss rate`.
        first: In the first run; None where its data cannot say.
        second: In the second run.
        lower: Lower limit of second minus first; None where the data cannot say.
        upper: Upper limit of second minus first; None where the data cannot say.
    """

    tenant: str
    figure: str
    first: float | None
    second: float | None
    lower: float | None
    upper: float | None

    @property
    def real(self) -> bool:
        """Whether it is more than noise."""
        return (self.lower is not None and self.lower > 0) or (self.upper is not None and self.upper < 0)


@dataclass(frozen=True, slots=True)
class BoundChange:
    """A tenant's bound in both runs, in seconds; computed, so that any difference is real."""

    tenant: str
    first_s: float | None
    second_s: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is different about two runs.

    Attributes:
        first: Id of the first run.
        second: Id of the second run.
        invalid: Ids of those that the host did not let measure; their delays are not compared.
        confidence: With which all intervals hold together.
        settings: Scenario, host and software, where they were not the same.
        bounds: Bounds that are not the same.
        differences: Every figure of every tenant that sent something in both.
    """

    first: str
    second: str
    invalid: tuple[str, ...]
    confidence: float
    settings: tuple[Setting, ...]
    bounds: tuple[BoundChange, ...]
    differences: tuple[Difference, ...]

    @property
    def real(self) -> tuple[Difference, ...]:
        """The differences that are more than noise."""
        return tuple(difference for difference in self.differences if difference.real)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            **asdict(self),
            "differences": [
                {**{name: _finite(value) for name, value in asdict(found).items()}, "real": found.real}
                for found in self.differences
            ],
        }


def _finite(value: Any) -> Any:
    """JSON has no infinity: a latency that never ended is null."""
    return None if isinstance(value, float) and math.isinf(value) else value


def compare_runs(first: Path, second: Path, confidence: float = CONFIDENCE) -> Comparison:
    """Compare two run folders.

    Raises:
        TestbedError: No such folder, one that this version cannot read, or two runs without a tenant in common.
    """
    return compare_evidence(read_evidence(first), read_evidence(second), confidence)


def compare_evidence(first: RunEvidence, second: RunEvidence, confidence: float = CONFIDENCE) -> Comparison:
    """Compare what two folders hold.

    Raises:
        TestbedError: The runs have no tenant in common.
    """
    before, after = first.record, second.record
    tenants = {tenant.name: tenant for tenant in before.tenants}
    shared = [(tenants[tenant.name], tenant) for tenant in after.tenants if tenant.name in tenants]
    if not shared:
        raise TestbedError(
            f"runs {before.run_id} ({', '.join(tenants)}) and {after.run_id} "
            f"({', '.join(tenant.name for tenant in after.tenants)}) have no tenant in common, so there is nothing to "
            "compare; name two runs of the same scenario"
        )
    invalid = tuple(evidence.record.run_id for evidence in (first, second) if not evidence.valid)
    return Comparison(
        first=before.run_id,
        second=after.run_id,
        invalid=invalid,
        confidence=confidence,
        settings=tuple(_settings(before, after)),
        bounds=tuple(
            BoundChange(new.name, old.bound_s, new.bound_s) for old, new in shared if old.bound_s != new.bound_s
        ),
        differences=() if invalid else tuple(_differences(first, second, shared, confidence)),
    )


def _settings(first: RunRecord, second: RunRecord) -> Iterator[Setting]:
    before, after = dict(_flat("", _described(first))), dict(_flat("", _described(second)))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield Setting(name, before.get(name), after.get(name))


def _described(record: RunRecord) -> dict[str, Any]:
    return {
        "scenario": record.scenario,
        "host": record.host,
        "datapath": record.datapath,
        "kind": record.kind,
        "windows": len(record.windows),
        "testbed": record.testbed_version,
    }


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves by their path; members of lists by their own name where they have one."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value):
        for i, item in enumerate(value):
            yield from _flat(f"{name}[{item.get('name', i)}]", item)
    else:
        yield name, value


def _differences(
    first: RunEvidence, second: RunEvidence, shared: list[tuple[TenantRecord, TenantRecord]], confidence: float
) -> Iterator[Difference]:
    both = [(a, b) for a, b in shared if a.name in first.crossings and b.name in second.crossings]
    figures = sum(_figures(old, new) for old, new in both)
    for old, new in both:
        alone = 1 - (1 - confidence) / (2 * figures)
        yield from _delays(old, new, first.judged(old.name), second.judged(new.name), alone)
        if (promise := _same_promise(old, new)) is not None:
            yield _misses(old.name, promise, first.judged(old.name), second.judged(new.name), alone)


def _figures(old: TenantRecord, new: TenantRecord) -> int:
    return len(_levels(old, new)) + (_same_promise(old, new) is not None)


def _levels(old: TenantRecord, new: TenantRecord) -> tuple[float, ...]:
    extremes = {_EXTREME if epsilon is None else round(1 - epsilon, 12) for epsilon in (old.epsilon, new.epsilon)}
    return tuple(sorted({*_LEVELS, *extremes}))


def _same_promise(old: TenantRecord, new: TenantRecord) -> Promise | None:
    """What both were promised; misses of different deadlines are not the same figure."""
    if old.deadline_s is None or old.epsilon is None or (old.deadline_s, old.epsilon) != (new.deadline_s, new.epsilon):
        return None
    return Promise(old.deadline_s, old.epsilon)


def _delays(
    old: TenantRecord, new: TenantRecord, before: Crossing, after: Crossing, alone: float
) -> Iterator[Difference]:
    levels = _levels(old, new)
    earlier = quantiles(before.latency_s, levels, alone, before.runs)
    later = quantiles(after.latency_s, levels, alone, after.runs)
    for a, b in zip(earlier, later, strict=True):
        yield Difference(
            old.name,
            f"p{100 * a.level:.12g}",
            a.estimate_s,
            b.estimate_s,
            _minus(b.lower_s, a.upper_s),
            _minus(b.upper_s, a.lower_s),
        )


def _minus(later: float | None, earlier: float | None) -> float | None:
    """None where either is unknown, or where neither was ever answered."""
    if later is None or earlier is None or (math.isinf(later) and math.isinf(earlier)):
        return None
    return later - earlier


def _misses(name: str, promise: Promise, before: Crossing, after: Crossing, alone: float) -> Difference:
    # Each limit is one-sided, and an interval has two of them.
    one_sided = 1 - (1 - alone) / 2
    earlier, later = (
        judge(crossing.latency_s, promise.deadline_s, promise.epsilon, one_sided, crossing.runs)
        for crossing in (before, after)
    )
    return Difference(
        name,
        "miss rate",
        earlier.misses / earlier.n,
        later.misses / later.n,
        later.miss_rate_lower - earlier.miss_rate_upper,
        later.miss_rate_upper - earlier.miss_rate_lower,
    )
