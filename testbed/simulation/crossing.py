"""From recorded packets and requests to the samples that a run's folder holds, tenant by tenant, and back from there.

Nothing is late and nothing is in doubt in a simulation: a packet is sent when it is meant to be, every border sees
everything, and a host's stacks take no time. A request without an answer is one whose client gave up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from testbed.run.judge import Observed
from testbed.run.requests import RequestOutcome
from testbed.simulation.answering import ANSWERED, Answers
from testbed.simulation.asking import Asking
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.recorder import Passage
from testbed.simulation.tally import LATER_METER, METER, QUEUE, TIMEOUT
from testbed.simulation.wave import IndexArray
from testbed.telemetry import lag, request_samples, samples
from testbed.telemetry.match import BorderCount, Match
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.requests import Passages, RequestMatch
from testbed.telemetry.samples import TenantSamples
from testbed.traffic.request_records import GAVE_UP, OK, RequestRecord
from testbed.traffic.request_schedules import RequestSchedule


@dataclass(frozen=True)
class Asked:
    """What a tenant's requests are held against.

    Attributes:
        images: Images in each; 0 of requests for text.
        asking: What they are.
        accuracy: Share of the images that are classified rightly; None where that is not known.
    """

    images: int
    asking: Asking
    accuracy: float | None


@dataclass(frozen=True)
class Crossing:
    """What a tenant's packets are held against.

    Attributes:
        tenant: Name.
        number: Tenant number, 1-based.
        domains: Names of the domains of its path.
        latencies_s: Promised latency of each; empty where nothing is promised.
        rate_bps: Smallest rate reserved on the path; None for best effort.
        burst_bits: Depth of that bucket.
        links_s: Propagation delay of all links of the path together.
        asked: What is recorded of its requests; None where it sends packets.
    """

    tenant: str
    number: int
    domains: tuple[str, ...]
    latencies_s: tuple[float, ...]
    rate_bps: float | None
    burst_bits: float
    links_s: float = 0.0
    asked: Asked | None = None


def tenant_samples(crossing: Crossing, index: int, passage: Passage) -> TenantSamples:
    """Recorded packets of source `index`; a window starts at time 0 and sends exactly when it intends to."""
    own = passage.rows(index)
    border_ps = passage.border_ps[own, : len(crossing.domains) + 1]
    born_s = passage.born_ps[own] / PS_PER_S
    return TenantSamples(
        tenant=crossing.tenant,
        number=crossing.number,
        domains=crossing.domains,
        window_start_ns=0,
        sequence=np.arange(born_s.size, dtype=np.int64),
        intended_s=born_s,
        sent_s=born_s,
        size_bits=passage.size_bits[own],
        border_s=np.where(border_ps >= 0, border_ps / PS_PER_S, np.nan),
        last_of_request=passage.ends[own],
    )


def asked_samples(
    crossing: Crossing, asked: Asked, index: int, passage: Passage, *, answers: Answers, seed: np.random.SeedSequence
) -> RequestSamples:
    """Recorded requests of source `index`.

    Args:
        crossing: The tenant.
        asked: Its requests.
        index: Its source.
        passage: Recorded packets.
        answers: Recorded requests.
        seed: Decides which answers are right.
    """
    own = answers.tenant == index
    last, moments_ps, outcome = answers.last[own], answers.moments_ps[own], answers.outcome[own]
    answered = outcome == ANSWERED
    intended_s = passage.born_ps[last] / PS_PER_S
    border_ps = passage.border_ps[last, : len(crossing.domains) + 1]
    out_s = np.where(border_ps >= 0, border_ps / PS_PER_S, np.nan)
    # Where an earlier packet was lost, the last one is not the end of anything.
    incomplete = (moments_ps[:, 0] < 0) & ~answered & (outcome != TIMEOUT)
    out_s[incomplete, 1:] = np.nan
    started_s, finished_s, back_s = np.where(moments_ps >= 0, moments_ps / PS_PER_S, np.nan).T
    asking = asked.asking
    timeout_s = asking.timeout_ps / PS_PER_S
    request_bytes, answer_bytes = answers.request_bytes[own], np.full(last.size, asking.answer_bytes)
    correct = np.full(last.size, -1, np.int32)
    if asked.accuracy is not None:
        drawn = np.random.default_rng(seed).binomial(asked.images, asked.accuracy, last.size)
        correct = np.where(answered, drawn, -1).astype(np.int32)
    return RequestSamples(
        tenant=crossing.tenant,
        number=crossing.number,
        domains=crossing.domains,
        window_start_ns=0,
        deadline_s=timeout_s,
        images=asked.images,
        intended_s=intended_s,
        sent_s=intended_s,
        first_s=intended_s,
        out_s=out_s,
        server_s=np.stack([out_s[:, -1], out_s[:, -1], started_s, finished_s], axis=1),
        back_s=np.stack([finished_s, back_s], axis=1),
        received_s=np.where(answered, back_s, intended_s + timeout_s),
        status=np.where(answered, OK, GAVE_UP).astype(np.int16),
        request_bytes=request_bytes,
        response_bytes=np.where(answered, answer_bytes, 0),
        out_bits=asking.out.call_bits(request_bytes).astype(np.float64),
        back_bits=np.where(answered, asking.back.call_bits(answer_bytes), 0.0),
        correct=correct,
    )


def outcome(path: Path, asked: Asked) -> RequestOutcome:
    """One window of a tenant's requests as judging them needs it, from its file of samples."""
    seen = request_samples.read(path)
    n = len(seen)
    record = RequestRecord(
        tenant=seen.number,
        images=seen.images,
        deadline_s=seen.deadline_s,
        start_monotonic_ns=0,
        start_realtime_ns=seen.window_start_ns,
        schedule=RequestSchedule(seen.intended_s, seen.request_bytes, np.zeros(n, np.int64)),
        sent_s=seen.sent_s,
        received_s=seen.received_s,
        server_s=seen.server_s,
        status=seen.status,
        request_bytes=seen.request_bytes,
        response_bytes=seen.response_bytes,
        correct=seen.correct,
    )
    asking = asked.asking
    match = RequestMatch(
        samples=seen,
        out=asking.framing_out(),
        back=asking.framing_back(),
        reordered=0,
        retransmitted_bits=0.0,
        packets=Passages(np.empty((0, len(seen.domains) + 1)), np.empty(0, np.int64)),
        last_bits=asking.out.last_bits(seen.request_bytes).astype(np.float64),
    )
    return RequestOutcome(record, match)


