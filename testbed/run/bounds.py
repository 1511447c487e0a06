"""The bounds that a run's tenants are held against, from what its domains signed and its warm-up measured."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.calculus import CalculusError
from testbed.errors import FidelityError
from testbed.management.bounds import Bounds, bound_tenant
from testbed.management.queues import SHORT_QUEUE, Calls, latencies_s, queues_hold, requests_behind_meter
from testbed.management.request_bounds import bound_requests
from testbed.report.tenant_record import BoundRecord
from testbed.run.request_terms import Granted
from testbed.run.reservations import Reservations
from testbed.scenario.model import Tenant


def bounds_of(reservations: Reservations, host_s: float, requests: Mapping[str, Granted]) -> Bounds:
    """The bound of every tenant that has a contract, or why it has none.

    Args:
        reservations: What the domains signed.
        host_s: What the host may add to packets on a path.
        requests: Request tenants' terms, by tenant; one that has none is owed no bound.

    Raises:
        FidelityError: What the warm-up measured leaves a tenant without one.
    """
    found: dict[str, BoundRecord] = {}
    missing: dict[str, str] = {}
    scenario = reservations.scenario
    for tenant in scenario.tenants:
        envelopes, own = reservations.envelopes(tenant), requests.get(tenant.name)
        if not envelopes or (tenant.requests is not None and own is None):
            continue
        allowed_s = host_s if own is None else own.host_s
        try:
            bound = (
                bound_tenant(tenant, envelopes, host_s=host_s)
                if own is None
                else bound_requests(tenant, own.terms, host_s=allowed_s)
            )
        except CalculusError as error:
            raise FidelityError(
                f"tenant {tenant.name}: no bound with what the warm-up measured ({error}); reserve more of the "
                "network or of the server, or end what else runs on this host"
            ) from error
        if bound is None:
            continue
        calls = None if own is None else _calls(tenant, own)
        queues_s = latencies_s(scenario.path(tenant), envelopes)
        if queues_hold(tenant, bound, queues_s, host_s=allowed_s, calls=calls):
            found[tenant.name] = bound
        else:
            missing[tenant.name] = SHORT_QUEUE
    return Bounds(found, missing)


def _calls(tenant: Tenant, own: Granted) -> tuple[Calls, Calls]:
    """What a tenant's requests behind its meter, and its answers, are as packets."""
    declared = own.terms.demand
    requests = requests_behind_meter(tenant, declared, Calls.of(declared.message_bits))
    return requests, Calls.of([own.terms.answer_bits])
