"""What domains would offer, without a network: for bounds and plans that must change nothing.

Offers on paper are made before any calibration, so the emulating host's allowance is a declared figure; a run replaces
it by what its warm-up supports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from controller.client import CallError
from controller.program import DomainProgram
from testbed.management.domain import Controller
from testbed.management.federation import Federation, found
from testbed.scenario.model import Scenario

DECLARED_HOST_ALLOWANCE_S = 3e-3
"""What a domain grants its host before it has calibrated."""


def on_paper(
    scenario: Scenario,
    *,
    clock: Callable[[], float] = time.time,
    host_allowance_s: float = DECLARED_HOST_ALLOWANCE_S,
) -> Federation:
    """A federation whose domains can offer and nothing else.

    Args:
        scenario: Domains and tenants.
        clock: Unix time in seconds.
        host_allowance_s: What each domain grants its host; nothing where no host emulates it.
    """
    addresses = {tenant.name: ("0.0.0.0", "0.0.0.0") for tenant in scenario.tenants}  # noqa: S104 - no socket is bound
    seats: dict[str, tuple[Controller, DomainProgram]] = {
        d.name: (_Nobody(), DomainProgram(d.name, "none", d.link_rate_bps, (), ())) for d in scenario.domains
    }
    return found(scenario, addresses, seats, host_allowance_s=host_allowance_s, clock=clock)


class _Nobody:
    """The controller of a domain without switches."""

    def install(self, program: DomainProgram) -> None:
        """Refuse: there is nothing to install on."""
        raise CallError("switch", [f"{program.domain} exists on paper only; offers are all it can make"])

    def verify(self) -> Sequence[Mapping[str, str]]:
        """Nothing is installed and nothing is expected."""
        return ()
