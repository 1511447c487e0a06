"""Two runs side by side on a terminal: what was set differently, then what came out differently. It decides nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from testbed.report.terminal import milliseconds

if TYPE_CHECKING:
    from testbed.audit.compare import BoundChange, Comparison, Difference, Setting

_PLAIN_WIDTH = 120


def print_comparison(found: Comparison) -> None:
    """Print a comparison, in a file or a pipe as wide as the tables need."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH, highlight=False)
    parts: list[RenderableType] = [
        _settings(found.settings) if found.settings else Text("scenario, host and software are the same")
    ]
    if found.bounds:
        parts.append(_bounds(found.bounds))
    if found.differences:
        parts.append(_differences(found.differences))
    parts.append(Text(_conclusion(found), style="bold"))
    console.print(Group(*parts))


def _settings(settings: tuple[Setting, ...]) -> Table:
    table = _table("set differently", "what", "first run", "second run")
    for setting in settings:
        table.add_row(setting.name, _said(setting.first), _said(setting.second))
    return table


def _bounds(bounds: tuple[BoundChange, ...]) -> Table:
    table = _table("bounds, in ms", "tenant", "first run", "second run")
    for bound in bounds:
        table.add_row(bound.tenant, milliseconds(bound.first_s), milliseconds(bound.second_s))
    return table


def _differences(differences: tuple[Difference, ...]) -> Table:
    table = _table("measured, delays in ms", "tenant", "figure", "first run", "second run", "second minus first", "")
    for found in differences:
        show = _delay if found.figure.startswith("p") else _share
        table.add_row(
            found.tenant,
            found.figure,
            show(found.first),
            show(found.second),
            f"{show(found.lower)} .. {show(found.upper)}",
            _weight(found),
        )
    return table


def _weight(found: Difference) -> Text:
    if found.real:
        return Text("more than noise", style="bold yellow")
    return Text("cannot say" if None in {found.lower, found.upper} else "noise", style="dim")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE)
    for heading in headings:
        table.add_column(heading)
    return table


def _said(value: Any) -> str:
    return "–" if value is None else str(value)


def _delay(value: float | None) -> str:
    """In ms; of what was never answered there is none."""
    return "never" if value is not None and math.isinf(value) else milliseconds(value)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _conclusion(found: Comparison) -> str:
    if found.invalid:
        return (
            f"{' and '.join(found.invalid)}: the host could not keep up, so delays are not compared; "
            "repeat on a quieter host"
        )
    if not found.real:
        return f"nothing measured differs by more than noise ({found.confidence:.0%} confidence for all rows together)"
    which = ", ".join(f"{difference.figure} of {difference.tenant}" for difference in found.real)
    return f"more than noise ({found.confidence:.0%} confidence for all rows together): {which}"
