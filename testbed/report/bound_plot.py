"""The picture of what theory promises: for every tenant the bound's complementary distribution, before any run.

Drawn from bounds alone, so it needs no network and no samples; the report's own pictures put a measurement beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from testbed.report.plots import BOUND, DEADLINE, STYLE, drawing
from testbed.report.tenant_record import BoundRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_PANEL_INCHES = (3.4, 2.9)


@dataclass(frozen=True)
class BoundCurve:
    """What one panel shows.

    Attributes:
        name: The tenant.
        bound: Its bound, with the curve.
        epsilon: The probability at which the bound is stated.
        deadline_s: The deadline it was promised, or None.
    """

    name: str
    bound: BoundRecord
    epsilon: float
    deadline_s: float | None


def save_bounds(curves: Sequence[BoundCurve], title: str, path: Path) -> None:
    """Write one panel a tenant: bound on P(latency > x), the stated point, and the deadline.

    Args:
        curves: One for each tenant that has a bound.
        title: What the bounds are about.
        path: Where to; the suffix chooses the format (`.svg`, `.png`, `.pdf`).

    Raises:
        ValueError: Nothing to draw, or a suffix that no writer knows.
    """
    if not curves:
        raise ValueError("no tenant has a bound, so there is nothing to draw")
    columns = min(len(curves), _COLUMNS)
    rows = math.ceil(len(curves) / columns)
    # A fixed salt and no date: the same bounds give the same bytes.
    width, height = _PANEL_INCHES
    with drawing(width * columns, height * rows + 0.4, {**STYLE, "svg.hashsalt": title}) as figure:
        figure.suptitle(title, fontsize=10)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for panel, curve in zip(panels, curves, strict=False):
            _draw(panel, curve)
        for panel in panels[len(curves) :]:
            panel.set_axis_off()
        for panel in panels[::columns]:
            panel.set_ylabel("P(latency > x) is at most")
        dated = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix)
        figure.savefig(path, dpi=150, metadata={dated: None} if dated else None)


def _draw(axes: Axes, curve: BoundCurve) -> None:
    epsilon, delay_s = np.array(curve.bound.curve).T
    end_s = max(float(delay_s[-1]), 1.12 * (curve.deadline_s or 0.0))
    axes.plot(delay_s * 1e3, epsilon, color=BOUND, lw=1.8)
    axes.plot([curve.bound.bound_s * 1e3], [curve.epsilon], marker="o", ms=4.5, color=BOUND)
    axes.annotate(
        f"{curve.bound.bound_s * 1e3:.4g} ms",
        (curve.bound.bound_s * 1e3, curve.epsilon),
        xytext=(-5, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=BOUND,
        fontsize=8,
    )
    if curve.deadline_s is not None:
        axes.axvline(curve.deadline_s * 1e3, color=DEADLINE, lw=1.0, ls=":")
        axes.annotate(
            "deadline",
            (curve.deadline_s * 1e3, 1.0),
            xytext=(3, -2),
            textcoords="offset points",
            rotation=90,
            ha="left",
            va="top",
            fontsize=7,
        )
    axes.axhline(curve.epsilon, color=DEADLINE, lw=0.6, alpha=0.4)
    axes.set_yscale("log")
    axes.set_ylim(float(epsilon[-1]), 1.2)
    axes.set_xlim(0.0, end_s * 1e3)
    axes.set_title(f"{curve.name} ({curve.bound.method})", fontsize=9, loc="left")
    axes.set_xlabel("latency from the intended send time, ms")
    axes.grid(visible=True, which="major", alpha=0.25, lw=0.5)
