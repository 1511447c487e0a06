"""The audit on a page: for each tenant a sentence per finding, the numbers behind them, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from testbed.audit.clusters import FloatArray, IntArray
from testbed.audit.evidence import RunEvidence
from testbed.audit.folder import RunAudit, TenantAudit
from testbed.audit.table import Series, TableAudit
from testbed.errors import TestbedError
from testbed.report.audit_plots import blame_plot, mean_excess_plot, quantile_plot, stability_plot
from testbed.report.page import template
from testbed.report.stalls import Stalled
from testbed.report.timeline import load_stalls, starts

_ENOUGH = 100
"""Answered requests below which a distribution is not worth a picture."""


@dataclass(frozen=True, slots=True)
class TenantSection:
    """What the page shows of one tenant's audit.

    Attributes:
        found: The audit.
        what: What its samples are: packets, requests or just samples.
        pictures: Caption to `<svg>` element.
        undrawn: Why a picture is missing that the other tenants have; empty where none is.
        stalled: What stalls of the host had to do with what the pictures show; empty where it did not stall.
    """

    found: TenantAudit
    what: str
    pictures: dict[str, Markup]
    undrawn: str = ""
    stalled: str = ""


def run_sections(evidence: RunEvidence, audit: RunAudit) -> tuple[TenantSection, ...]:
    """The sections of a run.

    Args:
        evidence: Of the run.
        audit: Of that evidence.
    """
    sections = []
    for found in audit.tenants:
        if found.tenant not in evidence.crossings:
            sections.append(TenantSection(found, found.what, {}))
            continue
        seen, stalled = evidence.judged(found.tenant), _stalled(evidence, found.tenant)
        pictures = _pictures(found, seen.latency_s, seen.runs, stalled)
        said = "" if stalled is None else stalled.sentence(seen.what)
        sections.append(TenantSection(found, seen.what, pictures, _undrawn(seen.latency_s, seen.what), said))
    return tuple(sections)


def table_sections(name: str, series: Sequence[Series], audit: TableAudit) -> tuple[TenantSection, ...]:
    """The sections of a table, one for each of its tenants.

    Args:
        name: What to call the only tenant of a table that names none.
        series: Rows of the table.
        audit: Of those rows.
    """
    sections = []
    for rows, (tenant, judged) in zip(series, audit.tenants, strict=True):
        verdict = str(judged.compliance.verdict) if judged.compliance else "NONE"
        found = TenantAudit(tenant or name, verdict, judged, None, (), (), judged.n, None)
        pictures, what = _pictures(found, rows.latency_s, rows.runs), "samples"
        sections.append(TenantSection(found, what, pictures, _undrawn(rows.latency_s, what)))
    return tuple(sections)


def write_page(target: Path, name: str, verdict: str, sections: Sequence[TenantSection]) -> None:
    """Write an audit as a page of its own.

    Args:
        target: The file.
        name: Of what was audited.
        verdict: The worst of its tenants'.
        sections: One for each tenant.

    Raises:
        TestbedError: The file cannot be written.
    """
    page = template("audit_page.html").render(name=name, verdict=verdict, audit=sections)
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise TestbedError(f"{target}: {error.strerror}; name a file in a folder that can be written to") from error


def _stalled(evidence: RunEvidence, tenant: str) -> Stalled | None:
    """What stalls of the host touched, in the order of the tenant's crossing."""
    crossing = evidence.judged(tenant)
    begun = [start_s for start_s, window in starts(evidence.record) if tenant in window.samples | window.requests]
    time_s = [start_s + samples.intended_s for start_s, samples in zip(begun, crossing.samples, strict=True)]
    return Stalled.of(np.concatenate(time_s), crossing.latency_s, load_stalls(evidence.record))


def _undrawn(latency_s: FloatArray, what: str) -> str:
    """Why quantiles are not drawn where they might be: above the median every one is that of a sample never seen."""
    never = int(np.count_nonzero(~np.isfinite(latency_s)))
    if latency_s.size - never < _ENOUGH or 2 * never < latency_s.size:
        return ""
    return (
        f"Quantiles are not drawn: {never:,} of {latency_s.size:,} {what} were lost or never answered, so "
        "that no quantile above the median has a latency; mean excess is that of the others."
    )


def _pictures(
    found: TenantAudit, latency_s: FloatArray, runs: IntArray | None, stalled: Stalled | None = None
) -> dict[str, Markup]:
    drawn: dict[str, str | None] = {}
    if np.count_nonzero(np.isfinite(latency_s)) >= _ENOUGH:
        if not _undrawn(latency_s, found.what):
            drawn["quantiles against the promise"] = quantile_plot(found.tenant, found.audit, latency_s, runs, stalled)
        drawn["mean excess"] = mean_excess_plot(found.tenant, latency_s)
        drawn["threshold stability"] = stability_plot(found.tenant, latency_s, runs)
    attributions = {"place": found.audit.attribution, "cause": found.causes}
    known = {kind: attribution for kind, attribution in attributions.items() if attribution is not None}
    if known:
        drawn["whose the tail is"] = blame_plot(found.tenant, known)
    # The SVG is drawn here from numbers; names inside it went through matplotlib's own XML escaping.
    return {caption: Markup(svg) for caption, svg in drawn.items() if svg is not None}  # noqa: S704
