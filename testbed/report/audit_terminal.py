"""An audit on a terminal: the sentences first, then the numbers behind them. It decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from testbed.report.terminal import STYLES, milliseconds

if TYPE_CHECKING:
    from testbed.audit.attribution import Attribution, Share
    from testbed.audit.contracts import ContractFinding
    from testbed.audit.folder import RunAudit, TenantAudit
    from testbed.audit.record import Audit
    from testbed.audit.table import TableAudit

_PLAIN_WIDTH = 120


def print_table_audit(name: str, found: TableAudit) -> None:
    """Print the audit of a file called `name`."""
    parts: list[RenderableType] = []
    for tenant, audit in found.tenants:
        verdict = str(audit.compliance.verdict) if audit.compliance else "NONE"
        parts.append(_heading(name if tenant is None else tenant, verdict))
        parts.append(_audit(audit, audit.sentences()))
    if found.verdict is not None and len(found.tenants) > 1:
        parts.append(_heading(name, str(found.verdict)))
    _print(Group(*parts))


def print_run_audit(found: RunAudit) -> None:
    """Print the audit of a run."""
    parts: list[RenderableType] = []
    for tenant in found.tenants:
        parts.append(_heading(tenant.tenant, tenant.verdict))
        parts.append(_tenant(tenant))
    parts.append(_heading(f"run {found.run_id}", found.verdict))
    _print(Group(*parts))


def _print(what: RenderableType) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH, highlight=False)
    console.print(what)


def _heading(name: str, verdict: str) -> Text:
    return Text(f"{name}: ").append(verdict, style=STYLES[verdict])


def _tenant(tenant: TenantAudit) -> RenderableType:
    parts = [_audit(tenant.audit, tenant.sentences())]
    if tenant.causes is not None:
        parts.append(_blame("by cause", tenant.causes))
    if tenant.contracts:
        parts.append(_contracts(tenant.contracts))
    return Group(*parts)


def _audit(audit: Audit, sentences: tuple[str, ...]) -> RenderableType:
    parts: list[RenderableType] = [Text(f"  - {sentence}") for sentence in sentences]
    table = Table("quantile, ms", box=SIMPLE, header_style="bold", show_edge=False)
    for heading in ("estimate", "95 % from", "to", "fitted tail", "from", "to"):
        table.add_column(heading.replace("95 %", f"{audit.quantiles[0].confidence:.0%}"), justify="right")
    for seen, model in zip(audit.quantiles, audit.tail, strict=True):
        values = (seen.estimate_s, seen.lower_s, seen.upper_s, model.estimate_s, model.lower_s, model.upper_s)
        table.add_row(f"p{100 * seen.level:g}", *map(milliseconds, values))
    parts.append(table)
    if audit.attribution is not None:
        parts.append(_blame("by place", audit.attribution))
    return Group(*parts)


def _blame(title: str, found: Attribution) -> Table:
    table = Table(f"slowest {1 - found.level:.2%}, {title}", box=SIMPLE, header_style="bold", show_edge=False)
    for heading in ("Euler", "Shapley"):
        table.add_column(heading, justify="right")
    for name, blame in found.blame.items():
        table.add_row(Text(name), _share(blame.euler), _share(blame.shapley))
    return table


def _share(share: Share) -> str:
    if share.lower is None or share.upper is None:
        return _percent(share.share)
    return f"{_percent(share.share)} ({_percent(share.lower)} .. {_percent(share.upper)})"


def _percent(share: float) -> str:
    return f"{round(share, 2) + 0.0:.0%}"


def _contracts(findings: tuple[ContractFinding, ...]) -> Table:
    table = Table("envelope of", box=SIMPLE, header_style="bold", show_edge=False)
    for heading in ("samples", "p, alone", "p, family"):
        table.add_column(heading, justify="right")
    table.add_column("finding")
    for found in findings:
        numbers = (f"{found.n:,}", f"{found.p_value:.2g}", f"{found.adjusted_p_value:.2g}")
        table.add_row(Text(found.who), *numbers, str(found.verdict))
    return table
