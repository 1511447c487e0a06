"""Requests for text: a trace's context becomes bytes to read, its generated tokens bytes to write, in its order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference_server.generated.open_inference_pb2 import ModelInferRequest
from inference_server.server import Settings
from testbed.errors import PreflightError, ScenarioError
from testbed.scenario.loader import load
from testbed.scenario.model import ModelSize, Requests, TokenSize, TraceArrivals
from testbed.traffic.grpc_connection import Connection
from testbed.traffic.request_demand import demand
from testbed.traffic.request_makers import maker_of, text_tokens
from testbed.traffic.request_records import RequestSpec
from testbed.traffic.request_schedules import RequestSchedule, request_schedule
from testbed.traffic.request_wire import PROBE_ID, TextMaker, sequences
from testbed.traffic.requests import Calls, check
from testbed.traffic.sender import Stop
from tests.unit.inference.serving import LONG_S, Running, serving

SHIPPED = Path(__file__).parents[3] / "topologies" / "chat.yaml"
TOKENS = np.array([[5, 1], [300, 2], [40, 60], [2000, 3]])
MAKER = TextMaker("chat", "text-small", TOKENS)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(Settings(listen="127.0.0.1:0", models=("text-small", "digits-small"), device="cpu")) as server:
        yield server


def asked(**fields: object) -> Requests:
    values = {"model": "text-small", "images": 0, "size": TokenSize(), "in_flight": 10, "timeout_s": 1.0}
    return Requests(**{**values, "compute_share": 1.0, **fields})  # type: ignore[arg-type]


def traced(folder: Path, tokens: np.ndarray = TOKENS) -> TraceArrivals:
    path = folder / "t.csv"
    rows = "".join(f"{second},m,{c},{g},{c + g},log\n" for second, (c, g) in enumerate(tokens.tolist()))
    path.write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + rows)
    return TraceArrivals(path, "burstgpt", 1.0, 16, 12_112)


@pytest.mark.parametrize("row", range(len(TOKENS)))
@pytest.mark.parametrize("wanted", [0, 5000])
def test_a_message_carries_the_context_and_the_count_of_its_row(row: int, wanted: int) -> None:
    size = int(MAKER.message_bytes(np.array([wanted]), np.array([row]))[0])
    message = MAKER.message(7, row, size)
    assert size - 2 <= len(message) <= size
    parsed = ModelInferRequest.FromString(message)
    context, count = parsed.raw_input_contents
    assert (parsed.id, parsed.model_name) == ("0000000007", "text-small")
    assert [(len(context), int.from_bytes(count, "little"))] == [tuple(TOKENS[row])]
    assert [list(tensor.shape) for tensor in parsed.inputs] == [[len(context)], [1]]
    assert sequences([message, MAKER.probe(900)]).tolist() == [7, -1]
    assert ModelInferRequest.FromString(MAKER.probe(900)).id == PROBE_ID


def test_requests_come_in_the_order_of_the_trace_and_as_large_as_its_tokens(tmp_path: Path) -> None:
    arrivals = traced(tmp_path)
    maker = maker_of("chat", asked(), arrivals)
    drawn = request_schedule(arrivals, TokenSize(), maker, seed=1, duration_s=11.5)
    assert set(drawn.first_image) == {0, 1, 2, 3}
    assert set(np.diff(drawn.first_image) % 4) == {1}
    sizes = {row: set(drawn.message_bytes[drawn.first_image == row]) for row in range(4)}
    assert (sizes[1], sizes[3]) == ({600}, {4000}), "16 bit a token"
    assert sizes[0] == {len(maker.message(0, 0, 0))}, "no smaller than its context needs"
    plain = request_schedule(arrivals, ModelSize(), maker, seed=1, duration_s=11.5)
    assert np.all(plain.message_bytes - TOKENS[plain.first_image, 0] < 200)
    declared = demand(arrivals, ModelSize(), maker)
    assert set(declared.message_bits // 8) == set(plain.message_bytes)


def test_tokens_beyond_the_model_are_refused_with_the_scale_that_fits(tmp_path: Path) -> None:
    arrivals = traced(tmp_path, np.array([[100, 10], [20_000, 5], [50, 3000]]))
    with pytest.raises(ScenarioError, match=r"2 of 3 rows are beyond the model.*token-scale of 0\.341 or less"):
        text_tokens(arrivals, 1.0)
    assert text_tokens(arrivals, 0.341).max(axis=0).tolist() == [6820, 1023]
    assert text_tokens(arrivals, 1e-6).tolist() == [[1, 1]] * 3


def test_a_trace_drives_the_transformer_and_decode_costs_what_is_generated(running: Running) -> None:
    rows = np.array([0, 1, 2, 3, 2, 0])
    schedule = RequestSchedule(np.zeros(6), MAKER.message_bytes(np.zeros(6), rows), rows)
    told = RequestSpec(1, "chat", running.target, "text-small", 0, "", "", 0, LONG_S, tokens="beside")
    with Connection(running.target) as connection:
        check(connection, told, MAKER, int(schedule.message_bytes.max()))
        calls = Calls(told, schedule, MAKER, connection)
        start_ns = time.monotonic_ns()
        calls.run(start_ns, Stop())
    record = calls.record(start_ns)
    assert record.summary()["status"] == {"OK": 6}
    assert record.summary()["accuracy"] is None
    generated = record.response_bytes - record.response_bytes[0]
    assert np.all(np.diff(generated[[0, 1, 3, 2]]) >= 1)
    compute_s = record.server_s[:, 3] - record.server_s[:, 2]
    assert compute_s[2] > 5 * compute_s[0], "sixty steps against one"


@pytest.mark.parametrize("model", ["digits-small", "missing"])
def test_another_kind_of_model_is_found_before_the_window(running: Running, model: str) -> None:
    told = RequestSpec(1, "chat", running.target, model, 0, "", "", 0, LONG_S, tokens="beside")
    with Connection(running.target) as connection, pytest.raises(PreflightError, match=model):
        check(connection, told, TextMaker("chat", model, TOKENS), 900)


def test_the_shipped_scenario_asks_for_text_by_its_trace() -> None:
    chat, _ = load(SHIPPED).tenants
    assert chat.requests is not None
    tokens = text_tokens(chat.arrivals, chat.requests.token_scale)
    assert len(tokens) > 500
    assert isinstance(maker_of("chat", chat.requests, chat.arrivals), TextMaker)
