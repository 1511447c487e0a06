"""A tenant in a scenario file: what it sends and asks, what it buys, what it is promised, how it misbehaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from importlib import resources

from testbed.scenario.arrival_fields import ARRIVALS
from testbed.scenario.fields import Field, ListOf, Record, Variants
from testbed.scenario.ranges import BIT_RATE, BUCKET, INSTANT, MESSAGE, QUEUE, RESERVED_RATE
from testbed.scenario.units import TIME
from testbed.scenario.values import Choice, Name, Number, Quantity

MOST_IMAGES = 1024
_SHIPPED = json.loads(resources.files("inference_server").joinpath("weights/record.json").read_text())["models"]
MODELS = tuple(_SHIPPED)
"""The digit classifiers that ship with the inference server."""
ACCURACIES: Mapping[str, float] = {name: float(about["held_out_accuracy"]) for name, about in _SHIPPED.items()}
"""Share of images that none of them has seen that each classifies rightly."""
TEXT_MODELS = ("text-small",)
"""Models that generate as many bytes as a trace has tokens."""
MOST_VISITS = 100

_TIMEOUT = Quantity(TIME, Fraction(1, 1000), Fraction(60))
_WORK = Quantity(TIME, Fraction(1, 10**7), Fraction(60))

_RESERVATION = Record(
    "a reservation",
    (
        Field("rate", RESERVED_RATE, "Rate R of the tenant's queue in every domain of its path.", required=True),
        Field(
            "meter-rate",
            RESERVED_RATE,
            "Rate of the meter that polices the tenant, above its mean and below R. Left out: half-way between them.",
        ),
        Field(
            "burst",
            BUCKET,
            "Bucket of the meter in the first domain. Left out: so large that conforming arrivals lose at most one "
            "packet in ten million to it.",
        ),
        Field(
            "queue",
            QUEUE,
            "Limit of the tenant's queue in each domain, kept in packets as large as its largest. Left out: the burst "
            "and 50 ms of the reserved rate, in packets as small as its own; for requests at least what waits, in the "
            "smallest packets, when an answer is as late as promised. One that may be full before anything is as late "
            "as a bound would say leaves the tenant without a bound.",
        ),
    ),
)


def promised(things: str, *, deadline: str, epsilon: str) -> tuple[Field, Field]:
    """The fields of a promise: a deadline, and how many may miss it.

    Args:
        things: What is promised to be in time, such as `packets`.
        deadline: What the deadline says.
        epsilon: What epsilon says.
    """
    remedy = f"write 0.001 to promise the deadline to 99.9 % of the {things}"
    return (
        Field("deadline", Quantity(TIME, Fraction(1, 10**6), Fraction(3600)), deadline, required=True),
        Field("epsilon", Number("a probability", 1e-6, 0.5, remedy=remedy), epsilon, required=True),
    )


_PROMISE = Record(
    "a promise",
    (
        *promised(
            "packets",
            deadline="A packet later than this is a miss, and so is a lost one.",
            epsilon="Share of misses the promise allows.",
        ),
        Field(
            "confidence",
            Number("a confidence level", 0.5, 0.9999, remedy="write 0.95 for 95 %"),
            "Confidence at which the promise is judged.",
            default=0.95,
        ),
    ),
)

_MISBEHAVIOUR = Variants(
    "a misbehaviour",
    "kind",
    {
        "flood": Record(
            "a flood", (Field("offered", BIT_RATE, "Rate at which the tenant really sends.", required=True),)
        ),
        "correlated": Record(
            "correlated bursts",
            (
                Field("group", Name(), "Tenants whose bursts coincide have the same group.", required=True),
                Field(
                    "strength",
                    Number("a strength", 0, 1),
                    "Share of the group's changes of state that the tenant follows: 0 makes it independent, 1 brings "
                    "it together with everybody of strength 1. Left out by the whole group: all are in the same state "
                    "at the same times.",
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
                        Field("size", MESSAGE, "Size of a message.", required=True),
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
        Field(
            "work",
            Record(
                "the time of a computation",
                (
                    Field("mean", _WORK, "Mean on one worker that does nothing else.", required=True),
                    Field(
                        "cv",
                        Number("a coefficient of variation", 0, 5),
                        "Coefficient of variation: 0 for the same time for every request, else a lognormal law, of "
                        "which no time is longer than 99.99 % of them are.",
                        default=0,
                    ),
                ),
            ),
            "How long a request is computed, for testbed simulate and sweep; testbed run measures it. Left out: as a "
            "run measured it, which --measured names.",
        ),
    ),
)

_PRESENCE = Record(
    "a time of presence",
    (
        Field("from", INSTANT, "When the tenant comes, from the start of the measured window.", required=True),
        Field("until", INSTANT, "When it leaves.", required=True),
    ),
)

TENANT = Record(
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
