"""A run before everything else on a host whose cores somebody else uses from its beginning to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.report.record import read_record
from tests.integration.conftest import INVALID, Command, is_noise
from tests.integration.spine import SMOKE

pytestmark = [pytest.mark.network, pytest.mark.slow]


@contextmanager
def hogs() -> Iterator[None]:
    """Two programs a core that never rest, at the usual priority."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
        assert [hog.poll() for hog in running] == [None] * len(running)
    finally:
        for hog in running:
            hog.kill()
            hog.wait()


def test_an_isolated_run_keeps_its_places_beside_hogs_and_is_valid_unless_the_host_itself_stands_still(
    testbed: Command, tmp_path: Path
) -> None:
    with hogs():
        ended = testbed("run", str(SMOKE), "--isolate", "--out", str(tmp_path), timeout_s=300.0)
    print(ended.stdout, ended.stderr)
    assert ended.returncode in {0, INVALID, 4}, ended.stderr
    (folder,) = tmp_path.iterdir()
    record = read_record(folder)
    breached = {gate.name: gate.detail for gate in record.gates if not gate.holds}
    print(record.verdict, breached)
    (places,) = [gate for gate in record.gates if gate.name == "places kept"]
    assert (record.isolated, places.ok, places.detail) == (True, True, "as it was")
    assert all(map(is_noise, breached))
    assert (ended.returncode == INVALID) == bool(breached)
    assert all(result.ok for result in record.probes)
    assert len(record.windows) == 1
    assert not any(tenant.bound_broken for tenant in record.tenants)
    # An isolated run is not asked for idle time, of which there is none.
    assert "CPU idle" not in {gate.name for gate in record.gates}
