"""The requests that a tenant's trace arrivals stand for: a stretch of a recording, or what is drawn from a description.

Either way one definite sequence, the same at every reading, so that guardrails can hold what it piles up. Formats are
`testbed.traffic.traces`' and `testbed.traffic.servegen`'s.
"""

from __future__ import annotations

import numpy as np

from testbed.errors import ScenarioError
from testbed.scenario.model import TraceArrivals
from testbed.traffic.servegen import read_client
from testbed.traffic.traces import Requests, Trace, as_requests, read_trace

_SEED = 0
"""Of drawings from a description: seeds of a run choose where in the sequence a window begins, not another sequence."""


def read_workload(arrivals: TraceArrivals) -> Trace:
    """The stretch that is replayed, in the trace's own time from its first request on.

    Raises:
        ScenarioError: A file that cannot be read, bad rows, no stretch of a description, or one with fewer than two
            requests.
    """
    if arrivals.format == "servegen":
        if arrivals.span_s is None:
            raise ScenarioError(
                f"ServeGen client {arrivals.path}: found no length, expected one, such as 3600 s; say how much of the "
                "client's time requests are drawn for"
            )
        client = read_client(arrivals.path)
        return client.draw(seed=_SEED, start_s=arrivals.start_s, duration_s=arrivals.span_s)
    whole = read_trace(arrivals.path, arrivals.format)
    if arrivals.start_s == 0.0 and arrivals.span_s is None:
        return whole
    end_s = np.inf if arrivals.span_s is None else arrivals.start_s + arrivals.span_s
    kept = (whole.time_s >= arrivals.start_s) & (whole.time_s < end_s)
    time_s = whole.time_s[kept]
    if time_s.size < 2 or time_s[0] == time_s[-1]:
        raise ScenarioError(
            f"trace {arrivals.path}: found {time_s.size} requests from {arrivals.start_s:g} s to {end_s:g} s, expected "
            f"at least two moments; choose a stretch of its {whole.time_s[-1]:g} s"
        )
    return Trace(whole.path, whole.format, time_s - time_s[0], whole.request[kept], whole.response[kept], whole.grid_s)


def read_requests(arrivals: TraceArrivals) -> Requests:
    """The same as what it puts on the wire, see `testbed.traffic.traces.as_requests`.

    Raises:
        ScenarioError: As `read_workload`, or packets that cannot be sent.
    """
    return as_requests(
        read_workload(arrivals),
        speed_up=arrivals.speed_up,
        bits_per_token=arrivals.bits_per_token,
        size_bits=arrivals.size_bits,
    )
