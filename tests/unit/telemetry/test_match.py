from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from testbed.errors import FidelityError
from testbed.telemetry.match import Match, SentPackets, match
from testbed.telemetry.pcap import PacketTable

START_NS = 1_764_000_000_000_000_000
MS = 1_000_000


def sent(n: int = 4, *, number: int = 1) -> SentPackets:
    intended = START_NS + 10 * MS * np.arange(n)
    return SentPackets("a", number, np.arange(n), intended, intended + MS, np.full(n, 8000, np.int32))


def border(
    sightings: Sequence[tuple[int, float]], *, tenant: int = 1, flags: int = 1, shift_ns: int = 0, size_bits: int = 8000
) -> PacketTable:
    """(sequence, milliseconds since the window's start) of each packet, in the order of capture."""
    n = len(sightings)
    sequence = np.array([s for s, _ in sightings], np.int64)
    return PacketTable(
        time_ns=START_NS + np.array([round(t * MS) for _, t in sightings], np.int64),
        size_bits=np.full(n, size_bits, np.int32),
        source=np.full(n, 0x0A010001, np.uint32),
        destination=np.full(n, 0x0A020003, np.uint32),
        source_port=np.full(n, 40001, np.uint16),
        destination_port=np.full(n, 9000, np.uint16),
        tenant=np.full(n, tenant, np.uint16),
        flags=np.full(n, flags, np.uint16),
        sequence=sequence,
        intended_ns=START_NS + 10 * MS * sequence + shift_ns,
    )


def concatenated(*tables: PacketTable) -> PacketTable:
    return PacketTable(**{name: np.concatenate([vars(t)[name] for t in tables]) for name in vars(tables[0])})


ALL = [[(i, 10 * i + late) for i in range(4)] for late in (2.0, 5.0, 9.0)]


def matched(borders: Sequence[PacketTable], packets: SentPackets | None = None) -> Match:
    return match(packets or sent(), borders, domains=("d1", "d2"), window_start_ns=START_NS)


def test_delays_of_every_part_add_up_to_the_latency() -> None:
    result = matched([border(seen) for seen in ALL])
    samples = result.samples
    np.testing.assert_allclose(samples.latency_s, np.full(4, 0.009))
    np.testing.assert_allclose(samples.network_s, np.full(4, 0.007))
    np.testing.assert_allclose(samples.domain_s, np.tile([0.003, 0.004], (4, 1)))
    np.testing.assert_allclose((samples.lateness_s, samples.access_s), np.full((2, 4), 0.001))
    assert result.residual_s < 1e-12
    assert (result.lost, result.lost_before, result.lost_in) == (0, 0, {"d1": 0, "d2": 0})


def test_a_lost_packet_is_charged_to_the_domain_after_the_last_border_that_saw_it() -> None:
    seen = [[0, 1, 2], [0, 1], [0]]
    result = matched([border([ALL[k][i] for i in kept]) for k, kept in enumerate(seen)])
    assert (result.lost_before, result.lost_in, result.lost) == (1, {"d1": 1, "d2": 1}, 3)
    assert [count.unseen for count in result.borders] == [0, 0, 0]
    assert result.samples.last_border.tolist() == [2, 1, 0, -1]
    assert np.isfinite(result.samples.latency_s).tolist() == [True, False, False, False]


def test_a_packet_that_only_a_later_border_saw_was_lost_by_the_capture() -> None:
    result = matched([border(ALL[0]), border(ALL[1][1:]), border(ALL[2])])
    assert [count.unseen for count in result.borders] == [0, 1, 0]
    assert result.lost == 0
    assert np.isnan(result.samples.domain_s[0]).all()
    assert result.samples.network_s[0] == pytest.approx(0.007)


def test_a_duplicate_is_counted_and_its_first_sighting_stands() -> None:
    result = matched([border(ALL[0]), border(ALL[1]), border([*ALL[2], (2, 77.0)])])
    assert [count.duplicates for count in result.borders] == [0, 0, 1]
    assert result.samples.latency_s[2] == pytest.approx(0.009)


def test_a_packet_behind_one_with_a_larger_number_was_reordered() -> None:
    late = [(0, 9.0), (2, 29.0), (3, 39.0), (1, 40.0)]
    result = matched([border(ALL[0]), border(ALL[1]), border(late)])
    assert [count.reordered for count in result.borders] == [0, 0, 1]
    assert result.samples.latency_s[1] == pytest.approx(0.030)


STRANGERS = {
    "another tenant's packet": (border([(0, 1.0)], tenant=2), 0),
    "warm-up traffic": (border([(0, 1.0)], flags=3), 0),
    "a number that was never sent": (border([(99, 1.0)]), 1),
    "the same number in another window": (border([(0, 1.0)], shift_ns=-60_000 * MS), 1),
}


@pytest.mark.parametrize(("stranger", "counted"), STRANGERS.values(), ids=STRANGERS.keys())
def test_a_packet_of_no_concern_is_kept_out(stranger: PacketTable, counted: int) -> None:
    result = matched([concatenated(stranger, border(ALL[0])), border(ALL[1]), border(ALL[2])])
    assert (result.borders[0].strangers, result.borders[0].seen, result.borders[0].duplicates) == (counted, 4, 0)
    assert result.samples.border_s[0, 0] == pytest.approx(0.002)


def test_a_packet_whose_length_changed_is_counted() -> None:
    result = matched([border(ALL[0]), border(ALL[1], size_bits=7992), border(ALL[2])])
    assert [count.resized for count in result.borders] == [0, 4, 0]


def test_packets_stand_in_the_order_they_were_meant_to_be_sent() -> None:
    packets = sent()
    shuffled = SentPackets(
        "a", 1, **{k: v[[2, 0, 3, 1]] for k, v in vars(packets).items() if isinstance(v, np.ndarray)}
    )
    result = matched([border(seen) for seen in ALL], shuffled)
    assert result.samples.sequence.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(result.samples.latency_s, np.full(4, 0.009))


def test_nothing_sent_and_nothing_seen_is_an_empty_window() -> None:
    result = matched([border([])] * 3, sent(0))
    assert (len(result.samples), result.lost, result.residual_s) == (0, 0, 0.0)


def test_nothing_sent_but_something_seen_is_a_stranger() -> None:
    assert matched([border(ALL[0]), border([]), border([])], sent(0)).borders[0].strangers == 4


def test_a_record_that_names_a_packet_twice_is_refused() -> None:
    twice = SentPackets("a", 1, np.array([0, 5, 5]), *(np.zeros(3, np.int64),) * 2, np.zeros(3, np.int32))
    with pytest.raises(FidelityError, match="recorded packet 5 twice"):
        matched([border([])] * 3, twice)


def test_one_border_more_than_domains_is_required() -> None:
    with pytest.raises(ValueError, match="2 domains have 3 borders, found 2"):
        matched([border([])] * 2)
