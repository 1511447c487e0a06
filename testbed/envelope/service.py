"""An envelope as the calculus sees it: a rate, a latency, a tail of the excess and a probability of loss.

The only place that knows both vocabularies. It adds nothing to what was signed: whatever the tail cannot express there
is charged as latency or as a miss.
"""

from __future__ import annotations

from testbed.calculus.service.promised import EnvelopeService, ExcessTail
from testbed.envelope.descriptor import Envelope
from testbed.envelope.errors import WrongRateError

_LARGEST_MISS = 1 - 1e-12
"""The calculus takes probabilities below one; a domain that promises nothing stays worthless."""


def to_service(envelope: Envelope, path_rate_bps: int | None = None) -> EnvelopeService:
    """What a domain's envelope is worth in a bound.

    Excess about which the tail is silent (below x_min) counts as latency, and packets beyond its range as misses, with
    the probability it has at the end of the range. So a level tail is latency and misses only.

    Args:
        envelope: The promise, verified.
        path_rate_bps: The rate at which the bound is computed, which is the smallest one the tenant reserves on its
            path; None for a path of this domain alone.

    Raises:
        WrongRateError: The tail was measured at another rate, or less than this rate is reserved.
    """
    guardrails, tail = envelope.guardrails, envelope.tail
    rate_bps = path_rate_bps or (guardrails.reserved_rate_bps if tail is None else tail.rate_bps)
    if rate_bps > guardrails.reserved_rate_bps:
        raise WrongRateError(
            f"domain {envelope.domain}: reserves {guardrails.reserved_rate_bps} bit/s, the path needs {rate_bps}"
        )
    if tail is not None and tail.rate_bps != rate_bps:
        raise WrongRateError(
            f"domain {envelope.domain}: its tail was measured at {tail.rate_bps} bit/s, the path's smallest rate is "
            f"{rate_bps}; lingering excess cannot be converted, so ask for a calibration at {rate_bps}"
        )
    miss = envelope.loss_probability + envelope.error_probability
    silent_s, excess = 0.0, None
    if tail is not None:
        cap_s = guardrails.delay_cap_s
        silent_s = min(tail.x_min_s, cap_s)
        if tail.x_max_s < cap_s:
            miss += tail.floor
        if silent_s < cap_s and tail.x_min_ns < tail.x_max_ns:
            excess = ExcessTail(tail.exceedance_ppb / 1e9, tail.decay_per_s, cap_s=cap_s - silent_s)
    return EnvelopeService(rate_bps, guardrails.latency_s + silent_s, excess, min(miss, _LARGEST_MISS), envelope.domain)
