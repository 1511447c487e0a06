"""One tenant's requests of one measured window: every moment of each one that was seen, and the parts they add up to.

The counterpart of `testbed.telemetry.samples` for requests: the currency between emulation, audit and report, stored as
Parquet. It holds what happened and judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from testbed.telemetry import columns as files
from testbed.traffic.request_records import NOT_ATTEMPTED, OK

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

KIND = files.Kind(b"testbed-requests", 1, "requests")
_SERVER = ("received", "queued", "started", "finished")
_BACK = ("server", "client")
_LOST = ("paused", "behind", "slowed")


@dataclass(frozen=True)
class RequestSamples:
    """Requests in the order of their intended sending; n requests over D domains.

    Times are seconds from the window's start, NaN where it was not seen; all float64.

    Attributes:
        tenant: Name.
        number: Tenant number, 1-based.
        domains: Names of the D domains of its path, in the order crossed.
        window_start_ns: CLOCK_REALTIME of the window's start.
        deadline_s: How long after its intended time an answer was worth anything.
        images: Images in each request.
        intended_s: Intended send times, [n].
        sent_s: When each was handed to the connection, [n].
        first_s: When its first byte was seen at border 0, [n].
        out_s: When its last byte was seen at border 0 (entry of the first domain) .. D (compute host), [n, D + 1].
        server_s: The server's stamps: received, queued, started, finished, [n, 4].
        back_s: When the last byte of its answer left the compute host and reached the client, [n, 2].
        received_s: When the client had the answer, [n].
        status: See `testbed.traffic.request_records.RequestRecord`, int16 [n].
        request_bytes: Size of the message, int64 [n].
        response_bytes: Size of the answer's message, int64 [n].
        out_bits: L2 bits that carried the request at border 0, [n].
        back_bits: L2 bits that carried its answer from the compute host, [n].
        correct: Images classified rightly, -1 without an answer, int32 [n].
        resent_s: What waiting to send lost bytes again cost in each domain on the way out, and last on the way back,
            [n, D + 1]; a part of the delays there. None in files of a time when it was not measured.
        impaired: Which impairments the answer says touched it, a bit for each of `IMPAIRMENTS` of
            `testbed.traffic.request_records`, uint8 [n]; None where none touched any.
        lost_time_s: What these cost it: of `queue_s`, waiting while the server was paused and waiting behind requests
            that were slowed down, and of `compute_s`; [n, 3], None with `impaired`.
    """

    tenant: str
    number: int
    domains: tuple[str, ...]
    window_start_ns: int
    deadline_s: float
    images: int
    intended_s: FloatArray
    sent_s: FloatArray
    first_s: FloatArray
    out_s: FloatArray
    server_s: FloatArray
    back_s: FloatArray
    received_s: FloatArray
    status: npt.NDArray[np.int16]
    request_bytes: IntArray
    response_bytes: IntArray
    out_bits: FloatArray
    back_bits: FloatArray
    correct: npt.NDArray[np.int32]
    resent_s: FloatArray | None = None
    impaired: npt.NDArray[np.uint8] | None = None
    lost_time_s: FloatArray | None = None

    def __post_init__(self) -> None:
        n = self.intended_s.size
        wide: dict[str, tuple[int, ...]] = {"out_s": (n, len(self.domains) + 1), "server_s": (n, 4), "back_s": (n, 2)}
        if self.resent_s is not None:
            wide["resent_s"] = (n, len(self.domains) + 1)
        if self.impaired is not None:
            wide |= {"impaired": (n,), "lost_time_s": (n, 3)}
        wanted = dict.fromkeys(_PLAIN, (n,)) | wide
        wrong = {name: found for name, shape in wanted.items() if (found := np.shape(getattr(self, name))) != shape}
        if wrong:
            raise ValueError(f"requests of {self.tenant}: shapes {wrong}, expected { ({k: wanted[k] for k in wrong}) }")

    def __len__(self) -> int:
        return self.intended_s.size

    def due(self) -> Self:
        """The requests that were due before the sender ended: the ones a verdict is about."""
        return self.take(self.status != NOT_ATTEMPTED)

    def take(self, chosen: BoolArray) -> Self:
        """Some of the requests, [n]."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        taken: dict[str, Any] = {name: value[chosen] for name, value in arrays.items()}
        return replace(self, **taken)

    @property
    def latency_s(self) -> FloatArray:
        """Answer minus intended sending, NaN without an answer; [n]."""
        return np.where(self.status == OK, self.received_s - self.intended_s, np.nan)

    @property
    def missed(self) -> BoolArray:
        """Requests that were due and had no answer by their deadline, for whatever reason; [n]."""
        return np.asarray((self.status != NOT_ATTEMPTED) & ~(self.latency_s <= self.deadline_s))

    @property
    def client_wait_s(self) -> FloatArray:
        """From the intended time until the whole request had entered the first domain; [n].

        The sender's lateness, HTTP/2, and whatever the client's TCP held back.
        """
        return self.out_s[:, 0] - self.intended_s

    @property
    def domain_s(self) -> FloatArray:
        """Time spent in each domain on the way out, its outgoing link included; [n, D]."""
        return np.diff(self.out_s, axis=1)

    @property
    def queue_s(self) -> FloatArray:
        """Wait in the server, from the complete message to a worker; [n]."""
        return self.server_s[:, 2] - self.server_s[:, 0]

    @property
    def compute_s(self) -> FloatArray:
        """Computation; [n]."""
        return self.server_s[:, 3] - self.server_s[:, 2]

    @property
    def network_back_s(self) -> FloatArray:
        """The answer's way from the compute host to the client, all domains; [n]."""
        return self.back_s[:, 1] - self.back_s[:, 0]

    @property
    def network_out_s(self) -> FloatArray:
        """From the intended time until the whole request was at the compute host; [n].

        Compared with an ideal queue fed the requests at their intended times: what TCP holds back at the client waits
        for the same rate as what waits in the first domain's queue, only elsewhere.
        """
        return self.out_s[:, -1] - self.intended_s

    @property
    def residual_s(self) -> FloatArray:
        """What no part accounts for: the hosts' own stacks, at three places; [n].

        The request's way from the server's interface to the server, the answer's from the worker to the interface, and
        from the client's interface to the sender. The parts and this add up to the latency exactly.
        """
        parts = self.client_wait_s + self.domain_s.sum(axis=1) + self.queue_s + self.compute_s + self.network_back_s
        return np.asarray(self.latency_s - parts)

    def stacks_s(self) -> dict[str, FloatArray]:
        """What the residual is made of, by the host's stack it was spent in; each [n].

        The way in to a server ends with its `received` stamp, the way out of it begins with `finished`; both are gRPC,
        (de)serialisation and the kernel's TCP, as is the client's way in.
        """
        return {
            "into the server": self.server_s[:, 0] - self.out_s[:, -1],
            "out of the server": self.back_s[:, 0] - self.server_s[:, 3],
            "into the client": np.where(self.status == OK, self.received_s - self.back_s[:, 1], np.nan),
        }

    def parts_s(self) -> dict[str, FloatArray]:
        """All parts by name, in the order of a request's life, the residual last; each [n]."""
        return {
            "client wait": self.client_wait_s,
            **{name: self.domain_s[:, d] for d, name in enumerate(self.domains)},
            "server queue": self.queue_s,
            "compute": self.compute_s,
            "network back": self.network_back_s,
            "residual": self.residual_s,
        }


