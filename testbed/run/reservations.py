"""What a run needs to know of whoever reserves for it, domains in this process or agents in their own.

Both promise by signed envelopes and install through the domains' controllers; a run asks what is in force, never how it
came about. `testbed.management.federation` and `testbed.run.agents` are the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from controller.program import DomainProgram
from testbed.envelope.descriptor import Envelope
from testbed.envelope.keys import PublicKey
from testbed.management.federation import Signed
from testbed.management.sealing import Computation
from testbed.run.window import Window
from testbed.scenario.model import Scenario, Tenant


class Reservations(Protocol):
    """Reservations in force."""

    @property
    def scenario(self) -> Scenario:
        """Tenants and their paths, with the link delays of the network."""

    @property
    def programs(self) -> Mapping[str, DomainProgram]:
        """What each domain's controller is to have installed."""

    @property
    def public_keys(self) -> Mapping[str, PublicKey]:
        """What verifies each domain's envelopes."""

    def envelopes(self, tenant: Tenant) -> list[Envelope]:
        """What the domains of a tenant's path promise of its packets, in path order; empty for best effort."""

    def server(self, tenant: Tenant) -> Envelope | None:
        """What the tenant is promised of the server that computes its requests; None where nothing was signed."""

    def signed(self) -> Iterable[Signed]:
        """Every envelope in force."""

    def calibrated(self, domains_s: Mapping[str, float], warm_up: Window, /) -> None:
        """Have every domain sign again after a warm-up.

        Args:
            domains_s: What each domain may grant the emulating host.
            warm_up: A window of conforming traffic.

        Raises:
            TestbedError: A domain refused; what was in force before is still.
        """

    def serve(self, promised: Mapping[str, Computation], /) -> None:
        """Have the serving domains sign for their servers, unless they did so with what they reserved.

        Args:
            promised: What a warm-up supports, by tenant.

        Raises:
            EnvelopeError: No promise of this kind can be signed.
        """

    def plan(self) -> dict[str, Any]:
        """Who was chosen, at what bound and price, and who was refused, as `testbed plan --json` says it.

        Empty where the scenario itself says who serves whom.
        """

    def drift(self) -> tuple[str, ...]:
        """Differences between what is committed and what the switches hold, all domains."""
