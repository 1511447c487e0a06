"""Stochastic network calculus: delay, backlog and violation bounds for a tenant on a path of domains.

Pure mathematics on numpy and scipy, without input or output. `delay_bound` is the front door; docs/calculus.md derives
every formula and says what it assumes. Units: seconds, bits, bits/s, probabilities.
"""

from testbed.calculus.amounts import Amount, Constant, Empirical, Gamma, exponential
from testbed.calculus.arrivals.base import Arrival
from testbed.calculus.arrivals.bucket import TokenBucket, burst_after
from testbed.calculus.arrivals.metered import Metered
from testbed.calculus.arrivals.onoff import MarkovOnOff
from testbed.calculus.arrivals.poisson import CompoundPoisson
from testbed.calculus.arrivals.renewal import ConstantGap, GammaGap, Gap, OnOffGap, Renewal
from testbed.calculus.delay import (
    delay_bound,
    delay_curve,
    required_rate,
    violation_curve,
    violation_probability,
)
from testbed.calculus.errors import CalculusError, NotApplicableError, UnstableError
from testbed.calculus.result import BudgetLine, Candidate, DelayBound, Part
from testbed.calculus.service.htb import HtbClass, htb_latency, htb_service
from testbed.calculus.service.promised import EnvelopeService, ExcessTail, RateLatency, packetised

__all__ = [
    "Amount",
    "Arrival",
    "BudgetLine",
    "CalculusError",
    "Candidate",
    "CompoundPoisson",
    "Constant",
    "ConstantGap",
    "DelayBound",
    "Empirical",
    "EnvelopeService",
    "ExcessTail",
    "Gamma",
    "GammaGap",
    "Gap",
    "HtbClass",
    "MarkovOnOff",
    "Metered",
    "NotApplicableError",
    "OnOffGap",
    "Part",
    "RateLatency",
    "Renewal",
    "TokenBucket",
    "UnstableError",
    "burst_after",
    "delay_bound",
    "delay_curve",
    "exponential",
    "htb_latency",
    "htb_service",
    "packetised",
    "required_rate",
    "violation_curve",
    "violation_probability",
]