_PLAIN = (
    "intended_s", "sent_s", "first_s", "received_s", "status", "request_bytes", "response_bytes", "out_bits",
    "back_bits", "correct",
)  # fmt: skip


def write(path: Path, samples: RequestSamples) -> None:
    """Writes one tenant's window; see `testbed.telemetry.columns`."""
    columns: dict[str, npt.NDArray[np.generic]] = {name: getattr(samples, name) for name in _PLAIN}
    columns |= {f"border_{k}_s": samples.out_s[:, k] for k in range(len(samples.domains) + 1)}
    columns |= {f"server_{name}_s": samples.server_s[:, k] for k, name in enumerate(_SERVER)}
    columns |= {f"back_{name}_s": samples.back_s[:, k] for k, name in enumerate(_BACK)}
    if samples.resent_s is not None:
        columns |= {f"resent_{k}_s": samples.resent_s[:, k] for k in range(len(samples.domains) + 1)}
    if samples.impaired is not None and samples.lost_time_s is not None:
        columns["impaired"] = samples.impaired
        columns |= {f"lost_{name}_s": samples.lost_time_s[:, k] for k, name in enumerate(_LOST)}
    columns["latency_s"] = samples.latency_s
    metadata: dict[str, object] = {
        "tenant": samples.tenant,
        "number": samples.number,
        "domains": samples.domains,
        "window_start_ns": samples.window_start_ns,
        "deadline_s": samples.deadline_s,
        "images": samples.images,
    }
    files.write(path, KIND, columns, metadata)


def read(path: Path) -> RequestSamples:
    """Reads what `write` wrote.

    Raises:
        TestbedError: Not a file of requests, or one of a newer schema.
    """
    column, metadata = files.read(path, KIND)
    domains = tuple(metadata["domains"])

    def matrix(names: Sequence[str]) -> FloatArray:
        return np.stack([column[f"{name}_s"] for name in names], axis=1)

    return RequestSamples(
        tenant=metadata["tenant"],
        number=metadata["number"],
        domains=domains,
        window_start_ns=metadata["window_start_ns"],
        deadline_s=metadata["deadline_s"],
        images=metadata["images"],
        out_s=matrix([f"border_{k}" for k in range(len(domains) + 1)]),
        server_s=matrix([f"server_{name}" for name in _SERVER]),
        back_s=matrix([f"back_{name}" for name in _BACK]),
        resent_s=matrix([f"resent_{k}" for k in range(len(domains) + 1)]) if "resent_0_s" in column else None,
        impaired=column.get("impaired"),
        lost_time_s=matrix([f"lost_{name}" for name in _LOST]) if "impaired" in column else None,
        **{name: column[name] for name in _PLAIN},
    )
