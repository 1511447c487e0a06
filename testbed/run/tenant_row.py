"""What latencies say of a tenant's promise, as its row of the verdict table has it: alike for packets and for requests.

The data say PASS, FAIL or UNDETERMINED (`testbed.audit`). Here the host may overrule them with INVALID and the tenant's
own breach of contract with EXCUSED.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.audit.clusters import not_negative
from testbed.audit.compliance import judge
from testbed.audit.quantile import Quantile, quantiles
from testbed.report.tenant_record import BoundRecord, TenantRecord
from testbed.report.verdict import Verdict
from testbed.scenario.model import Tenant
from testbed.telemetry.samples import FloatArray

LEVELS = (0.5, 0.99, 0.999)
_CONFIDENCE = 0.95


class Latencies:
    """A tenant's latencies beside what it was promised.

    Args:
        tenant: Who was promised it.
        latency_s: Latencies of all windows, in order of intended sending; NaN or infinite: never answered. [n], of a
            tenant that sent nothing [0].
        runs: Window of each, [n].

    Attributes:
        level: The percentile that the promise is about; the 99.9th without one.
        promised: That percentile.
        data: What the data alone say of the promise, None without a promise or without data.
    """

    def __init__(self, tenant: Tenant, latency_s: FloatArray, runs: npt.NDArray[np.int64]) -> None:
        promise = tenant.promise
        self._tenant, self._n = tenant, latency_s.size
        self.level = 1.0 - (promise.epsilon if promise else 1e-3)
        levels = (*LEVELS, self.level)
        if not latency_s.size:
            self._median, self._p99, self._p999, self.promised = map(_unknown, levels)
            self.data = None
            return
        latency_s = not_negative(latency_s)
        self._median, self._p99, self._p999, self.promised = quantiles(latency_s, levels, _CONFIDENCE, runs)
        self.data = judge(latency_s, promise.deadline_s, promise.epsilon, promise.confidence, runs) if promise else None

    def verdict(self, *, valid: bool, excuse: str = "") -> tuple[Verdict, str]:
        """The verdict on the promise, and why.

        Args:
            valid: Whether every fidelity gate of every window held.
            excuse: How the tenant broke its own contract; empty where it kept it.
        """
        if self._tenant.promise is None:
            return "NONE", ""
        if not valid:
            return "INVALID", "the host could not keep up, so this says nothing about the promise"
        if excuse:
            return "EXCUSED", f"the tenant broke its own contract: {excuse}"
        if self.data is None:
            return "UNDETERMINED", "nothing that it sent can be judged; measure for longer"
        return self.data.verdict.value, self.data.reason

    def row(self, bound: BoundRecord | None, **own: Any) -> TenantRecord:
        """The row of the tenant.

        Args:
            bound: Its analytical bound, None where nothing is reserved.
            own: The fields that latencies do not tell.
        """
        data, promised = self.data, self.promised
        return TenantRecord(
            **terms(self._tenant, bound),
            n=self._n,
            misses=data.misses if data else 0,
            p50_s=finite_or_none(self._median.estimate_s),
            p99_s=finite_or_none(self._p99.estimate_s),
            p999_s=finite_or_none(self._p999.estimate_s),
            p999_interval_s=(finite_or_none(self._p999.lower_s), finite_or_none(self._p999.upper_s)),
            p999_lower_s=finite_or_none(self._p999.one_sided_lower_s),
            promised_s=finite_or_none(promised.estimate_s),
            promised_interval_s=(finite_or_none(promised.lower_s), finite_or_none(promised.upper_s)),
            promised_lower_s=finite_or_none(promised.one_sided_lower_s),
            n_effective=self._p999.n_effective,
            design_effect=data.design_effect if data else None,
            miss_rate_upper=data.miss_rate_upper if data else None,
            samples_needed=data.samples_needed if data else None,
            **own,
        )


def _unknown(level: float) -> Quantile:
    return Quantile(level, _CONFIDENCE, None, None, None, None, None)


def terms(tenant: Tenant, bound: BoundRecord | None) -> dict[str, Any]:
    """The fields of a row that are known before anything is measured: the promise and the bound."""
    promise = tenant.promise
    return {
        "name": tenant.name,
        "deadline_s": promise.deadline_s if promise else None,
        "epsilon": promise.epsilon if promise else None,
        "bound_s": bound.bound_s if bound else None,
        "bound_method": bound.method if bound else None,
        "network_bound_s": bound.network_bound_s if bound else None,
        "bound": bound,
    }


def order_statistic(values: FloatArray, level: float) -> float | None:
    """Order statistic of the finite values; a description, not an estimate with limits."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, level, method="higher")) if finite.size else None


def mean_known(values: FloatArray) -> float | None:
    """Mean of the finite values, None where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def finite_or_none(value: float | None) -> float | None:
    """As a record holds it, in which JSON knows no infinity."""
    return value if value is not None and np.isfinite(value) else None
