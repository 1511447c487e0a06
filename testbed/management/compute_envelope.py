"""A compute envelope from measurement: what a server promises a tenant, and whether another run contradicts it.

The server's own stamps are the evidence: a request arrives when it has been received and leaves when its result is
there. Work is measured in the bits of the request's message, so that a compute stage has the words of a network stage:
the rate is that of the tenant's share at the speed nine of ten computations reach, T what all but `beyond` of the
requests took after an ideal server of that rate began with them, and the tail of what exceeds T is limited from above
on effective counts (`testbed.envelope.calibration`). Nothing is measured or sent here; records are the sender's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.envelope import Envelope, Guardrails, SigningKey, Stage, Subject, Validity, issue
from testbed.envelope.calibration import CONFIDENCE, calibrate
from testbed.envelope.errors import CalibrationError
from testbed.envelope.heldout import Finding, holds
from testbed.envelope.units import bits_up, ns_up, ppm_down
from testbed.telemetry.lag import Fifo, fifo, lag_s, lingering_s
from testbed.traffic.request_records import OK, Endings, RequestRecord, count_impaired

FloatArray = npt.NDArray[np.float64]

LOAD_CAP = 0.9
"""Share of the rate that the tenant's requests may use: at the whole rate a backlog would never drain."""

BURST_HEADROOM = 2.0
"""By which a tenant's bucket is larger than the calibration needed."""

_SPEED = 0.9
"""Share of the computations that are at least as fast as the rate says."""

_COMPUTE_CLASS = "reserved"
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Served:
    """The requests of a record that the server answered, in the order it received them.

    Attributes:
        received_s: When each was received, [n].
        finished_s: When its result was there, [n].
        work_s: How long its computation took, [n].
        size_bits: Bits of its message, [n].
        lost: Requests sent that were refused or not computed in time.
        errors: Requests sent that ended in another error.
    """

    received_s: FloatArray
    finished_s: FloatArray
    work_s: FloatArray
    size_bits: FloatArray
    lost: int
    errors: int

    @classmethod
    def of(cls, record: RequestRecord) -> Served:
        """Read a record.

        Raises:
            CalibrationError: Nothing was answered, the server gives no stamps, or it was impaired on purpose.
        """
        if record.impaired is not None:
            touched = ", ".join(f"{count} by {kind}" for kind, count in count_impaired(record.impaired).items())
            raise CalibrationError(
                f"record: found answers impaired on purpose ({touched}), expected none; end the impairments and "
                "measure again"
            )
        ok = (record.status == OK) & np.isfinite(record.server_s).all(axis=1)
        if not ok.any():
            raise CalibrationError("record: found no answered request with the server's stamps, expected some")
        attempted = record.attempted
        endings = Endings.of(record.status[attempted], record.correct[attempted], record.images)
        order = np.argsort(record.server_s[ok, 0], kind="stable")
        received, _, started, finished = record.server_s[ok][order].T
        return cls(
            received_s=received,
            finished_s=finished,
            work_s=finished - started,
            size_bits=8.0 * record.request_bytes[ok][order],
            lost=endings.timeouts + endings.rejected,
            errors=endings.errors,
        )

    def ideal(self, rate_bps: float) -> Fifo:
        """An ideal server of this rate, fed the same requests."""
        return fifo(self.received_s, self.size_bits, rate_bps)

    def bucket_bits(self, rate_bps: float) -> float:
        """Smallest token bucket of this rate that all of them pass."""
        served = self.ideal(rate_bps)
        return float(np.max((served.start_s - self.received_s) * rate_bps + self.size_bits))


