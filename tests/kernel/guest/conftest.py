"""Runs the tests of this folder on an emulated kernel with Open vSwitch's datapath and netem, and reports them here.

They are ordinary tests. Where they are collected none of them is run: one kernel is booted for all that were selected,
a pytest of its own runs them inside, and each of their reports comes back as if it had happened here. On a machine
whose own kernel has those modules, `TESTBED_KERNEL_REPORTS=FILE pytest tests/kernel/guest` runs them where they are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from numba.core.caching import _CacheLocator

from testbed.scenario.model import Datapath
from tests.integration.conftest import ROOT
from tests.integration.spine import Reserved, reserved

HERE = Path(__file__).parent
SCENARIO = HERE / "two.yaml"
MEMORY = "5G"
"""One of the shipped federations asks for 3.8 GB of it to be free."""
LONGEST_S = 1500.0
SLOW_S = 1200.0
"""What each slow test may add to it."""
REPORTS = "TESTBED_KERNEL_REPORTS"
INSIDE = REPORTS in os.environ
"""Whether the kernel at hand is the one the tests are for."""

Reports = Mapping[str, Sequence[pytest.TestReport]]
_OUTCOME = pytest.StashKey[tuple[Reports, str]]()


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Take over the tests of this folder; all others, and all inside, go their usual way."""
    if INSIDE or HERE not in item.path.parents:
        return None
    stash = item.session.stash
    if _OUTCOME not in stash:
        ours = [each for each in item.session.items if HERE in each.path.parents]
        slow = sum(each.get_closest_marker("slow") is not None for each in ours)
        stash[_OUTCOME] = _run_inside(item.config, [each.nodeid for each in ours], LONGEST_S + slow * SLOW_S)
    reports, printed = stash[_OUTCOME]
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports.get(item.nodeid) or [_never_reported(item, printed)]:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Inside, write every report down at once: what ran before a crash is known."""
    report = yield
    if INSIDE:
        data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
        with Path(os.environ[REPORTS]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")
    return report


def _run_inside(config: pytest.Config, nodeids: Sequence[str], longest_s: float) -> tuple[Reports, str]:
    """Boot one kernel and run these tests in it: their reports by test, and everything that was printed."""
    with tempfile.TemporaryDirectory(prefix="kernel-tests-") as name:
        out = Path(name).resolve()
        written = out / "reports"
        boot = [str(ROOT / "scripts" / "uml"), "--memory", MEMORY, "--out", str(out), "--"]
        tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *nodeids]
        code = _machine_code(out / "machine-code")
        with subprocess.Popen(
            [*boot, "env", f"{REPORTS}={written}", f"NUMBA_CACHE_DIR={code}", *tests],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as kernel:
            try:
                printed = kernel.communicate(timeout=longest_s)[0]
            except subprocess.TimeoutExpired:
                # Not killed: it ends its kernel when it is asked to.
                kernel.terminate()
                printed = kernel.communicate()[0]
            except KeyboardInterrupt:
                kernel.terminate()
                kernel.wait()
                raise
        reports = defaultdict(list)
        for line in written.read_text(encoding="utf-8").splitlines() if written.exists() else ():
            data = json.loads(line)
            report = config.hook.pytest_report_from_serializable(config=config, data=data)
            reports[report.nodeid].append(report)
        return reports, printed


def _machine_code(folder: Path) -> Path:
    """What numba keeps of this project, copied to where nobody else writes, as its setting of a folder wants it to lie.

    Inside, a file that is replaced outside meanwhile has its old length: tests beside the kernel compile, and of what
    they keep a truncated part would be read.
    """
    for kept in (ROOT / "testbed").rglob("__pycache__"):
        beside = folder / _CacheLocator.get_suitable_cache_subpath(str(kept.parent / "__init__.py"))
        beside.mkdir(parents=True)
        for suffix in (".nbi", ".nbc"):
            for file in kept.glob(f"*{suffix}"):
                shutil.copy2(file, beside)
    return folder


def _never_reported(item: pytest.Item, printed: str) -> pytest.TestReport:
    said = f"the emulated kernel ended without a report of this test; what was printed in it:\n{printed}"
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", said, "call")


@pytest.fixture(scope="module")
def made() -> Iterator[Reserved]:
    """Two domains with their reservations installed, on the kernel's datapath: tests leave it as they found it."""
    with reserved(SCENARIO, Datapath.KERNEL) as found:
        yield found
