from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from controller import netlink
from controller.netlink import Request, attribute, attributes


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8))
def test_attributes_read_back_what_attribute_wrote(payloads: dict[int, bytes]) -> None:
    data = b"".join(attribute(kind, payload) for kind, payload in payloads.items())
    assert len(data) % 4 == 0
    assert attributes(data) == payloads


def test_the_nested_flag_is_not_part_of_a_type() -> None:
    assert attributes(attribute(0x8002, b"abcd")) == {2: b"abcd"}


def test_a_truncated_attribute_list_ends_instead_of_looping() -> None:
    assert attributes(struct.pack("=HH", 0, 1) + bytes(8)) == {}


def test_a_batch_is_cut_where_a_system_call_would_grow_too_large() -> None:
    requests = [Request(40, 0, bytes(1000), str(number)) for number in range(100)]
    chunks = list(netlink._chunks(requests))
    assert [request for chunk in chunks for request in chunk] == requests
    assert len(chunks) > 1
    assert all(sum(16 + len(request.body) for request in chunk) <= 32 * 1024 for chunk in chunks)


def test_the_kernels_own_words_are_part_of_the_message() -> None:
    payload = bytes(20) + attribute(1, b"Specified class not found\0")
    assert netlink._detail(payload) == " (Specified class not found)"
    assert netlink._detail(bytes(20)) == ""
