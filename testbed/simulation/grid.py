"""Variations of a scenario: which settings a sweep may vary, and what each makes of the file.

A key of the file is named by its path, with the entries of lists by their names: `tenants.alpha.arrivals.peak`. A few
settings are not in any file: `load`, by which the time of all arrivals is compressed, and how the simulator itself
departs from a run.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from testbed.errors import ScenarioError
from testbed.scenario import document
from testbed.scenario.loader import load
from testbed.scenario.model import (
    Arrivals,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    Scenario,
    Tenant,
    TraceArrivals,
)
from testbed.scenario.problems import Report
from testbed.simulation.choices import Choices
from testbed.simulation.impairment import Excess
from testbed.simulation.system import Scheduler

Settings = tuple[tuple[str, str], ...]
"""Key and value of each setting, as written."""


@dataclass(frozen=True)
class Axis:
    """One setting and the values it takes, as written."""

    key: str
    values: tuple[str, ...]


def axis(text: str) -> Axis:
    """An axis from `KEY=VALUE,VALUE`.

    Raises:
        ScenarioError: Not of that form.
    """
    key, _, values = text.partition("=")
    found = tuple(value.strip() for value in values.split(","))
    if not key.strip() or not all(found):
        raise ScenarioError(f"grid: found {text!r}, expected KEY=VALUE,VALUE,...; write for example load=0.5,0.9")
    return Axis(key.strip(), found)


def points(axes: Sequence[Axis]) -> list[Settings]:
    """Every combination of values, the last axis varying fastest.

    Raises:
        ScenarioError: A key that occurs twice.
    """
    keys = [one.key for one in axes]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ScenarioError(f"grid: found {', '.join(twice)} twice, expected each key once; put its values together")
    return [tuple(zip(keys, values, strict=True)) for values in itertools.product(*(one.values for one in axes))]


def vary_file(file: Path, settings: Settings) -> str:
    """Text of a scenario file in which the settings that name keys of the file are replaced.

    Traces are named by absolute paths, so that the text can be kept anywhere.

    Raises:
        ScenarioError: The file cannot be read, or a path leads nowhere in it.
    """
    report = Report(file)
    if not isinstance(document.read(file, report), document.Mapping):
        # What is wrong with a file that has no keys is said as always.
        load(file)
    report.raise_if_any()
    yaml = YAML(typ="rt")
    varied = yaml.load(file.read_text(encoding="utf-8"))
    for key, value in settings:
        if key not in _CHOICES and key != "load":
            _replace(varied, key, yaml.load(value), file)
    for arrivals in _arrivals(varied.get("tenants")):
        arrivals["file"] = str((file.parent / str(arrivals["file"])).resolve())
    buffer = io.StringIO()
    yaml.dump(varied, buffer)
    return buffer.getvalue()


def vary_scenario(scenario: Scenario, settings: Settings) -> Scenario:
    """The scenario under the setting `load`.

    Raises:
        ScenarioError: Not a positive number.
    """
    factor = load_of(settings)
    if factor == 1:
        return scenario
    return replace(scenario, tenants=tuple(_faster(tenant, factor) for tenant in scenario.tenants))


def load_of(settings: Settings) -> float:
    """By how much the settings compress the time of all arrivals; 1 where they do not say.

    Raises:
        ScenarioError: Not a positive number.
    """
    load = dict(settings).get("load", "1")
    factor = _number("load", load)
    if factor == 0:
        raise ScenarioError(f"grid: found load={load}, expected a number above 0")
    return factor


def vary_choices(choices: Choices, settings: Settings) -> Choices:
    """The choices under the settings that are the simulator's own.

    Raises:
        ScenarioError: A value that makes no sense.
    """
    for key, value in settings:
        if key in _CHOICES:
            choices = _CHOICES[key](choices, value)
    return choices


def faster(arrivals: Arrivals, factor: float) -> Arrivals:
    """The process with its time compressed, so that bursts keep their shape in packets."""
    match arrivals:
        case PoissonArrivals() | RenewalArrivals():
            return replace(arrivals, rate_per_s=arrivals.rate_per_s * factor)
        case MmppArrivals():
            return replace(
                arrivals,
                rates_per_s=tuple(rate * factor for rate in arrivals.rates_per_s),
                switch_per_s=tuple(tuple(rate * factor for rate in row) for row in arrivals.switch_per_s),
            )
        case OnOffArrivals():
            return replace(
                arrivals,
                peak_bps=arrivals.peak_bps * factor,
                mean_on_s=arrivals.mean_on_s / factor,
                mean_off_s=arrivals.mean_off_s / factor,
            )
        case TraceArrivals():
            return replace(arrivals, speed_up=arrivals.speed_up * factor)


def _faster(tenant: Tenant, factor: float) -> Tenant:
    breach = tenant.misbehaviour
    if breach is not None and breach.offered_bps is not None:
        breach = replace(breach, offered_bps=breach.offered_bps * factor)
    return replace(tenant, arrivals=faster(tenant.arrivals, factor), misbehaviour=breach)


def _arrivals(tenants: Any) -> Iterator[Any]:
    """Arrivals that name a file; tenants may be anything yet, for nobody has checked them."""
    for tenant in tenants if isinstance(tenants, list) else ():
        arrivals = tenant.get("arrivals") if isinstance(tenant, Mapping) else None
        if isinstance(arrivals, Mapping) and "file" in arrivals:
            yield arrivals


def _replace(document: Any, key: str, value: Any, file: Path) -> None:
    """Set the value at a path, whose last part may be new."""
    *way, last = key.split(".")
    place = document
    for part in way:
        if isinstance(place, list):
            place = next((entry for entry in place if isinstance(entry, Mapping) and entry.get("name") == part), None)
        else:
            place = place.get(part) if isinstance(place, Mapping) else None
        if place is None:
            raise ScenarioError(
                f"grid: found no {part} of {key} in {file}, expected a path of keys and names, such as "
                f"tenants.NAME.arrivals.rate, or one of {', '.join(sorted({'load', *_CHOICES}))}"
            )
    if not isinstance(place, Mapping):
        raise ScenarioError(f"grid: found no key {last} to set in {key}; name a key of an entry")
    place[last] = value  # type: ignore[index]


def _number(key: str, text: str, *, most: float = float("inf")) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (0 <= value <= most and math.isfinite(value)):
        expected = "a number of at least 0" if math.isinf(most) else f"a number from 0 to {most:g}"
        raise ScenarioError(f"grid: found {key}={text}, expected {expected}")
    return value


def _scheduler(choices: Choices, text: str) -> Choices:
    if text not in list(Scheduler):
        raise ScenarioError(f"grid: found scheduler={text}, expected one of {', '.join(Scheduler)}; choose one")
    return replace(choices, scheduler=Scheduler(text))


def _correlation(choices: Choices, text: str) -> Choices:
    return replace(choices, strength=_number("correlation", text, most=1.0))


def _loss(choices: Choices, text: str) -> Choices:
    return replace(choices, loss=_number("loss", text, most=1.0))


def _excess(choices: Choices, text: str) -> Choices:
    return replace(choices, excess=Excess.exponential(_number("excess-ms", text) / 1e3))


_CHOICES: Mapping[str, Callable[[Choices, str], Choices]] = {
    "scheduler": _scheduler,
    "correlation": _correlation,
    "loss": _loss,
    "excess-ms": _excess,
}
