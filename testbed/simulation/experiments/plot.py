"""Draws an experiment: p99.9 with its limits and bound over what is varied, compliance and who was admitted beside it.

What was measured on a network is laid over what was simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from testbed.simulation.experiments.point import ExperimentPoint

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_SHARES = {"compliance": "share of packets on time", "admitted": "share of tenants admitted"}


def draw(points: Sequence[ExperimentPoint], deadline_s: float, path: Path) -> None:
    """Write a picture of an experiment; the suffix of the path chooses its format."""
    names = list(dict.fromkeys(point.name for point in points))
    compared = len({point.admitted for point in points}) > 1
    with mpl.rc_context({"font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12.0 if compared else 8.4, 3.4), layout="constrained")
        delay, *shares = figure.subplots(1, 3 if compared else 2)
        for name, colour in zip(names, _COLOURS, strict=False):
            for own, overlaid in (
                ([point for point in points if point.name == name and point.on == "simulation"], False),
                ([point for point in points if point.name == name and point.on != "simulation"], True),
            ):
                if own:
                    _draw_delays(delay, own, colour, label=None if overlaid and _both(points) else name)
                    for axes, what in zip(shares, _SHARES, strict=False):
                        _draw_shares(axes, own, colour, what)
        delay.axhline(deadline_s * 1e3, color="black", lw=0.9, ls=":")
        delay.set_yscale("log")
        delay.set_ylabel("p99.9, ms (dashed: bound, dotted: deadline)")
        for axes, title in zip(shares, _SHARES.values(), strict=False):
            axes.set_ylabel(title)
            axes.set_ylim(-0.02, 1.02)
        for axes in (delay, *shares):
            axes.set_xlabel("offered load" if points[0].varied == "load" else points[0].varied)
            axes.grid(visible=True, alpha=0.25, lw=0.5)
        handles = [*delay.get_legend_handles_labels()[0], *(_places(points) if _both(points) else [])]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)


def _draw_delays(axes: Axes, own: Sequence[ExperimentPoint], colour: str, *, label: str | None) -> None:
    """A line with a band where it was simulated, crosses with bars on a network, hollow where the run is INVALID."""
    x = [point.value for point in own]
    low = [_ms(point.p999_interval_s[0]) for point in own]
    high = [_ms(point.p999_interval_s[1]) for point in own]
    bounds = [_ms(point.bound_s) for point in own]
    if own[0].on == "simulation":
        axes.plot(x, [_ms(point.p999_s) for point in own], color=colour, marker="o", ms=3.5, label=label)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
        if np.isfinite(bounds).any():
            axes.plot(x, bounds, color=colour, lw=0.9, ls="--")
        return
    axes.vlines(x, low, high, color=colour, lw=0.9)
    axes.plot(x, bounds, color=colour, ls="", marker="_", ms=10)
    for point in own:
        fill = "none" if point.invalid else colour
        axes.plot([point.value], [_ms(point.p999_s)], color=colour, ls="", marker="D", ms=6, mfc=fill, label=label)
        label = None


def _draw_shares(axes: Axes, own: Sequence[ExperimentPoint], colour: str, what: str) -> None:
    x = [point.value for point in own]
    y = [getattr(point, what) for point in own]
    # One run says nothing of how a share scatters.
    limits = [(y_k, y_k) if both == (0.0, 1.0) else both for y_k, both in zip(y, _limits(own, what), strict=True)]
    beyond = np.abs(np.array(limits).T - y)
    simulated = own[0].on == "simulation"
    marker, size, line = ("o", 3.5, "-") if simulated else ("D", 6.0, "")
    axes.errorbar(x, y, beyond, color=colour, marker=marker, ms=size, ls=line, capsize=2, elinewidth=0.8)


def _limits(own: Sequence[ExperimentPoint], what: str) -> list[tuple[float, float]]:
    return [getattr(point, f"{what}_interval") for point in own]


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
