"""The requests a tenant will send in one window, decided before it opens: when, how large, and which images.

Times come from the same arrival processes as packets (`testbed.traffic.arrivals`), one arrival a request. Sizes are
those of the message, before gRPC, HTTP/2 and TCP add theirs: what the model's input takes, a distribution, or a trace's
tokens. Nothing is sent here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError
from testbed.scenario.model import Arrivals, DrawnSize, Misbehaviour, ModelSize, RequestSize, TokenSize, TraceArrivals
from testbed.traffic.arrivals import Seed, replay_order, schedule
from testbed.traffic.modulation import OnOffPath
from testbed.traffic.request_wire import MOST_REQUESTS, Maker, TextMaker
from testbed.traffic.schedules import load_arrays, save_arrays
from testbed.traffic.workloads import read_workload

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class RequestSchedule:
    """Requests of one tenant in one window; a request's number is its position.

    Attributes:
        time_s: Intended send times from the start of the window, non-decreasing, float64[n].
        message_bytes: Size of each message, int64[n].
        first_image: Position of its first image; of a request for text, its row in the trace. int64[n].
    """

    time_s: FloatArray
    message_bytes: IntArray
    first_image: IntArray

    def __post_init__(self) -> None:
        n = self.time_s.shape
        if len(n) != 1 or self.message_bytes.shape != n or self.first_image.shape != n:
            raise ValueError("request schedule: expected times, sizes and images of one length")
        if self.time_s.size >= MOST_REQUESTS:
            raise ValueError(f"request schedule: found {self.time_s.size} requests, expected less than {MOST_REQUESTS}")
        if self.time_s.size and (self.time_s[0] < 0 or np.any(np.diff(self.time_s) < 0)):
            raise ValueError("request schedule: send times must not be negative nor decrease")

    def __len__(self) -> int:
        return int(self.time_s.size)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Self:
        """Some of the requests, [n]."""
        return replace(
            self,
            time_s=self.time_s[chosen],
            message_bytes=self.message_bytes[chosen],
            first_image=self.first_image[chosen],
        )

    def rate_bps(self, duration_s: float) -> float:
        """Mean rate of message bits offered over a window of the given length."""
        return 8.0 * float(self.message_bytes.sum()) / duration_s

    def save(self, path: Path) -> None:
        """Write the schedule to an `.npz` file that only its owner can read, all at once or not at all."""
        arrays = {"time_s": self.time_s, "message_bytes": self.message_bytes, "first_image": self.first_image}
        save_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a schedule written by `save`.

        Raises:
            ValueError: The file is no request schedule.
            OSError: The file cannot be read.
        """
        arrays = load_arrays(path, ("time_s", "message_bytes", "first_image"))
        return cls(
            arrays["time_s"].astype(np.float64),
            arrays["message_bytes"].astype(np.int64),
            arrays["first_image"].astype(np.int64),
        )


def request_schedule(
    arrivals: Arrivals,
    size: RequestSize,
    maker: Maker,
    *,
    seed: Seed,
    duration_s: float,
    misbehaviour: Misbehaviour | None = None,
    modulators: Mapping[str, OnOffPath] | None = None,
    group: np.random.SeedSequence | None = None,
) -> RequestSchedule:
    """Draw the requests of one tenant in the window [0, duration_s).

    Args:
        arrivals: The declared process; its `size_bits` counts only where it decides when something arrives (the fluid
            of an on-off source is cut into requests of that size).
        size: How large requests are.
        maker: Makes the messages; decides how small one can be, and how many images there are.
        seed: Seed of this tenant in this window, see `testbed.traffic.arrivals.tenant_seed`.
        duration_s: Length of the window.
        misbehaviour: Bursts that coincide with those of other tenants; None where the tenant is on its own.
        modulators: As of `testbed.traffic.arrivals.schedule`.
        group: As of `testbed.traffic.arrivals.schedule`.

    Raises:
        ScenarioError: A trace that cannot be read, token sizes without a trace of tokens, or arrivals that contradict
            themselves.
    """
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    times_seed, sizes_seed, images_seed = root.spawn(3)
    if isinstance(arrivals, TraceArrivals):
        order, time_s, tokens = _replayed(arrivals, times_seed, duration_s)
    else:
        drawn = schedule(
            arrivals,
            seed=times_seed,
            duration_s=duration_s,
            misbehaviour=misbehaviour,
            modulators=modulators,
            group=group,
        )
        order, time_s, tokens = None, drawn.time_s, None
    n = time_s.size
    match size:
        case ModelSize():
            wanted = np.zeros(n, dtype=np.int64)
        case DrawnSize(size_bits=bits, weights=weights):
            share = np.array(weights or (1.0,) * len(bits))
            wanted = np.random.default_rng(sizes_seed).choice(np.array(bits) // 8, size=n, p=share / share.sum())
        case TokenSize():
            if tokens is None or not isinstance(arrivals, TraceArrivals) or arrivals.bits_per_token < 1:
                raise ScenarioError(
                    f"request sizes by tokens: found {type(arrivals).__name__}, expected the trace of a format that "
                    "counts tokens, and bits for each token; choose such a trace, or sizes of another kind"
                )
            wanted = -(-tokens * arrivals.bits_per_token // 8)
    if isinstance(maker, TextMaker):
        if order is None:
            raise ScenarioError("requests for text: found no trace among the arrivals, expected one of tokens")
        subject = order
    else:
        subject = np.random.default_rng(images_seed).integers(maker.subjects, size=n)
    return RequestSchedule(time_s, maker.message_bytes(wanted, subject), subject)


def _replayed(arrivals: TraceArrivals, seed: Seed, duration_s: float) -> tuple[IntArray, FloatArray, IntArray | None]:
    """Rows, times and context tokens of a trace's requests in the window; no tokens where it is one of packets."""
    trace = read_workload(arrivals)
    if not arrivals.speed_up > 0:
        raise ScenarioError(f"trace {trace.path}: found speed-up {arrivals.speed_up}, expected more than 0")
    order, time_s = replay_order(
        trace.time_s / arrivals.speed_up, trace.period_s / arrivals.speed_up, seed=seed, duration_s=duration_s
    )
    return order, time_s, None if trace.format == "packets" else trace.request[order]
