"""Reads a federation file: operators that compete for segments, and the intents of tenants.

The same vocabulary, units and manners as scenario files: everything that is wrong is reported together, each finding
with its line, what was found, what was expected and what to do about it. `python -m testbed.scenario.market` prints the
JSON Schema that ships with the package.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

from testbed.scenario import arrivals, document, fault_rules
from testbed.scenario.arrival_fields import ARRIVALS
from testbed.scenario.definition import RUN_FIELDS, run_settings
from testbed.scenario.document import Mapping
from testbed.scenario.fault_fields import FEDERATION_FAULT, MOST_FAULTS
from testbed.scenario.federation import Intent, Market, Operator, ServedModel, Site
from testbed.scenario.fields import Field, ListOf, Record, Section, Variants, require_unique
from testbed.scenario.model import OnOffArrivals, PoissonArrivals, RenewalArrivals
from testbed.scenario.problems import Report, did_you_mean
from testbed.scenario.tenant_fields import ACCURACIES, MODELS, promised
from testbed.scenario.units import RATE, TIME, quantity
from testbed.scenario.values import UNUSABLE, Boolean, Choice, Name, Names, Number, Quantity

MOST_SEGMENTS, MOST_OPERATORS, MOST_MODELS, MOST_INTENTS = 8, 16, 32, 5000
SOFTWARE_DRAIN_BPS = 400_000_000
"""What a software switch drains a port at, where the file does not say better."""

_KBIT = 1000
_RATE = Quantity(RATE, Fraction(_KBIT), Fraction(10**12), _KBIT, "links and classes are set in whole kbit/s")
_DELAY = Quantity(TIME, Fraction(0), Fraction(1))
_WORK = Quantity(TIME, Fraction(1, 10**7), Fraction(60))
_PRICE = Number("a price per hour", 0, 1e9)

_MODEL = Record(
    "a model",
    (
        Field("name", Name(), "Unique at its site.", required=True),
        Field("task", Name(), "What it answers.", required=True),
        Field("work", _WORK, "Longest computation of a request on one worker.", required=True),
        Field(
            "accuracy",
            Number("an accuracy", 0, 1, remedy="write 0.98 for 98 %"),
            "Share of answers that are right. Left out: what the record of a shipped model says.",
        ),
    ),
)

_SITE = Record(
    "a site",
    (
        Field("workers", Number("a number of workers", 1, 4096, whole=True), "Workers of its server.", required=True),
        Field("seats", Number("a number of tenants", 1, 10_000, whole=True), "Most tenants that share it.", default=16),
        Field("price", _PRICE, "Of the whole server, per hour.", required=True),
        Field("models", ListOf("model", _MODEL, MOST_MODELS), "What it serves.", required=True),
    ),
)

_OPERATOR = Record(
    "an operator",
    (
        Field("name", Name(), "Unique among all operators: the domain's name.", required=True),
        Field("link-rate", _RATE, "Rate of its links.", required=True),
        Field("reservable", _RATE, "Largest sum of reservations. Left out: two fifths of the drain rate, or the link."),
        Field(
            "classes", Number("a number of classes", 1, 60_000, whole=True), "Most reservations it holds.", default=64
        ),
        Field("drain-rate", _RATE, "Rate at which its ports are drained.", default="400 Mbit/s"),
        Field("link-delay", _DELAY, "One-way propagation delay of the link that leaves it.", default="0 ms"),
        Field("host-allowance", _DELAY, "Part of its latency granted to an emulating host.", default="0 ms"),
        Field("price", _PRICE, "Of a reserved Mbit/s, per hour.", required=True),
        Field(
            "calibrated",
            Boolean(),
            "Whether it signs how late packets were in a warm-up; else it declares that none is later than it says.",
            default=False,
        ),
        Field("site", _SITE, "Its inference server. Left out: it only forwards."),
    ),
)

_SEGMENT = Record(
    "a segment",
    (
        Field("name", Name(), "Unique among the segments.", required=True),
        Field(
            "operators",
            ListOf("operator", _OPERATOR, MOST_OPERATORS),
            "Who sells it; a tenant's requests cross one of them.",
            required=True,
        ),
    ),
)

_REQUEST_ARRIVALS = Variants(
    "an arrival model",
    "model",
    {name: record for name, record in ARRIVALS.records.items() if name not in {"mmpp", "trace"}},
    help="How requests arrive; the size is that of a message.",
)

_INTENT = Record(
    "an intent",
    (
        Field("name", Name(), "Of the tenant; unique among the intents.", required=True),
        Field("task", Name(), "What is to be answered.", required=True),
        Field("accuracy", Number("an accuracy", 0, 1, remedy="write 0.98 for 98 %"), "Least accuracy.", default=0),
        *promised(
            "requests",
            deadline="From a request's intended time to its answer.",
            epsilon="Share of requests that may miss it.",
        ),
        Field("arrivals", _REQUEST_ARRIVALS, "How requests arrive, and how large they are.", required=True),
        Field("price", _PRICE, "The most it pays per hour.", required=True),
        Field("domains", Names("domain", MOST_SEGMENTS * MOST_OPERATORS), "The only ones it may cross. Left out: any."),
    ),
)

MARKET = Record(
    "a federation",
    (
        *RUN_FIELDS,
        Field(
            "rule",
            Choice(("none", "peak", "deterministic", "stochastic")),
            "Admission rule: what is reserved for a tenant.",
            default="stochastic",
        ),
        Field(
            "segments",
            ListOf("segment", _SEGMENT, MOST_SEGMENTS),
            "Parts of the path, in the order in which requests cross them.",
            required=True,
        ),
        Field(
            "intents",
            ListOf("intent", _INTENT, MOST_INTENTS),
            "What tenants want, first come first served.",
            required=True,
        ),
        Field(
            "faults",
            ListOf("fault", FEDERATION_FAULT, MOST_FAULTS),
            "What is broken on purpose in each measured window; nobody is to fail by it. Left out: nothing.",
        ),
    ),
)


def load(path: Path) -> Market:
    """The federation in the file at `path`.

    Raises:
        ScenarioFileError: Anything is wrong with it; all findings together.
    """
    report = Report(path)
    root = document.read(path, report)
    checked = UNUSABLE if root is None else MARKET.check(root, "", report)
    found = _check(checked, path, report) if isinstance(checked, Section) else None
    report.raise_if_any()
    # _check gives nothing only after a finding.
    if found is None:
        raise AssertionError(f"{path}: refused without a finding")
    return found


def is_market(path: Path) -> bool:
    """Whether a file is meant as a federation: it has segments and no domains of its own."""
    return _has(path, "segments", "domains")


def is_scenario(path: Path) -> bool:
    """Whether a file is meant as a scenario: it has domains of its own and no segments."""
    return _has(path, "domains", "segments")


def _has(path: Path, key: str, not_key: str) -> bool:
    root = document.read(path, Report(path))
    return isinstance(root, Mapping) and root.get(key) is not None and root.get(not_key) is None


def schema() -> dict[str, Any]:
    """JSON Schema of a federation file, derived from the table above."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tail latency testbed federation",
        "description": "What operators sell and what tenants intend.",
        **MARKET.schema(),
    }


