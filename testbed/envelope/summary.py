"""A promise in sentences, for people. Not a format: nothing reads it back."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from testbed.envelope.composition import Path, Rule
from testbed.envelope.descriptor import Envelope, Stage, Validity
from testbed.envelope.guardrails import Guardrails
from testbed.envelope.tail import ExcessTail


def describe(envelope: Envelope) -> list[str]:
    """What one envelope promises, one sentence a line."""
    computes = envelope.subject.stage is Stage.COMPUTE
    what = "requests" if computes else "packets"
    lines = [
        f"{envelope.domain} promises {envelope.subject} (offer {envelope.version}):",
        *(_computing(envelope) if computes else _guardrails(envelope.guardrails)),
        _excess(envelope.tail, what),
        _misses(envelope.loss_probability, envelope.error_probability, what),
    ]
    if (evidence := envelope.evidence) is not None:
        worth = f"{evidence.n} samples worth {evidence.n_effective} independent ones"
        lines.append(f"  rests on {worth} at {evidence.confidence:.4g} confidence: {evidence.method}.")
    return [*lines, _validity(envelope.validity)]


def describe_path(path: Path, epsilon: float) -> list[str]:
    """What several envelopes promise end to end, one sentence a line."""
    route = " then ".join(f"{source.domain} ({source.subject}, offer {source.version})" for source in path.sources)
    lines = [
        f"from end to end, {route}:",
        *_guardrails(path.guardrails),
        *(_server(part) for part in path.parts if part.subject.stage is Stage.COMPUTE),
        _misses(path.loss_probability, path.error_probability),
    ]
    for rule in Rule:
        excess_ms = path.excess_quantile_s(epsilon, rule) * 1e3
        lines.append(f"  all but {epsilon:g} linger at most {excess_ms:.4g} ms beyond that ({rule} rule).")
    return [*lines, f"  all evidence holds together at {path.confidence:.4g} confidence.", _validity(path.validity)]


def _guardrails(rails: Guardrails) -> list[str]:
    peak = "any peak" if rails.peak_rate_bps is None else f"a peak of {rails.peak_rate_bps / 1e6:g} Mb/s"
    sent = f"{rails.meter_rate_bps / 1e6:g} Mb/s in bursts of {rails.burst_bits / 8e3:g} kB with {peak}"
    host = f"{_ms(rails.host_allowance_ns)} of it for the host"
    return [
        f"  may be sent {sent}, packets up to {rails.largest_packet_bits / 8:g} B, load up to {rails.load_cap:.3g};",
        f"  serves like a queue of {rails.reserved_rate_bps / 1e6:g} Mb/s and {_ms(rails.latency_ns)} ({host}),",
        f"  never more than {_ms(rails.delay_cap_ns)} later than that;",
    ]


def _computing(envelope: Envelope) -> list[str]:
    """A server's guardrails: its unit of work is a bit of the request, and every request counts as the largest."""
    rails = envelope.guardrails
    sent = f"{rails.meter_rate_bps / 1e6:g} Mb/s in bursts of {rails.burst_bits / 8e3:g} kB"
    largest = f"requests up to {rails.largest_packet_bits / 8e3:g} kB"
    host = f"{_ms(rails.host_allowance_ns)} of it for the host"
    return [
        f"  may be asked {sent}, {largest}, load up to {rails.load_cap:.3g};",
        f"  computes {envelope.subject.service} like a queue of {_pace(rails)} and {_ms(rails.latency_ns)} ({host}),",
        f"  never more than {_ms(rails.delay_cap_ns)} later than that;",
    ]


def _server(part: Envelope) -> str:
    """A server on a path, in one sentence."""
    rails = part.guardrails
    request = f"requests up to {rails.largest_packet_bits / 8e3:g} kB, whatever their size {_pace(rails)}"
    return f"  the server of {part.domain} takes {_ms(rails.latency_ns)} of it for {part.subject.service}: {request};"


def _pace(rails: Guardrails) -> str:
    apart_ms = rails.largest_packet_bits / rails.reserved_rate_bps * 1e3
    return f"one request every {apart_ms:.4g} ms ({rails.reserved_rate_bps / 1e6:g} Mb/s)"


def _excess(tail: ExcessTail | None, what: str) -> str:
    if tail is None:
        return f"  declares no impairment: none of the {what} is later than that;"
    if tail.x_min_ns == tail.x_max_ns:
        return f"  at most {tail.floor:.3g} of the {what} linger more than {_ms(tail.x_min_ns)} beyond that;"
    first, decade_ms = f"{tail.exceedance_ppb / 1e9:.3g} of the {what}", math.log(10) / tail.decay_per_s * 1e3
    return (
        f"  at most {first} linger more than {_ms(tail.x_min_ns)} beyond that, a tenth of them {decade_ms:.3g} ms more,"
        f" and so on down to {tail.floor:.3g} at {_ms(tail.x_max_ns)};"
    )


def _misses(loss: float, error: float, what: str = "packets") -> str:
    return f"  loses at most {loss:.3g} of the {what} and answers at most {error:.3g} by errors."


def _validity(validity: Validity) -> str:
    return f"  holds from {_time(validity.not_before_s)} to {_time(validity.not_after_s)}."


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:g} ms"


def _time(unix_s: int) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError):
        return f"second {unix_s}"
