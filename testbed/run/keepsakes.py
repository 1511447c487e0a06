"""What of the captures stays in a run folder: nothing, or everything, named, with one file that shows them together."""

from __future__ import annotations

from pathlib import Path

from testbed.emulation.layout import Layout
from testbed.scenario.model import Scenario
from testbed.telemetry.pcapng import Place, write_together

TOGETHER_NAME = "captures.pcapng"


def keep_captures(folder: Path, scenario: Scenario, layout: Layout) -> None:
    """Give the captures of every window the tenants' names, each for itself and in one file in the order of time.

    A classic pcap file has no place for names, so pcapng files take their place, with the very packets and stamps.

    Raises:
        FidelityError: A capture cannot be read.
    """
    places, names = _places(scenario, layout), _names(scenario, layout)
    for window in sorted(folder.glob("window-*")):
        found = [
            Place(path, path.stem, places[path.stem]) for path in sorted(window.glob("*.pcap")) if path.stem in places
        ]
        if found:
            write_together(window / TOGETHER_NAME, found, names)
        for place in found:
            write_together(place.path.with_suffix(".pcapng"), [place], names)
            place.path.unlink()


def discard_captures(folder: Path) -> None:
    """Remove the captures of every window: what was measured from them is in the tables beside them."""
    for capture in folder.glob("window-*/*.pcap"):
        capture.unlink()


def _places(scenario: Scenario, layout: Layout) -> dict[str, str]:
    domains = [domain.name for domain in scenario.domains]
    servers = {
        border.interface: f"compute host of {domains[border.domain - 1]}" for border in layout.borders if border.host
    }
    between = {border.interface: f"into {domains[border.domain - 1]}" for border in layout.borders if not border.host}
    return servers | between | {path.client.interface: f"client of {path.tenant}" for path in layout.paths}


def _names(scenario: Scenario, layout: Layout) -> dict[str, str]:
    hosts = {server.address: f"compute-{scenario.domains[i - 1].name}" for i, server in layout.servers.items()}
    return hosts | {path.client.address: path.tenant for path in layout.paths}