def write(
    path: Path,
    crossing: Crossing,
    index: int,
    passage: Passage,
    *,
    answers: Answers | None,
    seed: np.random.SeedSequence,
) -> None:
    """Write what is recorded of source `index`, with the ideal replay where packets have a rate reserved.

    Args:
        path: Where to.
        crossing: The tenant.
        index: Its source.
        passage: Recorded packets.
        answers: Recorded requests; None where nobody asks.
        seed: Decides which answers are right.
    """
    if crossing.asked is not None and answers is not None:
        request_samples.write(path, asked_samples(crossing, crossing.asked, index, passage, answers=answers, seed=seed))
        return
    seen = tenant_samples(crossing, index, passage)
    replay = None
    if crossing.latencies_s and crossing.rate_bps is not None:
        replay = lag.replay(
            seen,
            crossing.rate_bps,
            crossing.latencies_s,
            burst_bits=crossing.burst_bits,
            links_s=crossing.links_s,
        )
    samples.write(path, seen, replay)


def observed(path: Path, lost: IndexArray, nonconforming: int, duration_s: float) -> Observed:
    """What judging a source needs of one window.

    Args:
        path: Its file of samples.
        lost: What of it was lost in the window, by cause, int64[CAUSES].
        nonconforming: Packets of it that broke the contract.
        duration_s: Length of the window.
    """
    seen, replay = samples.read(path)
    return Observed(
        match=_match(seen),
        replay=replay,
        meter_dropped=int(lost[METER] + lost[LATER_METER]),
        forgiven=int(lost[METER]),
        nonconforming=nonconforming,
        queue_dropped=int(lost[QUEUE]),
        window_s=duration_s,
    )


def _match(seen: TenantSamples) -> Match:
    """Packets as a capture that misses nothing would have matched them."""
    at = np.isfinite(seen.border_s)
    lost = at[:, :-1] & ~at[:, 1:]
    return Match(
        samples=seen,
        borders=tuple(BorderCount(int(found), 0, 0, 0, 0, 0) for found in at.sum(axis=0)),
        lost_before=0,
        lost_in=dict(zip(seen.domains, lost.sum(axis=0).tolist(), strict=True)),
        residual_s=0.0,
    )
