"""Draws an experiment: p99.9 with its limits and bound over what is varied, and compliance beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from testbed.simulation.experiments.point import ExperimentPoint

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def draw(points: Sequence[ExperimentPoint], deadline_s: float, path: Path) -> None:
    """Write a picture of an experiment; the suffix of the path chooses its format."""
    names = list(dict.fromkeys(point.name for point in points))
    compared = len({point.admitted for point in points}) > 1
    with mpl.rc_context({"font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        delay, share = figure.subplots(1, 2)
        for name, colour in zip(names, _COLOURS, strict=False):
            own = [point for point in points if point.name == name]
            x = [point.value for point in own]
            low = [_ms(point.p999_interval_s[0]) for point in own]
            high = [_ms(point.p999_interval_s[1]) for point in own]
            delay.plot(x, [_ms(point.p999_s) for point in own], color=colour, marker="o", ms=3.5, label=name)
            delay.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
            bounds = [_ms(point.bound_s) for point in own]
            if np.isfinite(bounds).any():
                delay.plot(x, bounds, color=colour, lw=0.9, ls="--")
            shown = [point.admitted if compared else point.compliance for point in own]
            share.plot(x, shown, color=colour, marker="o", ms=3.5)
        delay.axhline(deadline_s * 1e3, color="black", lw=0.9, ls=":")
        delay.set_yscale("log")
        delay.set_ylabel("p99.9, ms (dashed: bound, dotted: deadline)")
        share.set_ylabel("share of tenants admitted" if compared else "packets on time")
        share.set_ylim(-0.02, 1.02)
        for axes in (delay, share):
            axes.set_xlabel("offered load" if points[0].varied == "load" else points[0].varied)
            axes.grid(visible=True, alpha=0.25, lw=0.5)
        figure.legend(loc="outside upper center", ncols=len(names))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)


def _ms(value_s: float | None) -> float:
    return float("nan") if value_s is None else value_s * 1e3
