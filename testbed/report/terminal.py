"""The run as a table on a terminal: promise, bound and measurement side by side, and what broke if something did."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from testbed.report.record import RunRecord
    from testbed.report.tenant_record import TenantRecord

_PLAIN_WIDTH = 120
_ANY_WIDTH = 10_000

_JUDGED = ("promise", "bound", "measured", "95 % interval")
_COUNTED = ("ideal", "packets", "lost", "misses")
"""Headings of what a tenant was promised and got, and of what else is known of it."""

STYLES = {
    "PASS": "bold green",
    "FAIL": "bold red",
    "INVALID": "bold magenta",
    "UNDETERMINED": "yellow",
    "EXCUSED": "cyan",
    "NONE": "dim",
}


def summary(record: RunRecord) -> RenderableType:
    """Everything the last screen of a run shows."""
    parts: list[RenderableType] = [_TenantTable(record)]
    parts += [Text(line) for line in own_time(record)]
    parts += [Text(line) for line in _plan_lines(record)]
    parts += [Text(line) for tenant in record.tenants for line in _request_lines(tenant)]
    parts += [Text(line) for line in _impairment_lines(record)]
    parts += [Text(line) for line in _held_out_lines(record)]
    parts += [Text(f"{tenant.name}: {tenant.reason}") for tenant in record.tenants if tenant.reason]
    parts += [Text(f"no bound: {', '.join(names)}: {why}") for why, names in unbound(record).items()]
    parts += [_broken(tenant) for tenant in record.tenants if tenant.bound_broken]
    parts += [_fault_table(record)] if record.faults else []
    failed = [gate for gate in record.gates if not gate.holds]
    if failed:
        parts.append(_gate_table(record))
    verdict = Text("run: ").append(record.verdict, style=STYLES[record.verdict])
    gates = f"{len(record.gates) - len(failed)} of {len(record.gates)} fidelity gates hold"
    verdict.append(f"  ({gates if record.kind == 'network' else 'no host to doubt'}")
    verdict.append(", partial: interrupted before the end)" if record.partial else ")")
    parts.append(verdict)
    return Group(*parts)


def unbound(record: RunRecord) -> dict[str, list[str]]:
    """Tenants that reserve and have no bound, by why they have none."""
    reasons: dict[str, list[str]] = {}
    for tenant in record.tenants:
        if tenant.unbound:
            reasons.setdefault(tenant.unbound, []).append(tenant.name)
    return reasons


def print_summary(record: RunRecord) -> None:
    """Print `summary(record)`, in a file or a pipe as wide as the table needs."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    console.print(summary(record))


def milliseconds(value: float | None) -> str:
    """`value` in ms with a precision a reader can use, or a dash; `never` where it is infinite."""
    if value is None:
        return "–"
    return f"{value * 1e3:.2f}" if math.isfinite(value) else "never"


class _TenantTable:
    """Bound beside measurement, in one table or, where the terminal is too narrow, in several: nothing is cut."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title = f"{self._record.name}: bound beside measurement at the promised percentile, in ms"
        left: tuple[str, ...] = (*_JUDGED, *_COUNTED, "verdict")
        if not self._fits(left, console, options):
            left = (*_JUDGED, "verdict", *_COUNTED)
        while left:
            count = len(left)
            while count > 1 and not self._fits(left[:count], console, options):
                count -= 1
            yield self._table(title, left[:count])
            title, left = "beside it", left[count:]

    def _fits(self, headings: tuple[str, ...], console: Console, options: ConsoleOptions) -> bool:
        unlimited = options.update(max_width=_ANY_WIDTH)
        return console.measure(self._table("", headings), options=unlimited).maximum <= options.max_width

    def _table(self, title: str, headings: tuple[str, ...]) -> Table:
        table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE)
        table.add_column("tenant", no_wrap=True)
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "verdict" else "right", no_wrap=True)
        for tenant in self._record.tenants:
            cells = _cells(tenant)
            table.add_row(tenant.name, *(cells[heading] for heading in headings))
        return table


def _cells(tenant: TenantRecord) -> dict[str, RenderableType]:
    """What the table says of a tenant, by heading."""
    low, high = tenant.promised_interval_s or (None, None)
    return {
        "promise": "–" if tenant.deadline_s is None else f"{tenant.deadline_s * 1e3:g} at {tenant.epsilon:g}",
        "bound": milliseconds(tenant.bound_s),
        "measured": milliseconds(tenant.promised_s),
        "95 % interval": f"{milliseconds(low)} .. {milliseconds(high)}",
        "ideal": milliseconds(tenant.ideal_promised_s),
        "packets": f"{tenant.n:,}",
        "lost": f"{tenant.lost:,}",
        "misses": "–" if tenant.deadline_s is None else f"{tenant.misses:,}",
        "verdict": Text(tenant.verdict, style=STYLES[tenant.verdict]),
    }


def own_time(record: RunRecord) -> Iterator[str]:
    """A slowed run's figures in the time of the scenario as it was written; nothing for any other run."""
    if record.slow_down == 1:
        return
    yield f"slowed down {record.slow_down:g} times; in the scenario's own time, in ms:"
    for tenant in record.tenants:
        if tenant.bound_s is None and tenant.deadline_s is None:
            continue
        promise, bound, measured = (
            milliseconds(None if value is None else value / record.slow_down)
            for value in (tenant.deadline_s, tenant.bound_s, tenant.promised_s)
        )
        yield f"  {tenant.name}: promise {promise}, bound {bound}, measured {measured}"


