"""Every kind of fault is done on the kernel's datapath by some test of it, or is said to have nothing to do with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from testbed.scenario.faults import FaultKind
from testbed.scenario.loader import load
from tests.integration.conftest import ROOT

GUEST = Path(__file__).parent / "guest"
SCENARIOS = (ROOT / "topologies" / "faults.yaml", GUEST / "asking.yaml")
"""With faults of their own, and run there."""
NO_DATAPATH: Mapping[FaultKind, str] = {
    FaultKind.DISK_FULL: "it takes room from the captures of packets, and nothing from the packets",
}
"""What is the same whoever forwards, and why; docs/kernel.md says so too."""


def done_there() -> set[FaultKind]:
    """The kinds that tests in the emulated kernel name, or scenarios that these run."""
    tests = "".join(file.read_text(encoding="utf-8") for file in GUEST.glob("test_*.py"))
    named = {FaultKind[name] for name in re.findall(r"\bFaultKind\.([A-Z_]+)\b", tests)}
    return named | {fault.kind for file in SCENARIOS for fault in load(file).faults}


def test_every_kind_is_done_on_the_kernel_s_datapath_or_has_nothing_to_do_with_one() -> None:
    assert {kind.value for kind in FaultKind} == {*done_there(), *NO_DATAPATH}
    assert done_there().isdisjoint(NO_DATAPATH)


def test_the_page_on_the_kernel_s_datapath_says_of_every_kind_where_it_is_done() -> None:
    page = (ROOT / "docs" / "kernel.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"(?<=\n)\| fault \|.*?(?=\n\n|\Z)", page, re.DOTALL)
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    assert sorted(kind for names, _ in rows for kind in re.findall(r"`([a-z-]+)`", names)) == sorted(FaultKind)
    assert {
        kind for names, where in rows if "on no datapath" in where for kind in re.findall(r"`([a-z-]+)`", names)
    } == {*NO_DATAPATH}
