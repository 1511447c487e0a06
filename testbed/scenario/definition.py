"""The scenario file format, version 1, as tables: keys, kinds of values, ranges, defaults and what they mean.

The loader checks files against these tables and `schema()` derives the JSON Schema that ships with the package
(`python -m testbed.scenario.definition` prints it). Tables of what a scenario is made of have modules of their own;
rules between several values are `testbed.scenario.tenants`'.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from importlib import resources
from typing import Any

from testbed.scenario.fault_fields import FAULT, MOST_FAULTS
from testbed.scenario.fields import Field, ListOf, Record, Section
from testbed.scenario.model import Datapath
from testbed.scenario.ranges import LINK_RATE, MOST_TENANTS, QUEUE
from testbed.scenario.tenant_fields import TENANT
from testbed.scenario.units import TIME
from testbed.scenario.values import Boolean, Choice, Name, Number, Quantity

MOST_DOMAINS = 8

_LINK_DELAY = Quantity(TIME, Fraction(0), Fraction(1))
_EXCESS = Quantity(TIME, Fraction(1, 10**6), Fraction(10))
_DURATION = Quantity(TIME, Fraction(1), Fraction(7200))

_DOMAIN = Record(
    "a domain",
    (
        Field("name", Name(), "Unique among the domains.", required=True),
        Field(
            "link-rate", LINK_RATE, "Rate of the domain's links; reservations may not add up to more.", required=True
        ),
        Field(
            "link-delay",
            _LINK_DELAY,
            "One-way propagation delay of the link that leaves the domain; needs netem.",
            default="0 ms",
        ),
        Field("compute", Boolean(), "Whether tenants can be served behind this domain.", default=False),
        Field(
            "shared-queue",
            QUEUE,
            "Size of one FIFO queue at the link's rate, in each port, for all tenants that cross the domain; nothing "
            "can be reserved then. Left out: everybody has a queue of its own.",
        ),
        Field(
            "excess",
            Record(
                "random excess latency",
                (
                    Field("mean", _EXCESS, "Mean of its exponential law.", required=True),
                    Field("share", Number("a share", 1e-9, 1), "Share of the packets that have any.", default=1),
                ),
            ),
            "Latency that packets have at random behind the domain's port, for testbed simulate and sweep; one that is "
            "late holds up those behind it. Left out: none.",
        ),
        Field(
            "loss",
            Number("a probability", 0, 1),
            "Probability that the domain loses a packet at random, for testbed simulate and sweep.",
            default=0,
        ),
    ),
)

RUN_FIELDS = (
    Field("name", Name(), "Short name, used for the run's folder.", required=True),
    Field("seed", Number("a seed", 0, 2**32 - 1, whole=True), "Root of every random stream.", default=1),
    Field("warm-up", _DURATION, "Calibration traffic before the measured window.", default="10 s"),
    Field("duration", _DURATION, "Length of the measured window.", default="60 s"),
    Field(
        "cool-down",
        _DURATION,
        "Calibration traffic behind each measured window: what an idle path takes is then known on both sides of it, "
        "so that a host may drift. Left out: none.",
    ),
    Field(
        "datapath",
        Choice(("auto", "userspace", "kernel")),
        "Open vSwitch datapath; auto takes the kernel's where it works.",
        default="auto",
    ),
    Field(
        "allow-zero-delay",
        Boolean(),
        "Whether link delays may become zero, in the network and in the bound, on a host without netem.",
        default=False,
    ),
)
"""How a file is run, whatever it describes; `run_settings` reads them."""

SCENARIO = Record(
    "a scenario",
    (
        *RUN_FIELDS,
        Field(
            "domains",
            ListOf("domain", _DOMAIN, MOST_DOMAINS),
            "Operators' domains in the order a packet crosses them.",
            required=True,
        ),
        Field("tenants", ListOf("tenant", TENANT, MOST_TENANTS), "Everyone who sends.", required=True),
        Field(
            "faults",
            ListOf("fault", FAULT, MOST_FAULTS),
            "What is broken on purpose in each measured window, and who fails by it. Left out: nothing.",
        ),
    ),
)


def run_settings(section: Section) -> dict[str, Any]:
    """The values of `RUN_FIELDS` in a checked file, by attribute of what is built from it."""
    return {
        "name": section.get("name"),
        "seed": section.get("seed", 1),
        "warmup_s": float(section.get("warm-up", 10)),
        "duration_s": float(section.get("duration", 60)),
        "cooldown_s": float(section.get("cool-down", 0)),
        "datapath": Datapath(section.get("datapath", "auto")),
        "allow_zero_delay": section.get("allow-zero-delay", False),
    }


def schema() -> dict[str, Any]:
    """JSON Schema of a scenario file, derived from the table above."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tail latency testbed scenario",
        "description": "What operators offer, what tenants send and what they were promised.",
        **SCENARIO.schema(),
    }


def schema_text() -> str:
    """The schema as it ships with the package, for editors and for `testbed validate --schema`."""
    return resources.files("testbed.scenario").joinpath("schema.json").read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
