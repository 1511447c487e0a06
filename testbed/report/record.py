"""`run.json`: the self-describing record of one run, validated when written and when read back.

The record and the Parquet files beside it are all that `report` and `audit` need, on another machine and years later;
nothing here measures, judges or draws. Times are seconds, rates bit/s. A new field gets a default, so that folders
written by an earlier version stay readable; a changed meaning gets a new `SCHEMA_VERSION`.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ValidationError

from testbed.errors import TestbedError
from testbed.report.tenant_record import STRICT, TenantRecord
from testbed.report.verdict import Verdict

SCHEMA_VERSION = 1
RECORD_NAME = "run.json"

_CUT = "the file was cut or edited, take it from a backup"


_Unbounded = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]
"""JSON has no infinity: what is beyond every limit, since nobody could count or look, is null there."""


class _Part(BaseModel):
    model_config = STRICT


class GateRecord(_Part):
    """One fidelity gate of one window: `ok` is False when the host, not the theory, decided what was measured.

    Attributes:
        excused_by: A fault of the scenario that breaks this gate by being what it is, so that it speaks neither for nor
            against the host.
    """

    name: str
    value: _Unbounded
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
        raise TestbedError(f"{path}: not JSON ({error}); {_CUT}") from error
    if not isinstance(data, dict):
        raise TestbedError(f"{path}: found {type(data).__name__}, expected the record of a run; {_CUT}")
    found = data.get("schema_version")
    if found != SCHEMA_VERSION:
        raise TestbedError(
            f"{path}: schema version {found!r}, this testbed reads {SCHEMA_VERSION}; use the version that wrote it"
        )
    try:
        return RunRecord.model_validate(data)
    except ValidationError as error:
        first, *others = error.errors()
        where, more = ".".join(map(str, first["loc"])), f", and {len(others)} more" if others else ""
        raise TestbedError(f"{path}: {where}: {first['msg']}{more}; {_CUT}") from error
