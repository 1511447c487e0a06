"""Arrivals of a scenario file: from a checked section to the process, with the rules between its own values.

States that lead to each other, a variation that the gap can have, a trace that can be read. What else a tenant declares
is `testbed.scenario.tenants`'.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

from testbed.errors import ScenarioError
from testbed.scenario.fields import Section
from testbed.scenario.model import (
    FULL_FRAME_BITS,
    Arrivals,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    TraceArrivals,
)
from testbed.scenario.problems import Report
from testbed.scenario.ranges import LARGEST_FRAME_BYTES
from testbed.scenario.units import FREQUENCY, SIZE, Dimension, quantity
from testbed.traffic.arrivals import mean_bps
from testbed.traffic.modulation import stationary

_ERLANG_TOLERANCE = 0.01


def of_tenant(tenant: Section, folder: Path, report: Report) -> Arrivals | None:
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
    """An arrival process by itself, whatever arrives, None if it cannot be used; arguments as `of_tenant`."""
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
