"""What is refused before anything is built, and what a network promises where links cannot be delayed."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from testbed.emulation import links, network
from testbed.emulation.network import TandemNetwork
from testbed.errors import PreflightError
from testbed.scenario.model import Datapath
from tests.unit.emulation.scenarios import scenario

DELAYED = scenario(3, delays_s=(2e-3, 0.0, 5e-3))


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")


@pytest.fixture
def _no_netem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "netem_available", lambda: False)


@pytest.mark.usefixtures("_no_netem")
def test_links_that_cannot_be_delayed_are_refused_by_name_unless_zero_is_allowed() -> None:
    with pytest.raises(
        PreflightError, match="links of dom1, dom3 have a propagation delay and this kernel has no netem"
    ):
        TandemNetwork(DELAYED, Datapath.USERSPACE)
    allowed = TandemNetwork(replace(DELAYED, allow_zero_delay=True), Datapath.USERSPACE)
    assert not allowed.delays
    assert allowed.link_delays_s == (0.0, 0.0, 0.0)
    assert [domain.link_delay_s for domain in allowed.in_force.domains] == [0.0, 0.0, 0.0]
    assert allowed.layout.wires == ()


def test_promises_are_made_from_the_delays_that_the_links_really_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "netem_available", lambda: True)
    built = TandemNetwork(DELAYED, Datapath.USERSPACE)
    assert built.delays
    assert built.link_delays_s == (2e-3, 0.0, 5e-3)
    assert built.in_force == DELAYED


@pytest.mark.usefixtures("_no_netem")
def test_a_scenario_without_delays_needs_no_netem() -> None:
    assert TandemNetwork(scenario(2), Datapath.USERSPACE).in_force == scenario(2)


def test_every_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"mnexec", "ovs-vswitchd"}
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in missing else f"/usr/bin/{tool}")
    with pytest.raises(PreflightError) as caught:
        network.require_tools()
    assert caught.value.problems == (
        "mnexec is not installed; install mininet",
        "ovs-vswitchd is not installed; install openvswitch-switch",
    )


def test_the_datapath_is_decided_before_a_network_is_built() -> None:
    with pytest.raises(ValueError, match="decide between the userspace and the kernel datapath"):
        TandemNetwork(scenario(1), Datapath.AUTO)
