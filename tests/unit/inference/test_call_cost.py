"""What calls cost beside their computation is told form by form, and shares that are capped are charged with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from inference_server.__main__ import _settings
from inference_server.call_cost import CallCost
from inference_server.forms import Form
from inference_server.protocol import Stamps, method
from tests.unit.inference.conftest import MESSAGE_BYTES
from tests.unit.inference.serving import LONG_S, Running, infer, request, serving, until
from tests.unit.inference.test_calls import WRONG


def form() -> Form:
    return Form(
        model=None, tenant=None, timeout_ns=None, outputs=(), raw=True, shape=(1, 64), rows=1, batch=None, work_s=0.0,
        light=True, direct=True, least_ns=0,
    )  # type: ignore[arg-type]  # fmt: skip


def test_each_form_is_known_by_what_its_own_calls_take_without_what_was_computed() -> None:
    spent_ns = 0
    calls = CallCost(lambda: spent_ns)
    small, large = form(), form()
    found = {}
    for k in range(800):
        kind, taken_ns = ((small, 100_000), (large, 900_000))[k % 2]
        spent_ns += taken_ns + 5_000_000
        calls.computed(2_000_000)
        calls.computed(3_000_000)
        found[id(kind)] = calls.of(kind)
    assert found[id(small)] == pytest.approx(100e-6, rel=0.01)
    assert found[id(large)] == pytest.approx(900e-6, rel=0.01)


def test_a_form_that_nobody_has_counted_yet_takes_what_others_do() -> None:
    spent_ns = 0
    calls = CallCost(lambda: spent_ns)
    for _ in range(300):
        spent_ns += 200_000
        calls.of(form())
    spent_ns += 200_000
    assert calls.of(form()) == pytest.approx(200e-6)


def test_the_first_call_of_a_server_does_not_weigh_more_than_others() -> None:
    """It fills caches: 5 ms, and everything after it 200 us. A mean that began with it would still be at 1.5 ms."""
    spent_ns = 0
    calls, asked = CallCost(lambda: spent_ns), form()
    calls.of(asked)
    found = []
    for taken_ns in (5_000_000, *[200_000] * 40):
        spent_ns += taken_ns
        found.append(calls.of(asked))
    assert found[0] == pytest.approx(5e-3)
    assert found[10] < 0.8e-3
    assert found[-1] < 0.4e-3


def test_what_was_spent_before_the_first_call_is_nobody_s() -> None:
    spent_ns = 10**10
    calls = CallCost(lambda: spent_ns)
    assert calls.of(form()) == 0.0
    spent_ns += 300_000
    assert calls.of(form()) == pytest.approx(300e-6)


@pytest.mark.parametrize("least", [0, 1])
def test_calls_that_were_given_up_unread_are_not_charged_to_those_that_were_read(least: int) -> None:
    spent_ns, found_s = 0, 0.0
    calls, kind, rng = CallCost(lambda: spent_ns), form(), np.random.default_rng(1)
    for k in range(2000):
        unread = int(rng.integers(least, 5)) if k > 100 else 0
        for _ in range(unread):
            calls.unread()
        spent_ns += 1_000_000 + unread * 300_000
        found_s = calls.of(kind)
    assert found_s == pytest.approx(1e-3, rel=0.02)


def test_more_computed_than_spent_costs_nothing() -> None:
    calls = CallCost(lambda: 0)
    calls.of(form())
    calls.computed(10**9)
    assert calls.of(form()) == 0.0


class Counting(CallCost):
    """Knows how many calls were read, and how many were given up before."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.given_up = 0

    def of(self, form: Form) -> float:
        self.read += 1
        return super().of(form)

    def unread(self) -> None:
        self.given_up += 1
        super().unread()


@pytest.fixture(scope="module")
def charging() -> Iterator[Running]:
    """A server whose shares are capped."""
    options = ["--listen", "127.0.0.1:0", "--models", "digits-small", "--device", "cpu", "--share", "alpha=0.5"]
    with serving(_settings([*options, "--capped-shares", "--max-message-bytes", str(MESSAGE_BYTES)])) as running:
        yield running


def test_a_call_that_is_given_up_before_its_message_came_was_not_read(charging: Running) -> None:
    calls = charging.server.workers.calls = Counting()
    never = threading.Event()
    with charging.channel() as channel:
        silent = channel.stream_unary(method("ModelInfer")).future(iter(never.wait, True), timeout=LONG_S)
        assert infer(channel)(request(), timeout=LONG_S).outputs
        silent.cancel()
        until(lambda: calls.given_up == 1)
        never.set()
        assert infer(channel)(request(), timeout=LONG_S).outputs
    assert (calls.read, calls.given_up) == (2, 1)


def test_a_call_without_a_message_is_the_clients_mistake(charging: Running) -> None:
    with charging.channel() as channel:
        with pytest.raises(grpc.RpcError, match="found no message") as caught:
            channel.stream_unary(method("ModelInfer"))(iter(()), timeout=LONG_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert infer(channel)(request(), timeout=LONG_S).outputs


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_gets_its_status_where_shares_are_capped(charging: Running, what: str) -> None:
    message, code, said = WRONG[what]
    with charging.channel() as channel:
        with pytest.raises(grpc.RpcError, match=said) as caught:
            infer(channel)(message, timeout=LONG_S)
        assert caught.value.code() is code
        assert infer(channel)(request(), timeout=LONG_S).outputs


@pytest.mark.parametrize("capped", [True, False])
def test_reading_a_call_is_taken_from_a_share_that_is_capped(capped: bool) -> None:
    options = ["--listen", "127.0.0.1:0", "--models", "digits-small", "--device", "cpu", "--share", "alpha=0.5"]
    asked = request()
    asked.parameters["tenant"].string_param = "alpha"
    with serving(_settings([*options, *(["--capped-shares"] if capped else [])])) as running:
        with running.channel() as channel:
            answers = [infer(channel)(asked, timeout=LONG_S) for _ in range(40)]
        work_s = running.server.service.models["digits-small"].cost({"pixels": np.zeros((1, 64), "<f4")})
        share = running.server._scheduler._shares["alpha"]
        begun = share.free_s
        with running.channel() as channel:
            last = infer(channel)(asked, timeout=LONG_S)
    assert all(Stamps.read(answer) for answer in answers)
    if capped:
        stamps = Stamps.read(last)
        assert stamps is not None
        # Its own server is done with it after computing and reading it at half the speed.
        assert share.free_s > stamps.queued_ns / 1e9 + (work_s + 20e-6) / 0.5
    else:
        assert share.free_s == pytest.approx(begun + work_s / 0.5)
