"""Draws an experiment: p99.9 with its limits and bound over what is varied, and beside it who was on time and admitted.

What was measured on a network is laid over what was simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from testbed.simulation.experiments.point import ExperimentPoint

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_REACH = 0.35
"""How far an arrow reaches above a p99.9 that has no upper limit, as a share of it."""

Share = tuple[float, tuple[float, float]]


def draw(points: Sequence[ExperimentPoint], deadline_s: float, path: Path) -> None:
    """Write a picture of an experiment; the suffix of the path chooses its format."""
    names = list(dict.fromkeys(point.name for point in points))
    compared = len({point.admitted for point in points}) > 1
    wanted = _SHARES if compared else dict(list(_SHARES.items())[:1])
    with mpl.rc_context({"font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9.6, 6.4) if compared else (8.4, 3.4), layout="constrained")
        delay, *shares = np.ravel(figure.subplots(2 if compared else 1, 2))
        for name, colour in zip(names, _COLOURS, strict=False):
            for own, overlaid in (
                ([point for point in points if point.name == name and point.on == "simulation"], False),
                ([point for point in points if point.name == name and point.on != "simulation"], True),
            ):
                if own:
                    _draw_delays(delay, own, colour, label=None if overlaid and _both(points) else name)
                    for axes, share in zip(shares, wanted.values(), strict=True):
                        _draw_shares(axes, own, colour, share)
        delay.axhline(deadline_s * 1e3, color="black", lw=0.9, ls=":")
        delay.set_yscale("log")
        delay.set_ylabel("p99.9, ms (dashed: bound, dotted: deadline)")
        for axes, title in zip(shares, wanted, strict=True):
            axes.set_ylabel(title)
            axes.set_ylim(-0.02, 1.02)
        for axes in (delay, *shares):
            axes.set_xlabel("offered load" if points[0].varied == "load" else points[0].varied)
            axes.grid(visible=True, alpha=0.25, lw=0.5)
        handles = [*delay.get_legend_handles_labels()[0], *(_places(points) if _both(points) else [])]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)


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
    x = [point.value for point in own]
    y, limits = zip(*(share(point) for point in own), strict=True)
    # Limits that exclude nothing are none.
    known = [(y_k, y_k) if both == (0.0, 1.0) else both for y_k, both in zip(y, limits, strict=True)]
    beyond = np.abs(np.array(known).T - y)
    simulated = own[0].on == "simulation"
    marker, size, line = ("o", 3.5, "-") if simulated else ("D", 6.0, "")
    axes.errorbar(x, y, beyond, color=colour, marker=marker, ms=size, ls=line, capsize=2, elinewidth=0.8)


def _on_time(point: ExperimentPoint) -> Share:
    return point.compliance, point.compliance_interval


def _kept(point: ExperimentPoint) -> Share:
    return float("nan") if point.kept.share is None else point.kept.share, point.kept.interval


def _admitted(point: ExperimentPoint) -> Share:
    return point.admitted, point.admitted_interval


_SHARES: Mapping[str, Callable[[ExperimentPoint], Share]] = {
    "share of packets on time": _on_time,
    "share of tenants whose promise was kept": _kept,
    "share of tenants admitted": _admitted,
}


def _places(points: Sequence[ExperimentPoint]) -> list[Line2D]:
    """What tells the network from the simulator, whatever the colour."""
    found = [
        Line2D([], [], color="grey", marker="o", ms=3.5, label="simulated"),
        Line2D([], [], color="grey", marker="D", ms=6, ls="", label="network"),
    ]
    if any(point.invalid for point in points):
        found.append(Line2D([], [], color="grey", marker="D", ms=6, ls="", mfc="none", label="network, INVALID"))
    return found


def _both(points: Sequence[ExperimentPoint]) -> bool:
    return len({point.on for point in points}) > 1


def _ms(value_s: float | None) -> float:
    return float("nan") if value_s is None else value_s * 1e3
