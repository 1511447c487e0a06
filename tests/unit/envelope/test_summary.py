"""Promises in sentences: packets where a network promises, requests and a model where a server does."""

from __future__ import annotations

from dataclasses import replace

from testbed.envelope.composition import Path
from testbed.envelope.descriptor import Envelope, Stage, Subject
from testbed.envelope.summary import describe, describe_path
from tests.unit.envelope.samples import envelope, guardrails

SERVER = envelope(
    domain="west",
    subject=Subject("alice", "reserved", "digits-medium", Stage.COMPUTE),
    guardrails=guardrails(
        reserved_rate_bps=17_000_000, burst_bits=900_000, latency_ns=6_500_000, host_allowance_ns=2_500_000,
        largest_packet_bits=68_000, delay_cap_ns=300_000_000, peak_rate_bps=None,
    ),
)  # fmt: skip


def test_a_server_is_described_by_its_model_its_requests_and_the_time_between_them() -> None:
    said = "\n".join(describe(SERVER))
    assert "west promises alice/reserved/digits-medium/compute (offer 7):" in said
    assert "may be asked 9 Mb/s in bursts of 112.5 kB, requests up to 8.5 kB, load up to 0.9;" in said
    assert "computes digits-medium like a queue of one request every 4 ms (17 Mb/s) and 6.5 ms (2.5 ms of it" in said
    assert "0.0003 of the requests linger more than 1 ms" in said
    assert "loses at most 1e-06 of the requests and answers at most 0 by errors" in said
    assert "packets" not in said
    declared = "\n".join(describe(replace(SERVER, stochastic=None, evidence=None)))
    assert "declares no impairment: none of the requests is later than that;" in declared


def test_a_network_is_described_by_packets() -> None:
    said = "\n".join(describe(envelope()))
    assert "serves like a queue of 10 Mb/s" in said
    assert "of the packets linger" in said
    assert "requests" not in said


def test_a_path_with_a_server_names_what_it_takes_of_the_whole_and_keeps_packets_the_networks() -> None:
    def said(*parts: Envelope) -> str:
        return "\n".join(describe_path(Path.of(parts), 1e-3))

    network = envelope()
    both = said(network, SERVER)
    assert "packets up to 1414 B" in both
    assert "serves like a queue of 10 Mb/s and 8 ms (3 ms of it for the host)" in both
    assert (
        "the server of west takes 6.5 ms of it for digits-medium: requests up to 8.5 kB, whatever their size one"
        in both
    )
    assert "the server" not in said(network)
    assert Path.of([network, SERVER]).to_dict()["largest_request_bits"] == 68_000
    assert Path.of([network]).to_dict()["largest_request_bits"] is None
