"""A whole run on a real network, and what becomes of one that is tampered with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from testbed.emulation.probe import probe
from testbed.errors import ReservationError
from testbed.report.record import read_record
from tests.integration.conftest import Command
from tests.integration.spine import SMOKE, reserved

pytestmark = pytest.mark.network


def halve_queue(port: str, minor: int) -> None:
    command = ["tc", "class", "change", "dev", port, "parent", "1:1", "classid", f"1:{minor:x}", "htb"]
    subprocess.run([*command, "rate", "3200kbit", "ceil", "3200kbit", "burst", "4k"], check=True, capture_output=True)


def test_a_run_leaves_one_folder_that_says_everything(testbed: Command, tmp_path: Path) -> None:
    # A host that cannot keep up is no failure of the code: up to three tries, each shown; any other end counts at once.
    for attempt in range(3):
        ended = testbed("run", str(SMOKE), "--out", str(tmp_path / str(attempt)))
        print(ended.stdout, ended.stderr)
        if ended.returncode != 3:
            break
    assert ended.returncode in {0, 4}, ended.stderr
    (folder,) = (tmp_path / str(attempt)).iterdir()
    record = read_record(folder)
    steady, flood, bulk = record.tenants
    assert steady.verdict in {"PASS", "UNDETERMINED"}
    assert (steady.lost, flood.verdict, bulk.verdict) == (0, "EXCUSED", "NONE")
    assert steady.p999_s is not None
    assert steady.bound_s is not None
    assert steady.p999_s < steady.bound_s
    assert not any(tenant.bound_broken for tenant in record.tenants)
    assert flood.conformance is not None
    assert flood.lost == flood.conformance.meter_dropped + flood.conformance.queue_dropped > 0
    assert all(gate.ok for gate in record.gates)
    assert all(result.ok for result in record.probes)
    assert len(record.envelopes) == 4
    assert "bound beside measurement" in ended.stdout
    assert (folder / "report.html").stat().st_size > 20_000
    assert not list(folder.glob("**/*.pcap"))
    again = testbed("report", str(folder), "--json")
    assert json.loads(again.stdout)["run_id"] == record.run_id


def test_a_reservation_lowered_behind_the_controller_is_named_as_drift_and_fails_the_probe() -> None:
    with reserved() as made:
        assert made.federation.drift() == ()
        halve_queue("d1e-dn", 0x11)
        (found,) = made.federation.drift()
        assert "d1e-dn" in found
        assert "tenant steady" in found
        assert "3200000" in found.replace(",", "").replace(" ", "") or "3.2" in found
        with pytest.raises(ReservationError, match="queue rate at d1e-dn"):
            probe(made.network, made.programs)


def test_a_released_network_holds_no_reservation() -> None:
    with reserved() as made:
        made.federation.release()
        assert all(client.read_back()["tenants"] == {} for client in made.controllers.values())
