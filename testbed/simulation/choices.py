"""What a simulation may do differently from a run of the same scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from testbed.errors import ScenarioError
from testbed.scenario.model import Domain, Scenario, Tenant
from testbed.simulation.impairment import Excess
from testbed.simulation.system import Scheduler


@dataclass(frozen=True)
class Choices:
    """What a simulation may do differently from a run.

    Attributes:
        scheduler: Of every domain; one with a shared queue has that in place of reservations.
        metered: Whether tenants with a reservation are policed.
        strength: How strongly correlated tenants follow their group; None: as the scenario says.
        excess: Random excess latency of every domain that `excess_in` does not name; None: as the scenario says.
        loss: Probability that such a domain loses a packet at random; None: as the scenario says.
        excess_in: Random excess latency of some domains, by name.
        loss_in: Probability that they lose a packet, by name.
    """

    scheduler: Scheduler = Scheduler.RESERVED
    metered: bool = True
    strength: float | None = None
    excess: Excess | None = None
    loss: float | None = None
    excess_in: Mapping[str, Excess] = field(default_factory=dict)
    loss_in: Mapping[str, float] = field(default_factory=dict)

    def excess_of(self, domain: Domain) -> Excess | None:
        """Random excess latency of a domain, None where nobody has any."""
        declared = domain.excess
        own = None if declared is None else Excess.exponential(declared.mean_s, declared.share)
        found = self.excess_in.get(domain.name, self.excess or own)
        return found if found is not None and found.share > 0 else None

    def loss_of(self, domain: Domain) -> float:
        """Probability that a domain loses a packet at random."""
        return self.loss_in.get(domain.name, domain.loss if self.loss is None else self.loss)

    def impairs(self, domain: Domain) -> bool:
        """Whether a domain does to packets what its envelopes say nothing of."""
        return self.excess_of(domain) is not None or self.loss_of(domain) > 0

    def require_fit(self, scenario: Scenario) -> None:
        """Check that a scenario has what is chosen for it.

        Raises:
            ScenarioError: A domain that is named is not there, or nobody follows a group to any strength.
        """
        if self.strength is not None and not any(tenant.follows_a_group for tenant in scenario.tenants):
            raise ScenarioError(
                f"correlation: found {', '.join(tenant.name for tenant in scenario.tenants)}, none of whom follows a "
                "group, expected a tenant with on-off or mmpp arrivals and misbehaviour: {kind: correlated, group: "
                "NAME}; give some of them a group, or leave the correlation out"
            )
        names = [domain.name for domain in scenario.domains]
        if unknown := sorted({*self.excess_in, *self.loss_in} - set(names)):
            raise ScenarioError(
                f"impaired domains: found {', '.join(unknown)}, expected one of {', '.join(names)}; correct the name"
            )

    def impaired_on_path(self, scenario: Scenario, tenant: Tenant) -> list[str]:
        """Domains that a tenant crosses and that impair packets."""
        return [domain.name for domain in scenario.path(tenant) if self.impairs(domain)]
