"""More tenants than a machine word has bits, each with a reservation of its own, and each of those acts."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.emulation.probe import probe
from testbed.scenario.loader import load
from tests.integration.spine import CROWD, crowd, reserved

pytestmark = pytest.mark.network


def test_every_tenant_of_a_crowd_has_a_reservation_that_acts_and_gives_it_back(tmp_path: Path) -> None:
    file = crowd(tmp_path)
    promised = {tenant.name: tenant.reservation for tenant in load(file).tenants}
    with reserved(file) as made:
        assert made.federation.drift() == ()
        assert made.rates("only") == {
            name: ({held.meter_rate_bps // 1000}, {held.rate_bps}) for name, held in promised.items() if held
        }
        results = probe(made.network, made.programs)
        assert len({result.tenant for result in results if result.what == "meter rate, bit/s"}) == CROWD
        made.federation.release()
        assert made.rates("only") == {}
