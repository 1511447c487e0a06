from __future__ import annotations

from controller.objects import (
    ClassifierKey,
    ClassifierValue,
    ClassKey,
    ClassValue,
    FilterKey,
    FilterValue,
    FlowKey,
    FlowValue,
    LeafKey,
    LeafValue,
    MeterKey,
    MeterValue,
)
from controller.plan import plan
from controller.program import Queue
from tests.unit.controller.programs import hop, program, rule

FORWARD = (("eth_type", "0x800"), ("in_port", "d0i-up"), ("ipv4_dst", "10.2.0.1"), ("ipv4_src", "10.1.0.1"))
REVERSE = (("eth_type", "0x800"), ("in_port", "d0i-dn"), ("ipv4_dst", "10.1.0.1"), ("ipv4_src", "10.2.0.1"))


def flows(wanted: object) -> dict[FlowKey, FlowValue]:
    objects = wanted.objects  # type: ignore[attr-defined]
    return {key: value for key, value in objects.items() if isinstance(key, FlowKey)}


def test_an_ingress_meters_towards_the_server_and_only_there() -> None:
    wanted = plan(program())
    assert flows(wanted) == {
        FlowKey("d0i", 0, ()): FlowValue(0, ()),
        FlowKey("d0i", 100, FORWARD): FlowValue(1, (("meter", 1), ("output", "d0i-dn"))),
        FlowKey("d0i", 100, REVERSE): FlowValue(1, (("output", "d0i-up"),)),
    }
    assert wanted.objects[MeterKey("d0i", 1)] == MeterValue(("BURST", "KBPS", "STATS"), (("drop", 8_000, 200),))


def test_other_switches_forward_without_a_meter() -> None:
    wanted = plan(program(hops=(hop(ingress=False),)))
    assert flows(wanted)[FlowKey("d0i", 100, FORWARD)] == FlowValue(1, (("output", "d0i-dn"),))
    assert MeterKey("d0i", 1) not in wanted.objects


def test_best_effort_has_a_queue_and_no_meter() -> None:
    wanted = plan(program(rule(meter=None)))
    assert flows(wanted)[FlowKey("d0i", 100, FORWARD)] == FlowValue(1, (("output", "d0i-dn"),))
    assert ClassKey("d0i-dn", 0x11) in wanted.objects


def test_hosts_attached_to_a_switch_are_reached_through_their_own_ports() -> None:
    attached = hop(client_ports=(("10.1.0.1", "d0i-c1"),), server_ports=(("10.2.0.1", "d0i-h"),))
    wanted = plan(program(hops=(attached,)))
    matches = {dict(key.match).get("in_port"): value for key, value in flows(wanted).items()}
    assert matches["d0i-c1"].steps[-1] == ("output", "d0i-h")
    assert matches["d0i-h"].steps[-1] == ("output", "d0i-c1")


def test_the_userspace_datapath_classifies_by_address_and_the_kernel_datapath_by_queue_number() -> None:
    userspace, kernel = plan(program()), plan(program(datapath="kernel"))
    assert userspace.objects[FilterKey("d0i-dn", "10.1.0.1")] == FilterValue(0x11, "source")
    assert userspace.objects[FilterKey("d0i-up", "10.1.0.1")] == FilterValue(0x11, "destination")
    assert userspace.objects[ClassifierKey("d0i-up")] == ClassifierValue("destination", linked=True)
    assert not [key for key in kernel.objects if isinstance(key, (FilterKey, ClassifierKey))]
    # Queue N becomes skb->priority 1:(N+1), so class 1:11 is queue 16.
    steps = (("meter", 1), ("set_queue", 0x10), ("output", "d0i-dn"))
    assert flows(kernel)[FlowKey("d0i", 100, FORWARD)].steps == steps


def test_a_port_towards_a_client_of_the_switch_is_classified_by_destination() -> None:
    attached = hop(client_ports=(("10.1.0.1", "d0i-c1"),), queued_ports=("d0i-c1",))
    assert plan(program(hops=(attached,))).objects[ClassifierKey("d0i-c1")] == ClassifierValue("destination", True)


def test_a_queue_becomes_a_class_and_a_leaf_in_the_kernels_own_units() -> None:
    queue = Queue(0x11, 10_000_007, 20_000_000, 5000, 3000, 77)
    wanted = plan(program(rule(queue=queue)))
    assert wanted.objects[ClassKey("d0i-dn", 0x11)] == ClassValue(
        parent_minor=1,
        rate_bytes_per_s=1_250_000,
        ceil_bytes_per_s=2_500_000,
        burst_ticks=62_500,
        cburst_ticks=31_250,
        quantum_bytes=3000,
        prio=0,
    )
    assert wanted.objects[LeafKey("d0i-dn", 0x11)] == LeafValue("pfifo_head_drop", 77)


def test_a_tenant_owns_its_objects_and_nobody_owns_the_ports() -> None:
    wanted = plan(program(rule(1), rule(2)))
    assert wanted.tenants[ClassKey("d0i-dn", 0x12)] == "tenant-2"
    assert wanted.tenants[MeterKey("d0i", 1)] == "tenant-1"
    assert ClassKey("d0i-dn", 1) not in wanted.tenants
    assert FlowKey("d0i", 0, ()) not in wanted.tenants


def test_tenants_that_share_a_queue_have_one_class_that_each_of_them_is_put_in() -> None:
    queue = Queue(0x10, 60_000_000, 60_000_000, 5000, 3000, 100)
    wanted = plan(program(*(rule(number, meter=None, queue=queue) for number in (1, 2, 3))))
    classes = {key for key in wanted.objects if isinstance(key, ClassKey) and key.port == "d0i-dn"}
    assert classes == {ClassKey("d0i-dn", minor) for minor in (1, 2, 0x10)}
    assert wanted.tenants[ClassKey("d0i-dn", 0x10)] == "tenant-1, tenant-2, tenant-3"
    chosen = {wanted.objects[FilterKey("d0i-dn", f"10.1.0.{number}")] for number in (1, 2, 3)}
    assert chosen == {FilterValue(0x10, "source")}