def calibrate_compute(
    record: RequestRecord,
    *,
    domain: str,
    tenant: str,
    model: str,
    capacity: float,
    validity: Validity,
    beyond: float = 0.01,
    confidence: float = CONFIDENCE,
    version: int = 1,
) -> Envelope:
    """What a run supports, to be signed by the domain.

    Args:
        record: A run in which the tenant kept to its load, and others did whatever they are allowed to.
        domain: Who promises.
        tenant: To whom.
        model: For which model.
        capacity: The tenant's share times the number of workers.
        validity: When the promise may be used.
        beyond: Share of the requests that may exceed T; the tail is about those.
        confidence: With which all limits hold together.
        version: Of the promise.

    Raises:
        CalibrationError: Nothing was answered, requests came all at one moment or at more than the load cap, or too few
            to know a tail.
    """
    served = Served.of(record)
    size_bits = float(served.size_bits.max())
    slowest_s = float(np.quantile(served.work_s * size_bits / served.size_bits, _SPEED, method="higher"))
    rate_bps = int(capacity * size_bits / slowest_s)
    meter_bps = int(LOAD_CAP * rate_bps)
    span_s = float(np.ptp(served.received_s))
    if span_s == 0:
        raise CalibrationError(
            f"compute of {model} for {tenant}: found all that was answered ({len(served.received_s)}) received at one "
            "moment, expected requests over a while; measure for longer"
        )
    offered_bps = float(served.size_bits.sum()) / span_s
    if offered_bps > meter_bps:
        raise CalibrationError(
            f"compute of {model} for {tenant}: found {offered_bps / 1e6:.3g} Mbit/s offered, expected at most "
            f"{meter_bps / 1e6:.3g}, {LOAD_CAP:g} of what its share computes; send less or ask for a larger share"
        )
    ideal = served.ideal(rate_bps)
    latency_ns = ns_up(float(np.quantile(served.finished_s - ideal.start_s, 1 - beyond, method="higher")))
    lag, excess = _behind(served, ideal, latency_ns / 1e9)
    found = calibrate(
        excess, rate_bps=rate_bps, lag_s=lag, lost=served.lost, errors=served.errors, confidence=confidence
    )
    if found.stochastic is None:
        raise CalibrationError(f"compute of {model} for {tenant}: found no stochastic part, expected one")
    guardrails = Guardrails(
        reserved_rate_bps=rate_bps,
        meter_rate_bps=meter_bps,
        peak_rate_bps=None,
        burst_bits=bits_up(BURST_HEADROOM * served.bucket_bits(meter_bps)),
        latency_ns=latency_ns,
        host_allowance_ns=0,
        largest_packet_bits=bits_up(size_bits),
        delay_cap_ns=ns_up(record.deadline_s),
        loss_cap_ppb=found.stochastic.loss_ppb,
        error_cap_ppb=found.stochastic.error_ppb,
        load_cap_ppm=ppm_down(LOAD_CAP),
    )
    subject = Subject(tenant, _COMPUTE_CLASS, model, Stage.COMPUTE)
    return Envelope(domain, subject, guardrails, found.stochastic, validity, version, found.evidence)


def contradictions(envelope: Envelope, record: RequestRecord, *, confidence: float = 0.95) -> list[Finding]:
    """In what a run that the envelope was not made from contradicts it; empty where nothing does.

    Args:
        envelope: The promise.
        record: Another run.
        confidence: Family-wise, see `testbed.envelope.heldout.holds`.

    Raises:
        CalibrationError: The tenant exceeded its own bucket or request size, so that nothing was promised.
    """
    served, guardrails = Served.of(record), envelope.guardrails
    needed = served.bucket_bits(guardrails.meter_rate_bps)
    if needed > guardrails.burst_bits or served.size_bits.max() > guardrails.largest_packet_bits:
        largest = served.size_bits.max()
        raise CalibrationError(
            f"{envelope.subject}: found a bucket of {needed:.0f} bits and requests of {largest:.0f} bits, "
            f"expected at most {guardrails.burst_bits} and {guardrails.largest_packet_bits}: the tenant broke its "
            "contract, and this run says nothing of the promise"
        )
    lag, excess = _behind(served, served.ideal(guardrails.reserved_rate_bps), envelope.latency_s)
    return holds(envelope, excess, lag_s=lag, confidence=confidence)


def calibrate_files(
    calibration: Path, held_out: Sequence[Path], keys: Sequence[Path], *, now_s: float, days: int, **promise: Any
) -> bytes:
    """Calibrate from one record, see that the others do not contradict it, and sign.

    Args:
        calibration: Record that the promise is made from.
        held_out: Records it is verified on.
        keys: Private keys of the domain.
        now_s: From when the promise may be used, Unix time.
        days: For how long.
        **promise: `domain`, `tenant`, `model` and `capacity`, see `calibrate_compute`.

    Returns:
        The signed envelope.

    Raises:
        CalibrationError: A record cannot be read, supports no promise, contradicts it, or is of the same run.
    """
    validity = Validity(math.floor(now_s), math.floor(now_s) + days * _DAY_S)
    made_from = _record(calibration)
    envelope = calibrate_compute(made_from, validity=validity, **promise)
    for path in held_out:
        record = _record(path)
        if np.array_equal(record.server_s, made_from.server_s, equal_nan=True):
            raise CalibrationError(f"{path}: found the run that {calibration} is of, expected another one")
        if found := contradictions(envelope, record):
            raise CalibrationError(f"{path}: contradicts what {calibration} supports: {'; '.join(map(str, found))}")
    return issue(envelope, [SigningKey.load(path) for path in keys])


def _record(path: Path) -> RequestRecord:
    try:
        return RequestRecord.load(path)
    except ValueError as error:
        raise CalibrationError(str(error)) from error


def _behind(served: Served, ideal: Fifo, latency_s: float) -> tuple[FloatArray, FloatArray]:
    """How far each request lagged behind the ideal server before T is taken off, and its lingering excess over T."""
    excess = lingering_s(lag_s(served.finished_s, ideal.start_s, latency_s), ideal.idle_s)
    return lag_s(served.finished_s, ideal.start_s, 0.0), excess
