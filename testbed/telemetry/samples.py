"""One tenant's packets of one measured window: when each was meant to be sent, was sent, and was seen at each border.

This is the common currency between emulation, simulation, audit and report, and it is stored as Parquet. It holds what
happened and, once `testbed.telemetry.lag` has replayed it, how far each domain lagged behind an ideal server; it judges
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from testbed.telemetry import columns as files

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

KIND = files.Kind(b"testbed", 1, "samples")


@dataclass(frozen=True)
class TenantSamples:
    """Packets in the order of their intended sending; n packets over D domains.

    Attributes:
        tenant: Name.
        number: Tenant number, 1-based.
        domains: Names of the D domains of the tenant's path, in the order crossed.
        window_start_ns: CLOCK_REALTIME of the window's start, the zero of every time below.
        sequence: Sequence numbers, int64 [n].
        intended_s: Intended send times, float64 [n].
        sent_s: Actual send times, float64 [n].
        size_bits: L2 frame without FCS, int32 [n].
        border_s: Time seen at border 0 (entry of the first domain) .. D (the compute host), NaN where a packet was
            not seen, float64 [n, D + 1].
        last_of_request: Whether the packet completes a request, bool [n]; None where every packet is its own request.
    """

    tenant: str
    number: int
    domains: tuple[str, ...]
    window_start_ns: int
    sequence: IntArray
    intended_s: FloatArray
    sent_s: FloatArray
    size_bits: npt.NDArray[np.int32]
    border_s: FloatArray
    last_of_request: BoolArray | None = None

    def __post_init__(self) -> None:
        n = self.sequence.size
        wanted = {"intended_s": (n,), "sent_s": (n,), "size_bits": (n,), "border_s": (n, len(self.domains) + 1)}
        if self.last_of_request is not None:
            wanted["last_of_request"] = (n,)
        wrong = {name: found for name, shape in wanted.items() if (found := getattr(self, name).shape) != shape}
        if wrong:
            raise ValueError(f"samples of {self.tenant}: shapes {wrong}, expected { ({k: wanted[k] for k in wrong}) }")

    def __len__(self) -> int:
        return self.sequence.size

    def take(self, chosen: BoolArray) -> TenantSamples:
        """The chosen packets; `chosen` is bool [n]."""
        last = self.last_of_request
        return replace(
            self,
            sequence=self.sequence[chosen],
            intended_s=self.intended_s[chosen],
            sent_s=self.sent_s[chosen],
            size_bits=self.size_bits[chosen],
            border_s=self.border_s[chosen],
            last_of_request=None if last is None else last[chosen],
        )

    @property
    def latency_s(self) -> FloatArray:
        """Delivery minus intended sending, NaN where the packet was lost; float64 [n]."""
        return self.border_s[:, -1] - self.intended_s

    @property
    def network_s(self) -> FloatArray:
        """Delivery minus arrival at the first domain, NaN where either was not seen; float64 [n]."""
        return self.border_s[:, -1] - self.border_s[:, 0]

    @property
    def domain_s(self) -> FloatArray:
        """Time spent in each domain, its outgoing link included; float64 [n, D]."""
        return np.diff(self.border_s, axis=1)

    @property
    def lateness_s(self) -> FloatArray:
        """How late the sender was; float64 [n]."""
        return self.sent_s - self.intended_s

    @property
    def access_s(self) -> FloatArray:
        """From the sender to the first domain, over the customer's own edge; float64 [n]."""
        return self.border_s[:, 0] - self.sent_s

    @property
    def delivered(self) -> BoolArray:
        """Whether the packet reached the compute host; bool [n]."""
        return np.isfinite(self.border_s[:, -1])

    @property
    def last_border(self) -> npt.NDArray[np.int8]:
        """The furthest border at which the packet was seen, -1 for nowhere; int8 [n].

        A packet lost with last border k was lost in domain k (0-based), or on the way to domain 0 if k is -1.
        """
        seen = np.isfinite(self.border_s)
        borders = np.arange(1, seen.shape[1] + 1, dtype=np.int8)
        return np.asarray(np.max(seen * borders, axis=1, initial=0) - 1, dtype=np.int8)


