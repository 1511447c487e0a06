"""The header that every UDP tenant's packet carries, and the sizes a packet can have."""

import struct

import numpy as np
import pytest

from testbed.traffic import wire


def test_header_is_the_documented_24_bytes_in_network_order() -> None:
    written = wire.headers(7, np.array([5, 2**60]), np.array([False, True]), flags=wire.OUTSIDE_WINDOW)
    assert written.shape == (2, 24)
    assert written[0].tobytes() == b"TLT1" + struct.pack("!HHQq", 7, 2, 0, 5)
    assert written[1].tobytes() == b"TLT1" + struct.pack("!HHQq", 7, 3, 1, 2**60)


def test_struct_and_numpy_describe_the_same_header() -> None:
    packed = wire.HEADER.pack(wire.MAGIC, 300, 1, 2**40, -3)
    record = np.frombuffer(packed, dtype=wire.HEADER_DTYPE)[0]
    assert (record["magic"], *(int(record[name]) for name in ("tenant", "flags", "sequence", "intended_ns"))) == (
        wire.MAGIC,
        300,
        1,
        2**40,
        -3,
    )


def test_parsing_gives_back_what_was_written_whatever_follows_the_header() -> None:
    intended_ns = np.arange(5) * 1_000_000_007
    written = wire.headers(2, intended_ns, np.ones(5, dtype=np.bool_))
    payloads = np.concatenate((written, np.full((5, 30), 0xEE, dtype=np.uint8)), axis=1)
    records = wire.parse(payloads)
    assert np.array_equal(records["intended_ns"], intended_ns)
    assert np.array_equal(records["sequence"], np.arange(5))
    assert np.all(records["tenant"] == 2)


def test_payload_is_the_frame_without_ethernet_ipv4_and_udp() -> None:
    assert wire.payload_bytes([8 * 66, 8 * 1514]).tolist() == [24, 1472]


@pytest.mark.parametrize(
    "bits",
    [8 * 65, 8 * 1515, 8 * 100 + 1, 0, -8],
    ids=["one byte short of the header", "one byte above the MTU", "no whole bytes", "empty", "negative"],
)
def test_a_size_that_cannot_be_sent_is_refused_with_the_size_named(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"found {bits} bits"):
        wire.payload_bytes([8 * 100, bits])


def test_a_larger_mtu_allows_larger_frames() -> None:
    assert wire.payload_bytes(8 * 9014, mtu_bytes=9000) == 8972


@pytest.mark.parametrize("number", [0, -1, 65535 - 40000 + 1])
def test_a_tenant_number_without_a_port_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"found {number}"):
        wire.client_port(number)


def test_tenants_have_their_own_source_ports() -> None:
    assert (wire.client_port(1), wire.client_port(300)) == (40001, 40300)
