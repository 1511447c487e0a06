"""A tenant's traffic over all windows of a run as the audit sees it: how long it took, where, why, and how it ended.

Packets and requests are told apart here and nowhere later. Latencies are cut twice, by place (domains, and for requests
the client, the server and the way back) and by cause; ideal servers of the *promised* rate, fed what was measured, tell
the tenant's own burst from a domain's service. Nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numba
import numpy as np

from testbed.audit.causes import Cause, DomainPassage, separate
from testbed.audit.clusters import FloatArray, IntArray, not_negative
from testbed.audit.request_excess import StageExcess, compute_excess, domain_excess, requests_beyond
from testbed.envelope.descriptor import Envelope, Stage
from testbed.telemetry.lag import ideal_wait_s
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.samples import BoolArray, Replay, TenantSamples
from testbed.traffic.request_records import Endings


class Crossing(Protocol):
    """What a tenant sent, in order of intended sending, windows one after the other; n packets or requests."""

    @property
    def what(self) -> str:
        """`packets` or `requests`."""

    @property
    def samples(self) -> Sequence[TenantSamples | RequestSamples]:
        """Each window as measured."""

    @property
    def latency_s(self) -> FloatArray:
        """Seconds, NaN: lost or never answered; [n]."""

    @property
    def runs(self) -> IntArray:
        """Window of each; [n]."""

    @property
    def endings(self) -> Endings | None:
        """How requests ended; None for packets."""

    def places(self) -> dict[str, FloatArray]:
        """Seconds in each place; [n] each."""

    def excess_s(self, envelope: Envelope) -> FloatArray:
        """How far each lagged behind an envelope of its path, NaN where it did not cross that stage; [n]."""

    def causes(self) -> dict[str, FloatArray] | None:
        """Seconds for each cause, which add up to the latency, [n] each; None where they cannot be told apart."""


@dataclass(frozen=True, slots=True)
class PacketCrossing:
    """A tenant's packets.

    Attributes:
        samples: Each window as measured.
        replays: Each window in ideal servers as promised; none where the tenant holds no envelopes.
        latency_s: See `Crossing`.
        runs: See `Crossing`.
    """

    samples: tuple[TenantSamples, ...]
    replays: tuple[Replay, ...]
    latency_s: FloatArray
    runs: IntArray
    what: str = "packets"
    endings: None = None

    @classmethod
    def of(cls, samples: Sequence[TenantSamples], replays: Sequence[Replay]) -> PacketCrossing:
        """Windows put one after the other."""
        return cls(tuple(samples), tuple(replays), *_pooled(samples))

    def excess_s(self, envelope: Envelope) -> FloatArray:
        """As replayed."""
        d = self.samples[0].domains.index(envelope.domain)
        return np.concatenate([replayed.excess_s[:, d] for replayed in self.replays])

    def places(self) -> dict[str, FloatArray]:
        """Each domain."""
        delays = np.concatenate([samples.domain_s for samples in self.samples])
        return {domain: delays[:, d] for d, domain in enumerate(self.samples[0].domains)}

    def causes(self) -> dict[str, FloatArray] | None:
        """Each domain's own service, the tenant's own burst, the host that sent late, the rest."""
        if not self.replays:
            return None
        waits = np.concatenate([_packet_waits(s, r.rate_bps) for s, r in zip(self.samples, self.replays, strict=True)])
        passages = {
            domain: DomainPassage(delay, waits[:, d]) for d, (domain, delay) in enumerate(self.places().items())
        }
        lateness = np.concatenate([samples.lateness_s for samples in self.samples])
        return separate(self.latency_s, passages, {Cause.HOST: lateness})


@dataclass(frozen=True, slots=True)
class RequestCrossing:
    """A tenant's requests, as many as were due.

    Attributes:
        samples: Each window as measured.
        rate_bps: Smallest rate that the envelopes of its path promise; None where it holds none.
        latency_s: See `Crossing`.
        runs: See `Crossing`.
    """

    samples: tuple[RequestSamples, ...]
    rate_bps: float | None
    latency_s: FloatArray
    runs: IntArray
    what: str = "requests"

    @classmethod
    def of(cls, samples: Sequence[RequestSamples], rate_bps: float | None) -> RequestCrossing:
        """Windows put one after the other, without requests that were still to come when a sender was ended."""
        due = [window.due() for window in samples]
        return cls(tuple(due), rate_bps, *_pooled(due))

    def excess_s(self, envelope: Envelope) -> FloatArray:
        """The least by which each lagged behind the envelope; [n]."""
        return np.concatenate([found.excess_s for found in self.passed(envelope)])

    def nonconforming(self, envelope: Envelope) -> int:
        """Requests proved to be beyond the token bucket of an envelope."""
        rails = envelope.guardrails
        bucket = {"rate_bps": rails.meter_rate_bps, "burst_bits": rails.burst_bits}
        return sum(requests_beyond(window, **bucket) for window in self.samples)

    def passed(self, envelope: Envelope) -> list[StageExcess]:
        """Each window in the stage that an envelope of its path is about."""
        rails, latency_s = envelope.guardrails, envelope.latency_s
        if envelope.subject.stage is Stage.COMPUTE:
            served_bps = rails.reserved_rate_bps if envelope.tail is None else envelope.tail.rate_bps
            promised = float(served_bps), float(rails.largest_packet_bits), latency_s
            return [compute_excess(window, *promised) for window in self.samples]
        rate_bps = float(rails.reserved_rate_bps) if self.rate_bps is None else self.rate_bps
        d = self.samples[0].domains.index(envelope.domain)
        return [domain_excess(window, d, rate_bps, latency_s) for window in self.samples]

    @property
    def endings(self) -> Endings:
        """How they ended."""
        return endings_of(self.samples)

    def places(self) -> dict[str, FloatArray]:
        """The client, each domain on the way out, the server's queue, its computation, the way back, the rest."""
        parts = [samples.parts_s() for samples in self.samples]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def causes(self) -> dict[str, FloatArray]:
        """Where it waited for whom; the server's stamps tell queueing and computing apart from the network.

        What the server says it was held up by on purpose is neither.
        """
        cut = [_request_causes(samples, self.rate_bps) for samples in self.samples]
        passages = {
            name: DomainPassage(
                np.concatenate([passed[name].delay_s for passed, _ in cut]),
                np.concatenate([passed[name].own_wait_s for passed, _ in cut]),
            )
            for name in cut[0][0]
        }
        measured = {cause: np.concatenate([apart[cause] for _, apart in cut]) for cause in cut[0][1]}
        return separate(self.latency_s, passages, measured)


