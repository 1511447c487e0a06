"""One tenant of a scenario file: from checked sections to the model, with the rules between a tenant's own values.

What one tenant declares must make sense by itself: a mean below what it reserves, a meter between the two, a bucket
that holds a packet, a trace that can be read. A rule that needs a value which is already known to be wrong is skipped.
Rules between tenants and domains are `testbed.scenario.loader`'s.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

from testbed.errors import ScenarioError
from testbed.scenario import guardrails
from testbed.scenario.fields import Section
from testbed.scenario.model import (
    FULL_FRAME_BITS,
    Arrivals,
    Interval,
    Misbehaviour,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    Promise,
    RenewalArrivals,
    Reservation,
    TraceArrivals,
)
from testbed.scenario.problems import Report
from testbed.scenario.ranges import LARGEST_BUCKET_BITS, LARGEST_FRAME_BYTES
from testbed.scenario.units import FREQUENCY, RATE, SIZE, TIME, Dimension, quantity
from testbed.traffic.arrivals import mean_bps
from testbed.traffic.modulation import stationary
from testbed.traffic.request_demand import Demand

_ERLANG_TOLERANCE = 0.01


def arrivals(tenant: Section, folder: Path, report: Report) -> Arrivals | None:
    """The arrival process of `tenant`, None if it cannot be used.

    Args:
        tenant: The tenant's section.
        folder: Where relative paths of traces start.
        report: Receives the findings.
    """
    section: Section | None = tenant.get("arrivals")
    if section is None:
        return None
    before = len(report.findings)
    built = process(section, folder, report)
    if tenant.settled("requests") and tenant.get("requests") is None:
        _require_frames(section, report)
    return built if len(report.findings) == before else None


def process(section: Section, folder: Path, report: Report) -> Arrivals | None:
    """An arrival process by itself, whatever arrives, None if it cannot be used; arguments as `arrivals`."""
    before = len(report.findings)
    match section.get("model"):
        case "trace":
            built: Arrivals | None = _trace(section, folder, report)
        case "renewal":
            built = _renewal(section, report)
        case _ if section.unusable:
            built = None
        case "mmpp":
            built = _mmpp(section, report)
        case "poisson":
            built = PoissonArrivals(_per_second(section, section.get("size")), int(section.get("size")))
        case _:
            peak, on, off = (float(section.get(key)) for key in ("peak", "mean-on", "mean-off"))
            built = OnOffArrivals(peak, on, off, int(section.get("size")))
    return built if len(report.findings) == before else None


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


def _require_frames(section: Section, report: Report) -> None:
    size: Fraction | None = section.get("size")
    if size is not None and size > FULL_FRAME_BITS:
        report.add(
            section.line_of("size"),
            f"{section.where}.size",
            found=quantity(size, SIZE),
            expected=f"a packet of at most {quantity(FULL_FRAME_BITS, SIZE)}",
            remedy="choose a smaller size, or add requests: whose messages may be larger",
        )


def _per_second(section: Section, size: Fraction) -> float:
    dimension: Dimension
    dimension, value = section.get("rate")
    return float(value if dimension is FREQUENCY else value / size)


def _mmpp(section: Section, report: Report) -> MmppArrivals | None:
    states: tuple[Section, ...] = section.get("states")
    rows = [_next(state, number, len(states), report) for number, state in enumerate(states)]
    found = tuple(row for row in rows if row is not None)
    if len(found) < len(states):
        return None
    rates = tuple(_per_second(state, section.get("size")) for state in states)
    try:
        mean = float(stationary(found) @ rates)
    except ScenarioError:
        remedy = "let every state lead back, or leave out next"
        expected = "every state to be reached from every other, in some steps"
        place = section.line_of("states"), f"{section.where}.states"
        report.add(*place, found="a state that is never left or never reached", expected=expected, remedy=remedy)
        return None
    if not mean > 0:
        expected = "a rate above 0 in one of them"
        place = section.line_of("states"), f"{section.where}.states"
        report.add(*place, found="states that all send nothing", expected=expected, remedy="raise a rate")
        return None
    return MmppArrivals(rates, found, int(section.get("size")))


def _next(state: Section, number: int, states: int, report: Report) -> tuple[float, ...] | None:
    """Rates at which a state is left for each other one, None if they cannot be used."""
    if state.unusable:
        return None
    following = [0.0] * states
    following[(number + 1) % states] = 1.0
    weights: tuple[float, ...] = state.get("next", tuple(following))
    if len(weights) != states or weights[number] or not sum(weights):
        report.add(
            state.line_of("next"),
            f"{state.where}.next",
            found="a single state" if states == 1 else ", ".join(f"{weight:g}" for weight in weights),
            expected=f"a weight for each of the {states} states, 0 for the state itself and more for another"
            if states > 1
            else "at least two states, or nothing is modulated",
            remedy="correct the list, or leave it out to go through the states in turn"
            if states > 1
            else "add a state, or choose model: poisson",
        )
        return None
    leave = float(sum(weights) * state.get("stay"))
    return tuple(weight / leave for weight in weights)


def _renewal(section: Section, report: Report) -> RenewalArrivals | None:
    gap, cv = section.get("gap"), section.get("cv")
    if gap is not None and section.settled("cv"):
        _check_cv(section, gap, cv, report)
    if section.unusable:
        return None
    return RenewalArrivals(_per_second(section, section.get("size")), gap, cv or 0.0, int(section.get("size")))


def _check_cv(section: Section, gap: str, cv: float | None, report: Report) -> None:
    wanted = {
        "deterministic": ("0, or no cv,", "delete cv, or choose another gap"),
        "erlang": ("1/sqrt(k) with a whole k, such as 0.7071 or 0.5,", "choose the nearest such value, or gap: gamma"),
        "gamma": ("a value above 0", "add cv: 1 gives a Poisson process, more is burstier"),
        "hyperexponential": ("a value above 1", "choose a larger cv, or gap: gamma"),
    }
    fits = {
        "deterministic": not cv,
        "erlang": bool(cv) and cv is not None and _is_erlang(cv),
        "gamma": bool(cv),
        "hyperexponential": cv is not None and cv > 1,
    }
    if not fits[gap]:
        expected, remedy = wanted[gap]
        found = "no cv" if cv is None else f"{cv:g}"
        place = f"{section.where}.cv"
        report.add(section.line_of("cv"), place, found=found, expected=f"{expected} for the gap {gap}", remedy=remedy)


def _is_erlang(cv: float) -> bool:
    stages = max(1, round(1 / cv**2))
    return abs(cv * math.sqrt(stages) - 1) <= _ERLANG_TOLERANCE


def _trace(section: Section, folder: Path, report: Report) -> TraceArrivals | None:
    trace_format, bits_per_token = section.get("format"), section.get("bits-per-token")
    counts_tokens = trace_format not in {None, "packets"}
    if counts_tokens and bits_per_token is None and section.settled("bits-per-token"):
        report.add(
            section.line,
            section.where,
            found="no bits-per-token",
            expected="bits-per-token: the bits that one context token stands for, such as 16",
            remedy="add bits-per-token",
        )
        return None
    if trace_format == "packets" and bits_per_token is not None:
        report.add(
            section.line_of("bits-per-token"),
            f"{section.where}.bits-per-token",
            found=f"{bits_per_token} with the format packets",
            expected="bits-per-token only where requests are counted in tokens: a row of packets has its own size",
            remedy="delete bits-per-token",
        )
    length: Fraction | None = section.get("length")
    if trace_format == "servegen" and length is None and section.settled("length"):
        report.add(
            section.line,
            section.where,
            found="no length",
            expected="length: how much of the client's time requests are drawn for, such as 1 h",
            remedy="add length, and from where the client is busy later",
        )
        return None
    if section.unusable:
        return None
    built = TraceArrivals(
        path=(folder / section.get("file")).resolve(),
        format=trace_format,
        speed_up=float(section.get("speed-up", 1.0)),
        bits_per_token=bits_per_token or 0,
        size_bits=int(section.get("size", 8 * LARGEST_FRAME_BYTES)),
        start_s=float(section.get("from", 0)),
        span_s=None if length is None else float(length),
    )
    if not built.path.is_file():
        report.add(
            section.line_of("file"),
            f"{section.where}.file",
            found=f"no file {built.path}",
            expected="the path of a trace, relative to the scenario file",
            remedy="correct the path, or fetch the trace",
        )
        return None
    try:
        mean_bps(built)
    except ScenarioError as error:
        for problem in error.problems:
            report.quote(section.line_of("file"), f"{section.where}.file", problem)
    return built


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