@dataclass(frozen=True)
class Replay:
    """What an ideal FIFO server makes of the same packets; NaN where a packet did not cross the stage in question.

    Attributes:
        rate_bps: Rate R of the ideal server: the smallest rate the tenant holds on its path.
        latency_s: Latency T each domain declared, [D].
        credit_s: How much earlier than that server's the burst of the real one lets a packet leave: burst / R.
        ideal_s: Wait in the ideal server fed the arrivals at the first domain, float64 [n].
        ideal_intended_s: Wait in the ideal server fed the packets as they were meant to be sent, float64 [n].
        lag_s: How far each domain lagged behind its own ideal server beyond T (X), float64 [n, D].
        excess_s: Lag that lingers until the ideal server has been idle for as long (Y), float64 [n, D].
        idle_s: What the path takes of each packet, whatever it waits: see `testbed.telemetry.idle_path`; float64 [n].
        links_s: Propagation delay of all links of the path together, which every packet takes as well.
    """

    rate_bps: float
    latency_s: tuple[float, ...]
    credit_s: float
    ideal_s: FloatArray
    ideal_intended_s: FloatArray
    lag_s: FloatArray
    excess_s: FloatArray
    idle_s: FloatArray
    links_s: float = 0.0

    def take(self, chosen: BoolArray) -> Replay:
        """What was made of the chosen packets among all; `chosen` is bool [n]."""
        arrays = ("ideal_s", "ideal_intended_s", "lag_s", "excess_s", "idle_s")
        return replace(self, **{name: getattr(self, name)[chosen] for name in arrays})

    @property
    def shaped_s(self) -> FloatArray:
        """An idle path, and the wait in an ideal token bucket of rate R and the real burst for what it saw; [n].

        A token bucket that sends at tokens >= 0, as HTB does, holds exactly what the ideal queue's backlog leaves of
        its burst, so a packet waits `max(0, W0 - burst / R)`. Behind one such bucket the next ones add nothing.
        """
        return np.maximum(0.0, self.ideal_s - self.credit_s) + self.idle_s + self.links_s

    @property
    def shaped_intended_s(self) -> FloatArray:
        """The wait in it if fed the packets as they were meant to be sent, and the links; [n]."""
        return np.maximum(0.0, self.ideal_intended_s - self.credit_s) + self.links_s


def write(path: Path, samples: TenantSamples, replay: Replay | None = None) -> None:
    """Writes one tenant's window; see `testbed.telemetry.columns`."""
    columns: dict[str, npt.NDArray[np.generic]] = {
        "sequence": samples.sequence,
        "intended_s": samples.intended_s,
        "sent_s": samples.sent_s,
        "size_bits": samples.size_bits,
    }
    if samples.last_of_request is not None:
        columns["last_of_request"] = samples.last_of_request
    columns |= {f"border_{k}_s": samples.border_s[:, k] for k in range(len(samples.domains) + 1)}
    columns["latency_s"] = samples.latency_s
    metadata: dict[str, object] = {
        "tenant": samples.tenant,
        "number": samples.number,
        "domains": samples.domains,
        "window_start_ns": samples.window_start_ns,
    }
    if replay is not None:
        columns |= {"ideal_s": replay.ideal_s, "ideal_intended_s": replay.ideal_intended_s, "idle_s": replay.idle_s}
        columns |= {f"lag_{name}_s": replay.lag_s[:, d] for d, name in enumerate(samples.domains)}
        columns |= {f"excess_{name}_s": replay.excess_s[:, d] for d, name in enumerate(samples.domains)}
        metadata["replay"] = {
            "rate_bps": replay.rate_bps,
            "latency_s": replay.latency_s,
            "credit_s": replay.credit_s,
            "links_s": replay.links_s,
        }
    files.write(path, KIND, columns, metadata)


def read(path: Path) -> tuple[TenantSamples, Replay | None]:
    """Reads what `write` wrote; the replay is None where none was stored.

    Raises:
        TestbedError: Not a file of samples, or one of a newer schema.
    """
    column, metadata = files.read(path, KIND)
    domains = tuple(metadata["domains"])
    samples = TenantSamples(
        tenant=metadata["tenant"],
        number=metadata["number"],
        domains=domains,
        window_start_ns=metadata["window_start_ns"],
        sequence=column["sequence"],
        intended_s=column["intended_s"],
        sent_s=column["sent_s"],
        size_bits=column["size_bits"],
        border_s=_matrix([column[f"border_{k}_s"] for k in range(len(domains) + 1)]),
        last_of_request=column.get("last_of_request"),
    )
    if "replay" not in metadata:
        return samples, None
    return samples, Replay(
        rate_bps=metadata["replay"]["rate_bps"],
        latency_s=tuple(metadata["replay"]["latency_s"]),
        credit_s=metadata["replay"]["credit_s"],
        ideal_s=column["ideal_s"],
        ideal_intended_s=column["ideal_intended_s"],
        lag_s=_matrix([column[f"lag_{name}_s"] for name in domains]),
        excess_s=_matrix([column[f"excess_{name}_s"] for name in domains]),
        idle_s=column.get("idle_s", np.zeros(len(samples))),
        links_s=metadata["replay"].get("links_s", 0.0),
    )


def _matrix(columns: list[FloatArray]) -> FloatArray:
    return np.stack(columns, axis=1)
