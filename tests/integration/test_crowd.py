"""More tenants than a machine word has bits, each with a reservation of its own, and each of those acts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from testbed.emulation.probe import probe
from testbed.scenario.loader import load
from tests.integration.spine import CROWD, crowd, reserved

pytestmark = pytest.mark.network

# Buckets grow from domain to domain, and one of about a second of its meter's rate is hardly told from none: these
# begin above that, where 5 kB would come by it.
EIGHT = ([f"d{number}" for number in range(1, 9)], 64, "30 kB")


@pytest.mark.parametrize(
    ("domains", "tenants", "burst"),
    [(("only",), CROWD, "5 kB"), pytest.param(*EIGHT, marks=pytest.mark.slow)],
    ids=["a domain", "eight domains"],
)
def test_every_tenant_of_a_crowd_has_a_reservation_that_acts_and_gives_it_back(
    domains: Sequence[str], tenants: int, burst: str, tmp_path: Path
) -> None:
    file = crowd(tmp_path, domains=domains, tenants=tenants, burst=burst)
    expected = {
        tenant.name: ({held.meter_rate_bps // 1000}, {held.rate_bps})
        for tenant in load(file).tenants
        if (held := tenant.reservation) is not None
    }
    assert len({str(rates) for rates in expected.values()}) == tenants
    with reserved(file) as made:
        assert made.federation.drift() == ()
        assert {domain: made.rates(domain) for domain in domains} == dict.fromkeys(domains, expected)
        results = probe(made.network, made.programs)
        driven = {(result.domain, result.tenant) for result in results if result.what.startswith("meter rate, bit/s")}
        assert len(driven) == len(domains) * tenants
        made.federation.release()
        assert {domain: made.rates(domain) for domain in domains} == {domain: {} for domain in domains}
