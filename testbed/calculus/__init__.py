"""Stochastic network calculus: delay, backlog and violation bounds for a tenant on a path of domains.

Pure mathematics on numpy and scipy, without input or output. `delay_bound` is the front door; docs/calculus.md derives
every formula and says what it assumes. Units: seconds, bits, bits/s, probabilities.
"""

from testbed.calculus.amounts import Amount, Constant, Empirical, Gamma, PoissonCount, exponential
from testbed.calculus.arrivals.base import Arrival
from testbed.calculus.arrivals.bucket import TokenBucket, burst_after
from testbed.calculus.arrivals.envelopes import BoundedBurstiness, RandomPhaseBuckets
from testbed.calculus.arrivals.fitted import FittedFlow, fit_trace
from testbed.calculus.arrivals.light_tail import TailTest, generalised_pareto_test
from testbed.calculus.arrivals.markov import MarkovFluid, MarkovPoisson
from testbed.calculus.arrivals.metered import Metered
from testbed.calculus.arrivals.onoff import MarkovOnOff
from testbed.calculus.arrivals.poisson import CompoundPoisson
from testbed.calculus.arrivals.renewal import ConstantGap, GammaGap, Gap, OnOffGap, Renewal
from testbed.calculus.arrivals.slotted import IndependentIncrements, SlottedOnOff
from testbed.calculus.arrivals.sums import Copies, DependentSum, IndependentSum
from testbed.calculus.backlog import BacklogBound, backlog_bound, backlog_violation, required_rate_for_backlog
from testbed.calculus.budget import RiskBudget, Share, budget_for_delay, budget_for_risk
from testbed.calculus.delay import delay_bound, delay_curve, required_rate, violation_curve, violation_probability
from testbed.calculus.errors import CalculusError, NotApplicableError, UnstableError
from testbed.calculus.population import delay_bounds
from testbed.calculus.reservation import Offer, Reservation, cheapest_reservation
from testbed.calculus.result import BudgetLine, Candidate, DelayBound, Part
from testbed.calculus.service.compute import (
    Batches,
    ComputeStage,
    RequestClass,
    RequestPath,
    SharedStage,
    Workers,
    overtaking_latency,
)
from testbed.calculus.service.htb import HtbClass, htb_latency, htb_service
from testbed.calculus.service.left_over import LeftOver, gps_share, left_over, priority_share
from testbed.calculus.service.promised import EnvelopeService, ExcessTail, RateLatency, concatenated, packetised

__all__ = [
    "Amount",
    "Arrival",
    "BacklogBound",
    "Batches",
    "BoundedBurstiness",
    "BudgetLine",
    "CalculusError",
    "Candidate",
    "CompoundPoisson",
    "ComputeStage",
    "Constant",
    "ConstantGap",
    "Copies",
    "DelayBound",
    "DependentSum",
    "Empirical",
    "EnvelopeService",
    "ExcessTail",
    "FittedFlow",
    "Gamma",
    "GammaGap",
    "Gap",
    "HtbClass",
    "IndependentIncrements",
    "IndependentSum",
    "LeftOver",
    "MarkovFluid",
    "MarkovOnOff",
    "MarkovPoisson",
    "Metered",
    "NotApplicableError",
    "Offer",
    "OnOffGap",
    "Part",
    "PoissonCount",
    "RandomPhaseBuckets",
    "RateLatency",
    "Renewal",
    "RequestClass",
    "RequestPath",
    "Reservation",
    "RiskBudget",
    "Share",
    "SharedStage",
    "SlottedOnOff",
    "TailTest",
    "TokenBucket",
    "UnstableError",
    "Workers",
    "backlog_bound",
    "backlog_violation",
    "budget_for_delay",
    "budget_for_risk",
    "burst_after",
    "cheapest_reservation",
    "concatenated",
    "delay_bound",
    "delay_bounds",
    "delay_curve",
    "exponential",
    "fit_trace",
    "generalised_pareto_test",
    "gps_share",
    "htb_latency",
    "htb_service",
    "left_over",
    "overtaking_latency",
    "packetised",
    "priority_share",
    "required_rate",
    "required_rate_for_backlog",
    "violation_curve",
    "violation_probability",
]
