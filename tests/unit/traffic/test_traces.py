"""Trace files: what is read from them, what is refused and how, and the packets their requests become."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from testbed.errors import ScenarioError
from testbed.scenario.definition import schema_text
from testbed.scenario.model import TraceArrivals
from testbed.traffic.arrivals import mean_bps, schedule
from testbed.traffic.dispersion import dispersion
from testbed.traffic.traces import FORMATS, read_trace
from testbed.traffic.workloads import read_requests

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
AZURE_ROWS = (
    "2023-11-16 18:17:03.9799600,4808,10",
    "2023-11-16 18:17:04.0319601,3180,8",
    "2023-11-16 18:17:04.0319601,1,0",
    "2023-11-16 18:18:04,7433,14",
)
PACKET_HEADER = "time_s,size_bytes"
PUBLISHED = Path(__file__).parents[4] / "shared" / "traces" / "AzureLLMInferenceTrace_code.csv"


def write(folder: Path, *lines: str, end: str = "\r\n") -> Path:
    path = folder / "trace.csv"
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def problems(path: Path, format_name: str) -> tuple[str, ...]:
    with pytest.raises(ScenarioError) as caught:
        read_trace(path, format_name)
    return caught.value.problems


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\r\n", "\n"], ids=["CRLF", "LF"])
def test_azure_stamps_are_read_to_the_100_ns_digit(tmp_path: Path, end: str) -> None:
    trace = read_trace(write(tmp_path, AZURE_HEADER, *AZURE_ROWS, end=end), "azure-llm")
    assert np.rint(trace.time_s * 1e9).astype(int).tolist() == [0, 52_000_100, 52_000_100, 60_020_040_000]
    assert trace.request.tolist() == [4808, 3180, 1, 7433]
    assert trace.response.tolist() == [10, 8, 0, 14]


def test_azure_stamps_may_cross_midnight_and_carry_a_zone_of_utc(tmp_path: Path) -> None:
    rows = ("2024-02-28 23:59:59.5+00:00,1,1", "2024-02-29T00:00:00.25Z,2,2", "2024-03-01 00:00:00.25,3,3")
    trace = read_trace(write(tmp_path, AZURE_HEADER, *rows), "azure-llm")
    assert trace.time_s.tolist() == [0.0, 0.75, 86400.75]


def test_columns_are_found_by_name_and_others_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, "size_bytes,app,time_s", "100,x,7.5", "200,y,8.25e0")
    trace = read_trace(path, "packets")
    assert trace.time_s.tolist() == [0.0, 0.75]
    assert trace.request.tolist() == [100, 200]


def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path) -> None:
    assert read_trace(write(tmp_path, PACKET_HEADER, "0,100", "1,100", "", ""), "packets").time_s.size == 2


def test_a_repeated_trace_has_a_gap_between_its_last_row_and_its_first(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, PACKET_HEADER, "5,100", "6,100", "9,100"), "packets")
    assert trace.period_s == 6.0


def test_a_scenario_can_name_every_format_that_can_be_read_and_no_other() -> None:
    text = schema_text()
    (choice,) = set(re.findall(r'"format": \{\s*"enum": (\[[^]]*\])', text))
    assert sorted(json.loads(choice)) == sorted([*FORMATS, "servegen"])


# --- recorders that round -------------------------------------------------------------------------------------------


def mooncake(folder: Path, *stamps_ms: float) -> Path:
    return write(folder, *(json.dumps({"timestamp": t, "input_length": 9, "output_length": 2}) for t in stamps_ms))


def test_mooncake_stamps_on_its_3_s_grid_are_spread_within_their_bins_in_order(tmp_path: Path) -> None:
    stamps = [0] * 500 + [3000] * 300 + [5999] * 100 + [12000]
    trace = read_trace(mooncake(tmp_path, *stamps), "mooncake")
    assert trace.grid_s == 3.0
    assert np.all(np.diff(trace.time_s) > 0)
    # The first of 500 requests opens the trace, at most a few hundredths of a second into its bin.
    for first, rows in ((0.0, slice(0, 500)), (3.0, slice(500, 800)), (6.0, slice(800, 900)), (12.0, slice(900, 901))):
        assert first - 0.05 < trace.time_s[rows].min() <= trace.time_s[rows].max() < first + 3
    assert stats.kstest(trace.time_s[:500] / 3, "uniform").pvalue > 0.01


def test_a_rounded_trace_is_the_same_sequence_at_every_reading(tmp_path: Path) -> None:
    path = mooncake(tmp_path, 0, 0, 0, 3000, 3000)
    assert np.array_equal(read_trace(path, "mooncake").time_s, read_trace(path, "mooncake").time_s)


def test_mooncake_stamps_off_the_grid_are_kept(tmp_path: Path) -> None:
    trace = read_trace(mooncake(tmp_path, 0, 3000, 4500, 6000.5), "mooncake")
    assert trace.grid_s is None
    assert trace.time_s.tolist() == [0.0, 3.0, 4.5, 6.0005]


BURSTGPT_HEADER = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"


def test_burstgpt_whole_seconds_are_spread_and_failed_requests_are_kept(tmp_path: Path) -> None:
    rows = ("5,1,0.2,ChatGPT,472,18,490,Conversation log", "5,2,0,GPT-4,0,0,0,API log", "9,2,1,GPT-4,3,4,7,API log")
    path = write(tmp_path, BURSTGPT_HEADER, *rows)
    trace = read_trace(path, "burstgpt")
    assert trace.grid_s == 1.0
    assert trace.request.tolist() == [472, 0, 3]
    assert trace.response.tolist() == [18, 0, 4]
    assert 0 < trace.time_s[1] < 1
    assert 3 < trace.time_s[2] < 5
    requests = read_requests(TraceArrivals(path, "burstgpt", 1.0, 32, 11_200))
    assert requests.count.tolist() == [2, 1, 1]
    assert requests.size_bits[1] == 8 * 66


def test_burstgpt_with_fractions_of_a_second_is_kept(tmp_path: Path) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    trace = read_trace(write(tmp_path, header, "0.25,x,1,1,2,y", "1.5,x,1,1,2,y"), "burstgpt")
    assert (trace.grid_s, trace.time_s.tolist()) == (None, [0.0, 1.25])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"timestamp": 1, "output_length": 2}', "found no input_length, expected timestamp, input_length"),
        ("[1, 2, 3]", "found '[1, 2, 3]', expected a JSON object"),
        ("{'timestamp': 1}", "expected a JSON object"),
        ("", "found '', expected a JSON object"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 2}', "found timestamp 'nan', expected milliseconds"),
        ('{"timestamp": 1, "input_length": true, "output_length": 2}', "found input_length 'True'"),
        ('{"timestamp": 1, "input_length": 1.5, "output_length": 2}', "found input_length '1.5'"),
        ('{"timestamp": 1, "input_length": 1, "output_length": null}', "found output_length 'None'"),
    ],
    ids=[
        "a member missing",
        "a list",
        "Python text",
        "a blank line",
        "not a number",
        "a truth",
        "half a token",
        "null",
    ],
)
def test_a_bad_json_line_is_named_with_what_was_found(tmp_path: Path, line: str, message: str) -> None:
    good = '{"timestamp": 1, "input_length": 1, "output_length": 2, "hash_ids": [1]}'
    named, counted = problems(write(tmp_path, good, line, good), "mooncake")
    assert "line 2: " in named
    assert message in named
    assert "1 of 3 rows" in counted


def test_a_json_lines_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match="cannot be read"):
        read_trace(tmp_path / "trace.jsonl", "mooncake")
    (tmp_path / "trace.jsonl").write_bytes(b"\n")
    with pytest.raises(ScenarioError, match="found 0 rows"):
        read_trace(tmp_path / "trace.jsonl", "mooncake")


# --- refusing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2023-11-16 18:17:05.1,12", "found 2 values, expected 3"),
        ("2023-11-16 18:17:05.1,12,3,4", "found 4 values, expected 3"),
        ("2023-13-16 18:17:05.1,12,3", "found TIMESTAMP '2023-13-16 18:17:05.1', expected a UTC time"),
        ("16.11.2023 18:17:05,12,3", "found TIMESTAMP '16.11.2023 18:17:05', expected a UTC time"),
        ("2023-11-16 18:17:05.1,twelve,3", "found ContextTokens 'twelve', expected a whole number of at least 1"),
        ("2023-11-16 18:17:05.1,0,3", "found ContextTokens '0', expected a whole number of at least 1"),
        ("2023-11-16 18:17:05.1,-4,3", "found ContextTokens '-4'"),
        ("2023-11-16 18:17:05.1,12,", "found GeneratedTokens '', expected a whole number of at least 0"),
        ("2023-11-16 18:17:05.1,99999999999999999999,3", "found ContextTokens '99999999999999999999'"),
        ("2023-11-16 18:17:03.9,12,3", "is earlier than a row before it; sort the file by time"),
        ("", "found TIMESTAMP '', expected a UTC time"),
    ],
    ids=[
        "a value missing",
        "a value too many",
        "month 13",
        "another calendar format",
        "a word for a number",
        "nothing to carry",
        "negative tokens",
        "an empty field",
        "a number beyond reason",
        "a stamp out of order",
        "a blank line between rows",
    ],
)
def test_a_bad_row_is_named_with_its_line_and_what_was_found(tmp_path: Path, row: str, message: str) -> None:
    path = write(tmp_path, AZURE_HEADER, *AZURE_ROWS[:2], row, AZURE_ROWS[3])
    named, counted = problems(path, "azure-llm")
    assert named.startswith(f"trace {path}, line 4: ")
    assert message in named
    assert counted.startswith(f"trace {path}: 1 of 4 rows are bad")


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e999", "0x10", ""])
def test_a_time_that_is_no_number_of_seconds_is_refused(tmp_path: Path, value: str) -> None:
    named, _ = problems(write(tmp_path, PACKET_HEADER, "0,100", f"{value},100", "1,100"), "packets")
    assert "line 3: found time_s" in named


def test_a_frame_too_small_to_be_identified_is_a_bad_row(tmp_path: Path) -> None:
    named, _ = problems(write(tmp_path, PACKET_HEADER, "0,65", "1,66"), "packets")
    assert "line 2: found size_bytes '65', expected a whole number of at least 66" in named


def test_all_bad_rows_are_counted_and_the_first_ten_named_in_order(tmp_path: Path) -> None:
    rows = [f"{i},100" if i % 2 else f"{i},100,9" if i % 4 else f"{i},x" for i in range(60)]
    *named, counted = problems(write(tmp_path, PACKET_HEADER, *rows), "packets")
    assert [int(text.split("line ")[1].split(":")[0]) for text in named] == list(range(2, 22, 2))
    assert "30 of 60 rows are bad" in counted


def test_lines_are_numbered_right_in_a_file_of_many_blocks(tmp_path: Path) -> None:
    rows = [f"{i}.000000000000,100" for i in range(150_000)]
    rows[70_000] = "70000,100,extra"
    rows[140_000] = "140000,none"
    path = write(tmp_path, PACKET_HEADER, *rows)
    assert path.stat().st_size > 2**21
    first, second, counted = problems(path, "packets")
    assert "line 70002: found 3 values" in first
    assert "line 140002: found size_bytes 'none'" in second
    assert "2 of 150,000 rows" in counted


def test_a_quoted_value_over_several_lines_moves_no_line_number(tmp_path: Path) -> None:
    rows = ('0,100,"one\ntwo\nthree"', "1,none,four", "2,100,five,six")
    first, second, _ = problems(write(tmp_path, PACKET_HEADER + ",note", *rows), "packets")
    assert "line 5: found size_bytes 'none'" in first
    assert "line 6: found 4 values" in second


@pytest.mark.parametrize(
    ("lines", "format_name", "message"),
    [
        ((AZURE_HEADER, *AZURE_ROWS), "pcap", r"found format 'pcap', expected one of \['azure-llm', .*'packets'\]"),
        ((AZURE_HEADER, *AZURE_ROWS), "packets", "found no table with the columns time_s, size_bytes"),
        ((), "packets", "found no table"),
        ((PACKET_HEADER,), "packets", "found 0 rows, expected at least 2"),
        ((PACKET_HEADER, "0,100"), "packets", "found 1 rows, expected at least 2"),
        ((PACKET_HEADER, "3,100", "3,100"), "packets", "found all 2 rows at one instant"),
    ],
    ids=["unknown format", "another format's columns", "empty file", "header only", "one row", "no gap"],
)
def test_a_file_that_is_no_trace_is_refused(
    tmp_path: Path, lines: tuple[str, ...], format_name: str, message: str
) -> None:
    with pytest.raises(ScenarioError, match=message):
        read_trace(write(tmp_path, *lines), format_name)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"nowhere\.csv: cannot be read"):
        read_trace(tmp_path / "nowhere.csv", "packets")


def test_a_folder_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read"):
        read_trace(tmp_path, "packets")


# --- packets of requests --------------------------------------------------------------------------------------------


def test_a_request_is_cut_into_full_packets_and_a_remainder_that_carry_all_its_data(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE_HEADER, *AZURE_ROWS)
    arrivals = TraceArrivals(path, "azure-llm", 1.0, bits_per_token=3, size_bits=8 * 166)
    requests = read_requests(arrivals)
    data_bytes = np.array([1803, 1193, 1, 2788])  # ceil(3 tokens / 8)
    assert requests.count.tolist() == [19, 12, 1, 28]
    assert requests.size_bits.tolist() == (8 * (data_bytes + 66 * requests.count)).tolist()
    packets = requests.packets(np.array([2, 1]), np.array([0.5, 0.75]))
    assert packets.size_bits.tolist() == [8 * 67, *[8 * 166] * 11, 8 * (1193 - 1100 + 66)]
    assert packets.time_s.tolist() == [0.5] + [0.75] * 12
    assert packets.last_of_request.tolist() == [True] + [False] * 11 + [True]


def test_a_request_that_fills_its_packets_exactly_has_no_remainder(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE_HEADER, "2023-11-16 18:17:03,100,1", "2023-11-16 18:17:04,200,1")
    requests = read_requests(TraceArrivals(path, "azure-llm", 1.0, bits_per_token=8, size_bits=8 * 166))
    assert requests.count.tolist() == [1, 2]
    packets = requests.packets(np.array([1]), np.array([0.0]))
    assert packets.size_bits.tolist() == [8 * 166, 8 * 166]


def test_frames_of_a_packet_trace_are_sent_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, PACKET_HEADER, "0,66", "0.5,1514", "2,70")
    arrivals = TraceArrivals(path, "packets", 4.0, 32, 8 * 1514)
    requests = read_requests(arrivals)
    assert requests.time_s.tolist() == [0.0, 0.125, 0.5]
    assert requests.size_bits.tolist() == [528, 12112, 560]
    assert mean_bps(arrivals) == (528 + 12112 + 560) / 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_bits": 8 * 1000}, "found 1 frames larger than 1000 bytes, the first in row 2"),
        ({"size_bits": 8 * 1515}, "packet size: found 12120 bits"),
        ({"speed_up": 0.0}, "found speed-up 0.0"),
    ],
    ids=["frames above the limit", "a limit above the MTU", "no speed"],
)
def test_packets_that_cannot_be_sent_are_refused(tmp_path: Path, change: dict[str, float], message: str) -> None:
    fields = {"speed_up": 1.0, "bits_per_token": 32, "size_bits": 8 * 1514} | change
    path = write(tmp_path, PACKET_HEADER, "0,66", "1,1514")
    with pytest.raises(ScenarioError, match=message):
        read_requests(TraceArrivals(path, "packets", **fields))  # type: ignore[arg-type]


def test_packets_without_room_for_data_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE_HEADER, *AZURE_ROWS)
    with pytest.raises(ScenarioError, match="nothing is left for data"):
        read_requests(TraceArrivals(path, "azure-llm", 1.0, 32, 8 * 66))


# --- dispersion -----------------------------------------------------------------------------------------------------


def test_a_poisson_process_has_dispersion_one_and_no_memory() -> None:
    time_s = np.random.default_rng(1).random(200_000) * 10_000
    summary = dispersion(time_s, 10_000.0)
    assert summary.index == pytest.approx((1, 1, 1), abs=0.16)
    assert summary.gap_cv2 == pytest.approx(1.0, rel=0.02)
    assert abs(summary.autocorrelation) < 0.04
    assert summary.rate_per_s == 20.0


def test_equal_gaps_have_no_dispersion_and_batches_that_of_their_size() -> None:
    regular = dispersion(np.arange(2000) / 20 + 0.025, 100.0)
    assert regular.index == pytest.approx((0, 0, 0), abs=1e-12)
    assert (regular.peak_to_mean, regular.empty_share) == (1.0, 0.0)
    assert regular.gap_cv2 == pytest.approx(0.0, abs=1e-12)
    points = np.random.default_rng(2).random(50_000) * 10_000
    assert dispersion(np.repeat(points, 7), 10_000.0).index[1] == pytest.approx(7, rel=0.05)


def test_counts_that_last_are_correlated_and_counts_that_alternate_are_opposed() -> None:
    lasting = np.concatenate([np.linspace(10 * k, 10 * k + 10, 100, endpoint=False) for k in range(0, 50, 2)])
    assert dispersion(lasting, 500.0).autocorrelation == pytest.approx(0.8, abs=0.02)
    alternating = np.arange(0, 500, 2) + 0.5
    assert dispersion(alternating, 500.0).autocorrelation == pytest.approx(-1)
    assert dispersion(alternating, 500.0).empty_share == 0.5
    assert dispersion(alternating, 500.0).peak_to_mean == 2.0


def test_a_window_that_does_not_fit_is_left_out_and_none_gives_no_figure() -> None:
    summary = dispersion(np.array([0.1, 0.2, 1.9]), 1.95)
    assert summary.arrivals == 3
    assert np.isnan(summary.index[2])
    assert np.isnan(summary.autocorrelation)
    assert summary.peak_to_mean == 1.0


# --- the published trace --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is not on this machine")
def test_the_published_azure_code_trace_has_its_known_size_span_and_burstiness() -> None:
    trace = read_trace(PUBLISHED, "azure-llm")
    assert trace.time_s.size == 8819
    assert trace.time_s[-1] == pytest.approx(3435.948056, abs=1e-9)
    summary = dispersion(trace.time_s, trace.time_s[-1])
    assert summary.index == pytest.approx((2.54, 13.19, 71.85), abs=0.01)
    assert (summary.peak_to_mean, summary.autocorrelation) == pytest.approx((26.1, 0.757), abs=0.01)
    assert summary.empty_share == pytest.approx(0.734, abs=0.001)


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is not on this machine")
def test_the_published_trace_replayed_faster_keeps_its_burstiness_at_scales_that_much_shorter() -> None:
    arrivals = TraceArrivals(PUBLISHED, "azure-llm", 10.0, 32, 11_200)
    packets = schedule(arrivals, seed=1, duration_s=343.63)
    requests_s = packets.time_s[packets.last_of_request]
    assert requests_s.size == pytest.approx(8819, abs=3)
    assert dispersion(requests_s, 343.63).index[:2] == pytest.approx((13.19, 71.85), rel=0.08)
    assert packets.rate_bps(343.63) == pytest.approx(mean_bps(arrivals), rel=0.002)


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is not on this machine")
def test_the_published_mooncake_trace_is_no_longer_synchronised_batches() -> None:
    trace = read_trace(PUBLISHED.parent / "mooncake_conversation_first400.jsonl", "mooncake")
    assert (trace.time_s.size, trace.grid_s) == (400, 3.0)
    assert dispersion(trace.time_s, trace.time_s[-1]).index[:2] == pytest.approx((1, 1), abs=0.25)