def endings_of(windows: Sequence[RequestSamples]) -> Endings:
    """How the requests of some windows, at least one, ended."""
    status, correct = (np.concatenate([getattr(window, name) for window in windows]) for name in ("status", "correct"))
    touched = [np.zeros(len(window), np.uint8) if window.impaired is None else window.impaired for window in windows]
    return Endings.of(status, correct, windows[0].images, np.concatenate(touched))


def _pooled(samples: Sequence[TenantSamples] | Sequence[RequestSamples]) -> tuple[FloatArray, IntArray]:
    latency_s = np.concatenate([np.empty(0), *(window.latency_s for window in samples)])
    return not_negative(latency_s), np.repeat(np.arange(len(samples)), [len(window) for window in samples])


def _packet_waits(samples: TenantSamples, rate_bps: float) -> FloatArray:
    """Wait in an ideal server fed what entered each domain and left it; float64 [n, D], NaN elsewhere."""
    seen, border = np.isfinite(samples.border_s), samples.border_s
    waits = [
        ideal_wait_s(border[:, d], samples.size_bits, rate_bps, seen[:, d] & seen[:, d + 1])
        for d in range(len(samples.domains))
    ]
    return np.stack(waits, axis=1)


def _request_causes(
    samples: RequestSamples, rate_bps: float | None
) -> tuple[dict[str, DomainPassage], dict[Cause, FloatArray]]:
    """One window: the passages of the client's transport and of each domain, and the causes measured apart."""
    resent_s = np.zeros_like(samples.out_s) if samples.resent_s is None else samples.resent_s
    lost_s = np.zeros((len(samples), 3)) if samples.lost_time_s is None else samples.lost_time_s
    paused_s, behind_s, slowed_s = lost_s.T
    own_s = np.zeros_like(samples.out_s) if rate_bps is None else _request_waits(samples, rate_bps)
    passages = {Cause.TRANSPORT.value: DomainPassage(samples.out_s[:, 0] - samples.sent_s, own_s[:, 0])}
    passages |= {
        name: DomainPassage(samples.domain_s[:, d] - resent_s[:, d], own_s[:, d + 1])
        for d, name in enumerate(samples.domains)
    }
    return passages, {
        Cause.INFERENCE_QUEUE: samples.queue_s - paused_s - behind_s,
        Cause.COMPUTE: samples.compute_s - slowed_s,
        Cause.PAUSED: paused_s,
        Cause.SLOWED_DOWN: behind_s + slowed_s,
        Cause.NETWORK_BACK: samples.network_back_s - resent_s[:, -1],
        Cause.RETRANSMISSION: resent_s.sum(axis=1),
        Cause.HOST: samples.sent_s - samples.intended_s + samples.residual_s,
    }


def _request_waits(samples: RequestSamples, rate_bps: float) -> FloatArray:
    """What requests would have waited for the promised rate alone, at the client and in each domain; [n, 1 + D].

    A request's own transmission at that rate is the tenant's doing as its wait is. It counts where the rate is met
    first: at the client as far as TCP holds it back there, else in the first domain, into which it streams. Behind that
    it comes at the promised rate and only waits where it comes in clumps.
    """
    known = np.isfinite(samples.out_s[:, 0]) & np.isfinite(samples.sent_s)
    whole_s = samples.out_bits / rate_bps
    waits = [
        _served_s(samples.sent_s, samples.sent_s, whole_s, known),
        _served_s(samples.first_s, samples.out_s[:, 0], whole_s, known),
    ]
    waits += [
        ideal_wait_s(entry, samples.out_bits, rate_bps, known & np.isfinite(entry)) for entry in samples.out_s.T[1:-1]
    ]
    return np.stack(waits, axis=1)


def _served_s(first_s: FloatArray, last_s: FloatArray, whole_s: FloatArray, known: BoolArray) -> FloatArray:
    """How long after its last byte came an ideal server has served each request; [n], NaN where not known.

    Args:
        first_s: When the first byte came, [n].
        last_s: When the last byte came, [n].
        whole_s: What the server takes for the whole request, [n].
        known: Requests that came, [n].
    """
    chosen = np.flatnonzero(known)
    chosen = chosen[np.argsort(first_s[chosen], kind="stable")]
    served = np.full(first_s.size, np.nan)
    served[chosen] = _streamed(first_s[chosen], last_s[chosen], whole_s[chosen]) - last_s[chosen]
    return served


@numba.njit(cache=True)
def _streamed(first_s: FloatArray, last_s: FloatArray, whole_s: FloatArray) -> FloatArray:
    """When a FIFO server is done with requests that stream into it; not before their last byte came."""
    finish = np.empty(first_s.size)
    free = -np.inf
    for i in range(first_s.size):
        free = max(last_s[i], max(first_s[i], free) + whole_s[i])
        finish[i] = free
    return finish
