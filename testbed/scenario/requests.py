"""The requests of a tenant in a scenario file: from checked sections to the model, with the rules that only they have.

A message must hold its images and be one that the server accepts, sizes by tokens need a trace that has them, an answer
must be waited for until the promise's deadline at least, and shares of one server add up to no more than all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from testbed.errors import ScenarioError
from testbed.scenario.fields import Section
from testbed.scenario.model import (
    Arrivals,
    DrawnSize,
    ModelSize,
    Requests,
    RequestSize,
    Tenant,
    TokenSize,
    TraceArrivals,
    Work,
)
from testbed.scenario.problems import Report
from testbed.scenario.ranges import LARGEST_REQUEST_BYTES
from testbed.scenario.tenant_fields import TEXT_MODELS
from testbed.scenario.units import SIZE, TIME, quantity
from testbed.traffic.request_demand import Demand, demand
from testbed.traffic.request_makers import maker_of
from testbed.traffic.request_wire import Maker

DEFAULT_TIMEOUT_S = 10.0
_UNDECIDED = math.nan
"""Share of a tenant whose file leaves it out, until `with_shares` has seen all tenants."""


@dataclass(frozen=True)
class Asked:
    """A tenant's requests and what they put on the wire."""

    requests: Requests
    demand: Demand


def requests(tenant: Section, arrives: Arrivals | None, report: Report) -> Asked | None:
    """The requests of `tenant`, None where its arrivals are packets or if they cannot be used.

    Args:
        tenant: The tenant's section.
        arrives: Its arrivals, None if they cannot be used.
        report: Receives the findings.
    """
    section: Section | None = tenant.get("requests")
    if section is None:
        return None
    before = len(report.findings)
    breach: Section | None = tenant.get("misbehaviour")
    if breach is not None and breach.get("kind") == "flood":
        report.add(
            tenant.line_of("misbehaviour"),
            f"{tenant.where}: misbehaviour",
            found="a flood of a tenant with requests",
            expected="requests that keep to what is declared, if in bursts that coincide with others': only packets "
            "are sent against their contract",
            remedy="delete the misbehaviour, or the requests",
        )
    size = _size(section, arrives, report)
    _check_text(section, size, report)
    timeout_s = _timeout_s(tenant, section, report)
    work: Section | None = section.get("work")
    if work is not None and work.unusable:
        return None
    if section.unusable or len(report.findings) > before or arrives is None or size is None or timeout_s is None:
        return None
    wanted = Requests(
        model=section.get("model"),
        images=0 if section.get("model") in TEXT_MODELS else section.get("images", 1),
        size=size,
        in_flight=section.get("in-flight", 10_000),
        timeout_s=timeout_s,
        compute_share=float(section.get("compute-share", _UNDECIDED)),
        token_scale=float(section.get("token-scale", 1)),
        work=None if work is None else Work(float(work.get("mean")), float(work.get("cv", 0))),
    )
    try:
        maker = maker_of(tenant.get("name", ""), wanted, arrives)
    except ScenarioError as error:
        for problem in error.problems:
            report.quote(section.line_of("token-scale"), section.where, problem)
        return None
    asked = demand(arrives, size, maker)
    if not _fit(section, wanted, asked, maker, report):
        return None
    return Asked(wanted, asked)


def require_shares(tenants: Sequence[tuple[Section, str | None]], report: Report) -> None:
    """Check that no server is promised more than once; `tenants` with the name of their sites."""
    for site in {site for _, site in tenants if site is not None}:
        asking = [s.get("requests") for s, where in tenants if where == site and s.get("requests") is not None]
        stated = [section for section in asking if section.get("compute-share") is not None]
        total = sum(section.get("compute-share") for section in stated)
        if total > 1 + 1e-9 or (total > 1 - 1e-9 and len(stated) < len(asking)):
            last = stated[-1]
            needed = "at most 1" if len(stated) == len(asking) else "less than 1, for the tenants that state no share"
            report.add(
                last.line_of("compute-share"),
                f"{last.where}.compute-share",
                found=f"{last.get('compute-share'):g}, which makes {total:g} at {site} together",
                expected=f"shares of one server that add up to {needed}",
                remedy="promise less",
            )


def with_shares(tenants: tuple[Tenant, ...]) -> tuple[Tenant, ...]:
    """The same tenants, with an equal part of what is left for those whose share was left out."""

    def share(tenant: Tenant) -> Tenant:
        if tenant.requests is None or not math.isnan(tenant.requests.compute_share):
            return tenant
        shares = [t.requests.compute_share for t in tenants if t.requests is not None and t.site == tenant.site]
        left = 1.0 - sum(value for value in shares if not math.isnan(value))
        equal = left / sum(math.isnan(value) for value in shares)
        return replace(tenant, requests=replace(tenant.requests, compute_share=equal))

    return tuple(share(tenant) for tenant in tenants)


