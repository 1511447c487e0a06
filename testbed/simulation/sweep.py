"""A scenario under every combination of some settings, each left as a folder of its own, on processes or on Ray.

A point that is finished is not simulated again, so a sweep that was killed goes on where it was when it is given the
same folder. On a Ray cluster that folder must be on storage that all nodes share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from testbed.errors import PreflightError, ScenarioError
from testbed.report.record import RECORD_NAME, read_record
from testbed.report.tenant_record import TenantRecord
from testbed.run.progress import Progress, Step
from testbed.scenario.loader import load
from testbed.scenario.model import Arrivals, Scenario
from testbed.simulation.choices import Choices
from testbed.simulation.grid import Axis, Settings, load_of, points, vary_choices, vary_file, vary_scenario
from testbed.simulation.inputs import code_digest, traces_digest
from testbed.simulation.known import known
from testbed.simulation.pipeline import Options, simulate_scenario
from testbed.simulation.windows import make_folder
from testbed.simulation.workers import carry_out, carry_out_on_ray

SCENARIO_NAME = "scenario.yaml"
POINT_NAME = "point.json"
SWEEP_NAME = "sweep.json"

COLUMNS = (
    "name",
    "n",
    "misses",
    "lost",
    "p999_s",
    "p999_interval_s",
    "p999_lower_s",
    "ideal_p999_s",
    "bound_s",
    "bound_method",
    "bound_broken",
    "unbound",
    "deadline_s",
    "epsilon",
    "verdict",
)
"""What a sweep keeps of each tenant: what a run says of it too."""


@dataclass(frozen=True)
class Point:
    """One combination of settings.

    Attributes:
        settings: What is varied.
        text: The scenario file with its part of them.
        options: How it is simulated; `resume` is the point's folder.
        arrivals: What its tenants send.
    """

    settings: Settings
    text: str
    options: Options
    arrivals: tuple[Arrivals, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.options.out

    @property
    def digest(self) -> str:
        """Changes with everything that changes the result.

        Of a run that measured requests the record counts, wherever it lies; it stands for the samples beside it.

        Raises:
            OSError: That record, or a trace, cannot be read.
        """
        own = self.options
        measured = None if own.measured is None else _sha256((own.measured / RECORD_NAME).read_bytes())
        shape = (own.packets, own.replications, own.recorded_packets, own.choices, measured)
        traces = traces_digest(self.arrivals)
        return _sha256(repr((COLUMNS, code_digest(), self.settings, self.text, shape, traces)).encode())


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is carried out.

    Attributes:
        out: Folder of the sweep; one that an interrupted sweep left goes on.
        packets: Packets in each window; None: the scenario's duration decides.
        replications: Windows of each point.
        recorded_packets: Packets of each point to record one by one.
        workers: Processes.
        on_ray: Whether Ray carries it out instead.
        choices: What every point does differently from a run.
        measured: Folder of a run that measured requests; None: all as declared.
        command: What to type to repeat it.
        stop: Asked now and then whether to end early.
    """

    out: Path
    packets: int | None = None
    replications: int = 1
    recorded_packets: int = 100_000
    workers: int = 1
    on_ray: bool = False
    choices: Choices = field(default_factory=Choices)
    measured: Path | None = None
    command: tuple[str, ...] = ()
    stop: Callable[[], bool] = lambda: False


def sweep(file: Path, axes: Sequence[Axis], options: SweepOptions, progress: Progress) -> list[dict[str, Any]]:
    """Simulate every point that is not finished yet.

    Returns:
        A row for each finished point, in the order of the grid: `settings`, `verdict`, `packets`, and `tenants` with
        the columns of `COLUMNS`. The same rows are in `sweep.json`.

    Raises:
        ScenarioError: A setting that leads nowhere, or a scenario that cannot be simulated.
        PreflightError: The folder cannot be made, or Ray is not there.
    """
    all_points = [_point(file, number, settings, options) for number, settings in enumerate(points(axes), start=1)]
    scenarios = [_checked(point, file) for point in all_points]
    all_points = [_prepared(*pair) for pair in zip(all_points, scenarios, strict=True)]
    missing = [point for point in all_points if _row(point) is None]
    with progress.step(f"{len(missing)} of {len(all_points)} points") as step:
        if missing:
            for _ in _carry_out(missing, options, step):
                pass
    rows = [row for point in all_points if (row := _row(point)) is not None]
    _write(options.out / SWEEP_NAME, {"command": options.command, "points": len(all_points), "rows": rows})
    return rows


