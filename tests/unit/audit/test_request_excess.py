"""What requests prove about the stages they crossed, and what they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from testbed.audit.request_excess import compute_excess, domain_excess, requests_beyond
from testbed.telemetry.request_samples import RequestSamples
from tests.unit.audit import asking

SEND_S = asking.SEND_S
"""What one request takes at the promised rate: 3.2 ms."""


def crossing(
    entered_s: list[float], left_s: list[float], first_s: list[float], resent_s: list[float] | None = None
) -> RequestSamples:
    """A few requests in the first domain, each 32,000 bits."""
    seen, n = asking.window(1, len(entered_s)), len(entered_s)
    out = np.stack([np.array(entered_s), np.array(left_s), np.array(left_s) + 1e-3], axis=1)
    resent = np.zeros((n, 3))
    resent[:, 0] = resent_s or 0.0
    return replace(seen, first_s=np.array(first_s), out_s=out, resent_s=resent)


@pytest.mark.parametrize(
    ("samples", "excess_s"),
    [
        (crossing([0.0], [SEND_S + 0.005], [-0.001]), [0.0]),
        (crossing([0.0], [SEND_S + 0.007], [-0.001]), [0.002]),
        (crossing([0.0, 0.001], [SEND_S, 2 * SEND_S + 0.007], [-0.001, 0.0005]), [0.0, 0.002]),
        (crossing([0.0, 0.0001], [2 * SEND_S + 0.005, 2 * SEND_S + 0.005], [-0.001, -0.001]), [0.0, 0.0]),
        (crossing([0.0], [SEND_S + 0.045], [-0.001], [0.04]), [0.0]),
        (crossing([0.0], [np.nan], [-0.001]), [np.nan]),
    ],
    ids=[
        "a request has its own transmission and the latency",
        "what is later is an excess",
        "a request waits for those before it",
        "bits sent between its own are credited",
        "waiting for lost bytes is no lag",
        "one that never left has none",
    ],
)
def test_a_domain_is_credited_with_all_that_may_have_been_before_a_request(
    samples: RequestSamples, excess_s: list[float]
) -> None:
    found = domain_excess(samples, 0, asking.RATE_BPS, 0.005)
    np.testing.assert_allclose(found.excess_s, excess_s, atol=1e-9)


def test_an_ideal_queue_of_packets_never_shows_an_excess_of_its_requests() -> None:
    # Requests of 4 packets, up to three of them mixed, through a packet by packet server of exactly the promised rate.
    rng = np.random.default_rng(3)
    n, packets = 3000, 4
    begin = np.cumsum(rng.exponential(1.6 * SEND_S, n))
    sent = np.sort(begin[:, None] + rng.uniform(0, 4 * SEND_S, (n, packets)), axis=1)
    order = np.argsort(sent, axis=None)
    arrival, service = sent.ravel()[order], SEND_S / packets
    work = np.arange(arrival.size) * service
    leave = np.empty(arrival.size)
    leave[order] = np.maximum.accumulate(arrival - work) + work + service
    left = leave.reshape(n, packets).max(axis=1)
    samples = crossing(sent[:, -1].tolist(), left.tolist(), sent[:, 0].tolist())
    assert domain_excess(samples, 0, asking.RATE_BPS, 0.0).excess_s.max() < 1e-9


def test_a_server_is_behind_by_what_it_takes_longer_than_promised() -> None:
    seen = asking.window(1, 3)
    server = np.array([[0.0, 0.0, 0.0, 0.002], [0.001, 0.001, 0.002, 0.010], [0.02, 0.02, 0.02, 0.022]])
    found = compute_excess(replace(seen, server_s=server), 32_000 / 0.002, 32_000, 0.003)
    # The second starts at 2 ms and may end at 5; the 16 ms of idleness before the third absorb its 5 ms of lag.
    np.testing.assert_allclose(found.excess_s, [0.0, 0.005, 0.0], atol=1e-12)


@pytest.mark.parametrize(
    ("burst_bits", "beyond"),
    [(4 * asking.SIZE_BITS, 0), (2 * asking.SIZE_BITS, 1), (asking.SIZE_BITS // 2, 3)],
)
def test_a_token_bucket_is_proved_overdrawn_only_by_what_lies_between_two_moments(burst_bits: int, beyond: int) -> None:
    samples = crossing([0.001, 0.002, 0.003], [0.1, 0.1, 0.1], [0.0, 0.0015, 0.0025])
    assert requests_beyond(samples, rate_bps=1_000_000, burst_bits=burst_bits) == beyond


def test_a_request_that_streams_at_the_rate_of_its_meter_needs_hardly_a_bucket() -> None:
    streamed, at_once = crossing([0.1], [0.2], [0.06]), crossing([0.1], [0.2], [0.099])
    assert requests_beyond(streamed, rate_bps=1_000_000, burst_bits=1000) == 0
    assert requests_beyond(at_once, rate_bps=1_000_000, burst_bits=1000) == 1


def test_a_tenant_that_keeps_its_bucket_is_never_said_to_have_overdrawn_it() -> None:
    samples = asking.window(2)
    load_bps = samples.out_bits.sum() / samples.out_s[-1, 0]
    level = np.cumsum(samples.out_bits) - 1.2 * load_bps * samples.out_s[:, 0]
    burst = float((level - np.minimum.accumulate(level)).max()) + asking.SIZE_BITS
    assert requests_beyond(samples, rate_bps=1.2 * load_bps, burst_bits=burst) == 0
