"""`report.html`: one self-contained page, made from a run folder and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup

from testbed.audit.evidence import read_evidence
from testbed.audit.folder import audit_evidence
from testbed.report.audit_section import run_sections
from testbed.report.environment import environment_rows
from testbed.report.page import template
from testbed.report.plots import Series, ccdf_plot, stack_plot, time_plot
from testbed.report.record import RunRecord
from testbed.report.stalls import Stalled
from testbed.report.tenant_record import DomainDelay, TenantRecord
from testbed.report.timeline import load_on_purpose, load_stalls, starts
from testbed.telemetry import request_samples, samples

REPORT_NAME = "report.html"


def render(folder: Path) -> str:
    """The report of the run in `folder`.

    Raises:
        TestbedError: The folder holds no readable record.
    """
    evidence = read_evidence(folder)
    record = evidence.record
    series = {tenant.name: load_series(folder, record, tenant.name) for tenant in record.tenants}
    stalls_s = load_stalls(record)
    stalled = {name: Stalled.of(each.time_s, each.latency_s, stalls_s) for name, each in series.items()}
    pictures = {t.name: _pictures(record, t, series[t.name], stalled[t.name]) for t in record.tenants}
    sections = run_sections(evidence, audit_evidence(evidence))
    said = {t.name: _stall_sentence(t, stalled[t.name]) for t in record.tenants}
    environment = {window.index: environment_rows(window) for window in record.windows}
    return template("template.html").render(
        run=record, pictures=pictures, stalled=said, audit=sections, environment=environment
    )


def write_report(folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path."""
    target = folder / REPORT_NAME
    target.write_text(render(folder), encoding="utf-8")
    return target


def load_series(folder: Path, record: RunRecord, tenant: str) -> Series:
    """Latency and ideal replay of one tenant over all windows of a run, one window after the other."""
    time_s, latency_s, ideal_s = [], [], [np.empty(0)]
    for start_s, window in starts(record):
        if tenant in window.requests:
            asked = request_samples.read(folder / window.requests[tenant]).due()
            time_s.append(start_s + asked.intended_s)
            latency_s.append(asked.latency_s)
        elif tenant in window.samples:
            measured, replay = samples.read(folder / window.samples[tenant])
            time_s.append(start_s + measured.intended_s)
            latency_s.append(measured.latency_s)
            if replay is not None:
                ideal_s.append(replay.shaped_s)
    return Series(
        time_s=np.concatenate([np.empty(0), *time_s]),
        latency_s=np.concatenate([np.empty(0), *latency_s]),
        ideal_s=np.concatenate(ideal_s),
    )


def _stall_sentence(tenant: TenantRecord, stalled: Stalled | None) -> str:
    if stalled is None:
        return ""
    return stalled.sentence("packets" if tenant.requests is None else "requests")


def _pictures(record: RunRecord, tenant: TenantRecord, series: Series, stalled: Stalled | None) -> dict[str, Markup]:
    pictures = {}
    if series.latency_s.size:
        pictures["ccdf"] = ccdf_plot(tenant, series, stalled)
        pictures["time"] = time_plot(tenant, series, load_stalls(record), load_on_purpose(record))
    if tenant.requests is None and any(domain.mean_s is not None for domain in tenant.domains):
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
