"""Arrival models in a scenario file: what a tenant declares that it sends."""

from __future__ import annotations

from fractions import Fraction

from testbed.scenario.fields import Field, ListOf, Record, Variants
from testbed.scenario.ranges import BIT_RATE, FRAME, PACKET_OR_MESSAGE, TEN_GIGABIT
from testbed.scenario.units import FREQUENCY, RATE, TIME
from testbed.scenario.values import ArrivalRate, Choice, Number, Numbers, Quantity, Text

MOST_STATES = 16

_PACKET_RATE = Quantity(FREQUENCY, Fraction(1, 1000), Fraction(10**6))
_ARRIVAL_RATE = ArrivalRate(BIT_RATE, _PACKET_RATE)
_STATE_RATE = ArrivalRate(Quantity(RATE, Fraction(0), TEN_GIGABIT), Quantity(FREQUENCY, Fraction(0), Fraction(10**6)))
_PHASE = Quantity(TIME, Fraction(1, 10**6), Fraction(3600))
_TRACE_TIME = Quantity(TIME, Fraction(0), Fraction(10**8))

_SIZE = Field(
    "size",
    PACKET_OR_MESSAGE,
    "Size of every packet: an Ethernet frame without its checksum; of a tenant with requests, of every message.",
    required=True,
)

ARRIVALS = Variants(
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
                Field("peak", BIT_RATE, "Rate while on.", required=True),
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
                    FRAME,
                    "Largest packet; a request is cut into packets of this size and a remainder.",
                    default="1514 B",
                ),
            ),
        ),
    },
    help="The process that generates the tenant's packets.",
)
