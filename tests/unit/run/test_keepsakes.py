"""What of a run's captures stays in its folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

from testbed.emulation.layout import Layout, layout_of
from testbed.run.keepsakes import discard_captures, keep_captures
from testbed.scenario.loader import load
from testbed.scenario.model import Datapath, Scenario
from tests.unit.telemetry import frames

SMOKE = Path(__file__).resolve().parents[3] / "topologies" / "smoke.yaml"


def captured(folder: Path) -> tuple[Scenario, Layout]:
    """Two windows of the smoke scenario, a packet of its second tenant at every border of each."""
    scenario = load(SMOKE)
    layout = layout_of(scenario, Datapath.USERSPACE)
    path = layout.path(2)
    frame = frames.udp_frame(source=path.client.address, destination=path.server.address)
    for window in (1, 2):
        (folder / f"window-{window}").mkdir()
        for i, border in enumerate(layout.borders):
            data = frames.pcap([(1_000 * window + i, frame)])
            frames.write(folder / f"window-{window}" / f"{border.interface}.pcap", data)
    return scenario, layout


def test_kept_captures_of_every_window_are_shown_together_with_the_tenants_and_domains_names(tmp_path: Path) -> None:
    keep_captures(tmp_path, *captured(tmp_path))
    for window in (1, 2):
        command = ["tshark", "-r", str(tmp_path / f"window-{window}" / "captures.pcapng"), "-N", "n", "-T", "fields"]
        fields = ["-e", "frame.interface_description", "-e", "ip.src_host", "-e", "ip.dst_host"]
        told = subprocess.run([*command, *fields], check=True, capture_output=True, text=True).stdout
        assert [line.split("\t") for line in told.splitlines()] == [
            ["into west", "flood", "compute-east"],
            ["into east", "flood", "compute-east"],
            ["compute host of east", "flood", "compute-east"],
        ]
        assert len(list((tmp_path / f"window-{window}").glob("*.pcap"))) == 3


def test_discarded_captures_are_gone_and_nothing_else_is(tmp_path: Path) -> None:
    captured(tmp_path)
    table = tmp_path / "window-1" / "flood.parquet"
    table.touch()
    discard_captures(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [table]
