"""One tenant of a scenario file: from checked sections to the model, with the rules between a tenant's own values.

What one tenant declares must make sense by itself: a mean below what it reserves, a meter between the two, a bucket
that holds a packet. A rule that needs a value which is already known to be wrong is skipped. What arrives is
`testbed.scenario.arrivals`', rules between tenants and domains are `testbed.scenario.loader`'s.
"""

from __future__ import annotations

from fractions import Fraction

from testbed.scenario import guardrails
from testbed.scenario.fields import Section
from testbed.scenario.model import (
    FULL_FRAME_BITS,
    Arrivals,
    Interval,
    Misbehaviour,
    MmppArrivals,
    OnOffArrivals,
    Promise,
    Reservation,
)
from testbed.scenario.problems import Report
from testbed.scenario.ranges import LARGEST_BUCKET_BITS
from testbed.scenario.units import RATE, SIZE, TIME, quantity
from testbed.traffic.arrivals import mean_bps
from testbed.traffic.request_demand import Demand


def reservation(tenant: Section, arrives: Arrivals | None, asked: Demand | None, report: Report) -> Reservation | None:
    """The reservation of `tenant` with its guardrails, None for best effort or if it cannot be used.

    Args:
        tenant: The tenant's section.
        arrives: Its arrivals.
        asked: What its requests put on the wire; None where arrivals are packets.
        report: Receives the findings.
    """
    section: Section | None = tenant.get("reservation")
    if section is None or arrives is None or not section.settled("rate") or not tenant.settled("requests"):
        return None
    rate, mean = int(section.get("rate")), mean_bps(arrives) if asked is None else asked.mean_bps
    if not _mean_fits(section, mean, rate, report) or not section.settled("meter-rate"):
        return None
    meter = int(section.get("meter-rate", guardrails.meter_rate_bps(mean, rate)))
    if not _meter_fits(section, mean, meter, rate, report) or not section.settled("burst", "queue"):
        return None
    if asked is None:
        burst = int(section.get("burst", guardrails.burst_bits(arrives, meter)))
        queue = int(section.get("queue", guardrails.packet_queue_bits(arrives, burst, meter, rate)))
    else:
        burst = int(section.get("burst", guardrails.request_burst_bits(arrives, asked, meter, rate)))
        queue = int(section.get("queue", guardrails.request_queue_bits(burst, rate, asked.crowding, _late_s(tenant))))
    largest = arrives.size_bits if asked is None else FULL_FRAME_BITS
    fits = [_holds_a_packet(section, key, bits, largest, report) for key, bits in (("burst", burst), ("queue", queue))]
    if burst > LARGEST_BUCKET_BITS:
        report.add(
            section.line,
            section.where,
            found=f"a mean of {_rate(mean)} so near the meter's {_rate(meter)} that its burst would be "
            f"{quantity(burst, SIZE)}",
            expected=f"a burst of at most {quantity(LARGEST_BUCKET_BITS, SIZE)}",
            remedy="reserve more, or choose the burst yourself",
        )
        return None
    return Reservation(rate, meter, burst, queue) if all(fits) else None


def _late_s(tenant: Section) -> float | None:
    """After which an answer is late, None where nothing is promised or it cannot be used."""
    section: Section | None = tenant.get("promise")
    deadline = None if section is None else section.get("deadline")
    return None if deadline is None else float(deadline)


def promise(tenant: Section, propagation_s: Fraction | None, report: Report) -> Promise | None:
    """The promise to `tenant`, None if there is none or it cannot be used.

    Args:
        tenant: The tenant's section.
        propagation_s: Propagation delay of the tenant's path, None where it is not known.
        report: Receives the findings.
    """
    section: Section | None = tenant.get("promise")
    if section is None:
        return None
    if tenant.settled("reservation") and tenant.get("reservation") is None:
        report.add(
            tenant.line_of("promise"),
            f"{tenant.where}: promise",
            found="a promise to a tenant without a reservation",
            expected="promises only where every domain reserves a rate: best effort has no bound",
            remedy="add a reservation, or delete the promise",
        )
    deadline: Fraction | None = section.get("deadline")
    if deadline is not None and propagation_s is not None and deadline <= propagation_s:
        report.add(
            section.line_of("deadline"),
            f"{section.where}.deadline",
            found=quantity(deadline, TIME),
            expected=f"more than the {quantity(propagation_s, TIME)} that propagation alone takes on the tenant's path",
            remedy="allow more time, shorten link-delay, or choose a nearer site",
        )
    if section.unusable or deadline is None:
        return None
    return Promise(float(deadline), float(section.get("epsilon")), float(section.get("confidence", 0.95)))


