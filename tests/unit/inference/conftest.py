from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from inference_server.server import Settings
from tests.unit.inference.scheduling import Clock
from tests.unit.inference.serving import Running, serving

MESSAGE_BYTES = 1 << 20


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """One server for all tests that do not end it."""
    settings = Settings(listen="127.0.0.1:0", queue_limit=3, message_bytes=MESSAGE_BYTES, device="cpu")
    with serving(settings) as server:
        yield server


@pytest.fixture
def channel(running: Running) -> Iterator[grpc.Channel]:
    running.gate.open.set()
    with running.channel() as channel:
        yield channel
    running.gate.open.set()


@pytest.fixture
def clock_from_zero() -> None:
    """The clock of schedulers begins anew."""
    Clock.now_ns = 0