def schema_text() -> str:
    """The schema as it ships with the package."""
    return resources.files("testbed.scenario").joinpath("federation.schema.json").read_text(encoding="utf-8")


def _check(section: Section, path: Path, report: Report) -> Market | None:
    segments: tuple[Section, ...] = section.get("segments", ())
    sold: list[tuple[Section, Section]] = [(s, o) for s in segments for o in s.get("operators", ())]
    intents: tuple[Section, ...] = section.get("intents", ())
    require_unique("segment", segments, report)
    require_unique("operator", [operator for _, operator in sold], report)
    require_unique("intent", intents, report)
    operators = [_operator(segment, operator, report) for segment, operator in sold]
    if section.settled("segments") and not any(_may_serve(operator) for _, operator in sold):
        report.add(
            section.line_of("segments"),
            "segments",
            found="no operator with a site",
            expected="at least one, because intents are answered somewhere",
            remedy="add a site to the last operator",
        )
    names = [operator.get("name") for _, operator in sold]
    wanted = [_intent(intent, names, path.parent, report) for intent in intents]
    broken = fault_rules.faults(section, [operator for _, operator in sold], (), report)
    if report.findings:
        return None
    return Market(
        **run_settings(section),
        segments=tuple(segment.get("name") for segment in segments),
        operators=tuple(operator for operator in operators if operator is not None),
        intents=tuple(intent for intent in wanted if intent is not None),
        rule=section.get("rule", "stochastic"),
        source=path.resolve(),
        faults=broken,
    )


