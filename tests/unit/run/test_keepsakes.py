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


def dissected(capture: Path) -> list[list[str]]:
    """What Wireshark's terminal program makes of a capture: each packet's stamp, place, source and destination."""
    names = ("frame.time_epoch", "frame.interface_description", "ip.src_host", "ip.dst_host")
    fields = [word for name in names for word in ("-e", name)]
    command = ["tshark", "-r", str(capture), "-N", "n", "-T", "fields", *fields]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split("\t") for line in told.splitlines()]


def test_kept_captures_of_every_window_have_the_tenants_and_domains_names_each_and_all_together(tmp_path: Path) -> None:
    scenario, layout = captured(tmp_path)
    keep_captures(tmp_path, scenario, layout)
    places = ["into west", "into east", "compute host of east"]
    for window in (1, 2):
        folder = tmp_path / f"window-{window}"
        stamps = [f"0.00000{1_000 * window + i}" for i in range(3)]
        packets = [[stamp, place, "flood", "compute-east"] for stamp, place in zip(stamps, places, strict=True)]
        assert dissected(folder / "captures.pcapng") == packets
        each = [folder / f"{border.interface}.pcapng" for border in layout.borders]
        assert [dissected(capture) for capture in each] == [[packet] for packet in packets]
        assert sorted(folder.iterdir()) == sorted([*each, folder / "captures.pcapng"])


def test_discarded_captures_are_gone_and_nothing_else_is(tmp_path: Path) -> None:
    captured(tmp_path)
    table = tmp_path / "window-1" / "flood.parquet"
    table.touch()
    discard_captures(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [table]
