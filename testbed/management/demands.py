"""What is asked of a domain, before anything is signed: whether it sells such a thing, whatever is left of it."""

from __future__ import annotations

from testbed.errors import ReservationError
from testbed.management.generated import management_pb2 as wire
from testbed.scenario.federation import Operator, ServedModel, Site
from testbed.scenario.model import whole_kbit


def require_sellable(operator: Operator, demand: wire.Demand) -> None:
    """Check that a demand is for a reservation that there can be in the domain.

    Raises:
        ReservationError: It names no addresses or no rate, a higher one than is sold, or a burst that no meter holds.
    """
    if demand.network.rate_bps < 1:
        raise ReservationError(f"demand of {demand.tenant}: found no rate, expected some bit/s to reserve")
    if demand.network.rate_bps > operator.reservable_bps:
        raise ReservationError(
            f"domain {operator.name}: {demand.network.rate_bps} bit/s asked for, "
            f"{operator.reservable_bps} are sold altogether; ask for less"
        )
    if (bits := demand.network.burst_bits) != whole_kbit(bits):
        raise ReservationError(
            f"demand of {demand.tenant}: found a burst of {bits} bits, expected whole kbit, which is what a meter "
            f"holds; ask for {whole_kbit(bits)}"
        )
    for name, value in (("network.client", demand.network.client), ("network.server", demand.network.server)):
        if not value:
            raise ReservationError(f"demand of {demand.tenant}: found no {name}, expected an IPv4 address")


def model_of(operator: Operator, demand: wire.Demand) -> tuple[Site, ServedModel]:
    """The model that a demand for compute names, and the site that serves it.

    Raises:
        ReservationError: The domain has no inference server, or serves no such model there.
    """
    site, name = operator.site, demand.compute.model
    if site is None:
        raise ReservationError(f"domain {operator.name}: asked for the model {name}, has no inference server")
    for model in site.models:
        if model.name == name:
            return site, model
    known = ", ".join(model.name for model in site.models)
    raise ReservationError(f"domain {operator.name}: found no model {name}, expected one of {known}")