def perform_point(
    point: Point, *, advance: Callable[[float], None] = lambda _: None, stop: Callable[[], bool] = lambda: False
) -> bool:
    """Simulate a point into its folder.

    Returns:
        Whether it is finished; one that was interrupted is not.
    """
    try:
        options = replace(point.options, stop=stop)
        folder = simulate_scenario(_scenario(point), options, _Told(advance))
    except PreflightError:
        if stop():
            return False
        raise
    record = read_record(folder)
    if record.partial:
        return False
    row = {
        "settings": dict(point.settings),
        "verdict": record.verdict,
        "packets": record.packets,
        "tenants": [_tenant(tenant) for tenant in record.tenants],
    }
    _write(folder / POINT_NAME, {"digest": point.digest, "row": row})
    return True


def _carry_out(missing: Sequence[Point], options: SweepOptions, step: Step) -> Any:
    # What asks a process to stop cannot be sent to another one; workers are given their own.
    if options.on_ray:
        return carry_out_on_ray(perform_point, missing, advance=step.advance, stop=options.stop)
    return carry_out(perform_point, missing, workers=options.workers, advance=step.advance, stop=options.stop)


def _point(file: Path, number: int, settings: Settings, options: SweepOptions) -> Point:
    folder = options.out / f"point-{number}"
    # Refused before there is a folder, as the other settings are.
    load_of(settings)
    own = Options(
        out=folder,
        packets=options.packets,
        replications=options.replications,
        recorded_packets=options.recorded_packets,
        choices=vary_choices(options.choices, settings),
        measured=options.measured,
        command=options.command,
        page=False,
        resume=folder,
        stop=_never,
    )
    return Point(settings, vary_file(file, settings), own)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _never() -> bool:
    return False


def _checked(point: Point, file: Path) -> Scenario:
    """The scenario of a point, before there is a folder for it.

    Raises:
        ScenarioError: The file makes no sense with these settings; it names both.
    """
    with TemporaryDirectory() as folder:
        varied = Path(folder) / file.name
        varied.write_text(point.text, encoding="utf-8")
        try:
            scenario = vary_scenario(load(varied), point.settings)
            known(scenario, point.options.measured)
        except ScenarioError as error:
            settings = ", ".join(f"{key}={value}" for key, value in point.settings)
            named = (problem.replace(str(varied), str(file)) for problem in error.problems)
            raise ScenarioError(f"grid: {settings}: {problem}" for problem in named) from error
    return scenario


def _prepared(point: Point, scenario: Scenario) -> Point:
    """The point with what its tenants send, and its folder with its file."""
    make_folder(point.folder)
    (point.folder / SCENARIO_NAME).write_text(point.text, encoding="utf-8")
    return replace(point, arrivals=tuple(tenant.arrivals for tenant in scenario.tenants))


def _scenario(point: Point) -> Scenario:
    return vary_scenario(load(point.folder / SCENARIO_NAME), point.settings)


def _row(point: Point) -> dict[str, Any] | None:
    path = point.folder / POINT_NAME
    if not path.is_file():
        return None
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found["row"] if found["digest"] == point.digest else None


def _tenant(tenant: TenantRecord) -> dict[str, Any]:
    found = tenant.model_dump(mode="json")
    return {column: found[column] for column in COLUMNS}


def _write(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    partial.replace(path)


class _Told:
    """Progress of a point, of which only the fraction of its simulation is passed on."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self._advance = advance

    def step(self, name: str) -> _Telling:
        """A step; only simulating takes long."""
        return _Telling(self._advance if name == "simulating" else lambda _: None)


class _Telling:
    def __init__(self, advance: Callable[[float], None]) -> None:
        self.advance = advance

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: object) -> None:
        return None
