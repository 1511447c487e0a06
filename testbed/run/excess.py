"""How late a domain made the packets or requests of a window, as its envelope counts lateness, and what that supports.

Per domain and tenant: the packets as they entered it, fed to an ideal queue of the reserved rate, and by how much their
leaving it lagged behind that queue and the latency promised (docs/envelope.md, "What is promised"); of a server the
requests as it received them. What is signed from it is `testbed.envelope.calibration`'s to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.audit.contracts import ContractVerdict, DomainEvidence, judge_contracts
from testbed.audit.request_excess import compute_excess
from testbed.envelope.calibration import Calibration, calibrate, no_impairment
from testbed.envelope.descriptor import Envelope, Stage
from testbed.envelope.errors import CalibrationError
from testbed.envelope.service import to_service
from testbed.telemetry.lag import fifo, lag_s, lingering_s
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.requests import Passages
from testbed.traffic.request_records import Endings

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Excess:
    """One tenant's packets in one domain, or its requests in one server.

    Attributes:
        lag_s: How much later than the ideal queue began with it each packet left, in order of arrival; [n].
        excess_s: The lingering excess Y beyond the latency promised; [n].
        lost: Packets that entered and never left.
        errors: Requests that were refused or failed.
    """

    lag_s: FloatArray
    excess_s: FloatArray
    lost: int
    errors: int = 0

    @property
    def none(self) -> bool:
        """Whether everything was done, and in time."""
        return not (self.excess_s.any() or self.lost or self.errors)


def excess_of(packets: Passages, domain: int, rate_bps: int, latency_s: float) -> Excess:
    """Lag and lingering excess in one domain.

    Args:
        packets: The tenant's packets at every border of its path.
        domain: Position of the domain on that path, from 0.
        rate_bps: Rate of the ideal queue.
        latency_s: What the domain promises.
    """
    entered, left = packets.time_s[:, domain], packets.time_s[:, domain + 1]
    delivered = np.isfinite(entered) & np.isfinite(left)
    order = np.argsort(entered[delivered], kind="stable")
    arrival_s, departure_s = entered[delivered][order], left[delivered][order]
    ideal = fifo(arrival_s, packets.size_bits[delivered][order].astype(np.float64), rate_bps)
    late_s = lag_s(departure_s, ideal.start_s, latency_s)
    lost = int(np.count_nonzero(np.isfinite(entered) & ~np.isfinite(left)))
    return Excess(departure_s - ideal.start_s, lingering_s(late_s, ideal.idle_s), lost)


def computed(samples: RequestSamples, rate_bps: int, largest_bits: int, latency_s: float) -> Excess:
    """Lag and lingering excess in the server; requests without its stamps are left out.

    Args:
        samples: The tenant's requests.
        rate_bps: Rate of the ideal queue.
        largest_bits: What every request counts for in it.
        latency_s: What the domain promises.
    """
    due = samples.due()
    found = compute_excess(due, rate_bps, largest_bits, latency_s)
    crossed = np.flatnonzero(np.isfinite(found.excess_s))
    order = crossed[np.argsort(due.server_s[crossed, 0], kind="stable")]
    endings = Endings.of(due.status, due.correct, due.images)
    return Excess(found.lag_s[order], found.excess_s[order], 0, endings.rejected + endings.errors)


def computed_under(samples: RequestSamples, envelope: Envelope) -> Excess:
    """The same as an envelope of a server counts it."""
    rate_bps = to_service(envelope).rate_bps
    return computed(samples, int(rate_bps), envelope.guardrails.largest_packet_bits, envelope.latency_s)


def supported(found: Excess, rate_bps: int, *, declares_none: bool) -> Calibration | None:
    """What a domain may sign of it: a declaration where true and wanted, else a tail; None where too little is known.

    Args:
        found: The samples.
        rate_bps: The rate at which they were measured.
        declares_none: Whether the domain would declare that it has no impairment.
    """
    if not found.excess_s.size:
        return None
    try:
        if declares_none and found.none:
            return no_impairment(found.excess_s, lag_s=found.lag_s)
        return calibrate(found.excess_s, rate_bps=rate_bps, lag_s=found.lag_s, lost=found.lost, errors=found.errors)
    except CalibrationError:
        # Too few packets to know how they cling together: then nothing is said about them.
        return None


def refuted(promises: Sequence[tuple[Envelope, Excess]], *, host_share: float = 0.0) -> list[str]:
    """Which promises their own domains' samples contradict, a sentence each, all together at 95 % confidence.

    Asked as the audit asks it (`testbed.audit.contracts`): a domain is held to no less before a window than after it.

    Args:
        promises: Envelopes, each with samples measured at its rate and behind its latency.
        host_share: Share of the packets that the emulating host may delay beyond them.
    """
    evidence = []
    for envelope, found in promises:
        never = np.full(found.lost, np.nan)
        excess_s, lag_s = np.concatenate((found.excess_s, never)), np.concatenate((found.lag_s, never))
        if excess_s.size:
            evidence.append(
                DomainEvidence(
                    envelope,
                    excess_s,
                    lag_s,
                    errors=min(found.errors, excess_s.size),
                    what="requests" if envelope.subject.stage is Stage.COMPUTE else "packets",
                    host_share=host_share,
                )
            )
    return [finding.reason for finding in judge_contracts(evidence) if finding.verdict is ContractVerdict.BROKEN]