def misbehaviour(
    tenant: Section, arrives: Arrivals | None, reserved: Reservation | None, report: Report
) -> Misbehaviour | None:
    """How `tenant` breaks its declaration, None if it does not or this cannot be used."""
    section: Section | None = tenant.get("misbehaviour")
    if section is None or section.unusable:
        return None
    if section.get("kind") == "flood":
        offered: Fraction = section.get("offered")
        _check_flood(tenant, section, offered, reserved, report)
        return Misbehaviour("flood", offered_bps=float(offered))
    if arrives is not None and not isinstance(arrives, OnOffArrivals | MmppArrivals):
        model = tenant.get("arrivals").get("model")
        report.add(
            section.line_of("kind"),
            f"{section.where}.kind",
            found=f"correlated bursts with the arrival model {model}",
            expected="the arrival model on-off or mmpp: tenants of a group share the state that makes their bursts",
            remedy="declare on-off or mmpp arrivals, or delete the misbehaviour",
        )
    return Misbehaviour("correlated", group=section.get("group"), strength=section.get("strength"))


def presence(tenant: Section, duration_s: float, report: Report) -> tuple[Interval, ...] | None:
    """When `tenant` is there in a measured window of `duration_s`, None for always or if it cannot be used."""
    visits: tuple[Section, ...] | None = tenant.get("present")
    if visits is None:
        return None
    before = len(report.findings)
    _require_no_clock_of_others(tenant, report)
    last = Fraction(0)
    for visit in visits:
        begin, end = visit.get("from"), visit.get("until")
        if begin is not None and begin < last:
            report.add(
                visit.line_of("from"),
                f"{visit.where}.from",
                found=quantity(begin, TIME),
                expected=f"{quantity(last, TIME)} or later, when the time of presence before it is over",
                remedy="write them in order, one after the other",
            )
        if begin is not None and end is not None and end <= begin:
            report.add(
                visit.line_of("until"),
                f"{visit.where}.until",
                found=quantity(end, TIME),
                expected=f"later than {quantity(begin, TIME)}, when it comes",
                remedy="let it stay a while",
            )
        last = end if end is not None else last
    if len(report.findings) == before and last > duration_s:
        report.add(
            tenant.line_of("present"),
            f"{tenant.where}: present",
            found=f"a presence until {quantity(last, TIME)}",
            expected=f"the window's {quantity(Fraction(duration_s), TIME)} at most",
            remedy="let it leave earlier, or raise duration",
        )
    if len(report.findings) > before or any(visit.unusable for visit in visits):
        return None
    return tuple((float(visit.get("from")), float(visit.get("until"))) for visit in visits)


def _require_no_clock_of_others(tenant: Section, report: Report) -> None:
    """Arrivals stand still while a tenant is away, which those that follow another clock cannot."""
    breach: Section | None = tenant.get("misbehaviour")
    what = "requests" if tenant.get("requests") is not None else ""
    if breach is not None and breach.get("kind") == "correlated":
        what = "bursts that follow a group"
    if what:
        report.add(
            tenant.line_of("present"),
            f"{tenant.where}: present",
            found=f"times of presence of a tenant with {what}",
            expected="them only where arrivals are packets of the tenant's own process",
            remedy="delete present, and the tenant is always there",
        )


def _check_flood(
    tenant: Section, section: Section, offered: Fraction, reserved: Reservation | None, report: Report
) -> None:
    if tenant.settled("reservation") and tenant.get("reservation") is None:
        report.add(
            section.line,
            section.where,
            found="a flood from a tenant without a reservation",
            expected="a reservation, whose meter the flood meets: best effort has no contract to break",
            remedy="add a reservation, or declare the higher rate under arrivals",
        )
    elif reserved is not None and offered <= reserved.meter_rate_bps:
        report.add(
            section.line_of("offered"),
            f"{section.where}.offered",
            found=quantity(offered, RATE),
            expected=f"more than the {_rate(reserved.meter_rate_bps)} that the tenant's meter lets pass",
            remedy="offer more, or delete the misbehaviour",
        )


def _mean_fits(section: Section, mean: float, rate: int, report: Report) -> bool:
    if mean < rate:
        return True
    report.add(
        section.line_of("rate"),
        f"{section.where}.rate",
        found=_rate(rate),
        expected=f"more than the tenant's mean of {_rate(mean)}, or its queue grows without end",
        remedy="reserve more, or send less",
    )
    return False


def _meter_fits(section: Section, mean: float, meter: int, rate: int, report: Report) -> bool:
    if mean < meter < rate:
        return True
    derived = " (half-way between the two, in whole kbit/s)" if "meter-rate" not in section.lines else ""
    report.add(
        section.line_of("meter-rate"),
        f"{section.where}.meter-rate",
        found=_rate(meter) + derived,
        expected=f"more than the tenant's mean of {_rate(mean)}, or the meter drops conforming packets, and less than "
        f"the reserved {_rate(rate)}, or the queue never drains",
        remedy="reserve more" if derived else "choose a rate between them, or delete meter-rate",
    )
    return False


def _holds_a_packet(section: Section, key: str, bits: int, packet_bits: int, report: Report) -> bool:
    if bits >= packet_bits:
        return True
    report.add(
        section.line_of(key),
        f"{section.where}.{key}",
        found=quantity(bits, SIZE),
        expected=f"at least one packet of {quantity(packet_bits, SIZE)}, or none ever passes",
        remedy=f"allow for ten packets or more, or delete {key} to have it derived",
    )
    return False


def _rate(bps: float) -> str:
    return quantity(bps, RATE)
