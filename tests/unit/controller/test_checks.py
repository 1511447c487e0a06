from __future__ import annotations

from dataclasses import replace

import pytest

from controller.checks import check
from controller.program import DomainProgram, Meter, ProgramError, Queue
from tests.unit.controller.programs import hop, program, rule

GOOD = Queue(0x11, 10_000_000, 10_000_000, 5000, 3000, 100)

BAD = [
    ("an unknown datapath", program(datapath="dpdk"), "datapath of d0: found 'dpdk', expected 'userspace' or 'kernel'"),
    ("a link without a rate", replace(program(), link_rate_bps=0), "link rate of d0: found 0 bit/s"),
    ("the same number twice", program(rule(1), rule(2, number=1)), "rule number 1: found 2 times, expected once"),
    ("the same name twice", program(rule(1), rule(2, tenant="tenant-1")), "tenant tenant-1: found 2 times"),
    ("the same client twice", program(rule(1), rule(2, client="10.1.0.1")), "client address 10.1.0.1: found 2 times"),
    ("the same class twice", program(rule(1), rule(2, queue=GOOD)), "class 17: found 2 times"),
    (
        "a shared class of two minds",
        program(rule(1, meter=None), rule(2, meter=None, queue=replace(GOOD, limit_packets=9))),
        "class 17: found 2 times",
    ),
    ("the same meter twice", program(rule(1), rule(2, meter=Meter(1, 1, 1))), "meter 1: found 2 times"),
    ("the same switch twice", program(hops=(hop("d0i"), hop("d0e"))), "datapath id 17: found 2 times"),
    ("the same bridge twice", program(hops=(hop(), hop("d0i", 18, queued_ports=()))), "bridge d0i: found 2 times"),
    ("a port queued twice", program(hops=(hop(queued_ports=("a", "a")),)), "queued port a: found 2 times"),
    ("a host name for an address", program(rule(client="localhost")), "client address: found 'localhost'"),
    (
        "a class of the controller's own",
        program(rule(queue=replace(GOOD, minor=2))),
        "class minor: found 2, ",
    ),
    ("a class the kernel would number", program(rule(queue=replace(GOOD, minor=0x8000))), "class minor: found 32768"),
    ("a rate that rounds to nothing", program(rule(queue=replace(GOOD, rate_bps=7))), "queue rate: found 7 bit/s"),
    ("a rate above its ceil", program(rule(queue=replace(GOOD, ceil_bps=9_000_000))), "expected 8 to its ceil 9000000"),
    ("no burst", program(rule(queue=replace(GOOD, burst_bytes=0))), "queue burst_bytes: found 0"),
    ("a burst without end", program(rule(queue=replace(GOOD, rate_bps=8, burst_bytes=300))), "expected at most 274 s"),
    ("no room in the queue", program(rule(queue=replace(GOOD, limit_packets=0))), "queue limit_packets: found 0"),
    ("a meter number that is reserved", program(rule(meter=Meter(0xFFFFFFFF, 1, 1))), "meter id: found 4294967295"),
    ("a meter without a rate", program(rule(meter=Meter(1, 0, 1))), "meter rate_kbps: found 0"),
    ("a meter without a burst", program(rule(meter=Meter(1, 1, 0))), "meter burst_kbit: found 0"),
    ("a rule numbered nought", program(rule(number=0)), "number: found 0, expected 1 or more"),
    ("no way to the client", program(hops=(hop(towards_client=None),)), "found no port towards its client 10.1.0.1"),
    ("no way to the server", program(hops=(hop(towards_server=None),)), "found no port towards its server 10.2.0.1"),
    (
        "more reserved than the link has",
        program(*(rule(number) for number in range(1, 12))),
        "reservations of d0: found 110000000 bit/s together, expected at most the link's 100000000",
    ),
]


@pytest.mark.parametrize(("bad", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_program_no_switch_could_be_asked_to_install_is_refused(bad: DomainProgram, message: str) -> None:
    with pytest.raises(ProgramError) as refused:
        check(bad)
    assert message in str(refused.value)


def test_everything_wrong_is_reported_at_once() -> None:
    bad = program(rule(client="nowhere"), rule(2, meter=Meter(2, 0, 1)), datapath="dpdk")
    with pytest.raises(ProgramError) as refused:
        check(bad)
    assert len(str(refused.value).splitlines()) == 3


def test_best_effort_borrows_and_is_not_counted_as_reserved() -> None:
    reserved = [rule(number) for number in range(1, 11)]
    borrower = Queue(0x1B, 1_000_000, 100_000_000, 5000, 3000, 100)
    check(program(*reserved, rule(11, meter=None, queue=borrower)))
