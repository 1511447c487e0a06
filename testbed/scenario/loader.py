"""Reads a scenario file: the only way from YAML to a `Scenario`, and the rules between its domains and tenants.

Everything that is wrong is reported together, each finding with its line, what was found, what was expected and what to
do about it. What comes out has no units, no defaults left to guess and no contradictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

from testbed.errors import ScenarioError
from testbed.scenario import arrivals, document, fault_rules, requests, tenants
from testbed.scenario.definition import SCENARIO, run_settings
from testbed.scenario.document import Node
from testbed.scenario.fields import Section, require_unique
from testbed.scenario.model import Domain, ExcessLatency, MmppArrivals, OnOffArrivals, Scenario, Tenant
from testbed.scenario.problems import Report, did_you_mean
from testbed.scenario.units import RATE, TIME, quantity
from testbed.scenario.values import UNUSABLE
from testbed.traffic.modulation import STIFFEST, Moves

_Modulated: TypeAlias = OnOffArrivals | MmppArrivals


def load(path: Path) -> Scenario:
    """The scenario in the file at `path`.

    Raises:
        ScenarioFileError: Anything is wrong with it; all findings together.
    """
    report = Report(path)
    scenario = _check(document.read(path, report), path, report)
    report.raise_if_any()
    # _check gives nothing only after a finding.
    if scenario is None:
        raise AssertionError(f"{path}: refused without a finding")
    return scenario


@dataclass(frozen=True)
class _Path:
    """The domains one tenant crosses, as far as they are known.

    Attributes:
        site: Name of the domain that serves the tenant, None if unknown.
        domains: Sections up to and including the site.
        propagation_s: Sum of their link delays, None if one is unknown.
    """

    site: str | None
    domains: tuple[Section, ...]
    propagation_s: Fraction | None


def _check(root: Node | None, path: Path, report: Report) -> Scenario | None:
    section = UNUSABLE if root is None else SCENARIO.check(root, "", report)
    if not isinstance(section, Section):
        return None
    domain_sections: tuple[Section, ...] = section.get("domains", ())
    tenant_sections: tuple[Section, ...] = section.get("tenants", ())
    require_unique("domain", domain_sections, report)
    require_unique("tenant", tenant_sections, report)
    if section.settled("domains"):
        _require_compute(section, domain_sections, report)
    paths = [_path(tenant, domain_sections, report) for tenant in tenant_sections]
    duration_s = run_settings(section)["duration_s"]
    ways = list(zip(tenant_sections, paths, strict=True))
    members = [_tenant(tenant, way, path.parent, duration_s, report) for tenant, way in ways]
    _require_capacity(domain_sections, ways, report)
    _require_own_queues(ways, report)
    _require_groups(list(zip(tenant_sections, members, strict=True)), report)
    requests.require_shares(list(zip(tenant_sections, [way.site for way in paths], strict=True)), report)
    broken = fault_rules.faults(section, domain_sections, members, report)
    if report.findings:
        return None
    return Scenario(
        **run_settings(section),
        domains=tuple(_domain(domain) for domain in domain_sections),
        tenants=requests.with_shares(tuple(member for member in members if member is not None)),
        source=path.resolve(),
        faults=broken,
    )


def _domain(section: Section) -> Domain:
    excess: Section | None = section.get("excess")
    return Domain(
        name=section.get("name"),
        link_rate_bps=int(section.get("link-rate")),
        link_delay_s=float(section.get("link-delay", 0)),
        compute=section.get("compute", False),
        shared_queue_bits=None if section.get("shared-queue") is None else int(section.get("shared-queue")),
        excess=None if excess is None else ExcessLatency(float(excess.get("mean")), float(excess.get("share", 1))),
        loss=float(section.get("loss", 0)),
    )


def _tenant(section: Section, way: _Path, folder: Path, duration_s: float, report: Report) -> Tenant | None:
    arrives = arrivals.of_tenant(section, folder, report)
    asked = requests.requests(section, arrives, report)
    reserved = tenants.reservation(section, arrives, None if asked is None else asked.demand, report)
    promised = tenants.promise(section, way.propagation_s, report)
    breach = tenants.misbehaviour(section, arrives, reserved, report)
    present = tenants.presence(section, duration_s, report)
    if arrives is None or way.site is None:
        return None
    wanted = None if asked is None else asked.requests
    return Tenant(section.get("name", ""), arrives, way.site, reserved, promised, breach, wanted, present_s=present)


def _require_compute(section: Section, domains: tuple[Section, ...], report: Report) -> None:
    if not any(_may_compute(domain) for domain in domains):
        report.add(
            section.line_of("domains"),
            "domains",
            found="no domain that offers compute",
            expected="at least one, because tenants talk to its compute host",
            remedy="add compute: true to the last domain",
        )


def _may_compute(domain: Section) -> bool:
    return bool(domain.get("compute", False)) or not domain.settled("compute")


def _path(tenant: Section, domains: tuple[Section, ...], report: Report) -> _Path:
    unknown = _Path(None, (), None)
    if not tenant.settled("site") or not domains:
        return unknown
    position = _site(tenant, domains, report)
    if position is None:
        return unknown
    crossed = domains[: position + 1]
    known = all(domain.settled("link-delay") for domain in crossed)
    propagation_s = sum((Fraction(domain.get("link-delay", 0)) for domain in crossed), Fraction(0))
    return _Path(crossed[-1].get("name"), crossed, propagation_s if known else None)


def _site(tenant: Section, domains: tuple[Section, ...], report: Report) -> int | None:
    """Position of the domain that serves `tenant`."""
    offering = [i for i, domain in enumerate(domains) if _may_compute(domain)]
    wanted = tenant.get("site")
    if wanted is None:
        return offering[-1] if offering else None
    names = [domain.get("name") for domain in domains]
    offers = [names[i] for i in offering if names[i] is not None]
    listing = ", ".join(offers) or "none does yet"
    place = f"{tenant.where}: site"
    if wanted not in names:
        # A domain whose name is unusable may be the one that is meant.
        if None not in names:
            remedy = did_you_mean(wanted, offers, "choose one of these")
            expected = f"a domain that offers compute ({listing})"
            report.add(
                tenant.line_of("site"), place, found=f"the unknown domain {wanted}", expected=expected, remedy=remedy
            )
        return None
    position = names.index(wanted)
    if position not in offering:
        report.add(
            tenant.line_of("site"),
            place,
            found=f"{wanted}, which offers no compute",
            expected=f"a domain that does ({listing})",
            remedy=f"choose one of these, or add compute: true to domain {wanted}",
        )
        return None
    return position


def _require_capacity(domains: tuple[Section, ...], ways: list[tuple[Section, _Path]], report: Report) -> None:
    for domain in domains:
        link: Fraction | None = domain.get("link-rate")
        if link is None:
            continue
        shares = [
            (tenant.get("name", tenant.where), reserved)
            for tenant, way in ways
            if domain in way.domains and (reserved := _reserved_bps(tenant)) is not None
        ]
        total = sum((share for _, share in shares), Fraction(0))
        if total > link:
            listed = " + ".join(f"{name} {quantity(share, RATE)}" for name, share in shares[:5])
            more = f" + {len(shares) - 5} more" if len(shares) > 5 else ""
            report.add(
                domain.line_of("link-rate"),
                f"{domain.where}: link-rate",
                found=f"{quantity(link, RATE)}, with {quantity(total, RATE)} reserved on it ({listed}{more})",
                expected="reservations that add up to no more than the link",
                remedy="reserve less, raise link-rate, or serve a tenant before this domain",
            )


def _require_own_queues(ways: list[tuple[Section, _Path]], report: Report) -> None:
    for tenant, way in ways:
        shared = [domain.where for domain in way.domains if domain.get("shared-queue") is not None]
        if shared and tenant.get("reservation") is not None:
            report.add(
                tenant.line_of("reservation"),
                f"{tenant.where}: reservation",
                found=f"a reservation on a path through {' and '.join(shared)}, which has one queue for everybody",
                expected="reservations only where every domain of the path has a queue for each tenant",
                remedy="delete the reservation, or shared-queue",
            )


def _reserved_bps(tenant: Section) -> Fraction | None:
    reserved: Section | None = tenant.get("reservation")
    return None if reserved is None else reserved.get("rate")


def _require_groups(members: list[tuple[Section, Tenant | None]], report: Report) -> None:
    groups: dict[str, list[tuple[Section, _Modulated]]] = {}
    for section, member in members:
        # A tenant that could not be built has been reported and may have belonged to any group.
        if member is None:
            return
        group = None if member.misbehaviour is None else member.misbehaviour.group
        if group is not None and isinstance(member.arrivals, OnOffArrivals | MmppArrivals):
            groups.setdefault(group, []).append((section, member.arrivals))
    for group, belonging in groups.items():
        _require_group(group, belonging, report)


def _require_group(group: str, belonging: list[tuple[Section, _Modulated]], report: Report) -> None:
    (first_section, first), *others = belonging
    if not others:
        breach: Section = first_section.get("misbehaviour")
        report.add(
            breach.line_of("group"),
            f"{breach.where}.group",
            found=f"no other tenant in the group {group}",
            expected="at least two tenants whose bursts coincide",
            remedy="give another tenant the same group, or delete the misbehaviour",
        )
    _require_strengths(group, [section for section, _ in belonging], report)
    _require_followed(first_section, first, report)
    for section, arrives in others:
        if _hidden(arrives) != _hidden(first):
            declared: Section = section.get("arrivals")
            report.add(
                declared.line_of("mean-on" if isinstance(arrives, OnOffArrivals) else "states"),
                declared.where,
                found=_hidden_text(arrives),
                expected=f"{_hidden_text(first)} like {first_section.get('name')}, "
                f"which shares the bursts of the group {group}",
                remedy="make the two agree (rates may differ), or choose another group",
            )


def _hidden(arrives: _Modulated) -> tuple[object, ...]:
    """What decides the law of the state that makes bursts."""
    if isinstance(arrives, OnOffArrivals):
        return arrives.mean_on_s, arrives.mean_off_s
    return arrives.switch_per_s


def _hidden_text(arrives: _Modulated) -> str:
    if isinstance(arrives, OnOffArrivals):
        return f"mean-on {_time(arrives.mean_on_s)} and mean-off {_time(arrives.mean_off_s)}"
    stays = [1 / sum(rate for k, rate in enumerate(row) if k != own) for own, row in enumerate(arrives.switch_per_s)]
    weights = "; ".join(" ".join(f"{rate:.6g}" for rate in row) for row in arrives.switch_per_s)
    return f"states that stay {', '.join(map(_time, stays))} and are left at the rates {weights}"


def _require_followed(section: Section, arrives: _Modulated, report: Report) -> None:
    """A group's chain is followed move by move, which takes as long as its fastest state is short."""
    if not isinstance(arrives, MmppArrivals):
        return
    try:
        Moves.of(arrives.switch_per_s)
    except ScenarioError:
        declared: Section = section.get("arrivals")
        report.add(
            declared.line_of("states"),
            f"{declared.where}.states",
            found="stays that differ too much to be followed by a group",
            expected=f"at least two states, none of which, where there are more, lasts {STIFFEST:,} times as long as "
            "another",
            remedy="declare fewer states, or delete the misbehaviour",
        )


def _require_strengths(group: str, belonging: list[Section], report: Report) -> None:
    breaches: list[Section] = [section.get("misbehaviour") for section in belonging]
    silent = [breach for breach in breaches if breach.get("strength") is None]
    if silent and len(silent) < len(breaches):
        report.add(
            silent[0].line,
            silent[0].where,
            found=f"no strength beside others of the group {group} that have one",
            expected="a strength for every tenant of a group, or for none",
            remedy="add strength: 1 where a tenant follows its group entirely",
        )


def _time(seconds: float) -> str:
    return quantity(seconds, TIME)