def _size(section: Section, arrives: Arrivals | None, report: Report) -> RequestSize | None:
    if not section.settled("sizes", "mix") or arrives is None:
        return None
    traced = isinstance(arrives, TraceArrivals)
    kind = section.get("sizes", "tokens" if traced else "declared")
    if (kind == "mixed") != (section.get("mix") is not None):
        found, remedy = (
            ("no mix", "add mix, a list of sizes and weights")
            if kind == "mixed"
            else (f"a mix with sizes: {kind}", "write sizes: mixed, or delete mix")
        )
        expected = "a mix with sizes: mixed, and only with it"
        report.add(section.line_of("mix"), section.where, found=found, expected=expected, remedy=remedy)
        return None
    if kind == "mixed":
        return _mix(section.get("mix"))
    built: RequestSize | None = None
    if kind == "model":
        built = ModelSize()
    elif kind == "tokens" and isinstance(arrives, TraceArrivals) and arrives.bits_per_token > 0:
        built = TokenSize()
    elif kind == "declared" and not traced:
        built = DrawnSize((arrives.size_bits,))
    if built is not None:
        return built
    wanted = "a trace that counts tokens" if kind == "tokens" else "arrivals with a size of their own"
    report.add(
        section.line_of("sizes"),
        f"{section.where}.sizes",
        found=kind if "sizes" in section.lines else f"no sizes, which means {kind}",
        expected=f"{wanted} for sizes: {kind}",
        remedy="choose sizes: model or mixed, or other arrivals",
    )
    return None


def _check_text(section: Section, size: RequestSize | None, report: Report) -> None:
    """A model of text takes what a trace says, any other none of that."""
    textual = section.get("model") in TEXT_MODELS
    for key, belongs in (("images", not textual), ("token-scale", textual)):
        if section.get(key) is not None and section.get("model") is not None and not belongs:
            report.add(
                section.line_of(key),
                f"{section.where}.{key}",
                found=f"{section.get(key):g} with the model {section.get('model')}",
                expected=f"{key} only with {'a model of text' if key == 'token-scale' else 'a digit classifier'}",
                remedy=f"delete {key}, or choose another model",
            )
    if textual and isinstance(size, DrawnSize):
        report.add(
            section.line_of("sizes"),
            f"{section.where}.sizes",
            found=f"sizes: {section.get('sizes', 'declared')} with the model {section.get('model')}",
            expected="a trace, and sizes: tokens or model: its context is as long as the trace says",
            remedy="choose arrivals from a trace, or a digit classifier",
        )


def _mix(entries: tuple[Section, ...]) -> DrawnSize | None:
    if any(entry.unusable for entry in entries):
        return None
    return DrawnSize(
        tuple(int(entry.get("size")) for entry in entries), tuple(float(entry.get("weight", 1)) for entry in entries)
    )


def _timeout_s(tenant: Section, section: Section, report: Report) -> float | None:
    promise: Section | None = tenant.get("promise")
    if not section.settled("timeout") or not tenant.settled("promise"):
        return None
    deadline: Fraction | None = None if promise is None else promise.get("deadline")
    timeout: Fraction | None = section.get("timeout")
    if timeout is not None and deadline is not None and timeout < deadline:
        report.add(
            section.line_of("timeout"),
            f"{section.where}.timeout",
            found=quantity(timeout, TIME),
            expected=f"at least the {quantity(deadline, TIME)} of the promise, or answers in time would be given up",
            remedy="wait longer, or delete timeout",
        )
        return None
    return float(timeout if timeout is not None else deadline if deadline is not None else DEFAULT_TIMEOUT_S)


def _fit(section: Section, wanted: Requests, asked: Demand, maker: Maker, report: Report) -> bool:
    """Whether every message holds its images and is one that the server accepts."""
    size, least, most = wanted.size, 8 * maker.smallest_bytes, 8 * LARGEST_REQUEST_BYTES
    if isinstance(size, DrawnSize) and min(size.size_bits) < least:
        report.add(
            section.line_of("images"),
            f"{section.where}.images",
            found=f"{wanted.images} in a message of {quantity(min(size.size_bits), SIZE)}",
            expected=f"messages of at least {quantity(least, SIZE)}, which that many take",
            remedy="send fewer images, larger messages, or choose sizes: model",
        )
        return False
    beyond = int((asked.message_bits > most).sum())
    if beyond:
        report.add(
            section.line_of("sizes"),
            section.where,
            found=f"a message of {quantity(int(asked.message_bits.max()), SIZE)} ({beyond} are too large)",
            expected=f"messages of at most {quantity(most, SIZE)}, which the server accepts",
            remedy="lower bits-per-token",
        )
        return False
    return True
