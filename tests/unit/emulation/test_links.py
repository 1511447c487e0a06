"""What interfaces say of themselves, and tools that are missing or complain."""

from __future__ import annotations

import pytest

from testbed.emulation import links
from testbed.errors import PreflightError


def test_the_offloads_of_the_loopback_are_on() -> None:
    assert set(links.offloads("lo")) >= {"tx-checksum", "gso"}


def test_an_interface_that_is_not_there_is_named() -> None:
    with pytest.raises(PreflightError, match="no-such-link: offload rx-checksum cannot be read"):
        links.offloads("no-such-link")


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(PreflightError, match=r'ip link show no-such-link failed with status 1: .*"no-such-link"'):
        links.run(["ip", "link", "show", "no-such-link"])


def test_a_tool_that_is_missing_is_named_with_its_package() -> None:
    with pytest.raises(PreflightError, match="ip-of-tomorrow is not installed; install iproute2"):
        links.run(["ip-of-tomorrow"])


def test_offloads_that_are_on_are_all_named_with_what_they_break(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"a": (), "b": ("tso", "gro"), "c": ("gso",)}
    monkeypatch.setattr(links, "interfaces", lambda: tuple(found))
    monkeypatch.setattr(links, "offloads", found.__getitem__)
    with pytest.raises(PreflightError) as caught:
        links.require_no_offloads()
    assert [problem.partition(" are on;")[0] for problem in caught.value.problems] == [
        "b: offloads tso, gro",
        "c: offloads gso",
    ]
