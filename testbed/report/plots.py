"""The pictures of a report, as inline SVG: a CCDF, a course over time and a delay stack per tenant.

A picture is made from the record and the samples alone; it computes nothing that the record does not already state,
except the empirical distribution it shows. Colours keep one meaning throughout: blue is measured, grey is the ideal
replay, vermilion is the bound, black is the deadline, violet is the host's own doing, yellow what was done on purpose.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from testbed.audit.quantile import ccdf

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from testbed.report.stalls import BoolArray, Stalled
    from testbed.report.tenant_record import DomainDelay, TenantRecord

FloatArray = npt.NDArray[np.float64]

MEASURED = "#0072b2"
STALL = "#7b1fa2"
IDEAL = "#7f7f7f"
BOUND = "#d55e00"
DEADLINE = "#000000"
ON_PURPOSE = "#f0c000"
_SLICES = 300
_MARKS = 300
"""How many of the slowest that a stall touched are marked; among more, no mark is told from the next."""
DOMAIN_COLOURS = ("#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#f0e442", "#0072b2", "#d55e00", "#999999")
STYLE: Any = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
    "legend.frameon": False,
}


STALL_MARK: Any = {
    "marker": "|", "ls": "none", "ms": 7.0, "mew": 0.8, "color": STALL, "label": "a core away meanwhile",
}  # fmt: skip


@contextmanager
def drawing(width: float, height: float, style: Any = STYLE) -> Iterator[Figure]:
    """An empty figure, within the style in which it is to be drawn.

    Args:
        width: Inches.
        height: Inches.
        style: Settings of Matplotlib.
    """
    # Slow to import, and most commands draw nothing.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context(style):
        yield Figure(figsize=(width, height), layout="constrained")


@dataclass(frozen=True)
class Series:
    """What the pictures of one tenant are drawn from.

    Attributes:
        time_s: float64[n] intended send times, windows one after the other.
        latency_s: float64[n] in order of intended send time, NaN where never answered.
        ideal_s: float64[m] wait in the ideal replay of the same arrivals, NaN where a packet was not served.
    """

    time_s: FloatArray
    latency_s: FloatArray
    ideal_s: FloatArray


def ccdf_plot(tenant: TenantRecord, series: Series, stalled: Stalled | None = None) -> str:
    """Measured CCDF with its confidence band, ideal replay, bound and deadline; probability on a log axis.

    Args:
        tenant: Whose promise and bound are drawn.
        series: Its packets or requests.
        stalled: Marks those that were on their way while the host stood still; None where it did not.

    Returns:
        An `<svg>` element.
    """
    with drawing(6.4, 3.9) as figure:
        axes: Axes = figure.add_subplot()
        floor = 1.0 / max(series.latency_s.size, 10) / 2.0
        if tenant.epsilon is not None:
            floor = min(floor, tenant.epsilon / 10.0)
        if np.isfinite(series.latency_s).any():
            seen = ccdf(series.latency_s, 400)
            x_ms = seen.x_s * 1e3
            axes.fill_between(
                x_ms, np.maximum(seen.lower, floor), seen.upper, step="post", color=MEASURED, alpha=0.18, lw=0
            )
            axes.step(x_ms, seen.p, where="post", color=MEASURED, lw=1.6, label="measured, 95 % band")
            if stalled is not None:
                latency_s, rarity = stall_marks(series.latency_s, stalled.touched)
                axes.plot(latency_s * 1e3, rarity, **STALL_MARK)
        ideal = np.sort(series.ideal_s[np.isfinite(series.ideal_s)])
        if ideal.size:
            tail = 1.0 - np.arange(ideal.size) / ideal.size
            keep = np.unique(np.geomspace(1, ideal.size, 600).astype(np.int64)) - 1
            axes.step(
                ideal[::-1][keep] * 1e3,
                tail[::-1][keep],
                where="pre",
                color=IDEAL,
                lw=1.2,
                ls="--",
                label="ideal replay",
            )
        if tenant.bound is not None and tenant.bound.curve:
            epsilon, delay = np.array(tenant.bound.curve).T
            axes.plot(delay * 1e3, epsilon, color=BOUND, lw=1.8, label=f"bound ({tenant.bound.method})")
        if tenant.deadline_s is not None and tenant.epsilon is not None:
            axes.axvline(tenant.deadline_s * 1e3, color=DEADLINE, lw=1.0, ls=":", label="deadline")
            axes.axhline(tenant.epsilon, color=DEADLINE, lw=0.6, alpha=0.4)
            axes.plot([tenant.deadline_s * 1e3], [tenant.epsilon], marker="x", color=DEADLINE, ms=6)
        axes.set_yscale("log")
        axes.set_ylim(floor, 1.2)
        axes.set_xlim(left=0.0)
        axes.set_xlabel("latency from the intended send time, ms")
        axes.set_ylabel("P(latency > x)")
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
        axes.grid(visible=True, which="major", axis="both", alpha=0.25, lw=0.5)
        return svg(figure, f"Latency distribution of tenant {tenant.name}")


def stall_marks(latency_s: FloatArray, touched: BoolArray) -> tuple[FloatArray, FloatArray]:
    """The slowest that a stall touched: their latencies, and the share of all that took at least as long.

    Args:
        latency_s: NaN where lost or never answered, [n].
        touched: Whether a stall touched it, [n].
    """
    ordered = np.sort(np.nan_to_num(latency_s, nan=np.inf))
    marked = np.sort(latency_s[touched & np.isfinite(latency_s)])[::-1][:_MARKS]
    return marked, np.asarray(1.0 - np.searchsorted(ordered, marked, side="left") / max(ordered.size, 1))


def time_plot(tenant: TenantRecord, series: Series, stalls_s: FloatArray, on_purpose_s: FloatArray) -> str:
    """The largest latency in each of some hundred slices of the run, and every stall of the host above its moment.

    Args:
        tenant: Whose bound and deadline are drawn.
        series: Its packets or requests.
        stalls_s: When a core was away and for how long, [n, 2], on the time axis of `series`.
        on_purpose_s: From when until when something was broken on purpose, [k, 2], on the same axis.

    Returns:
        An `<svg>` element.
    """
    with drawing(6.4, 2.6) as figure:
        axes: Axes = figure.add_subplot()
        for k, (begin_s, end_s) in enumerate(on_purpose_s):
            label = None if k else "broken on purpose"
            axes.axvspan(begin_s, end_s, color=ON_PURPOSE, alpha=0.35, lw=0, label=label)
        delivered = np.isfinite(series.latency_s)
        time_s, latency_ms = series.time_s[delivered], series.latency_s[delivered] * 1e3
        if time_s.size:
            edges = np.linspace(0.0, float(time_s.max()) * (1.0 + 1e-9) + 1e-9, _SLICES + 1)
            worst = np.full(_SLICES, np.nan)
            np.fmax.at(worst, np.searchsorted(edges, time_s, side="right") - 1, latency_ms)
            axes.stairs(np.nan_to_num(worst), edges, color=MEASURED, fill=True, alpha=0.75, label="largest measured")
        if tenant.bound_s is not None:
            axes.axhline(tenant.bound_s * 1e3, color=BOUND, lw=1.4, label="bound")
        if tenant.deadline_s is not None:
            axes.axhline(tenant.deadline_s * 1e3, color=DEADLINE, lw=1.0, ls=":", label="deadline")
        if len(stalls_s):
            axes.vlines(
                stalls_s[:, 0], 0.0, stalls_s[:, 1] * 1e3, color=STALL, lw=1.0, label="a core away, for how long"
            )
        axes.set_ylim(bottom=0.0)
        axes.set_xlim(left=0.0)
        axes.set_xlabel("time in the run, s")
        axes.set_ylabel("latency, ms")
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
        return svg(figure, f"Latency of tenant {tenant.name} over the run")


def stack_plot(tenant: TenantRecord, domains: Sequence[DomainDelay]) -> str:
    """Where the time goes: mean delay per domain over all packets or requests, and over those above p99.9.

    Returns:
        An `<svg>` element.
    """
    with drawing(6.4, 2.1) as figure:
        axes: Axes = figure.add_subplot()
        rows = ("slowest 0.1 %", "all requests" if tenant.requests else "all packets")
        values = ([d.tail_mean_s or 0.0 for d in domains], [d.mean_s or 0.0 for d in domains])
        for row, delays in enumerate(values):
            left = 0.0
            for index, (domain, delay) in enumerate(zip(domains, delays, strict=True)):
                colour = DOMAIN_COLOURS[index % len(DOMAIN_COLOURS)]
                label = domain.domain if row == 0 else None
                axes.barh(row, delay * 1e3, left=left, color=colour, label=label, height=0.6)
                left += delay * 1e3
            axes.annotate(f" {left:.2f} ms", (left, row), va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), rows)
        axes.margins(x=0.12)
        axes.set_xlabel("mean delay per domain, ms")
        figure.legend(loc="outside upper center", ncols=min(len(domains), 4), fontsize=8)
        return svg(figure, f"Delay per domain of tenant {tenant.name}")


def svg(figure: Figure, title: str) -> str:
    """A figure as an `<svg>` element that names itself; the same figure gives the same bytes."""
    import matplotlib as mpl  # noqa: PLC0415 - see `drawing`

    buffer = io.StringIO()
    # A fixed salt and no date: the same record gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title})
    drawn = buffer.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", drawn, count=1, flags=re.DOTALL)
