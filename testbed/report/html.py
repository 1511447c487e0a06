"""`report.html`: one self-contained page, made from a run folder and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup

from testbed.audit.evidence import read_evidence
from testbed.audit.folder import audit_evidence
from testbed.report.audit_section import run_sections
from testbed.report.page import template
from testbed.report.plots import Series, ccdf_plot, stack_plot
from testbed.report.record import DomainDelay, RunRecord, TenantRecord
from testbed.telemetry import request_samples, samples

REPORT_NAME = "report.html"


def render(folder: Path) -> str:
    """The report of the run in `folder`.

    Raises:
        TestbedError: The folder holds no readable record.
    """
    evidence = read_evidence(folder)
    record = evidence.record
    pictures = {tenant.name: _pictures(folder, record, tenant) for tenant in record.tenants}
    sections = run_sections(evidence, audit_evidence(evidence))
    return template("template.html").render(run=record, pictures=pictures, audit=sections)


def write_report(folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path."""
    target = folder / REPORT_NAME
    target.write_text(render(folder), encoding="utf-8")
    return target


def load_series(folder: Path, record: RunRecord, tenant: str) -> Series:
    """Latency and ideal replay of one tenant over all windows of a run, in order."""
    found = [folder / window.requests[tenant] for window in record.windows if tenant in window.requests]
    if found:
        asked = [request_samples.read(file).due().latency_s for file in found]
        return Series(latency_s=np.concatenate(asked), ideal_s=np.empty(0))
    files = [folder / window.samples[tenant] for window in record.windows if tenant in window.samples]
    stored = [samples.read(file) for file in files]
    return Series(
        latency_s=np.concatenate([np.empty(0), *(measured.latency_s for measured, _ in stored)]),
        ideal_s=np.concatenate([np.empty(0), *(replay.shaped_s for _, replay in stored if replay is not None)]),
    )


def _pictures(folder: Path, record: RunRecord, tenant: TenantRecord) -> dict[str, Markup]:
    pictures = {}
    series = load_series(folder, record, tenant.name)
    if series.latency_s.size:
        pictures["ccdf"] = ccdf_plot(tenant, series)
    if any(domain.mean_s is not None for domain in tenant.domains):
        pictures["stack"] = stack_plot(tenant, tenant.domains)
    if tenant.requests is not None:
        parts = [
            DomainDelay(
                domain=p.name, mean_s=p.mean_s, p999_s=p.p999_s, tail_mean_s=p.tail_mean_s, lag_share=0.0, lost=0
            )
            for p in tenant.requests.parts
        ]
        pictures["stack"] = stack_plot(tenant, parts)
    # The SVG is drawn here from numbers; names inside it went through matplotlib's own XML escaping.
    return {name: Markup(svg) for name, svg in pictures.items()}  # noqa: S704
