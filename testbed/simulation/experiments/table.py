"""An experiment as a table: what a reader concludes from, one line a point, as wide as there is room for.

What does not fit is left out and named, so that no figure is broken over two lines; the JSON form has everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from testbed.simulation.experiments.point import ExperimentPoint

WIDTH = 100
"""Characters of the whole table."""

_UNKNOWN, _BEYOND, _INVALID = "–", "∞", "!"
_GAP = 2
_TELLING = 1000
"""Packets of which one is expected beyond p99.9."""

_PLACES = {"network": ("net", "measured on the network"), "simulation": ("sim", "simulated")}


@dataclass(frozen=True)
class _Column:
    """A column: its heading, the unit below, and what it says of a point."""

    heading: str
    unit: str
    cell: Callable[[ExperimentPoint], str]
    words: bool = False

    def width(self, points: Sequence[ExperimentPoint]) -> int:
        """Characters of its widest line."""
        return max(len(text) for text in (self.heading, self.unit, *map(self.cell, points)))


def summary(points: Sequence[ExperimentPoint], width: int) -> RenderableType:
    """The points of an experiment, those of one value together, what was measured beside what was simulated.

    Args:
        points: At least one, all of one experiment.
        width: Characters that a line may have.
    """
    names = list(dict.fromkeys(point.name for point in points))
    ordered = sorted(points, key=lambda point: (point.value, names.index(point.name), point.on))
    columns, left_out = _fitting(ordered, width)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="bold")
    for column in columns:
        heading = f"{column.heading}\n{column.unit}"
        table.add_column(heading, justify="left" if column.words else "right", no_wrap=True)
    for number, point in enumerate(ordered):
        if number and point.value != ordered[number - 1].value:
            table.add_section()
        table.add_row(*(column.cell(point) for column in columns))
    return Group(table, Text(), *(Text(line) for line in _legend(ordered, left_out)))


def _fitting(points: Sequence[ExperimentPoint], width: int) -> tuple[list[_Column], list[str]]:
    """The columns for which there is room, and what had to be left out for them."""
    columns, left_out = _columns(points), []
    for what, (name, instead) in _LEFT_OUT.items():
        if sum(column.width(points) + _GAP for column in columns.values()) - _GAP <= width:
            break
        if name in columns:
            left_out.append(what)
            if instead is None:
                del columns[name]
            else:
                columns[name] = instead
    return list(columns.values()), left_out


def _columns(points: Sequence[ExperimentPoint]) -> dict[str, _Column]:
    """All of them, but neither places nor admission where every point has the same."""
    found = {
        "value": _Column(points[0].varied, "", lambda point: f"{point.value:g}"),
        "name": _Column(points[0].contender, "", lambda point: point.name, words=True),
        "on": _Column("on", "", _place, words=True),
        "bound": _Column("bound", "ms", lambda point: _milliseconds(point.bound_s)),
        "p99.9": _Column("p99.9 (limits)", "ms", _p999),
        "on time": _Column("on time (limits)", "%", _on_time_with_limits),
        "kept": _Column("kept", "%", _kept),
        "admitted": _Column("admitted", "%", lambda point: _percent(point.admitted, 0)),
        "used": _Column("used", "%", lambda point: _percent(point.utilisation, 0)),
    }
    if len({point.on for point in points}) == 1:
        del found["on"]
    if all(point.admitted == 1 for point in points):
        del found["admitted"]
    return found


def _legend(points: Sequence[ExperimentPoint], left_out: Sequence[str]) -> Iterator[str]:
    """What the signs and headings mean, and what the table lacks."""
    places = [_PLACES[place] for place in sorted({point.on for point in points})]
    yield "; ".join(f"{short}: {meaning}" for short, meaning in places) if len(places) > 1 else f"all {places[0][1]}"
    yield "limits: 95 %; kept: tenants whose own promise was kept; used: of the link"
    yield f"{_UNKNOWN} none or unknown; {_BEYOND} no upper limit, or later than every packet that arrived"
    if any(point.invalid for point in points):
        yield f"{_INVALID} INVALID: a gate of the run failed, so it says nothing about the theory"
    if left_out:
        yield f"left out for want of room: {', '.join(left_out)}"
    yield "--json has every figure with its limits and what it rests on"


def _place(point: ExperimentPoint) -> str:
    return _PLACES[point.on][0] + _INVALID * bool(point.invalid)


def _p999(point: ExperimentPoint) -> str:
    lost = point.p999_s is None and point.packets >= _TELLING
    low, high = (_milliseconds(limit) for limit in point.p999_interval_s)
    above = _BEYOND if point.p999_interval_s[1] is None else high
    return f"{_BEYOND if lost else _milliseconds(point.p999_s)} ({low} .. {above})"


def _on_time_with_limits(point: ExperimentPoint) -> str:
    # Limits that exclude nothing are none.
    known = point.compliance_interval != (0.0, 1.0)
    limits = " .. ".join(_percent(limit, 3) for limit in point.compliance_interval)
    return f"{_on_time(point)} ({limits if known else _UNKNOWN})"


def _on_time(point: ExperimentPoint) -> str:
    return _percent(point.compliance if point.packets else None, 3)


def _kept(point: ExperimentPoint) -> str:
    return _percent(point.kept.share, 1)


_LEFT_OUT: Mapping[str, tuple[str, _Column | None]] = {
    "limits of on time": ("on time", _Column("on time", "%", _on_time)),
    "used": ("used", None),
    "kept": ("kept", None),
    "bound": ("bound", None),
    "admitted": ("admitted", None),
}
"""What is left out, in this order until the rest fits: the column, and the shorter one in its place."""


def _milliseconds(value_s: float | None) -> str:
    """To three digits."""
    if value_s is None:
        return _UNKNOWN
    value = value_s * 1e3
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _percent(share: float | None, digits: int) -> str:
    """A share in percent, rounded to 100 only where it is all."""
    if share is None:
        return _UNKNOWN
    if share in {0.0, 1.0}:
        return f"{100 * share:.0f}"
    shown = 100 * share
    return f"{min(shown, 100 - 10.0**-digits) if share < 1 else shown:.{digits}f}"
