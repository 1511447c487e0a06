"""The faults of a scenario file: what a line may name, and whether there is room for it in the window."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from testbed.scenario.faults import SERVER_KINDS, Fault, FaultKind
from testbed.scenario.fields import Section, require_unique
from testbed.scenario.model import Tenant
from testbed.scenario.problems import Report, did_you_mean
from testbed.scenario.units import TIME, quantity


def faults(
    scenario: Section, domains: Sequence[Section], tenants: Sequence[Tenant | None], report: Report
) -> tuple[Fault, ...]:
    """The faults of a checked file.

    Args:
        scenario: The file.
        domains: Its domains.
        tenants: Its tenants, None for one that cannot be used.
        report: Told what is wrong.
    """
    sections: tuple[Section, ...] = scenario.get("faults", ())
    require_unique("fault", sections, report)
    known = {tenant.name: tenant for tenant in tenants if tenant is not None}
    names = [domain.get("name") for domain in domains]
    # A tenant or domain that could not be built may be the one that is meant.
    whole = None not in names and None not in tenants
    for section in sections:
        if whole and not section.unusable:
            _require_objects(section, names, known, report)
        _require_room(section, Fraction(scenario.get("duration", 60)), report)
    found = [(section, _fault(section)) for section in sections if not section.unusable]
    for tenant in known.values():
        _require_rest(tenant, found, float(scenario.get("duration", 60)), report)
    return tuple(fault for _, fault in found)


def _fault(section: Section) -> Fault:
    kind = FaultKind(section.get("kind"))
    rate, by = section.get("to"), section.get("by")
    by_s = None if by is None else float(by)
    ready = section.get("ready-within")
    return Fault(
        name=section.get("name"),
        kind=kind,
        at_s=float(section.get("at")),
        for_s=float(section.get("for", 0)),
        recovery_s=float(section.get("recovers-within", 1)),
        spread_s=float(section.get("spread", 0)),
        domain=section.get("domain"),
        tenant=section.get("tenant"),
        rate_bps=None if rate is None else int(rate),
        share=section.get("share"),
        factor=section.get("factor"),
        ready_s=None if ready is None else float(ready),
        delay_s=by_s if kind is FaultKind.DELAY else None,
        step_s=by_s if kind is FaultKind.CLOCK_STEPPED else None,
        fails=tuple(name for name, _ in section.get("fails", ())),
    )


def _require_objects(section: Section, domains: Sequence[str], tenants: dict[str, Tenant], report: Report) -> None:
    named = [(key, section.get(key), section.line_of(key)) for key in ("domain", "tenant")]
    named += [("fails", name, line) for name, line in section.get("fails", ())]
    for key, name, line in named:
        known = domains if key == "domain" else list(tenants)
        if name is not None and name not in known:
            report.add(
                line,
                f"{section.where}: {key}",
                found=f"the unknown {'domain' if key == 'domain' else 'tenant'} {name}",
                expected=f"one of {', '.join(known)}",
                remedy=did_you_mean(name, known, "choose one of these"),
            )
        elif key == "fails" and tenants[name].promise is None:
            report.add(
                line,
                f"{section.where}: fails",
                found=f"{name}, which has no promise to break",
                expected="tenants with a promise",
                remedy="name others, or give it a promise",
            )
    if section.get("kind") in SERVER_KINDS and section.get("domain") in domains:
        _require_everyone(section, tenants, report)
    if section.get("to") is not None and section.get("tenant") in tenants:
        _require_lower(section, tenants[section.get("tenant")], report)


def _require_everyone(section: Section, tenants: dict[str, Tenant], report: Report) -> None:
    """A server has one queue of work, so what is done to it is done to all who ask it."""
    domain = section.get("domain")
    asked = [(t.name, t.requests) for t in tenants.values() if t.promise is not None and t.site == domain]
    # Generated text is neither right nor wrong, so of who asks for it nothing can be told.
    judged = [(name, r) for name, r in asked if r is not None and (r.images or section.get("kind") != "server-wrong")]
    asking = [name for name, _ in judged]
    named = [name for name, _ in section.get("fails", ())]
    if sorted(named) != sorted(asking) or not asking:
        report.add(
            section.line_of("fails" if named else "domain"),
            f"{section.where}: fails",
            found=", ".join(named) or "nobody",
            expected=f"everyone with a promise who asks the server of {domain}: {', '.join(asking) or 'nobody does'}",
            remedy="name them all, or choose another domain" if asking else "choose a domain whose server is asked",
        )


def _require_lower(section: Section, tenant: Tenant, report: Report) -> None:
    reserved = tenant.reservation
    if reserved is None or section.get("to") >= reserved.rate_bps:
        report.add(
            section.line_of("to"),
            f"{section.where}: to",
            found="no reservation to lower" if reserved is None else f"no less than what {tenant.name} reserves",
            expected="a rate below the tenant's reservation",
            remedy="lower it, or choose a tenant with a reservation",
        )


def _require_rest(tenant: Tenant, faults: Sequence[tuple[Section, Fault]], duration_s: float, report: Report) -> None:
    """A promise is judged by what no fault was to touch, so something must be left of the window.

    A wrong answer comes in time, and nothing is left out for it.
    """
    if tenant.promise is None:
        return
    touching = sorted(
        (each for each in faults if tenant.name in each[1].fails and each[1].kind is not FaultKind.SERVER_WRONG),
        key=lambda each: each[1].at_s,
    )
    judged_s, over_s = 0.0, 0.0
    for _, fault in touching:
        judged_s += max(0.0, fault.at_s - tenant.promise.deadline_s - over_s)
        took_s = fault.for_s + fault.spread_s + (fault.ready_s or 0.0) + fault.recovery_s
        over_s = max(over_s, fault.at_s + took_s)
    if touching and judged_s + max(0.0, duration_s - over_s) <= tenant.promise.deadline_s:
        section = touching[-1][0]
        report.add(
            section.line_of("at"),
            f"{section.where}: at",
            found=f"faults that {tenant.name} is to fail by, with their recoveries, all through the window",
            expected="more than its deadline of a window in which it keeps its promise",
            remedy="shorten them or their recoveries, or measure longer",
        )


def _require_room(section: Section, duration_s: Fraction, report: Report) -> None:
    if not section.settled("at", "for", "spread", "ready-within", "recovers-within"):
        return
    told = {"at": 0, "for": 0, "spread": 0, "ready-within": 0, "recovers-within": 1}
    over_s = sum((Fraction(section.get(key, default)) for key, default in told.items()), Fraction(0))
    if over_s > duration_s:
        report.add(
            section.line_of("at"),
            f"{section.where}: at",
            found=f"a fault that is over, with its recovery, after {quantity(over_s, TIME)}",
            expected=f"all of it within the window of {quantity(duration_s, TIME)}",
            remedy="begin earlier, or measure longer",
        )
