"""Windows of a request tenant made by hand: two domains, a server, and every delay known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from testbed.telemetry.request_samples import RequestSamples
from testbed.traffic.request_records import NOT_ATTEMPTED, OK, OVERDUE, SKIPPED

DOMAINS = ("west", "east")
RATE_BPS = 10_000_000
SIZE_BITS = 32_000
SEND_S = SIZE_BITS / RATE_BPS
TIMEOUT, REJECTED, UNAVAILABLE = 4, 8, 14


def window(
    seed: int, n: int = 20_000, *, pause_share: float = 0.0, slow_share: float = 0.0, shared: bool = True
) -> RequestSamples:
    """Poisson requests at load .5 through one queue of the promised rate in west, then east, one worker, and back.

    Every one is sent 0.2 ms late, is held 0.1 ms by its client, and takes 1 ms in east, 2 ms to compute and 1 ms back.

    Args:
        seed: Of the arrivals.
        n: Requests.
        pause_share: Share of them that wait 60 ms more in east, each alone.
        slow_share: Share of them that take 60 ms to compute.
        shared: Whether one worker computes them all, so that they wait for each other.
    """
    rng = np.random.default_rng(seed)
    intended = np.cumsum(rng.exponential(2 * SEND_S, n))
    sent = intended + 2e-4
    first, entered = sent + 5e-5, sent + 1e-4
    left = _queue(first, np.full(n, SEND_S)) + 5e-4
    arrived = left + 1e-3 + np.where(rng.random(n) < pause_share, 0.06, 0.0)
    compute = np.where(rng.random(n) < slow_share, 0.06, 2e-3)
    received = arrived + 1e-4
    finished = received + compute
    if shared:
        order = np.argsort(received)
        finished[order] = _queue(received[order], compute[order])
    leaving = finished + 1e-4
    return RequestSamples(
        tenant="vision", number=1, domains=DOMAINS, window_start_ns=0, deadline_s=1.0, images=4, intended_s=intended,
        sent_s=sent, first_s=first, out_s=np.stack([entered, left, arrived], axis=1),
        server_s=np.stack([received, received, finished - compute, finished], axis=1),
        back_s=np.stack([leaving, leaving + 1e-3], axis=1), received_s=leaving + 1.2e-3,
        status=np.full(n, OK, np.int16), request_bytes=np.full(n, 3800), response_bytes=np.full(n, 250),
        out_bits=np.full(n, float(SIZE_BITS)), back_bits=np.full(n, 3000.0), correct=np.full(n, 3, np.int32),
        resent_s=np.zeros((n, 3)),
    )  # fmt: skip


def failed(samples: RequestSamples, **endings: int) -> RequestSamples:
    """The same window in which every hundredth request ended so, as many as asked for each kind.

    Kinds: timeout, rejected, error, skipped, overdue, and to_come for the last ones, which were still to come.
    """
    codes = {"timeout": TIMEOUT, "rejected": REJECTED, "error": UNAVAILABLE, "skipped": SKIPPED, "overdue": OVERDUE}
    status = samples.status.copy()
    at = 0
    for kind, count in endings.items():
        if kind == "to_come":
            status[status.size - count :] = NOT_ATTEMPTED
            continue
        status[100 * np.arange(at + 1, at + 1 + count)] = codes[kind]
        at += count
    answered = status == OK
    server, back, received = samples.server_s.copy(), samples.back_s.copy(), samples.received_s.copy()
    server[~answered], back[~answered], received[~answered] = np.nan, np.nan, np.nan
    correct = np.where(answered, samples.correct, -1).astype(np.int32)
    return replace(samples, status=status, server_s=server, back_s=back, received_s=received, correct=correct)


def _queue(arrival_s: np.ndarray, service_s: np.ndarray) -> np.ndarray:
    """Departures from a FIFO server."""
    work = np.concatenate(([0.0], np.cumsum(service_s)[:-1]))
    return np.asarray(np.maximum.accumulate(arrival_s - work) + work + service_s)