def _may_serve(operator: Section) -> bool:
    return operator.get("site") is not None or not operator.settled("site")


def _operator(segment: Section, section: Section, report: Report) -> Operator | None:
    if not section.settled("link-rate", "reservable", "drain-rate", "classes"):
        return None
    link = section.get("link-rate")
    if link is None:
        return None
    drain = int(section.get("drain-rate", SOFTWARE_DRAIN_BPS))
    reservable = int(section.get("reservable", min(Fraction(drain * 2 // 5), link)))
    _require_reservable(section, reservable, int(link), drain, report)
    site_section: Section | None = section.get("site")
    site = None if site_section is None else _site(site_section, report)
    if section.unusable or segment.get("name") is None:
        return None
    return Operator(
        name=section.get("name"),
        segment=segment.get("name"),
        link_rate_bps=int(link),
        reservable_bps=reservable,
        classes=section.get("classes", 64),
        drain_bps=float(drain),
        price_per_mbps=float(section.get("price")),
        link_delay_s=float(section.get("link-delay", 0)),
        host_allowance_s=float(section.get("host-allowance", 0)),
        site=site,
        calibrated=section.get("calibrated", False),
    )


def _require_reservable(section: Section, reservable: int, link: int, drain: int, report: Report) -> None:
    place = f"{section.where}: reservable"
    if reservable > link:
        report.add(
            section.line_of("reservable"),
            place,
            found=quantity(reservable, RATE),
            expected=f"no more than the {quantity(link, RATE)} of its links",
            remedy="sell less, or raise link-rate",
        )
    if 2 * reservable >= drain:
        report.add(
            section.line_of("reservable"),
            place,
            found=f"{quantity(reservable, RATE)} on ports that drain {quantity(drain, RATE)}",
            expected="less than half of it, or a class's turn comes too late to keep its rate",
            remedy="sell less, or state the drain-rate of better ports",
        )


def _site(section: Section, report: Report) -> Site | None:
    models = section.get("models", ())
    require_unique("model", models, report)
    served = [_model(model, report) for model in models]
    if section.unusable or any(model is None for model in served):
        return None
    return Site(
        workers=section.get("workers"),
        seats=section.get("seats", 16),
        price=float(section.get("price")),
        models=tuple(model for model in served if model is not None),
    )


def _model(section: Section, report: Report) -> ServedModel | None:
    name = section.get("name")
    accuracy = section.get("accuracy", ACCURACIES.get(name or ""))
    if accuracy is None and section.settled("accuracy", "name"):
        report.add(
            section.line,
            section.where,
            found="no accuracy",
            expected=f"one, because only {', '.join(MODELS)} have a record",
            remedy="add accuracy",
        )
    if section.unusable or accuracy is None:
        return None
    return ServedModel(name, section.get("task"), float(accuracy), float(section.get("work")))


def _intent(section: Section, operators: list[str | None], folder: Path, report: Report) -> Intent | None:
    declared: Section | None = section.get("arrivals")
    arrives = None if declared is None else arrivals.process(declared, folder, report)
    if isinstance(arrives, RenewalArrivals) and arrives.gap == "hyperexponential" and declared is not None:
        report.add(
            declared.line_of("gap"),
            f"{declared.where}.gap",
            found="hyperexponential gaps",
            expected="deterministic, erlang or gamma ones, for which a bound on requests is known",
            remedy="choose gap: gamma with the same cv",
        )
    allowed = section.get("domains")
    for name, line in allowed or ():
        # An operator whose name is unusable may be the one that is meant.
        if name not in operators and None not in operators:
            known = list(dict.fromkeys(operator for operator in operators if operator is not None))
            report.add(
                line,
                f"{section.where}: domains",
                found=f"the unknown domain {name}",
                expected=f"operators of this file ({', '.join(known)})",
                remedy=did_you_mean(name, known, "choose among these"),
            )
    if section.unusable or not isinstance(arrives, PoissonArrivals | OnOffArrivals | RenewalArrivals):
        return None
    return Intent(
        tenant=section.get("name"),
        task=section.get("task"),
        accuracy=float(section.get("accuracy", 0)),
        deadline_s=float(section.get("deadline")),
        epsilon=float(section.get("epsilon")),
        arrivals=arrives,
        price=float(section.get("price")),
        domains=None if allowed is None else frozenset(name for name, _ in allowed),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
