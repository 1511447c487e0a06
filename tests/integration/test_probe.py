"""Commands that succeed and do nothing, or something else: each is named by what is read back or by the probe."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.emulation import namespace
from testbed.emulation.network import HOST_SETTINGS
from testbed.emulation.probe import probe
from testbed.errors import ReservationError
from tests.integration.spine import Reserved, reserved

pytestmark = pytest.mark.network

PORT = "d1e-dn"
STEADY_MINOR = 0x11


@pytest.fixture
def made() -> Iterator[Reserved]:
    with reserved() as found:
        yield found


def tc(command: str) -> str:
    return subprocess.run(["tc", *command.split()], check=True, capture_output=True, text=True).stdout


def findings(made: Reserved) -> list[str]:
    """What the probe finds wrong; it must find something."""
    with pytest.raises(ReservationError) as caught:
        probe(made.network, made.programs)
    return list(caught.value.problems)


def test_a_network_that_is_as_promised_passes_and_every_part_of_it_was_driven(made: Reserved) -> None:
    results = probe(made.network, made.programs)
    assert all(result.ok for result in results)
    driven = Counter(
        (result.domain, re.sub(r" at [\w-]+", "", result.what).partition(" (try")[0]) for result in results
    )
    reservations, tenants, ports = 2, 3, {"west": 4, "east": 4}
    for domain, count in ports.items():
        assert driven[domain, "meter burst, bits"] == reservations
        assert driven[domain, "meter rate, bit/s"] == reservations
        assert driven[domain, "frames that reached the meter"] == reservations
        assert driven[domain, "queue rate, bit/s"] == reservations * count
        # Towards the servers and back.
        assert driven[domain, "packets in its class"] == 2 * tenants * count
        assert driven[domain, "packets in the default class"] == 2 * count
    assert driven["(path)", "bytes echoed over TCP"] == tenants
    assert made.federation.drift() == ()


def test_every_host_sends_by_the_same_tcp_whatever_the_machines_default_is(made: Reserved) -> None:
    for handle in made.network.hosts.values():
        with namespace.entered(handle.namespace):
            found = {name: (Path("/proc/sys") / name).read_text().strip() for name in HOST_SETTINGS}
        assert found == HOST_SETTINGS


def test_meters_that_are_no_token_buckets_or_that_nothing_passes_are_named(made: Reserved) -> None:
    steady, flood = (rule for rule in made.programs["west"].rules if rule.meter is not None)
    assert steady.meter is not None
    # Without BURST the bucket holds a second of the rate.
    band = f"meter={steady.meter.meter_id},kbps,stats,band=type=drop,rate={steady.meter.rate_kbps}"
    made.network.ovs.ofctl("mod-meter", "d1i", band)
    bypass = f"ip,nw_src={flood.client},actions=output:{made.network.ovs.port_numbers()['d1i-dn']}"
    made.network.ovs.ofctl("mod-flows", "d1i", bypass)
    found = findings(made)
    assert any(problem.startswith("probe of west, steady: meter burst, bits found") for problem in found), found
    assert any("west, flood: frames that reached the meter found 0," in problem for problem in found), found
    assert all(problem.startswith(("probe of west, steady: meter", "probe of west, flood")) for problem in found), found
    drift = made.federation.drift()
    assert any("meter" in difference and "steady" in difference for difference in drift)
    assert any("flow" in difference and "flood" in difference for difference in drift), drift


def test_set_queue_alone_does_nothing_on_the_userspace_datapath_and_the_probe_says_so(made: Reserved) -> None:
    out = made.network.ovs.port_numbers()[PORT]
    tc(f"filter del dev {PORT} parent 1:")
    flow = f"ip,nw_src=10.1.0.1,nw_dst=10.2.0.2,actions=set_queue:{STEADY_MINOR},output:{out}"
    # The switch takes the order without a word, and shows that it took it.
    assert made.network.ovs.ofctl("mod-flows", "d1e", flow) == ""
    assert f"set_queue:{STEADY_MINOR}" in made.network.ovs.ofctl("dump-flows", "d1e")
    (found, *_) = findings(made)
    assert re.search(rf"west, \(all\): \d+ packets wait in the default class at {PORT}, expected 0", found)
    assert any(PORT in difference for difference in made.federation.drift())


def test_a_float_rate_in_the_switchs_database_means_no_limit_and_is_read_back_as_drift(made: Reserved) -> None:
    rates = "other_config:min-rate=4000000.0 other_config:max-rate=4000000.0"
    command = (
        f"-- set port {PORT} qos=@qos -- --id=@qos create qos type=linux-htb other_config:max-rate=20000000.0 "
        f"queues:{STEADY_MINOR - 1}=@queue -- --id=@queue create queue {rates}"
    )
    made.network.ovs.vsctl(*command.split())
    # Accepted, and what the kernel got is not what was written.
    assert 'max-rate="4000000.0"' in made.network.ovs.vsctl("list", "queue").replace(" ", "")
    found = [difference for difference in made.federation.drift() if PORT in difference]
    assert any("steady" in difference for difference in found), (found, tc(f"class show dev {PORT}"))
