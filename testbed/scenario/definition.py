"""The scenario file format, version 1, as one table: keys, kinds of values, ranges, defaults and what they mean.

The loader checks files against this table and `schema()` derives the JSON Schema that ships with the package
(`python -m testbed.scenario.definition` prints it). Rules between several values are `testbed.scenario.tenants`'.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from importlib import resources
from typing import Any

from testbed.scenario.fields import Field, ListOf, Record, Section
from testbed.scenario.fields import Variants as _Variants
from testbed.scenario.model import FULL_FRAME_BITS, Datapath
from testbed.scenario.units import FREQUENCY, RATE, SIZE, TIME
from testbed.scenario.values import ArrivalRate, Boolean, Choice, Name, Names, Number, Numbers, Quantity, Text

MOST_DOMAINS = 8
MOST_TENANTS = 500
MOST_FAULTS = 32
MOST_STATES = 16
SMALLEST_FRAME_BYTES = 66
"""Ethernet, IPv4 and UDP headers and the 24 bytes by which the testbed recognises a packet."""
LARGEST_FRAME_BYTES = FULL_FRAME_BITS // 8
LARGEST_REQUEST_BYTES = 1_000_000
"""What inference servers of a run are told to accept."""
MOST_IMAGES = 1024
MODELS = tuple(json.loads(resources.files("inference_server").joinpath("weights/record.json").read_text())["models"])
"""The digit classifiers that ship with the inference server."""
TEXT_MODELS = ("text-small",)
"""Models that generate as many bytes as a trace has tokens."""
LARGEST_BUCKET_BITS = 4 * 10**9
"""Meters count kbit in 32 bits."""

_KBIT = 1000
_METER_STEP = "OpenFlow meters and tc classes are installed in whole kbit/s"
_TEN_GIGABIT = Fraction(10**10)

_LINK_RATE = Quantity(RATE, Fraction(_KBIT), _TEN_GIGABIT, _KBIT, _METER_STEP)
_LINK_DELAY = Quantity(TIME, Fraction(0), Fraction(1))
_RESERVED_RATE = Quantity(RATE, Fraction(8 * _KBIT), _TEN_GIGABIT, _KBIT, _METER_STEP)
_BIT_RATE = Quantity(RATE, Fraction(1), _TEN_GIGABIT)
_PACKET_RATE = Quantity(FREQUENCY, Fraction(1, 1000), Fraction(10**6))
_ARRIVAL_RATE = ArrivalRate(_BIT_RATE, _PACKET_RATE)
_STATE_RATE = ArrivalRate(Quantity(RATE, Fraction(0), _TEN_GIGABIT), Quantity(FREQUENCY, Fraction(0), Fraction(10**6)))
_BUCKET = Quantity(SIZE, Fraction(_KBIT), Fraction(LARGEST_BUCKET_BITS), _KBIT, "OpenFlow meters hold whole kbit")
_QUEUE = Quantity(SIZE, Fraction(1), Fraction(LARGEST_BUCKET_BITS))
_FRAME = Quantity(
    SIZE, Fraction(8 * SMALLEST_FRAME_BYTES), Fraction(8 * LARGEST_FRAME_BYTES), 8, "a frame is made of whole bytes"
)
_MESSAGE = Quantity(SIZE, Fraction(8), Fraction(8 * LARGEST_REQUEST_BYTES), 8, "a message is made of whole bytes")
_PACKET_OR_MESSAGE = Quantity(
    SIZE,
    Fraction(8 * SMALLEST_FRAME_BYTES),
    Fraction(8 * LARGEST_REQUEST_BYTES),
    8,
    "frames and messages are made of whole bytes",
)
_PHASE = Quantity(TIME, Fraction(1, 10**6), Fraction(3600))
_DEADLINE = Quantity(TIME, Fraction(1, 10**6), Fraction(3600))
_TIMEOUT = Quantity(TIME, Fraction(1, 1000), Fraction(60))
_TRACE_TIME = Quantity(TIME, Fraction(0), Fraction(10**8))
_DURATION = Quantity(TIME, Fraction(1), Fraction(7200))
_INSTANT = Quantity(TIME, Fraction(0), Fraction(7200))
MOST_VISITS = 100
_LONGER = Quantity(TIME, Fraction(1, 1000), Fraction(10))
_STEP = Quantity(TIME, Fraction(1, 1000), Fraction(1, 10))
_LASTS = Quantity(TIME, Fraction(1, 100), Fraction(7200))

_SIZE = Field(
    "size",
    _PACKET_OR_MESSAGE,
    "Size of every packet: an Ethernet frame without its checksum; of a tenant with requests, of every message.",
    required=True,
)

ARRIVALS = _Variants(
    "an arrival model",
    "model",
    {
        "poisson": Record(
            "Poisson arrivals",
            (
                Field("rate", _ARRIVAL_RATE, "Mean rate, in bits or packets per second.", required=True),
                _SIZE,
            ),
        ),
        "on-off": Record(
            "Markov on-off arrivals",
            (
                Field("peak", _BIT_RATE, "Rate while on.", required=True),
                Field("mean-on", _PHASE, "Mean of the exponential time on.", required=True),
                Field("mean-off", _PHASE, "Mean of the exponential time off.", required=True),
                _SIZE,
            ),
        ),
        "renewal": Record(
            "renewal arrivals",
            (
                Field("rate", _ARRIVAL_RATE, "Mean rate, in bits or packets per second.", required=True),
                Field(
                    "gap",
                    Choice(("deterministic", "erlang", "gamma", "hyperexponential")),
                    "Distribution of the gaps between packets.",
                    required=True,
                ),
                Field(
                    "cv",
                    Number("a coefficient of variation", 0, 20),
                    "Coefficient of variation of the gap: 0 if deterministic, 1/sqrt(k) for Erlang k, above 1 if "
                    "hyperexponential (two phases with balanced means).",
                ),
                _SIZE,
            ),
        ),
        "mmpp": Record(
            "Markov-modulated Poisson arrivals",
            (
                Field(
                    "states",
                    ListOf(
                        "state",
                        Record(
                            "a state",
                            (
                                Field("rate", _STATE_RATE, "Rate of Poisson arrivals in this state.", required=True),
                                Field("stay", _PHASE, "Mean of the exponential time in this state.", required=True),
                                Field(
                                    "next",
                                    Numbers(Number("a weight", 0, 1e6), MOST_STATES),
                                    "How often each state, in the order of the list, comes next; 0 for this one. "
                                    "Left out: always the one that is listed next, after the last the first.",
                                ),
                            ),
                        ),
                        MOST_STATES,
                    ),
                    "States of the Markov chain that decides the rate, at least two.",
                    required=True,
                ),
                _SIZE,
            ),
        ),
        "trace": Record(
            "arrivals from a trace",
            (
                Field("file", Text("the path of a trace"), "Path, relative to the scenario file.", required=True),
                Field(
                    "format",
                    Choice(("azure-llm", "burstgpt", "mooncake", "servegen", "packets")),
                    "azure-llm, burstgpt, mooncake: requests as their owners publish them; servegen: a client's "
                    "chunk-N-trace.csv, with its chunk-N-dataset.json beside it, from which requests are drawn; "
                    "packets: a table of time_s,size_bytes, a frame a row.",
                    required=True,
                ),
                Field(
                    "from",
                    _TRACE_TIME,
                    "Where in the trace's own time the stretch that is replayed begins.",
                    default="0 s",
                ),
                Field(
                    "length",
                    _TRACE_TIME,
                    "How much of the trace's own time is replayed; required with servegen. Left out: all the rest.",
                ),
                Field(
                    "speed-up",
                    Number("a factor", 0.001, 100_000),
                    "Factor by which the time of the trace is compressed.",
                    default=1,
                ),
                Field(
                    "bits-per-token",
                    Number("a number of bits", 1, 1_000_000, whole=True),
                    "Bits that one context token stands for (not with packets, whose rows have their sizes).",
                ),
                Field(
                    "size",
                    _FRAME,
                    "Largest packet; a request is cut into packets of this size and a remainder.",
                    default="1514 B",
                ),
            ),
        ),
    },
    help="The process that generates the tenant's packets.",
)

_RESERVATION = Record(
    "a reservation",
    (
        Field("rate", _RESERVED_RATE, "Rate R of the tenant's queue in every domain of its path.", required=True),
        Field(
            "meter-rate",
            _RESERVED_RATE,
            "Rate of the meter that polices the tenant, above its mean and below R. Left out: half-way between them.",
        ),
        Field(
            "burst",
            _BUCKET,
            "Bucket of the meter in the first domain. Left out: so large that conforming arrivals lose at most one "
            "packet in ten million to it.",
        ),
        Field(
            "queue",
            _QUEUE,
            "Limit of the tenant's queue in each domain. Left out: the burst and 50 ms of the reserved rate.",
        ),
    ),
)

_PROMISE = Record(
    "a promise",
    (
        Field("deadline", _DEADLINE, "A packet later than this is a miss, and so is a lost one.", required=True),
        Field(
            "epsilon",
            Number("a probability", 1e-6, 0.5, remedy="write 0.001 to promise the deadline to 99.9 % of the packets"),
            "Share of misses the promise allows.",
            required=True,
        ),
        Field(
            "confidence",
            Number("a confidence level", 0.5, 0.9999, remedy="write 0.95 for 95 %"),
            "Confidence at which the promise is judged.",
            default=0.95,
        ),
    ),
)

_MISBEHAVIOUR = _Variants(
    "a misbehaviour",
    "kind",
    {
        "flood": Record(
            "a flood", (Field("offered", _BIT_RATE, "Rate at which the tenant really sends.", required=True),)
        ),
        "correlated": Record(
            "correlated bursts",
            (
                Field("group", Name(), "Tenants whose bursts coincide have the same group.", required=True),
                Field(
                    "strength",
                    Number("a strength", 0, 1),
                    "Share of the group's changes between on and off that the tenant follows: 0 makes it independent, "
                    "1 brings it together with everybody of strength 1. Left out by the whole group: all are on and "
                    "off at the same times.",
                ),
            ),
        ),
    },
    help="How the tenant breaks its declaration on purpose.",
)

_REQUESTS = Record(
    "requests",
    (
        Field("model", Choice((*MODELS, *TEXT_MODELS)), "Model that answers them.", required=True),
        Field(
            "images",
            Number("a number of images", 1, MOST_IMAGES, whole=True),
            "Images in each; not with a model of text, whose requests are as long as the trace's tokens.",
            default=1,
        ),
        Field(
            "token-scale",
            Number("a factor", 1e-6, 1000),
            "Bytes of context, and of generated text, that a token of the trace stands for; only with a model of text.",
            default=1,
        ),
        Field(
            "sizes",
            Choice(("declared", "model", "tokens", "mixed")),
            "How large messages are. declared: padded to the size of the arrivals; model: what the images need; "
            "tokens: what the trace says; mixed: drawn from mix.",
            default="declared, with a trace tokens",
        ),
        Field(
            "mix",
            ListOf(
                "message size",
                Record(
                    "a message size",
                    (
                        Field("size", _MESSAGE, "Size of a message.", required=True),
                        Field("weight", Number("a weight", 1e-6, 1e6), "How often it occurs.", default=1),
                    ),
                ),
                64,
            ),
            "Sizes of messages, each drawn independently; only with sizes: mixed.",
        ),
        Field(
            "in-flight",
            Number("a number of requests", 1, 100_000, whole=True),
            "Most requests that may be unanswered; those due beyond it are never sent, and missed.",
            default=10_000,
        ),
        Field(
            "timeout",
            _TIMEOUT,
            "How long after its intended time an answer is waited for. Left out: the promise's deadline, or 10 s.",
        ),
        Field(
            "compute-share",
            Number("a fraction", 0.001, 1),
            "Share of the site's inference server that the tenant is guaranteed. Left out: an equal part of what the "
            "other tenants of the site leave.",
        ),
    ),
)

_DOMAIN = Record(
    "a domain",
    (
        Field("name", Name(), "Unique among the domains.", required=True),
        Field(
            "link-rate", _LINK_RATE, "Rate of the domain's links; reservations may not add up to more.", required=True
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
            _QUEUE,
            "Size of one FIFO queue at the link's rate, in each port, for all tenants that cross the domain; nothing "
            "can be reserved then. Left out: everybody has a queue of its own.",
        ),
    ),
)

_PRESENCE = Record(
    "a time of presence",
    (
        Field("from", _INSTANT, "When the tenant comes, from the start of the measured window.", required=True),
        Field("until", _INSTANT, "When it leaves.", required=True),
    ),
)

_TENANT = Record(
    "a tenant",
    (
        Field("name", Name(), "Unique among the tenants.", required=True),
        Field("site", Name(), "Domain that serves the tenant. Left out: the last one that offers compute."),
        Field("arrivals", ARRIVALS, "What the tenant declares that it sends.", required=True),
        Field("requests", _REQUESTS, "What each arrival asks of an inference server. Left out: arrivals are packets."),
        Field("reservation", _RESERVATION, "What the tenant buys in every domain. Left out: best effort."),
        Field("promise", _PROMISE, "What the tenant is promised; needs a reservation."),
        Field("misbehaviour", _MISBEHAVIOUR, "How the tenant breaks its declaration on purpose."),
        Field(
            "present",
            ListOf("time of presence", _PRESENCE, MOST_VISITS),
            "When the tenant is there in the measured window, in order. Left out: always.",
        ),
    ),
)

_FAULT_NAME = Field("name", Name(), "Unique among the faults.", required=True)
_FAULT_MOMENT = (
    Field("at", _INSTANT, "When it begins, from the start of the measured window.", required=True),
    Field("for", _LASTS, "How long it lasts.", required=True),
    Field("spread", _INSTANT, "It begins at a moment drawn by the seed from this long after at.", default="0 s"),
)
_FAULT_TIMES = (
    *_FAULT_MOMENT,
    Field(
        "fails",
        Names("tenant", MOST_TENANTS),
        "Tenants that must break their promise while it lasts. Everyone else with a promise must keep it.",
        default="nobody",
    ),
    Field(
        "recovers-within",
        _INSTANT,
        "How long after its end those who fail must keep their promise again.",
        default="1 s",
    ),
)
_FAULT_DOMAIN = Field("domain", Name(), "Domain it is done to.", required=True)
_FAULT_READY = Field("ready-within", _INSTANT, "How long what is started again may take to be ready.", required=True)

FAULT = _Variants(
    "a fault",
    "kind",
    {
        "link-down": Record("a link that goes down and up again", (_FAULT_NAME, _FAULT_DOMAIN, *_FAULT_TIMES)),
        "rate-change": Record(
            "a queue whose rate changes",
            (
                _FAULT_NAME,
                _FAULT_DOMAIN,
                Field("tenant", Name(), "Tenant whose queue it is.", required=True),
                Field("to", _RESERVED_RATE, "Rate of the queue while it lasts.", required=True),
                *_FAULT_TIMES,
            ),
        ),
        "loss": Record(
            "a burst of loss",
            (
                _FAULT_NAME,
                _FAULT_DOMAIN,
                Field("tenant", Name(), "Tenant whose packets are lost. Left out: everyone's."),
                Field(
                    "share", Number("a share", 0.001, 1), "Share of the packets that the domain loses.", required=True
                ),
                *_FAULT_TIMES,
            ),
        ),
        "delay": Record(
            "a way that becomes longer",
            (_FAULT_NAME, _FAULT_DOMAIN, Field("by", _LONGER, "How much longer.", required=True), *_FAULT_TIMES),
        ),
        "controller-killed": Record(
            "a controller that is killed and started again", (_FAULT_NAME, _FAULT_DOMAIN, *_FAULT_TIMES)
        ),
        "switch-killed": Record("Open vSwitch, of all domains, killed and started again", (_FAULT_NAME, *_FAULT_TIMES)),
        "server-killed": Record(
            "an inference server that is killed and started again",
            (_FAULT_NAME, _FAULT_DOMAIN, _FAULT_READY, *_FAULT_TIMES),
        ),
        "server-slowed": Record(
            "an inference server that computes more slowly",
            (
                _FAULT_NAME,
                _FAULT_DOMAIN,
                Field("factor", Number("a factor", 1.5, 10_000), "How many times as long it takes.", required=True),
                *_FAULT_TIMES,
            ),
        ),
        "server-wrong": Record(
            "an inference server that answers wrongly",
            (
                _FAULT_NAME,
                _FAULT_DOMAIN,
                Field("share", Number("a share", 0.05, 1), "Share of the answers that is wrong.", required=True),
                *_FAULT_TIMES,
            ),
        ),
        "clock-stepped": Record(
            "the host's clock set forward and back again",
            (_FAULT_NAME, Field("by", _STEP, "How far it is set forward.", required=True), *_FAULT_MOMENT),
        ),
    },
    help="What is broken.",
)

FEDERATION_FAULT = _Variants(
    "a fault",
    "kind",
    {
        "agent-killed": Record(
            "a domain's agent that is killed and started again",
            (_FAULT_NAME, _FAULT_DOMAIN, _FAULT_READY, *_FAULT_MOMENT),
        ),
        "controller-killed": Record(
            "a controller that is killed and started again", (_FAULT_NAME, _FAULT_DOMAIN, *_FAULT_MOMENT)
        ),
    },
    help="What is broken.",
)
"""Of a federation only those who agree with each other are broken, by which nobody is to fail: whom the agents put
where is known only when they have agreed."""

RUN_FIELDS = (
    Field("name", Name(), "Short name, used for the run's folder.", required=True),
    Field("seed", Number("a seed", 0, 2**32 - 1, whole=True), "Root of every random stream.", default=1),
    Field("warm-up", _DURATION, "Calibration traffic before the measured window.", default="10 s"),
    Field("duration", _DURATION, "Length of the measured window.", default="60 s"),
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
        Field("tenants", ListOf("tenant", _TENANT, MOST_TENANTS), "Everyone who sends.", required=True),
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
