"""The audit's part of a report: for each tenant a sentence per finding, the numbers behind them, and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from testbed.audit.folder import Crossing, TenantAudit, audit_evidence, read_evidence
from testbed.report.audit_plots import blame_plot, mean_excess_plot, quantile_plot, stability_plot

_ENOUGH = 100
"""Answered requests below which a distribution is not worth a picture."""


@dataclass(frozen=True, slots=True)
class TenantSection:
    """What the page shows of one tenant's audit.

    Attributes:
        found: The audit.
        sentences: One for each finding, the most important first.
        pictures: Caption to `<svg>` element.
    """

    found: TenantAudit
    sentences: tuple[str, ...]
    pictures: dict[str, Markup]


def audit_sections(folder: Path) -> tuple[TenantSection, ...]:
    """Audit a run folder for its page.

    Raises:
        TestbedError: No such folder, or one that this version cannot read.
    """
    evidence = read_evidence(folder)
    return tuple(
        TenantSection(found, found.sentences(), _pictures(found, evidence.crossings[found.tenant]))
        for found in audit_evidence(evidence).tenants
    )


def _pictures(found: TenantAudit, crossing: Crossing) -> dict[str, Markup]:
    drawn: dict[str, str | None] = {}
    if np.count_nonzero(np.isfinite(crossing.latency_s)) >= _ENOUGH:
        drawn["quantiles against the promise"] = quantile_plot(
            found.tenant, found.audit, crossing.latency_s, crossing.runs
        )
        drawn["mean excess"] = mean_excess_plot(found.tenant, crossing.latency_s)
        drawn["threshold stability"] = stability_plot(found.tenant, crossing.latency_s, crossing.runs)
    attributions = {"domain": found.audit.attribution, "cause": found.causes}
    known = {kind: attribution for kind, attribution in attributions.items() if attribution is not None}
    if known:
        drawn["whose the tail is"] = blame_plot(found.tenant, known)
    # The SVG is drawn here from numbers; names inside it went through matplotlib's own XML escaping.
    return {caption: Markup(svg) for caption, svg in drawn.items() if svg is not None}  # noqa: S704
