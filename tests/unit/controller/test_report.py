from __future__ import annotations

from controller import report
from controller.counters import ClassCounters, MeterCounters
from controller.objects import Change, ClassKey, FilterKey, FilterValue, LeafKey, LeafValue, MeterKey, MeterValue
from controller.plan import plan
from tests.unit.controller.programs import program, rule

SENT = ClassCounters(10, 14_000, 2, 1, 1_400)


def test_a_difference_reads_as_one_sentence() -> None:
    key = LeafKey("d0i-dn", 0x11)
    change = Change(key, LeafValue("pfifo", 3), LeafValue("pfifo", 100))
    (difference,) = report.differences([change], {key: "alice"})
    assert report.sentence(difference) == (
        "leaf of class 1:11 of d0i-dn (tenant alice): found limit_packets 3, expected limit_packets 100"
    )
    (nobodys,) = report.differences([Change(key, None, LeafValue("pfifo", 100))], {})
    assert report.sentence(nobodys).startswith("leaf of class 1:11 of d0i-dn: found absent, expected kind pfifo")


def test_a_tenant_reads_back_as_the_class_its_filter_selects_not_the_one_it_was_given() -> None:
    wanted = program()
    found = dict(plan(wanted).objects)
    found[FilterKey("d0i-dn", "10.1.0.1")] = FilterValue(2, "source")
    del found[FilterKey("d0i-up", "10.1.0.1")]
    tenant = report.read_back(wanted, found)["tenants"]["tenant-1"]
    assert tenant["queues"]["d0i-dn"]["minor"] == tenant["queues"]["d0i-up"]["minor"] == 2
    assert tenant["smallest_rate_bps"] == 64_000


def test_the_smallest_rate_of_the_path_is_the_one_that_was_found() -> None:
    wanted = program(datapath="kernel")
    found = dict(plan(wanted).objects)
    lowered = plan(program(rule(queue=rule().queue), datapath="kernel")).objects[ClassKey("d0i-dn", 0x11)]
    found[ClassKey("d0i-dn", 0x11)] = type(lowered)(1, 1_000_000, 1_000_000, 62_500, 62_500, 3000, 0)  # type: ignore[call-arg]
    tenant = report.read_back(wanted, found)["tenants"]["tenant-1"]
    assert tenant["smallest_rate_bps"] == 8_000_000
    assert tenant["queues"]["d0i-up"]["rate_bps"] == 10_000_000


def test_a_class_or_meter_that_is_not_there_is_not_reported_as_there() -> None:
    wanted = program(datapath="kernel")
    tenant = report.read_back(wanted, {})["tenants"]["tenant-1"]
    assert tenant == {"number": 1, "meters": {}, "queues": {}, "smallest_rate_bps": None}


def test_a_meter_without_a_band_says_so() -> None:
    wanted = program()
    found = {MeterKey("d0i", 1): MeterValue(("KBPS",), ())}
    tenant = report.read_back(wanted, found)["tenants"]["tenant-1"]
    assert tenant["meters"]["d0i"] == {"flags": ["KBPS"], "band": "none", "rate_kbps": 0, "burst_kbit": 0}


def test_counters_are_sorted_to_tenants_and_what_no_tenant_claimed_is_shown_for_each_port() -> None:
    wanted = program(rule(1), rule(2, meter=None))
    meters = {"d0i": {1: MeterCounters(12, 16_800, 2, 2_800)}}
    classes = {"d0i-dn": {1: SENT, 2: ClassCounters(3, 180, 0, 0, 0), 0x11: SENT}, "d0i-up": {}}
    counted = report.counters(wanted, meters, classes)
    assert counted["tenants"]["tenant-1"] == {
        "number": 1,
        "meters": {"d0i": {"in_packets": 12, "in_bytes": 16_800, "dropped_packets": 2, "dropped_bytes": 2_800}},
        "queues": {
            "d0i-dn": {
                "sent_packets": 10,
                "sent_bytes": 14_000,
                "dropped_packets": 2,
                "backlog_packets": 1,
                "backlog_bytes": 1_400,
            }
        },
    }
    assert counted["tenants"]["tenant-2"] == {"number": 2, "meters": {}, "queues": {}}
    assert list(counted["unclassified"]) == ["d0i-dn"]
    assert counted["unclassified"]["d0i-dn"]["sent_packets"] == 3
