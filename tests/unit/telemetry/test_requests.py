"""Every request is found in its captures, whatever HTTP/2 and TCP did to it, and its parts add up to its latency."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import FidelityError, TestbedError
from testbed.telemetry import http2, pcap, request_samples
from testbed.telemetry.requests import RequestCaptures, RequestMatch, match_requests
from testbed.traffic.request_records import OK, RequestRecord
from testbed.traffic.request_schedules import RequestSchedule
from tests.unit.telemetry.dialogues import PREFACE, Line, data, frame, headers, message

MS = 1_000_000
ZERO_NS = 1_700_000_000_000_000_000
SETTINGS = frame(4, 0, b"")


def test_frames_are_walked_behind_the_preface_and_a_last_incomplete_one_is_left_out() -> None:
    whole = PREFACE + SETTINGS + headers(1) + data(1, b"abc") + data(3, b"")
    found = http2.walk(np.frombuffer(whole + data(3, bytes(50))[:20], dtype=np.uint8))
    assert found.kind.tolist() == [4, 1, 0, 0]
    assert found.stream.tolist() == [0, 1, 1, 3]
    assert found.payload_bytes.tolist() == [0, 40, 3, 0]
    assert found.start[0] == len(PREFACE)
    assert found.end[-1] == len(whole)


def test_bytes_that_are_no_frames_are_refused_with_their_place() -> None:
    with pytest.raises(FidelityError, match=r"47 45 54 .* at stream offset 9"):
        http2.walk(np.frombuffer(SETTINGS + b"GET / HTTP/1.1\r\n", dtype=np.uint8))


def test_a_number_that_flow_control_cut_apart_is_read() -> None:
    whole = message(42)
    parts = data(1, whole[:3]) + data(3, message(7)) + data(1, whole[3:9]) + data(1, whole[9:])
    stream = np.frombuffer(parts, dtype=np.uint8)
    ids, numbers = http2.request_of_stream(stream, http2.walk(stream))
    assert (ids.tolist(), numbers.tolist()) == ([1, 3], [42, 7])


def record(n: int = 2) -> RequestRecord:
    """Requests intended at 0, 10, .. ms and sent 1 ms later, with the server and the client as in `played`."""
    intended = np.arange(n) * 0.010
    server = intended[:, None] + np.array([0.0055, 0.0056, 0.0060, 0.0070])
    return RequestRecord(
        1, 1, 1.0, 0, ZERO_NS, RequestSchedule(intended, np.full(n, 200), np.zeros(n, np.int64)), intended + 0.001,
        intended + 0.0110, server, np.full(n, OK, np.int16), np.full(n, 200), np.full(n, 100), np.ones(n, np.int32),
    )  # fmt: skip


def played(
    folder: Path, *, lost_in_first: bool = False, repeated: bool = False, reconnected: bool = False
) -> RequestCaptures:
    """Two requests over two domains: on each way 1 ms to border 0, then 2 ms and 0.5 ms, back in 2 ms; one is a probe.

    Their frames interleave: the second request's data comes before the last data of the first. The last data of the
    first may be lost in the first domain and sent again after 200 ms, or sent again though it arrived. The second may
    go over a connection of its own.
    """
    probe, first, second = message(0), message(0), message(1)
    probe = probe[:7] + b"probe-----" + probe[17:]
    opening = PREFACE + SETTINGS + headers(1) + data(1, probe)
    one, two = headers(3) + data(3, first[:100]), data(3, first[100:])
    third = headers(5) + data(5, second)
    at = np.cumsum([0, *(len(part) for part in (opening, one, two, third))])
    sent = [(-50, opening, 0), (2, one, 1), (3, two, 2), *([] if reconnected else [(13, third, 3)])]
    places = {}
    for name, delay in {"sent": 0.0, "b0": 0.0, "b1": 2.0, "b2": 2.5}.items():
        line = Line().open(ZERO_NS - 60 * MS)
        for when, part, k in sent:
            late = 200 if lost_in_first and k == 2 and name in {"b1", "b2"} else 0
            line.see(ZERO_NS + int((when + delay + late) * MS), int(at[k]), part)
        if lost_in_first and name in {"sent", "b0"}:
            line.see(ZERO_NS + 203 * MS, int(at[2]), two)
        if repeated:
            line.see(ZERO_NS + int((4 + delay) * MS), int(at[2]), two)
        if reconnected:
            line.packets += over_another(13 + delay, PREFACE + SETTINGS, headers(1) + data(1, second))
        places[name] = line
    answers = [SETTINGS + headers(1) + data(1, message(0, 100)) + headers(1)]
    answers += [headers(k) + data(k, message(0, 100)) + headers(k, 20, 5) for k in (3, 5)]
    for name, delay in {"leaving": 0.0, "received": 2.0}.items():
        line, start = Line(77, back=True).open(ZERO_NS - 60 * MS), 0
        for when, part in zip((-40.0, 8.0, 18.0), answers, strict=True):
            if reconnected and when == 18.0:
                answer = headers(1) + data(1, message(0, 100)) + headers(1, 20, 5)
                line.packets += over_another(18 + delay, SETTINGS, answer, back=True)
                continue
            line.see(ZERO_NS + int((when + delay) * MS), start, part)
            start += len(part)
        places[name] = line
    read = {
        name: pcap.read_records(
            line.write(folder / f"{name}.pcap", snap=65_535 if name in {"sent", "received"} else 66)
        )
        for name, line in places.items()
    }
    out = (read["b0"], read["b1"], read["b2"])
    return RequestCaptures(read["sent"], read["received"], out, read["leaving"])


def over_another(at_ms: float, opening: bytes, call: bytes, *, back: bool = False) -> list[tuple[int, bytes]]:
    """The packets of a connection that is opened and carries one call, whose last byte passes at this moment."""
    line = Line(5000, back=back, client=("10.1.0.1", 51001)).open(ZERO_NS + int((at_ms - 2) * MS))
    line.see(ZERO_NS + int((at_ms - 1) * MS), 0, opening)
    return line.see(ZERO_NS + int(at_ms * MS), len(opening), call).packets


def matched(folder: Path, **options: bool) -> RequestMatch:
    return match_requests("alpha", record(), played(folder, **options), domains=["a", "b"], server_port=8001)


def test_a_request_has_passed_a_border_when_all_of_it_has(tmp_path: Path) -> None:
    found = matched(tmp_path).samples
    assert found.first_s == pytest.approx([0.002, 0.013])
    assert found.out_s == pytest.approx(np.array([[0.003, 0.005, 0.0055], [0.013, 0.015, 0.0155]]))
    assert found.back_s == pytest.approx(np.array([[0.008, 0.010], [0.018, 0.020]]))


def test_the_parts_of_a_request_add_up_to_its_latency_and_the_rest_is_shown(tmp_path: Path) -> None:
    found = matched(tmp_path).samples
    parts = found.parts_s()
    assert list(parts) == ["client wait", "a", "b", "server queue", "compute", "network back", "residual"]
    assert sum(parts.values()) == pytest.approx(found.latency_s)
    assert [float(part[0]) for part in parts.values()] == pytest.approx(
        [0.003, 0.002, 0.0005, 0.0005, 0.001, 0.002, 0.002]
    )


def test_requests_over_a_second_connection_are_found_as_those_over_the_first(tmp_path: Path) -> None:
    one, two = matched(tmp_path), matched(tmp_path, reconnected=True)
    for name in ("first_s", "out_s", "back_s", "out_bits", "back_bits", "resent_s"):
        assert getattr(two.samples, name) == pytest.approx(getattr(one.samples, name)), name
    assert two.last_bits == pytest.approx(one.last_bits)
    assert two.out.payload_bits == one.out.payload_bits
    assert two.out.other_bits > one.out.other_bits, "opening it was within the window"
    assert (np.diff(two.packets.time_s[:, 0]) >= 0).all()


def test_the_residual_is_what_the_hosts_stacks_took(tmp_path: Path) -> None:
    found = matched(tmp_path).samples
    stacks = found.stacks_s()
    assert list(stacks) == ["into the server", "out of the server", "into the client"]
    assert [float(stack[0]) for stack in stacks.values()] == pytest.approx([0.0, 0.001, 0.001])
    assert sum(stacks.values()) == pytest.approx(found.residual_s)


def test_what_a_domain_lost_is_that_domains_delay(tmp_path: Path) -> None:
    plain, lost = matched(tmp_path).samples, matched(tmp_path, lost_in_first=True)
    assert lost.samples.out_s[:, 0] == pytest.approx(plain.out_s[:, 0]), "at border 0 the first sighting counts"
    assert lost.samples.domain_s[0] == pytest.approx([0.202, 0.0005])
    assert lost.retransmitted_bits == 8 * (66 + 9 + 105)


def test_waiting_to_send_again_is_told_from_the_rest_of_a_domains_delay(tmp_path: Path) -> None:
    plain, lost = matched(tmp_path).samples, matched(tmp_path, lost_in_first=True).samples
    assert plain.resent_s is not None
    assert lost.resent_s is not None
    assert plain.resent_s == pytest.approx(np.zeros((2, 3)))
    assert lost.resent_s == pytest.approx(np.array([[0.2, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_what_was_sent_again_in_vain_cost_no_time(tmp_path: Path) -> None:
    captures = played(tmp_path, repeated=True)
    found = match_requests("alpha", record(), captures, domains=["a", "b"], server_port=8001)
    assert found.retransmitted_bits > 0
    assert found.samples.resent_s == pytest.approx(np.zeros((2, 3)))


def test_the_framing_is_what_the_captured_bits_say(tmp_path: Path) -> None:
    found = matched(tmp_path)
    first = 8 * ((66 + 49 + 9 + 100) + (66 + 9 + 105))
    second = 8 * (66 + 49 + 9 + 205)
    assert found.samples.out_bits == pytest.approx([first, second])
    assert found.last_bits == pytest.approx([8 * (66 + 9 + 105), second])
    assert found.out.payload_bits == 2 * 8 * 200
    assert found.out.call_bits == pytest.approx(first + second)
    assert found.out.other_bits == pytest.approx(0.0), "the opening and the probe lie before the window"
    assert found.out.factor == pytest.approx((first + second) / 3200)
    assert found.out.bits_per_bit == pytest.approx((66 + 49 + 9 + 205) / (49 + 9 + 205))
    assert found.out.wire_bits(1600) == pytest.approx(max(first, second))
    assert found.back.payload_bits == 2 * 8 * 100


def test_a_request_that_was_never_answered_has_no_way_back(tmp_path: Path) -> None:
    told = record(3)
    told = replace(told, status=np.array([OK, OK, -1], np.int16))
    found = match_requests("alpha", told, played(tmp_path), domains=["a", "b"], server_port=8001).samples
    assert np.isnan(found.out_s[2]).all()
    assert np.isnan(found.back_s[2]).all()
    assert found.out_bits[2] == 0
    assert found.missed.tolist() == [False, False, True]


def test_captures_without_the_connection_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FidelityError, match="no connection to TCP port 9000"):
        match_requests("alpha", record(), played(tmp_path), domains=["a", "b"], server_port=9000)


def test_a_client_capture_of_headers_only_is_refused(tmp_path: Path) -> None:
    captures = played(tmp_path)
    with pytest.raises(FidelityError, match="capture whole packets"):
        match_requests("alpha", record(), replace(captures, sent=captures.out[0]), domains=["a", "b"], server_port=8001)


def test_requests_come_back_from_their_file(tmp_path: Path) -> None:
    found = matched(tmp_path).samples
    request_samples.write(tmp_path / "r.parquet", found)
    read = request_samples.read(tmp_path / "r.parquet")
    assert (read.tenant, read.domains, read.deadline_s, read.images) == ("alpha", ("a", "b"), 1.0, 1)
    for name, part in found.parts_s().items():
        assert np.array_equal(read.parts_s()[name], part)
    assert np.array_equal(read.out_bits, found.out_bits)
    assert found.resent_s is not None
    assert read.resent_s is not None
    assert np.array_equal(read.resent_s, found.resent_s)
    assert (read.impaired, read.lost_time_s) == (None, None)
    touched = replace(found, impaired=np.array([0, 5], np.uint8), lost_time_s=np.array([[0.0] * 3, [0.1, 0.2, 0.3]]))
    request_samples.write(tmp_path / "touched.parquet", touched)
    read = request_samples.read(tmp_path / "touched.parquet")
    assert read.impaired is not None
    assert read.lost_time_s is not None
    assert read.impaired.tolist() == [0, 5]
    assert np.array_equal(read.lost_time_s, [[0.0] * 3, [0.1, 0.2, 0.3]])
    request_samples.write(tmp_path / "old.parquet", replace(found, resent_s=None))
    assert request_samples.read(tmp_path / "old.parquet").resent_s is None


def test_a_file_without_requests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_bytes(b"PAR1")
    with pytest.raises(TestbedError, match="not a Parquet file"):
        request_samples.read(tmp_path / "r.parquet")
