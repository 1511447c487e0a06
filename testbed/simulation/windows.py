"""Windows on disk: each is written whole or not at all, so that whoever is interrupted keeps what is finished.

A window's folder holds its samples, its tally, and `window.json`, which is written last and says of what it is the
result; a simulation that finds it there does not simulate it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from testbed.errors import PreflightError
from testbed.simulation import crossing
from testbed.simulation.calls import SEEDS_OF_CALLS
from testbed.simulation.crossing import Crossing
from testbed.simulation.inputs import code_digest, traces_digest
from testbed.simulation.system import System
from testbed.simulation.tally import Tally
from testbed.simulation.window import Outcome, Plan, simulate
from testbed.traffic.arrivals import tenant_seed

TALLY_NAME = "tally.npz"
_DONE_NAME = "window.json"


@dataclass(frozen=True)
class Task:
    """One window to simulate and where to leave it.

    Attributes:
        system: What is simulated.
        plan: Which window, and how long.
        crossings: What each tenant's packets are held against, in the order of the sources; empty where packets are
            counted and none is recorded.
        folder: Where its files go.
    """

    system: System
    plan: Plan
    crossings: tuple[Crossing, ...]
    folder: Path

    @property
    def digest(self) -> str:
        """Changes with everything that changes the result.

        Raises:
            OSError: A trace cannot be read.
        """
        traces = traces_digest(source.arrivals for source in self.system.sources)
        told = (code_digest(), traces, self.system, self.plan, self.crossings)
        return hashlib.sha256(repr(told).encode()).hexdigest()


@dataclass(frozen=True)
class Finished:
    """What a window's folder says of it.

    Attributes:
        digest: Of the task it is the result of.
        window: Number of the window.
        seed: Root of its random streams.
        duration_s: How long packets were sent.
        complete: Whether that is as long as was planned.
        packets: Packets sent.
        packet_hops: Packets that entered a domain, summed over domains.
        generating_s: Seconds spent on drawing arrivals.
        serving_s: Seconds spent on everything else.
    """

    digest: str
    window: int
    seed: int
    duration_s: float
    complete: bool
    packets: int
    packet_hops: int
    generating_s: float
    serving_s: float


def make_folder(folder: Path, *, exist_ok: bool = True) -> None:
    """Make a folder that only its owner reads, with those above it.

    Raises:
        PreflightError: It cannot be made, or is there although it must not be.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise PreflightError(
            f"{folder}: cannot be made ({error.strerror}); choose another folder with --out"
        ) from error


def perform(
    task: Task, *, advance: Callable[[float], None] = lambda _: None, stop: Callable[[], bool] = lambda: False
) -> Finished:
    """Simulate a window and write its folder, unless it is there already."""
    if (before := finished(task)) is not None:
        return before
    return _write(task, simulate(task.system, task.plan, advance=advance, stop=stop))


def finished(task: Task) -> Finished | None:
    """The complete result of a task, None where there is none yet."""
    path = task.folder / _DONE_NAME
    if not path.is_file():
        return None
    found = Finished(**json.loads(path.read_text(encoding="utf-8")))
    return found if found.complete and found.digest == task.digest else None


def _write(task: Task, outcome: Outcome) -> Finished:
    task.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    done = task.folder / _DONE_NAME
    done.unlink(missing_ok=True)
    plan = task.plan
    for members, passage, answers in zip(task.system.companies(), outcome.passages, outcome.answers, strict=True):
        for k in members if task.crossings else ():
            own = task.crossings[k]
            # The children before the last one decide what is asked, and when.
            *_, seed = tenant_seed(plan.seed, own.number, plan.window).spawn(SEEDS_OF_CALLS + 1)
            crossing.write(samples_path(task.folder, own.tenant), own, k, passage, answers=answers, seed=seed)
    outcome.tally.save(task.folder / TALLY_NAME)
    result = Finished(
        digest=task.digest,
        window=task.plan.window,
        seed=task.plan.seed,
        duration_s=outcome.duration_s,
        complete=outcome.duration_s >= task.plan.duration_s,
        packets=outcome.packets,
        packet_hops=outcome.packet_hops,
        generating_s=outcome.generating_s,
        serving_s=outcome.serving_s,
    )
    partial = done.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(result)), encoding="utf-8")
    partial.replace(done)
    return result


def samples_path(folder: Path, tenant: str) -> Path:
    """Where a tenant's recorded packets are."""
    return folder / f"{tenant}.parquet"


def tally_of(folder: Path) -> Tally:
    """The tally of a window."""
    return Tally.load(folder / TALLY_NAME)
