"""Rules change while another tenant's packets pass; alone on the host: a switch that is kept waiting loses some."""

from __future__ import annotations

import threading

import pytest

from tests.integration.controller_lab import (
    FRAME_BYTES,
    SERVER,
    address,
    controller,
    laboratory,
    program,
    rule,
    wait_for,
    with_rate,
)

pytestmark = pytest.mark.network


def test_changing_and_removing_a_rule_loses_no_packet_of_another() -> None:
    with laboratory() as lab, controller(lab) as controlled:
        controlled.client.install(program(rule(1), rule(2)))
        sender = threading.Thread(target=lab.send, args=("d0i-up", address(1), SERVER, 1000, 0.001))
        sender.start()
        changes = 0
        while sender.is_alive():
            controlled.client.install(program(rule(1), with_rate(rule(2), 5_000_000 + 8 * changes)))
            controlled.client.remove([2])
            changes += 1
        sender.join()
        assert changes > 0
        wait_for(lambda: controlled.queue("tenant-1", "d0i-dn")["sent_packets"] >= 1000, "all packets of tenant 1")
        queue = controlled.queue("tenant-1", "d0i-dn")
        assert queue["sent_packets"] == 1000
        assert queue["sent_bytes"] == 1000 * FRAME_BYTES
        assert queue["dropped_packets"] == 0
        assert controlled.meter("tenant-1", "d0i")["in_packets"] == 1000
