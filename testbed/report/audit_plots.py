"""The pictures of an audit, as inline SVG: quantiles against the promise, the tail's diagnostics, and whose it is.

Blue is measured, vermilion is a fitted tail, black is the promise, as in `testbed.report.plots`. Only what the audit
already computed, or its own functions compute from the same latencies, is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.audit.quantile import quantiles
from testbed.audit.tail import mean_excess, thresholds
from testbed.report.plots import (
    BOUND,
    DEADLINE,
    DOMAIN_COLOURS,
    IDEAL,
    MEASURED,
    STALL_MARK,
    drawing,
    stall_marks,
    svg,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.typing import ColorType

    from testbed.audit.attribution import Attribution
    from testbed.audit.clusters import FloatArray, IntArray
    from testbed.audit.record import Audit
    from testbed.report.stalls import Stalled

_RARITIES = np.geomspace(0.5, 1e-4, 24)
"""One minus the levels at which quantiles are drawn."""

HIGHER = "a fit's limit is higher"
"""Said where a limit of a fitted tail lies outside the picture."""
_ROOM = 1.15
_NORMAL_95 = 1.96
_SIZE = (6.4, 3.2)


def quantile_plot(
    name: str, audit: Audit, latency_s: FloatArray, runs: IntArray | None, stalled: Stalled | None = None
) -> str:
    """Quantiles with their band against how rarely they are exceeded, the fitted tail and the promise beside them.

    Args:
        name: Tenant.
        audit: Of these latencies.
        latency_s: Latencies in seconds, NaN: never answered; float64 [n].
        runs: Run of each, int64 [n]; None for a single one.
        stalled: Marks those that were on their way while the host stood still; None where it did not.
    """
    found = [q for q in quantiles(latency_s, tuple(1 - _RARITIES), runs=runs) if q.estimate_s is not None]
    rarity = np.array([1 - q.level for q in found])
    estimate, lower, upper = (
        _drawable([getattr(q, side) for q in found]) for side in ("estimate_s", "lower_s", "upper_s")
    )
    with drawing(*_SIZE) as figure:
        axes = figure.add_subplot()
        known = np.isfinite(lower) & np.isfinite(upper)
        axes.fill_between(rarity[known], lower[known], upper[known], color=MEASURED, alpha=0.18, lw=0)
        axes.plot(rarity, estimate, color=MEASURED, lw=1.6, label="measured, 95 % interval")
        axes.plot(rarity[~known], lower[~known], color=MEASURED, lw=0.8, ls=":", label="lower limit alone")
        if stalled is not None:
            marked_s, share = stall_marks(latency_s, stalled.touched)
            shown = (share >= _RARITIES[-1]) & (share <= _RARITIES[0])
            axes.plot(share[shown], marked_s[shown] * 1e3, **STALL_MARK)
        models = [model for model in audit.tail if model.estimate_s is not None]
        beyond, at = np.array([1 - model.level for model in models]), _drawable([model.estimate_s for model in models])
        ends = [_drawable([getattr(model, side) for model in models]) for side in ("lower_s", "upper_s")]
        if models:
            reach = np.abs(np.stack([at - ends[0], ends[1] - at]))
            axes.errorbar(beyond, at, reach, color=BOUND, fmt="o", ms=4, label="fitted tail")
        deadline_ms = 0.0
        if audit.compliance is not None:
            deadline_ms = audit.compliance.deadline_s * 1e3
            axes.axhline(deadline_ms, color=DEADLINE, lw=1.0, ls=":", label="deadline")
            axes.plot([audit.compliance.epsilon], [deadline_ms], marker="x", color=DEADLINE, ms=6)
        # A fit's limit may be decades away: what was measured is to be seen.
        top_ms = _ROOM * max(np.nanmax(each, initial=deadline_ms) for each in (estimate, upper, at))
        higher = ends[1] > top_ms
        if higher.any():
            edge = axes.get_xaxis_transform()
            axes.plot(
                beyond[higher], np.ones(higher.sum()), "^", color=BOUND, transform=edge, clip_on=False, label=HIGHER
            )
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_ylim(0.0, min(axes.get_ylim()[1], top_ms))
        axes.set_xlabel("share of samples that are slower")
        axes.set_ylabel("latency, ms")
        axes.grid(visible=True, alpha=0.25, lw=0.5)
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
        return svg(figure, f"Quantiles of {name} against its promise")


def mean_excess_plot(name: str, latency_s: FloatArray) -> str:
    """Mean excess above thresholds: rising for a heavy tail, level for an exponential one, falling where it ends."""
    found = mean_excess(latency_s)
    x_ms, mean_ms, reach_ms = found.threshold_s * 1e3, found.mean_s * 1e3, _NORMAL_95 * found.error_s * 1e3
    with drawing(*_SIZE) as figure:
        axes = figure.add_subplot()
        axes.fill_between(x_ms, np.maximum(mean_ms - reach_ms, 0), mean_ms + reach_ms, color=MEASURED, alpha=0.18, lw=0)
        axes.plot(x_ms, mean_ms, color=MEASURED, lw=1.6)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("threshold, ms")
        axes.set_ylabel("mean excess above it, ms")
        axes.grid(visible=True, alpha=0.25, lw=0.5)
        return svg(figure, f"Mean excess of {name}")


def stability_plot(name: str, latency_s: FloatArray, runs: IntArray | None) -> str | None:
    """Shape of the tail fitted above each threshold; where it settles, and the fit passes its test, it may be used.

    Returns:
        None where requests were never answered or no threshold carries a fit.
    """
    tried = thresholds(latency_s, runs) if np.isfinite(latency_s).all() else ()
    if not tried:
        return None
    with drawing(*_SIZE) as figure:
        axes = figure.add_subplot()
        for fits, face, label in ((True, MEASURED, "fit passes"), (False, "none", "fit is rejected")):
            chosen = [threshold for threshold in tried if threshold.fits is fits]
            axes.errorbar(
                [threshold.threshold_s * 1e3 for threshold in chosen],
                [threshold.shape for threshold in chosen],
                [_NORMAL_95 * threshold.shape_error for threshold in chosen],
                fmt="o", color=MEASURED, mfc=face, ms=5, capsize=2, lw=1, label=label,
            )  # fmt: skip
        for threshold in tried:
            axes.annotate(f"p{100 * threshold.level:g}", (threshold.threshold_s * 1e3, threshold.shape), fontsize=7)
        axes.axhline(0.0, color=IDEAL, lw=0.8)
        axes.set_xlabel("threshold, ms")
        axes.set_ylabel("shape of the fitted tail")
        axes.grid(visible=True, alpha=0.25, lw=0.5)
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)
        return svg(figure, f"Threshold stability of {name}")


def blame_plot(name: str, found: Mapping[str, Attribution]) -> str:
    """Shares of the tail's excess as stacked bars, one bar for each method and way of cutting the latency.

    Args:
        name: Tenant.
        found: Attributions by what they share out among, such as `place` or `cause`.
    """
    rows = [(f"{kind}, {method}", kind, method.lower()) for kind in found for method in ("Euler", "Shapley")][::-1]
    names = list(dict.fromkeys(part for attribution in found.values() for part in attribution.blame))
    few = len(names) <= len(DOMAIN_COLOURS)
    with drawing(6.4, 0.8 + 0.45 * len(rows)) as figure:
        from matplotlib import color_sequences  # noqa: PLC0415 - see `drawing`

        colours: Sequence[ColorType] = DOMAIN_COLOURS if few else color_sequences["tab20"]
        axes = figure.add_subplot()
        for row, (_, kind, method) in enumerate(rows):
            left = 0.0
            for part, blame in found[kind].blame.items():
                # A part that was faster than usual when the whole was slow has a negative share, and no length.
                share = max(0.0, getattr(blame, method).share)
                colour = colours[names.index(part) % len(colours)]
                axes.barh(row, 100 * share, left=100 * left, color=colour, height=0.6)
                left += share
        for index, part in enumerate(names):
            axes.barh(0, 0, color=colours[index % len(colours)], label=part)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_xlabel("share of the excess of the slowest samples, %")
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
        return svg(figure, f"Whose the tail of {name} is")


def _drawable(values_s: list[float | None]) -> FloatArray:
    """Milliseconds, NaN (drawn as nothing) where there is no finite value."""
    found = np.array([np.nan if value is None else value for value in values_s]) * 1e3
    return np.where(np.isfinite(found), found, np.nan)
