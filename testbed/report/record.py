"""`run.json`: the self-describing record of one run, validated when written and when read back.

The record and the Parquet files beside it are all that `report` and `audit` need, on another machine and years later;
nothing here measures, judges or draws. Times are seconds, rates bit/s. A new field gets a default, so that folders
written by an earlier version stay readable; a changed meaning gets a new `SCHEMA_VERSION`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from testbed.errors import TestbedError

SCHEMA_VERSION = 1
RECORD_NAME = "run.json"

Verdict = Literal["PASS", "FAIL", "INVALID", "UNDETERMINED", "EXCUSED", "NONE"]

SEVERITY: tuple[Verdict, ...] = ("INVALID", "FAIL", "UNDETERMINED", "PASS", "EXCUSED", "NONE")
"""From worst to best, then those that judge nothing: a run has them only where no promise was judged."""


def worst_verdict(found: Iterable[str]) -> Verdict:
    """The verdict of a run, by those of its promises and faults; NONE where there are none."""
    seen = set(found)
    return next((verdict for verdict in SEVERITY if verdict in seen), "NONE")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")


class GateRecord(_Part):
    """One fidelity gate of one window: `ok` is False when the host, not the theory, decided what was measured.

    Attributes:
        excused_by: A fault of the scenario that breaks this gate by being what it is, so that it speaks neither for nor
            against the host.
    """

    name: str
    value: float
    limit: float
    ok: bool
    unit: str = ""
    detail: str = ""
    window: int = 0
    excused_by: str = ""

    @property
    def holds(self) -> bool:
        """Whether it leaves the window valid."""
        return self.ok or bool(self.excused_by)


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


class ExpectationRecord(_Part):
    """What one fault was to do to one tenant.

    Attributes:
        tenant: Whose, or `all` where it is the whole run's.
        seconds: How long after the fault's end the tenant kept its promise again, where that was asked and found.
    """

    tenant: str
    expected: str
    found: str
    met: bool
    seconds: float | None = None


class FaultRecord(_Part):
    """A fault as it was done in one window, times in seconds from the window's start.

    Attributes:
        left_out: By tenant, the first and the last intended time that its promise is not judged by; nobody's in records
            of a time when it was not told.
        expectations: None are held against a window that was interrupted.
    """

    name: str
    kind: str
    window: int
    what: str
    begin_s: float
    end_s: float
    left_out: dict[str, tuple[float, float]] = {}
    expectations: tuple[ExpectationRecord, ...] = ()

    @property
    def met(self) -> bool:
        """Whether everything expected of it came."""
        return all(each.met for each in self.expectations)


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


class HeldOutRecord(_Part):
    """A tail that a domain signed from the warm-up, held against a window that it was not made from.

    Attributes:
        stage: What the tail is about.
        n: Packets that crossed the domain, or requests that its server computed.
        contradictions: In what they contradict the envelope, a sentence each; empty where in nothing.
    """

    domain: str
    tenant: str
    stage: Literal["network", "compute"] = "network"
    n: int
    contradictions: tuple[str, ...]


class ImpairmentRecord(_Part):
    """What an inference server was made to suffer, as its own record has it, in seconds from the window's start.

    Attributes:
        server: The compute host.
        tenants: Who sends requests there.
        kind: slow-down, pause, wrong-answers, memory-pressure or crash.
        amount: How many times as long a computation takes, share of wrong answers, bytes held; 0 for the others.
        seed: Decides which answers are wrong.
        end_s: None where it never ended: after a crash.
    """

    server: str
    tenants: tuple[str, ...]
    kind: str
    amount: float
    seed: int
    begin_s: float
    end_s: float | None

    def describe(self) -> str:
        """What was done, in a few words."""
        how = {
            "slow-down": f" by {self.amount:g} times",
            "wrong-answers": f" to {100 * self.amount:g} % of the requests",
            "memory-pressure": f" of {self.amount / 1e6:,.0f} MB",
        }
        return f"{self.kind.replace('-', ' ')}{how.get(self.kind, '')}"


class WindowRecord(_Part):
    """One measured window: its seed, its files and the host around it.

    Attributes:
        samples: Packets, by tenant that sends packets.
        requests: Requests, by tenant that sends requests.
        held_out: Every signed tail of the tenants that send requests.
        stalls: When a core was away, in seconds since the window's start, and for how long; the long ones.
        impairments: What inference servers were made to suffer in it.
    """

    index: int
    seed: int
    duration_s: float
    valid: bool
    samples: dict[str, str]
    requests: dict[str, str] = {}
    held_out: tuple[HeldOutRecord, ...] = ()
    environment_before: dict[str, Any] = {}
    environment_after: dict[str, Any] = {}
    sender_lateness_p999_s: dict[str, float] = {}
    stalls: tuple[tuple[float, float], ...] = ()
    impairments: tuple[ImpairmentRecord, ...] = ()


class EnvelopeRecord(_Part):
    """One signed envelope as it was used, verifiable with the public key beside it; `payload` is for reading only."""

    domain: str
    tenant: str
    version: int
    dsse: dict[str, Any]
    payload: dict[str, Any] = {}


class ProbeRecord(_Part):
    """One probed property of the installed data plane.

    Attributes:
        limit: Largest tolerance with which right and wrong could be told apart, None where nothing was timed.
    """

    domain: str
    tenant: str
    what: str
    found: float
    expected: float
    tolerance: float
    ok: bool
    limit: float | None = None


class RunRecord(_Part):
    """The whole of `run.json`.

    Attributes:
        plan: Where tenants had intents: who was chosen and refused, as `testbed plan --json` says it.
        isolated: Whether the run's processes had cores and priorities of their own.
        kept_awake: Whether idle cores were woken all the time, so that no hypervisor took them away.
        slow_down: How many times slower than written the scenario was run; every time and rate here is the network's.
        slow_down_notes: What did not slow down with it.
        faults: What was broken on purpose, and whether what was expected of it came.
        packets: Packets that a simulation sent, all windows together.
        packet_hops_per_s: Packets through one domain each that it simulated per second of computing.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    name: str
    kind: Literal["network", "simulation"]
    created: str
    testbed_version: str
    command: tuple[str, ...]
    datapath: str
    partial: bool = False
    verdict: Verdict
    scenario: dict[str, Any]
    plan: dict[str, Any] = {}
    host: dict[str, Any] = {}
    public_keys: dict[str, str] = {}
    envelopes: tuple[EnvelopeRecord, ...] = ()
    probes: tuple[ProbeRecord, ...] = ()
    gates: tuple[GateRecord, ...] = ()
    tenants: tuple[TenantRecord, ...] = ()
    windows: tuple[WindowRecord, ...] = ()
    faults: tuple[FaultRecord, ...] = ()
    installed: dict[str, Any] = {}
    timings_s: dict[str, float] = {}
    isolated: bool = False
    kept_awake: bool = False
    slow_down: float = 1.0
    slow_down_notes: tuple[str, ...] = ()
    packets: int | None = None
    packet_hops_per_s: float | None = None


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write `run.json` into `folder` in one step, so a reader never sees half of it."""
    target = folder / RECORD_NAME
    partial = target.with_suffix(".json.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    return target


def read_record(folder: Path) -> RunRecord:
    """Read and check the record of a run folder.

    Raises:
        TestbedError: The folder holds no record, or one this version cannot read; the message says which.
    """
    path = folder / RECORD_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise TestbedError(
            f"{folder}: no {RECORD_NAME} here; expected a folder that `testbed run` or `simulate` left"
        ) from error
    except PermissionError as error:
        raise TestbedError(
            f"{path}: cannot be read ({error.strerror}); a run made by root is root's alone, so read it as root, or "
            "give the folder to yourself (chown -R)"
        ) from error
    except ValueError as error:
        raise TestbedError(f"{path}: not JSON ({error}); the file was cut or edited, take it from a backup") from error
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != SCHEMA_VERSION:
        raise TestbedError(
            f"{path}: schema version {found!r}, this testbed reads {SCHEMA_VERSION}; use the version that wrote it"
        )
    try:
        return RunRecord.model_validate(data)
    except ValidationError as error:
        problems = [f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise TestbedError(problems) from error
