"""A tenant's part of a run's record: its promise, the bound and what that rests on, and what was measured.

As in all of the record, times are seconds, rates bit/s, and a new field gets a default (`testbed.report.record`).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from testbed.report.verdict import Verdict

STRICT = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")
"""Of every part of a record: it does not change, and has no field that is not known."""


class _Part(BaseModel):
    model_config = STRICT


class BoundPart(_Part):
    """One summand of a bound."""

    name: str
    delay_s: float
    note: str = ""


class BudgetShare(_Part):
    """What one domain may use of the tenant's risk and delay, and what a second there is worth."""

    domain: str
    epsilon: float
    delay_s: float
    price_per_s: float | None = None


class BoundRecord(_Part):
    """The smallest sound bound with everything needed to argue about it.

    Attributes:
        curve: Pairs (epsilon, delay in s) of the same bound, for drawing it as a CCDF.
        rejected: Every other candidate with its value.
    """

    bound_s: float
    network_bound_s: float
    method: str
    assumptions: tuple[str, ...]
    parts: tuple[BoundPart, ...]
    budget: tuple[BudgetShare, ...] = ()
    rejected: dict[str, float] = {}
    curve: tuple[tuple[float, float], ...] = ()
    explanation: str = ""


class DomainDelay(_Part):
    """One domain's share of a tenant's delay.

    Attributes:
        p999_s: The 99.9th percentile of the domain's own delay, None without samples.
        tail_mean_s: Mean delay in this domain of the packets above the tenant's p99.9 of the whole path.
        lag_share: Share of packets whose lag beyond the promised latency was positive; of requests, that of which whole
            requests prove it.
        lost: Packets lost in it; 0 for requests, which TCP sends again.
    """

    domain: str
    mean_s: float | None
    p999_s: float | None
    tail_mean_s: float | None
    lag_share: float
    lost: int


class PartDelay(_Part):
    """One part of a request's life.

    Attributes:
        tail_mean_s: Its mean over the requests at or above the tenant's p99.9 of the whole.
    """

    name: str
    mean_s: float | None
    p999_s: float | None
    tail_mean_s: float | None


class RequestsRecord(_Part):
    """What became of a tenant's requests, and what they were made of.

    Attributes:
        accuracy: Share of the images answered for that were classified rightly.
        timeouts: Requests whose answer was not there in time.
        rejected: Requests that the server's queue or limits refused.
        errors: Requests that ended in another error.
        skipped: Requests never sent, because as many as allowed were unanswered.
        overdue: Requests never sent, because the host came to them after their deadline.
        framing_out: Wire bits for each message bit towards the server, from captures.
        framing_back: The same towards the client.
        reordered: Requests that HTTP/2 let overtake others.
        network_s: p50, p99 and p99.9 of the network part: from the intended time to the compute host.
        ideal_network_s: The same of an ideal queue fed the tenant's own calls, with what an idle path takes.
        idle_s: What a request of the warm-up (or of a cool-down, if longer) that waited for nobody took beyond its own
            transmission, in the median.
        nonconforming: Requests proved to be beyond the tenant's token bucket.
        last_packet_bits: Wire bits of a request in its last packet, in the mean; 0 in records of a time when it was not
            told apart.
        impaired: Answers that the server says an impairment touched, by its kind.
        parts: In the order of a request's life, the residual last; they add up to the latency.
        stacks: What the residual is made of, by the host's stack; empty in records of a time when it was not told.
    """

    model: str
    images: int
    compute_share: float
    answered: int
    accuracy: float | None
    timeouts: int
    rejected: int
    errors: int
    skipped: int
    overdue: int
    framing_out: float | None
    framing_back: float | None
    reordered: int
    retransmitted_bits: float
    network_s: tuple[float | None, float | None, float | None]
    ideal_network_s: tuple[float | None, float | None, float | None]
    idle_s: float = 0.0
    nonconforming: int = 0
    last_packet_bits: float = 0.0
    impaired: dict[str, int] = {}
    parts: tuple[PartDelay, ...]
    stacks: tuple[PartDelay, ...] = ()


class ConformanceRecord(_Part):
    """Packet counts that show whether the tenant kept its own contract, and where each excess packet went."""

    offered: int
    nonconforming: int
    meter_dropped: int
    queue_dropped: int
    delivered: int


class OfferedRecord(_Part):
    """What a tenant offered, by intended times, and how late it was; of a simulation, in its recorded part.

    Attributes:
        arrivals: Packets, or requests, that were due.
        gap_cv2: Squared coefficient of variation of the gaps, 1 for a Poisson process.
        dispersion: Pairs of a window's length in s and the variance over the mean of counts in such windows.
        peak_to_mean: Largest count in one second over the mean.
        handed_late_p999_s: 99.9th percentile of the lateness with which each was handed to the kernel or a connection.
        wire_late_p999_s: The same of the first capture: of the packet, or of a request's first byte.
    """

    arrivals: int
    rate_per_s: float
    gap_cv2: float | None
    dispersion: tuple[tuple[float, float | None], ...]
    peak_to_mean: float | None
    handed_late_p999_s: float | None
    wire_late_p999_s: float | None


class TenantRecord(_Part):
    """One tenant's promise beside what was measured.

    The bound holds for a share 1 - epsilon of the packets, so it is compared with that percentile (`promised_s` and its
    limits), which is the 99.9th for an epsilon of 0.001 and for a tenant without a promise. It promises nothing to
    packets that the first meter of its path drops, which are left out of the limit that it is held against.

    Attributes:
        bound_held_s: The lower confidence limit that the bound is held against; None where there is none, and in
            records of a time when it was `promised_lower_s`.
        in_faults: Packets that no figure here counts, because a fault was to touch them.
        unbound: Why a tenant that reserves has no bound; empty where it has one, and where none is owed.
    """

    name: str
    n: int
    misses: int
    lost: int
    p50_s: float | None = None
    p99_s: float | None = None
    p999_s: float | None
    p999_interval_s: tuple[float | None, float | None] | None
    p999_lower_s: float | None
    ideal_p999_s: float | None
    network_p999_s: float | None = None
    promised_s: float | None = None
    promised_interval_s: tuple[float | None, float | None] | None = None
    promised_lower_s: float | None = None
    ideal_promised_s: float | None = None
    bound_s: float | None
    bound_method: str | None
    network_bound_s: float | None = None
    bound_broken: bool = False
    bound_held_s: float | None = None
    deadline_s: float | None
    epsilon: float | None
    verdict: Verdict
    reason: str = ""
    n_effective: float | None = None
    design_effect: float | None = None
    miss_rate_upper: float | None = None
    samples_needed: int | None = None
    seconds_needed: float | None = None
    residual_s: float | None = None
    bound: BoundRecord | None = None
    domains: tuple[DomainDelay, ...] = ()
    conformance: ConformanceRecord | None = None
    requests: RequestsRecord | None = None
    offered: OfferedRecord | None = None
    in_faults: int = 0
    unbound: str = ""

    @property
    def held_lower_s(self) -> float | None:
        """The lower confidence limit that the bound is held against."""
        return self.promised_lower_s if self.bound_held_s is None else self.bound_held_s

    @property
    def broken_at_s(self) -> float | None:
        """The limit that a broken bound lies below; None where it is that too many never arrived, at no percentile."""
        lower_s = self.held_lower_s
        return lower_s if lower_s is not None and self.bound_s is not None and lower_s > self.bound_s else None

    @property
    def allowed_later(self) -> float:
        """The share that a bound lets be later than it says, or never arrive."""
        return 1e-3 if self.epsilon is None else self.epsilon
