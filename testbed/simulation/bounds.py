"""The bound of every tenant of a scenario, those that send requests included, or why one has none.

The same bounds stand beside a simulation, where there is no host, and on paper before any run, where domains grant a
host what they declare. A tenant without a reservation has no bound and no reason is owed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.calculus import NotApplicableError
from testbed.errors import ScenarioError
from testbed.management.bounds import DECLARED_HOST_S, Bounds, arrival_of, bound_tenant
from testbed.management.federation import Federation
from testbed.management.paper import on_paper
from testbed.management.queues import SHORT_QUEUE, Calls, latencies_s, queues_hold, requests_behind_meter
from testbed.report.tenant_record import BoundRecord
from testbed.scenario.model import Scenario, Tenant
from testbed.simulation.choices import Choices
from testbed.simulation.known import Known, known_of_some, unknown
from testbed.simulation.serving import asking_of, at_server_of, bound_asking, demand_of, sign

TOO_LITTLE_SHARE = (
    "the meter lets more computations pass than the share of the server is sure to do in time; reserve a larger "
    "compute-share, or let requests take less work"
)


def bounds_of(
    scenario: Scenario,
    tenants: Sequence[Tenant],
    federation: Federation,
    known: Mapping[str, Known],
    choices: Choices,
    *,
    host_s: float,
) -> Bounds:
    """Bounds of some tenants.

    Args:
        scenario: Everybody.
        tenants: Whose bounds are wanted; those without a reservation are passed over.
        federation: Domains that have offered, and signed for their servers.
        known: What is known of requests, by tenant.
        choices: How the domains depart from what they promise.
        host_s: What an emulating host may add on a path, 0 where there is none.
    """
    found: dict[str, BoundRecord] = {}
    missing: dict[str, str] = {}
    for tenant in tenants:
        if tenant.reservation is None:
            continue
        why = _strangers(scenario, tenant, known) or _unpromised(scenario, tenant, choices)
        bound = None
        if not why and tenant.requests is None:
            bound = bound_tenant(tenant, federation.envelopes(tenant), host_s=host_s, metered=choices.metered)
        elif not why:
            bound = bound_asking(scenario, tenant, federation, known, host_s=host_s)
        if bound is not None and not queues_hold(
            tenant,
            bound,
            latencies_s(scenario.path(tenant), federation.envelopes(tenant)),
            host_s=host_s,
            metered=choices.metered,
            calls=_calls(tenant, known),
        ):
            bound, why = None, SHORT_QUEUE
        if bound is None:
            missing[tenant.name] = why or TOO_LITTLE_SHARE
        else:
            found[tenant.name] = bound
    return Bounds(found, missing)


def bounds_on_paper(scenario: Scenario, measured: Path | None = None) -> Bounds:
    """Bounds before any run, with what domains declare for the host that is to emulate them.

    Args:
        scenario: Domains and tenants.
        measured: Folder of a run that measured requests; None: all as declared.

    Raises:
        ReservationError: A domain cannot carry what the scenario reserves.
        ScenarioError: Nobody reserves anything, or the run asked something else.
        TestbedError: No such folder, or one that this version cannot read.
    """
    if not any(tenant.reservation for tenant in scenario.tenants):
        raise ScenarioError(
            f"tenants {', '.join(tenant.name for tenant in scenario.tenants)}: found best effort only, which has no "
            "bound, expected a tenant that reserves; add a reservation"
        )
    known = known_of_some(scenario, measured)
    federation = on_paper(scenario)
    federation.collect_offers()
    sign(scenario, federation, known)
    return bounds_of(scenario, scenario.tenants, federation, known, Choices(), host_s=DECLARED_HOST_S)


def _calls(tenant: Tenant, known: Mapping[str, Known]) -> tuple[Calls, Calls] | None:
    """What a tenant's requests behind its meter, and its answers, are as packets; None where it sends packets."""
    if tenant.requests is None:
        return None
    asking = asking_of(tenant, tenant.requests, known[tenant.name])
    out, back = asking.out.crowding(asking.request_bytes), asking.back.crowding([asking.answer_bytes])
    return requests_behind_meter(tenant, demand_of(tenant, tenant.requests), Calls(*out)), Calls(*back)


def _unpromised(scenario: Scenario, tenant: Tenant, choices: Choices) -> str:
    """Why the domains of a tenant, as they are simulated, promise it nothing; empty where they promise something."""
    if impaired := choices.impaired_on_path(scenario, tenant):
        return (
            f"no envelope says what impairs {', '.join(impaired)}; excess latency and loss at random are simulated and "
            "not promised"
        )
    if choices.metered:
        return ""
    if tenant.requests is not None:
        return "no meter polices its requests, and the promise of its server is for what one lets pass"
    try:
        arrival_of(tenant, metered=False)
    except NotApplicableError as error:
        return str(error)
    return ""


def _strangers(scenario: Scenario, tenant: Tenant, known: Mapping[str, Known]) -> str:
    """Of whose requests too little is known for a bound on a tenant's; empty where enough is."""
    if tenant.requests is None:
        return ""
    if tenant.name not in known:
        return unknown(tenant.requests)
    names = [other.name for other in at_server_of(scenario, tenant) if other.name not in known]
    return f"nothing says how long the same server computes the requests of {', '.join(names)}" if names else ""
