"""Meters, queues, long links and faults of the kernel's datapath: driven as installed, named when they are not."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from testbed.emulation import delay_line, links, packet_filter
from testbed.emulation.network import TandemNetwork
from testbed.emulation.probe import probe
from testbed.emulation.probe_checks import ProbeResult
from testbed.emulation.probe_domain import DomainProbe
from testbed.errors import ReservationError
from tests.integration.spine import Reserved
from tests.kernel.guest.packets import SENT, pair

pytestmark = [pytest.mark.network, pytest.mark.emulated]

PORT = "d1e-dn"
ENTERS, INNER, LEAVES = "d1i-up", "d1i-dn", "d1e-up"
STEADY, BULK, NEAR = 1, 2, 3
STEADY_MINOR = 0x11
PINGS = 40
RTT = re.compile(r"= ([\d.]+)/[\d.]+/[\d.]+/[\d.]+ ms")


def west(made: Reserved) -> tuple[ProbeResult, ...]:
    """What one drive of the first domain finds."""
    return DomainProbe(made.network, 0, made.programs["west"]).run()


def tc(command: str) -> None:
    subprocess.run(["tc", *command.split()], check=True, capture_output=True)


def least_rtt_s(network: TandemNetwork, tenant: int) -> float:
    """The shortest of some round trips of a tenant that no meter polices."""
    path = network.layout.path(tenant)
    command = ["ping", "-n", "-q", "-c", str(PINGS), "-i", "0.05", path.server.address]
    enter = ["nsenter", f"--net={network.hosts[path.client.host].namespace}"]
    said = subprocess.run([*enter, *command], check=True, capture_output=True, text=True).stdout
    (least_ms,) = RTT.findall(said)
    return float(least_ms) / 1e3


def set_delay(interface: str, delay_s: float) -> None:
    tc(f"qdisc change dev {interface} root netem delay {round(delay_s * 1e6)}us limit 1000")


def test_the_kernel_at_hand_has_open_vswitch_s_datapath_and_uses_it(made: Reserved) -> None:
    modules = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    assert {"openvswitch", "sch_netem", "sch_htb"} <= modules
    assert "system@ovs-system" in made.network.ovs.appctl("dpif/show")


def test_meters_and_queues_of_the_kernel_are_read_back_and_pass_the_probe(made: Reserved) -> None:
    assert made.federation.drift() == ()
    results = probe(made.network, made.programs)
    driven = {result.what.partition(" (try")[0] for result in results}
    assert {"meter burst, bits", "meter rate, bit/s", f"queue rate at {PORT}, bit/s"} <= driven
    assert {f"packets in its class at {PORT}", f"packets in the default class at {PORT}"} <= driven
    assert all(result.ok for result in results)


def test_a_meter_without_burst_and_a_lowered_class_are_named(made: Reserved) -> None:
    (steady,) = (rule for rule in made.programs["west"].rules if rule.meter is not None)
    assert steady.meter is not None
    # Without BURST the bucket holds a second of the rate.
    band = f"kbps,stats,band=type=drop,rate={steady.meter.rate_kbps}"
    made.network.ovs.ofctl("mod-meter", "d1i", f"meter={steady.meter.meter_id},{band}")
    tc(f"class change dev {PORT} parent 1:1 classid 1:{STEADY_MINOR:x} htb rate 200kbit ceil 200kbit burst 4k")
    drift = made.federation.drift()
    failed = {result.what for result in west(made) if not result.ok}
    made.federation.reserve()
    assert any("meter" in difference and "steady" in difference for difference in drift), drift
    assert any(PORT in difference and "steady" in difference for difference in drift), drift
    assert {"meter burst, bits", f"queue rate at {PORT}, bit/s"} <= failed
    assert made.federation.drift() == ()


def test_packets_without_set_queue_fall_into_the_default_class_and_are_named(made: Reserved) -> None:
    out = made.network.ovs.port_numbers()[PORT]
    rule = made.programs["west"].rules[0]
    flow = f"ip,nw_src={rule.client},nw_dst={rule.server},actions=output:{out}"
    made.network.ovs.ofctl("mod-flows", "d1e", flow)
    drift = made.federation.drift()
    with pytest.raises(ReservationError, match=rf"packets wait in the default class at {PORT}.*set_queue"):
        west(made)
    made.federation.reserve()
    assert any("flow" in difference and "steady" in difference for difference in drift), drift
    assert made.federation.drift() == ()


def test_the_shortest_round_trip_is_the_delays_of_the_links_and_what_the_switches_add(made: Reserved) -> None:
    network = made.network
    long_s = {tenant: least_rtt_s(network, tenant) for tenant in (BULK, NEAR)}
    for wire in network.layout.wires:
        for interface in wire.interfaces:
            set_delay(interface, 0.0)
    zero_s = {tenant: least_rtt_s(network, tenant) for tenant in long_s}
    for wire in network.layout.wires:
        for interface in wire.interfaces:
            set_delay(interface, wire.delay_s)
    print(f"shortest round trips {long_s} s, without delays {zero_s} s")
    assert network.link_delays_s == (0.02, 0.03)
    # Who is served half-way crosses the first link only.
    for tenant, delays_s in ((BULK, 0.05), (NEAR, 0.02)):
        assert long_s[tenant] == pytest.approx(2 * delays_s + zero_s[tenant], rel=0.02)


def test_a_loss_takes_its_share_and_the_same_packets_again_and_nobody_else_s(made: Reserved) -> None:
    address = made.network.layout.path(STEADY).client.address
    with pair(made, STEADY) as steady, pair(made, BULK) as bulk:
        with made.network.filtering(ENTERS, packet_filter.losing(0.3, 7, address)):
            first, second = steady.lost(), steady.lost()
            assert bulk.lost() == set()
        assert steady.lost() == set()
    assert first == second
    # Five standard deviations of so many draws.
    assert abs(len(first) - 0.3 * SENT) < 5 * (0.3 * 0.7 * SENT) ** 0.5
    assert "clsact" not in links.run(["tc", "qdisc", "show", "dev", ENTERS])


def test_a_longer_way_delays_every_packet_once_and_keeps_their_order(made: Reserved) -> None:
    by_s = 0.2
    with pair(made, STEADY) as steady:

        def trip_s(sequence: int) -> float:
            began = time.monotonic()
            steady.send(sequence)
            assert steady.received() == sequence
            return time.monotonic() - began

        usual_s = min(trip_s(sequence) for sequence in range(10))
        held = made.network.filtering(LEAVES, delay_line.ONLY_DELAYED)
        with delay_line.delayed(INNER, LEAVES, held, by_s):
            longer_s = [trip_s(sequence) for sequence in range(10)]
            # What is on its way when it ends arrives at once, in order, once.
            for sequence in range(10, 30):
                steady.send(sequence)
            assert steady.received() == 10
        assert steady.all_received() == list(range(11, 30))
        assert min(trip_s(sequence) for sequence in range(10)) < usual_s + by_s / 2
    assert usual_s + 0.9 * by_s < min(longer_s)
    assert sorted(longer_s)[5] < usual_s + 1.5 * by_s


def test_a_kernel_that_filters_what_a_port_receives_is_known_as_one() -> None:
    assert packet_filter.ingress_available()
