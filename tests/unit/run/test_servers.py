"""What the servers of a run are started with: where they compute, for whom, and which models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference_server.__main__ import _settings
from inference_server.server import Settings
from testbed.emulation.layout import Layout, layout_of
from testbed.run.requests import SERVER_PORT, start_servers
from testbed.scenario.loader import load
from testbed.scenario.model import Datapath, Scenario

SCENARIO = """
name: asking
seed: 1
duration: 5 s
domains:
  - {name: west, link-rate: 20 Mbit/s}
  - {name: east, link-rate: 20 Mbit/s, compute: true}
tenants:
  - name: vision
    arrivals: {model: poisson, rate: 50 requests/s, size: 4 kB}
    requests: {model: digits-medium, images: 4, compute-share: 0.6, in-flight: 50}
  - name: bulk
    arrivals: {model: poisson, rate: 1 Mbit/s, size: 1000 B}
  - name: reader
    arrivals: {model: poisson, rate: 10 requests/s, size: 4 kB}
    requests: {model: digits-small, in-flight: 20}
"""


@dataclass
class Network:
    """Hosts of a layout, and what was started in them."""

    scenario: Scenario
    folder: Path
    started: dict[str, list[str]] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return layout_of(self.scenario, Datapath.KERNEL)

    @property
    def hosts(self) -> dict[str, Any]:
        return {path.server.host: SimpleNamespace(endpoint=path.server) for path in self.layout.paths}

    @property
    def journal(self) -> Any:
        return SimpleNamespace(directory=self.folder)

    def start(self, name: str, command: Sequence[str], **_: Any) -> None:
        self.started[name] = list(command)


@pytest.fixture
def network(tmp_path: Path) -> Network:
    scenario = tmp_path / "asking.yaml"
    scenario.write_text(SCENARIO, encoding="utf-8")
    return Network(load(scenario), tmp_path)


@pytest.fixture
def settings(network: Network) -> Settings:
    """What the only server makes of its command line."""
    start_servers(network)  # type: ignore[arg-type]
    (command,) = network.started.values()
    assert command[1:3] == ["-m", "inference_server"]
    return _settings(command[3:])


def test_a_runs_server_computes_on_the_cpu_whatever_the_machine_has(settings: Settings) -> None:
    assert (settings.device, settings.workers) == ("cpu", 1)


def test_the_tenants_of_a_site_share_its_server(network: Network, settings: Settings) -> None:
    assert settings.listen == f"{network.layout.servers[2].address}:{SERVER_PORT}"
    assert settings.models == ["digits-medium", "digits-small"]
    assert settings.shares == pytest.approx({"vision": 0.6, "reader": 0.4})
    assert (settings.queue_limit, settings.calls) == (50, None)
