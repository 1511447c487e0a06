"""Faults in a scenario file and in a federation file: what is broken on purpose, when, and who fails by it."""

from __future__ import annotations

from fractions import Fraction

from testbed.scenario.fields import Field, Record, Variants
from testbed.scenario.ranges import INSTANT, MOST_TENANTS, RESERVED_RATE
from testbed.scenario.units import TIME
from testbed.scenario.values import Name, Names, Number, Quantity

MOST_FAULTS = 32

_LONGER = Quantity(TIME, Fraction(1, 1000), Fraction(10))
_STEP = Quantity(TIME, Fraction(1, 1000), Fraction(1, 10))
_LASTS = Quantity(TIME, Fraction(1, 100), Fraction(7200))

_FAULT_NAME = Field("name", Name(), "Unique among the faults.", required=True)
_FAULT_BEGIN = (
    Field("at", INSTANT, "When it begins, from the start of the measured window.", required=True),
    Field("spread", INSTANT, "It begins at a moment drawn by the seed from this long after at.", default="0 s"),
)
_FAULT_MOMENT = (_FAULT_BEGIN[0], Field("for", _LASTS, "How long it lasts.", required=True), _FAULT_BEGIN[1])
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
        INSTANT,
        "How long after its end those who fail must keep their promise again.",
        default="1 s",
    ),
)
_FAULT_DOMAIN = Field("domain", Name(), "Domain it is done to.", required=True)
_FAULT_READY = Field("ready-within", INSTANT, "How long what is started again may take to be ready.", required=True)

FAULT = Variants(
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
                Field("to", RESERVED_RATE, "Rate of the queue while it lasts.", required=True),
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
        "disk-full": Record(
            "a disk under the run's folder that becomes full in the last window and stays so",
            (_FAULT_NAME, *_FAULT_BEGIN),
        ),
    },
    help="What is broken.",
)

FEDERATION_FAULT = Variants(
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
