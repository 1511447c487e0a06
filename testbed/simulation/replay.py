"""A measured run again, in the simulator: the packets that its first border saw, through the same meters and queues.

What differs between the two is then the network's and its host's doing alone: above all the time that switches take
for a packet that waits for nobody, which the simulator knows nothing of. It is a random time, not a constant: most of a
median may be made of it, and a quantile of a sum is no sum of quantiles. So its whole law is taken from just the
packets that wait for nobody, and every simulated packet is given a time from it. The run's folder is all that is
needed.

Of tenants that send requests it is the very same requests, with the run's framing, on their way to the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from testbed.report.record import read_record
from testbed.scenario.dictionary import from_dict
from testbed.simulation.answering import Answers
from testbed.simulation.choices import Choices
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.known import known
from testbed.simulation.network import network
from testbed.simulation.recorder import Passage
from testbed.simulation.streams import Packets
from testbed.simulation.system import Scheduler, Source
from testbed.simulation.window import Plan, simulate
from testbed.telemetry import request_samples, samples
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.samples import TenantSamples

FloatArray = npt.NDArray[np.float64]

_ALONE_S = 50e-6
"""A packet that takes no longer than this more than the fastest has waited for nobody."""

_DRAWS = 20
_SEED = 1


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """One tenant of one window, measured and simulated.

    Attributes:
        tenant: Name.
        window: Number of the window.
        measured_s: From the first border to the last, NaN where a packet was lost; of requests from the intended time
            until the whole request was at the server. float64[n].
        simulated_s: The same packets or requests in the simulator, float64[n].
    """

    tenant: str
    window: int
    measured_s: FloatArray
    simulated_s: FloatArray

    @property
    def host_s(self) -> float:
        """Median of what the network took longer for packets that wait for nobody; NaN where all wait."""
        extra = self._host_times()
        return float(np.median(extra)) if extra.size else float("nan")

    def quantiles(self, levels: tuple[float, ...] = (0.5, 0.99, 0.999)) -> tuple[FloatArray, FloatArray]:
        """Measured quantiles, and simulated ones with times of the host, of the packets that both delivered.

        The second are NaN where no packet waited for nobody.
        """
        both = np.isfinite(self.measured_s) & np.isfinite(self.simulated_s)
        # The smallest value that so many do not exceed: the same of a sample and of its copies.
        measured_s = np.quantile(self.measured_s[both], levels, method="inverted_cdf")
        extra = self._host_times()
        if not extra.size:
            return measured_s, np.full(len(levels), np.nan)
        # Drawn anew several times, so that the draw moves a quantile less than the packets' own number does.
        drawn = np.random.default_rng(_SEED).choice(extra, (_DRAWS, np.count_nonzero(both)))
        return measured_s, np.quantile(self.simulated_s[both] + drawn, levels, method="inverted_cdf")

    def _host_times(self) -> FloatArray:
        """What the network took longer than the simulator for each packet that waited for nobody."""
        alone = self.simulated_s < np.nanmin(self.simulated_s, initial=np.inf) + _ALONE_S
        return (self.measured_s - self.simulated_s)[alone & np.isfinite(self.measured_s)]


def replay_run(folder: Path, scheduler: Scheduler = Scheduler.RESERVED) -> list[Replayed]:
    """Replay every window of a run.

    Args:
        folder: What `testbed run` left.
        scheduler: Of every domain.

    Raises:
        TestbedError: No such folder, or one that this version cannot read.
    """
    record = read_record(folder)
    scenario = from_dict(record.scenario)
    ready = network(scenario, Choices(scheduler), known(scenario, folder))
    system = ready.system
    found = []
    for window in record.windows:
        seen = {name: samples.read(folder / path)[0] for name, path in window.samples.items()}
        asked = {name: request_samples.read(folder / path) for name, path in window.requests.items()}
        captured = {s.number: _Captured(seen[s.name]) for s in system.sources if s.asking is None}
        length_s = max([window.duration_s, *(stream.end_s for stream in captured.values())])
        outcome = simulate(system, Plan(window.seed, window.index, length_s, length_s), streams=captured)
        for members, passage, answers in zip(system.companies(), outcome.passages, outcome.answers, strict=True):
            for k in members:
                source = system.sources[k]
                if source.asking is not None and answers is not None:
                    found.append(_asked(source, k, window.index, asked[source.name], passage=passage, answers=answers))
                    continue
                own = passage.rows(k)
                border = passage.border_ps[own]
                last = border[:, system.sources[k].hops]
                simulated_s = np.where(last >= 0, (last - border[:, 0]) / PS_PER_S, np.nan)
                name = system.sources[k].name
                measured_s = captured[system.sources[k].number].in_order(seen[name].network_s)
                found.append(Replayed(name, window.index, measured_s, simulated_s))
    return found


def _asked(
    source: Source, k: int, window: int, measured: RequestSamples, *, passage: Passage, answers: Answers
) -> Replayed:
    """The requests of one tenant that both have; a run that was ended early has fewer."""
    last = answers.last[answers.tenant == k][: len(measured)]
    at_server = passage.border_ps[last, source.hops]
    simulated_s = np.where(at_server >= 0, (at_server - passage.born_ps[last]) / PS_PER_S, np.nan)
    return Replayed(source.name, window, measured.network_out_s[: last.size], simulated_s)


class _Captured:
    """Packets as a border saw them, in the order of their arrival there; those it did not see are left out."""

    def __init__(self, seen: TenantSamples) -> None:
        arrival_s = seen.border_s[:, 0]
        present = np.flatnonzero(np.isfinite(arrival_s))
        self._order = present[np.argsort(arrival_s[present], kind="stable")]
        self._time_ps = np.rint(arrival_s[self._order] * PS_PER_S).astype(np.int64)
        self._size_bits = seen.size_bits[self._order].astype(np.int32)
        self._next = 0

    @property
    def end_s(self) -> float:
        """Just after the last packet."""
        return (int(self._time_ps[-1]) + 1) / PS_PER_S if self._time_ps.size else 0.0

    def in_order(self, values: FloatArray) -> FloatArray:
        """Values of the packets, in the order in which they are replayed."""
        return values[self._order]

    def until(self, time_ps: int) -> Packets:
        """The next packets."""
        stop = int(np.searchsorted(self._time_ps, time_ps))
        part = slice(self._next, stop)
        self._next = stop
        n = stop - part.start
        return Packets(self._time_ps[part], self._size_bits[part], np.ones(n, np.bool_))
