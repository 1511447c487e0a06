"""What an agent of a run is told is what it goes by."""

from __future__ import annotations

from pathlib import Path

from controller.program import DomainProgram
from testbed.management.service import Server, Settings
from testbed.run.members import Members
from testbed.scenario.market import load

SHIPPED = Path(__file__).parents[3] / "topologies/intents.yaml"
PAUSE_S = 0.07


def test_an_agent_is_told_for_how_long_the_host_may_pause(tmp_path: Path) -> None:
    operator = load(SHIPPED).operators[0]
    members = Members.found(tmp_path / "m", "lab", [operator.name])
    skeleton = DomainProgram(operator.name, "software", operator.link_rate_bps, (), ())
    told = members.settle(operator, skeleton, tmp_path / "c.sock", look_every_s=1e6, pause_s=PAUSE_S)
    with Server(Settings.read(told.settings)) as server:
        assert server.agent.pause_s == PAUSE_S
        assert server.agent.operator == operator
