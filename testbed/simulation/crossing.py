"""From recorded packets to the samples that a run's folder holds, tenant by tenant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from testbed.run.judge import Observed
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.recorder import Passage
from testbed.simulation.tally import METER, QUEUE, Tally
from testbed.telemetry import lag, samples
from testbed.telemetry.match import BorderCount, Match
from testbed.telemetry.samples import TenantSamples


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
    """

    tenant: str
    number: int
    domains: tuple[str, ...]
    latencies_s: tuple[float, ...]
    rate_bps: float | None
    burst_bits: float
    links_s: float = 0.0


def tenant_samples(crossing: Crossing, index: int, passage: Passage) -> TenantSamples:
    """Recorded packets of source `index`; a window starts at time 0 and sends exactly when it intends to."""
    own = passage.tenant == index
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


def write(path: Path, crossing: Crossing, index: int, passage: Passage) -> None:
    """Write the recorded packets of source `index`, with the ideal replay where a rate is reserved."""
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


def observed(path: Path, tally: Tally, index: int, duration_s: float) -> Observed:
    """What judging source `index` needs of one window, from its file of samples and the window's tally."""
    seen, replay = samples.read(path)
    return Observed(
        match=_match(seen),
        replay=replay,
        meter_dropped=int(tally.lost[index, METER]),
        queue_dropped=int(tally.lost[index, QUEUE]),
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
