"""What is sent to the kernel, decoded by an independent netlink library."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from controller import traffic_control
from controller.errors import KernelError
from controller.objects import (
    Change,
    ClassifierKey,
    ClassifierValue,
    ClassKey,
    ClassValue,
    FilterKey,
    FilterValue,
    FlowKey,
    LeafKey,
    LeafValue,
    RootKey,
    RootValue,
)
from controller.plan import OWN_ROOT
from controller.traffic_control import Observation

SHAPE = ClassValue(1, 1_250_000, 2_500_000, 62_500, 31_250, 3000, 0)


def requests(change: Change, observation: Observation | None = None) -> list[Any]:
    """The messages of one change, on interface 7."""
    return list(traffic_control._requests(change, observation or Observation(), {"p": 7}))


def decoded(request: Any) -> Any:
    message = tcmsg(data=struct.pack("=IHHII", 16 + len(request.body), request.kind, 0, 1, 0) + request.body)
    message.decode()
    return message


def test_a_class_carries_rates_bursts_and_quantum() -> None:
    (request,) = requests(Change(ClassKey("p", 0x11), None, SHAPE))
    message = decoded(request)
    assert (message["index"], message["handle"], message["parent"]) == (7, 0x10011, 0x10001)
    assert message.get_attr("TCA_KIND") == "htb"
    parameters = message.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_PARMS")
    names = ("rate", "ceil", "buffer", "cbuffer", "quantum", "prio")
    assert [parameters[name] for name in names] == [1_250_000, 2_500_000, 62_500, 31_250, 3000, 0]
    assert parameters["rate___reserved"] == parameters["ceil___reserved"] == 1, "link layer Ethernet: no rate table"


def test_a_rate_beyond_32_bits_is_sent_as_64() -> None:
    wide = ClassValue(0, 12_500_000_000, 12_500_000_000, 1, 1, 1514, 0)
    options = decoded(requests(Change(ClassKey("p", 1), None, wide))[0]).get_attr("TCA_OPTIONS")
    assert options.get_attr("TCA_HTB_RATE64") == options.get_attr("TCA_HTB_CEIL64") == 12_500_000_000
    assert options.get_attr("TCA_HTB_PARMS")["rate"] == 0xFFFFFFFF


def test_a_root_says_which_class_takes_what_nobody_claimed() -> None:
    (request,) = requests(Change(RootKey("p"), None, OWN_ROOT))
    message = decoded(request)
    assert (message["handle"], message["parent"]) == (0x10000, 0xFFFFFFFF)
    assert message.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_INIT")["defcls"] == 2


def test_a_leaf_hangs_below_its_class_and_is_named_after_it() -> None:
    (request,) = requests(Change(LeafKey("p", 0x11), None, LeafValue("pfifo_head_drop", 77)))
    message = decoded(request)
    assert (message["handle"], message["parent"]) == (0x110000, 0x10011)
    assert message.get_attr("TCA_KIND") == "pfifo_head_drop"


def test_a_filter_matches_the_whole_address_in_the_bucket_of_its_last_byte() -> None:
    (request,) = requests(Change(FilterKey("p", "10.1.2.3"), None, FilterValue(0x11, "source")))
    options = decoded(request).get_attr("TCA_OPTIONS")
    assert options.get_attr("TCA_U32_CLASSID") == 0x10011
    assert options.get_attr("TCA_U32_HASH") == 0x00100000 | 3 << 12
    # struct tc_u32_key: mask and value in network order, offset from the IP header. pyroute2 does not decode keys.
    assert request.body.count(struct.pack("!II", 0xFFFFFFFF, 0x0A010203) + struct.pack("=ii", 12, 0)) == 1


@pytest.mark.parametrize(("address", "offset"), [("source", 12), ("destination", 16)])
def test_the_link_hashes_the_last_byte_of_the_right_address(address: str, offset: int) -> None:
    table, link = requests(Change(ClassifierKey("p"), None, ClassifierValue(address, linked=True)))
    assert decoded(table).get_attr("TCA_OPTIONS").get_attr("TCA_U32_DIVISOR") == 256
    selector = decoded(link).get_attr("TCA_OPTIONS").get_attr("TCA_U32_SEL")
    assert (selector["hoff"], selector["hmask"]) == (offset, 0xFF)


def test_a_filter_is_deleted_by_the_handle_the_kernel_gave_it() -> None:
    key = FilterKey("p", "10.1.2.3")
    observation = Observation(handles={key: (0x10008, 0x00103800)})
    (request,) = requests(Change(key, FilterValue(0x11, "source"), None), observation)
    message = decoded(request)
    assert (request.kind, message["handle"], message["info"]) == (45, 0x00103800, 0x10008)


def test_filters_go_before_the_classes_they_select_and_come_after() -> None:
    fresh = [Change(FilterKey("p", "a"), None, FilterValue(1, "source")), Change(ClassKey("p", 1), None, SHAPE)]
    gone = [Change(ClassKey("p", 2), SHAPE, None), Change(FilterKey("p", "b"), FilterValue(2, "source"), None)]
    ordered = sorted([*fresh, *gone], key=traffic_control._order)
    assert [change.key for change in ordered] == [gone[1].key, gone[0].key, fresh[1].key, fresh[0].key]


def test_what_hangs_below_a_root_that_goes_is_not_removed_twice() -> None:
    root = Change(RootKey("p"), OWN_ROOT, None)
    below, elsewhere = Change(ClassKey("p", 2), SHAPE, None), Change(ClassKey("q", 2), SHAPE, None)
    assert traffic_control._without_orphans([below, root, elsewhere]) == [root, elsewhere]


def test_a_root_of_somebody_else_is_refused() -> None:
    with pytest.raises(KernelError, match=r"root qdisc of p: found tbf 7: of somebody else, expected none"):
        traffic_control._refuse_foreign_roots([Change(RootKey("p"), RootValue("tbf", 7), OWN_ROOT)])


def test_a_flow_is_none_of_the_kernels_business() -> None:
    assert requests(Change(FlowKey("d0i", 0, ()), None, None)) == []
