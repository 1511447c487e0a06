"""Draws an experiment: p99.9 with its limits and bound over what is varied, and beside it the share of packets on time.

Where tenants are refused, the shares of those whose promise was kept, of those admitted and of the link that was used
follow. What was measured on a network is laid over what was simulated, with a violet frame where a core of the host was
away while some of the slowest packets were on their way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from testbed.report.plots import STALL
from testbed.simulation.experiments.point import ExperimentPoint

_STYLE: Any = {"font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "experiment"}
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_LEGEND_COLUMNS = 5
_REACH = 0.35
"""How far an arrow reaches above a p99.9 that has no upper limit, as a share of it."""

_STALLED: Any = {"color": STALL, "ls": "", "marker": "s", "ms": 10, "mfc": "none", "mew": 0.9}
"""The violet of the report's marks."""

Share = tuple[float, tuple[float, float]]


def draw(points: Sequence[ExperimentPoint], deadline_s: float, path: Path) -> None:
    """Write a picture of an experiment, the same bytes for the same points; the path's suffix chooses its format."""
    names = list(dict.fromkeys(point.name for point in points))
    with mpl.rc_context(_STYLE):
        figure, delay, shares = _panels(points)
        for name, colour in zip(names, _COLOURS, strict=False):
            for own, overlaid in (
                ([point for point in points if point.name == name and point.on == "simulation"], False),
                ([point for point in points if point.name == name and point.on != "simulation"], True),
            ):
                if own:
                    _draw_delays(delay, own, colour, label=None if overlaid and _both(points) else name)
                    for title, axes in shares.items():
                        _draw_shares(axes, own, colour, _SHARES[title])
        delay.axhline(deadline_s * 1e3, color="black", lw=0.9, ls=":")
        delay.set_yscale("log")
        delay.set_ylabel("p99.9, ms (dashed: bound, dotted: deadline)")
        for title, axes in shares.items():
            axes.set_ylabel(title)
            axes.set_ylim(-0.05, 1.05)
        for axes in (delay, *shares.values()):
            axes.set_xlabel("offered load" if points[0].varied == "load" else points[0].varied)
            axes.grid(visible=True, alpha=0.25, lw=0.5)
        handles = [*delay.get_legend_handles_labels()[0], *(_places(points) if _both(points) else [])]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), _LEGEND_COLUMNS))
        figure.savefig(path, metadata=_UNDATED.get(path.suffix), dpi=130)


def _panels(points: Sequence[ExperimentPoint]) -> tuple[Figure, Axes, dict[str, Axes]]:
    """The figure, the panel of p99.9, and those of shares by their titles: only the first where nobody is refused."""
    if len({point.admitted for point in points}) == 1:
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        delay, on_time = figure.subplots(1, 2)
        return figure, delay, {next(iter(_SHARES)): on_time}
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    first, *others = _SHARES
    panels = figure.subplot_mosaic([["delay", "delay", first], [*others]])
    return figure, panels.pop("delay"), panels


def _draw_delays(axes: Axes, own: Sequence[ExperimentPoint], colour: str, *, label: str | None) -> None:
    """A line where it was simulated, marks on a network, hollow for an INVALID run; an arrow for no upper limit."""
    x = np.array([point.value for point in own])
    found = np.array([_ms(point.p999_s) for point in own])
    low, high = (np.array([_ms(point.p999_interval_s[side]) for point in own]) for side in (0, 1))
    bounds = np.array([_ms(point.bound_s) for point in own])
    if own[0].on == "simulation":
        axes.plot(x, found, color=colour, marker="o", ms=3.5, label=label)
        if np.isfinite(bounds).any():
            axes.plot(x, bounds, color=colour, lw=0.9, ls="--")
    else:
        axes.plot(x, bounds, color=colour, ls="", marker="_", ms=10)
        for point in own:
            fill = "none" if point.invalid else colour
            axes.plot([point.value], [_ms(point.p999_s)], color=colour, ls="", marker="D", ms=6, mfc=fill, label=label)
            label = None
            if point.slowest_stalled:
                axes.plot([point.value], [_ms(point.p999_s)], **_STALLED)
    known = np.where(np.isnan(found), low, found)
    above = np.nan_to_num(high - known)
    axes.errorbar(x, known, [known - low, above], color=colour, ls="", elinewidth=0.8, capsize=2)
    if (open_above := np.isnan(high) & np.isfinite(known)).any():
        x, known = x[open_above], known[open_above]
        reach = [np.zeros_like(known), _REACH * known]
        axes.errorbar(x, known, reach, color=colour, ls="", elinewidth=0.8, lolims=True)


def _draw_shares(
    axes: Axes, own: Sequence[ExperimentPoint], colour: str, share: Callable[[ExperimentPoint], Share]
) -> None:
    """As delays are: a line where it was simulated, marks on a network, hollow for an INVALID run."""
    x = [point.value for point in own]
    y, limits = zip(*(share(point) for point in own), strict=True)
    # Limits that exclude nothing are none.
    known = [(y_k, y_k) if both == (0.0, 1.0) else both for y_k, both in zip(y, limits, strict=True)]
    beyond = np.abs(np.array(known).T - y)
    simulated = own[0].on == "simulation"
    marker, size, line = ("o", 3.5, "-") if simulated else ("D", 6.0, "")
    axes.errorbar(x, y, beyond, color=colour, marker=marker, ms=size, ls=line, capsize=2, elinewidth=0.8)
    # In front of the marks of errorbar, which lie at 2.1.
    doubted = [(point.value, y_k) for point, y_k in zip(own, y, strict=True) if point.invalid]
    axes.plot(*np.reshape(doubted, (-1, 2)).T, color=colour, marker=marker, ms=size, mfc="white", ls="", zorder=2.2)


def _on_time(point: ExperimentPoint) -> Share:
    return point.compliance, point.compliance_interval


def _kept(point: ExperimentPoint) -> Share:
    return float("nan") if point.kept.share is None else point.kept.share, point.kept.interval


def _admitted(point: ExperimentPoint) -> Share:
    return point.admitted, point.admitted_interval


def _used(point: ExperimentPoint) -> Share:
    return point.utilisation, point.utilisation_interval


_SHARES: Mapping[str, Callable[[ExperimentPoint], Share]] = {
    "share of packets on time": _on_time,
    "share of tenants whose promise was kept": _kept,
    "share of tenants admitted": _admitted,
    "share of the link used": _used,
}


def _places(points: Sequence[ExperimentPoint]) -> list[Line2D]:
    """What tells the network from the simulator, whatever the colour."""
    found = [
        Line2D([], [], color="grey", marker="o", ms=3.5, label="simulated"),
        Line2D([], [], color="grey", marker="D", ms=6, ls="", label="network"),
    ]
    if any(point.invalid for point in points):
        found.append(Line2D([], [], color="grey", marker="D", ms=6, ls="", mfc="none", label="network, INVALID"))
    if any(point.slowest_stalled for point in points):
        found.append(Line2D([], [], **_STALLED, label="a core away meanwhile"))
    return found


def _both(points: Sequence[ExperimentPoint]) -> bool:
    return len({point.on for point in points}) > 1


def _ms(value_s: float | None) -> float:
    return float("nan") if value_s is None else value_s * 1e3
