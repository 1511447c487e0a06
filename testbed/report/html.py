"""`report.html`: one self-contained page, made from a run folder and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from markupsafe import Markup

from testbed.audit.evidence import read_evidence
from testbed.audit.folder import audit_evidence
from testbed.report.audit_section import run_sections
from testbed.report.environment import environment_rows
from testbed.report.page import template
from testbed.report.plots import FloatArray, Series, ccdf_plot, stack_plot, time_plot
from testbed.report.record import DomainDelay, RunRecord, TenantRecord, WindowRecord
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
    environment = {window.index: environment_rows(window) for window in record.windows}
    return template("template.html").render(run=record, pictures=pictures, audit=sections, environment=environment)


def write_report(folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path."""
    target = folder / REPORT_NAME
    target.write_text(render(folder), encoding="utf-8")
    return target


def load_series(folder: Path, record: RunRecord, tenant: str) -> Series:
    """Latency and ideal replay of one tenant over all windows of a run, one window after the other."""
    time_s, latency_s, ideal_s = [], [], [np.empty(0)]
    for start_s, window in _starts(record):
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


def load_stalls(record: RunRecord) -> FloatArray:
    """When a core was away, on the axis of `load_series`, and for how long: seconds, [n, 2]."""
    found = [(start_s + at_s, late_s) for start_s, window in _starts(record) for at_s, late_s in window.stalls]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _starts(record: RunRecord) -> Iterator[tuple[float, WindowRecord]]:
    start_s = 0.0
    for window in record.windows:
        yield start_s, window
        start_s += window.duration_s


def _pictures(folder: Path, record: RunRecord, tenant: TenantRecord) -> dict[str, Markup]:
    pictures = {}
    series = load_series(folder, record, tenant.name)
    if series.latency_s.size:
        pictures["ccdf"] = ccdf_plot(tenant, series)
        pictures["time"] = time_plot(tenant, series, load_stalls(record))
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
