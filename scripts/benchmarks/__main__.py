"""`scripts/bench NAME [--json FILE]`: measures, prints a row a figure, and says whether every target was reached."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, Goal
from testbed import __version__
from testbed.cli import machine_code
from testbed.errors import TestbedError

_SUPPORT = {
    "__main__",
    "blame",
    "figures",
    "inference_clients",
    "inference_isolation",
    "inference_process",
    "inference_servers",
    "inference_wire",
    "loads",
    "peers",
    "repeats",
    "runs",
    "simulated",
}


def names_of() -> list[str]:
    """Names of the benchmarks."""
    package = importlib.import_module("benchmarks")
    return sorted(entry.name for entry in pkgutil.iter_modules(package.__path__) if entry.name not in _SUPPORT)


def subjects() -> dict[str, str]:
    """The same, each with its first line of documentation."""
    return {name: (importlib.import_module(f"benchmarks.{name}").__doc__ or "").split("\n")[0] for name in names_of()}


def main(arguments: list[str]) -> int:
    """Exit code: 0 every target reached, 1 one was not, 2 the command was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure the figures this project promises.")
    parser.add_argument("name", nargs="?", help="what to measure; none: list the names")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows to FILE as well")
    options, rest = parser.parse_known_args(arguments)
    machine_code.forget_stale()
    names = names_of()
    if options.name is None:
        for name, about in subjects().items():
            print(f"{name:12} {about}")
        return 0
    if options.name not in names:
        print(f"bench: {options.name} is not a benchmark; there are {', '.join(names) or 'none yet'}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"benchmarks.{options.name}")
    own = argparse.ArgumentParser(prog=f"scripts/bench {options.name}", description=module.__doc__)
    if hasattr(module, "add_options"):
        module.add_options(own)
    try:
        figures = list(_announced(module.measure(own.parse_args(rest))))
    except TestbedError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    Console().print(_table(options.name, figures))
    if options.json is not None:
        options.json.write_text(json.dumps(_document(options.name, figures), indent=1) + "\n")
    missed = [f"{figure.name}{' (not shown)' * figure.undecided}" for figure in figures if not figure.reached]
    if missed:
        print(f"bench: {len(missed)} of {len(figures)} not reached: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def _announced(figures: Iterable[Figure]) -> Iterable[Figure]:
    """Says each figure as it comes: some take minutes."""
    for figure in figures:
        print(f"bench: {figure.name}: {figure.value:.4g} {figure.unit}".rstrip(), file=sys.stderr, flush=True)
        yield figure


def _table(name: str, figures: list[Figure]) -> Table:
    table = Table(title=f"bench {name}", title_justify="left", header_style="bold")
    table.add_column("figure")
    for heading in ("value", "target", "peer"):
        table.add_column(heading, justify="right")
    table.add_column("reached")
    table.add_column("note")
    for figure in figures:
        target = "" if figure.goal is Goal.SHOWN else f"{figure.goal.value} {figure.target:.4g}"
        peer = "" if figure.peer_value is None else f"{figure.peer} {figure.peer_value:.4g}"
        reached = f"[red]{figure.said}[/red]" if figure.said == "NO" else figure.said
        table.add_row(figure.name, f"{figure.value:.4g} {figure.unit}".rstrip(), target, peer, reached, figure.note)
    return table


def _document(name: str, figures: list[Figure]) -> dict[str, object]:
    return {
        "benchmark": name,
        "version": __version__,
        "host": {"kernel": platform.release(), "machine": platform.machine(), "python": platform.python_version()},
        "figures": [figure.to_dict() for figure in figures],
        "reached": all(figure.reached for figure in figures),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