def _plan_lines(record: RunRecord) -> Iterator[str]:
    """Who was chosen for each intent, or what stood in its way."""
    for decision in record.plan.get("decisions", ()):
        if not decision["admitted"]:
            yield f"{decision['tenant']}: refused because of {decision['refused_because']}"
            continue
        way = " > ".join(bought["domain"] for bought in decision["reservations"])
        yield (
            f"{decision['tenant']}: {decision['model']} at {decision['site']} by way of {way}, signed bound "
            f"{milliseconds(decision['bound_s'])} ms, price {decision['price']:.3f}"
        )


def _request_lines(tenant: TenantRecord) -> Iterator[str]:
    """How often a request tenant's answers were right, and what its latency is made of on average."""
    asked = tenant.requests
    if asked is None or asked.accuracy is None:
        return
    parts, stacks = (
        ", ".join(f"{part.name} {milliseconds(part.mean_s)}" for part in kind) for kind in (asked.parts, asked.stacks)
    )
    yield (
        f"{tenant.name}: {asked.answered:,} of {tenant.n:,} requests answered by {asked.model}, accuracy "
        f"{asked.accuracy:.3f}; mean ms: {parts}{f' ({stacks})' if stacks else ''}"
    )


def _impairment_lines(record: RunRecord) -> Iterator[str]:
    """What was done to inference servers, and which answers it touched."""
    for window in record.windows:
        for each in window.impairments:
            end = "the end" if each.end_s is None else f"{each.end_s:.2f} s"
            yield f"{each.server}: {each.describe()} on purpose in window {window.index}, {each.begin_s:.2f} s to {end}"
    for tenant in record.tenants:
        if tenant.requests is not None and tenant.requests.impaired:
            touched = ", ".join(f"{count:,} by {kind}" for kind, count in tenant.requests.impaired.items())
            yield f"{tenant.name}: answers impaired on purpose: {touched}"


def _held_out_lines(record: RunRecord) -> Iterator[str]:
    """What windows say of tails that were signed from the warm-up."""
    for window in record.windows:
        for held in window.held_out:
            whose, what = (f"{held.domain}'s", "packets")
            if held.stage == "compute":
                whose, what = f"{held.domain}'s server's", "requests"
            about = f"{whose} tail for {held.tenant} in window {window.index}"
            said = "; ".join(held.contradictions)
            yield f"{about}: contradicted: {said}" if said else f"{about}: {held.n:,} {what} contradict nothing"


def _fault_table(record: RunRecord) -> Table:
    table = Table(title="faults, and what was expected of them", title_justify="left", header_style="bold", box=SIMPLE)
    for heading in ("fault", "from .. to, s", "tenant", "expected", "found", "met"):
        table.add_column(heading)
    for fault in record.faults:
        shown = f"{fault.name}: {fault.what}"
        when = f"{fault.begin_s:.2f} .. {fault.end_s:.2f}"
        for each in fault.expectations:
            met = Text("yes", style=STYLES["PASS"]) if each.met else Text("NO", style=STYLES["FAIL"])
            table.add_row(shown, when, each.tenant, each.expected, each.found, met)
            shown = when = ""
        if not fault.expectations:
            table.add_row(shown, when, "", "nothing, the window was interrupted", "", "")
    return table


def _gate_table(record: RunRecord) -> Table:
    table = Table(title="gates that do not hold", title_justify="left", header_style="bold")
    for heading in ("gate", "window", "value", "limit", "what it means"):
        table.add_column(heading)
    for gate in record.gates:
        if not gate.holds:
            value, limit = (f"{each:g} {gate.unit}" for each in (gate.value, gate.limit))
            table.add_row(gate.name, str(gate.window), value, limit, gate.detail)
    return table


def _broken(tenant: TenantRecord) -> Text:
    said = (
        f"more than {tenant.allowed_later:g} of a valid measurement were later or never arrived"
        if tenant.broken_at_s is None
        else f"lies below the lower confidence limit {milliseconds(tenant.broken_at_s)} ms of a valid measurement"
    )
    bound = f"{milliseconds(tenant.bound_s)} ms ({tenant.bound_method})"
    joint = ": " if tenant.broken_at_s is None else " "
    return Text(f"{tenant.name}: BOUND BROKEN: {bound}{joint}{said}", style="bold white on red")
