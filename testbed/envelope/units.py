"""From floating-point SI to the integers of the wire, rounded to the side that promises less.

A latency or a probability rounds up, a decay or a confidence rounds down. Nothing here knows which field it fills.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime

from testbed.envelope.errors import MalformedError
from testbed.envelope.strict_json import MAX_INTEGER


def ns_up(seconds: float) -> int:
    """Nanoseconds, rounded up."""
    return _integer(math.ceil, seconds * 1e9, seconds, "seconds")


def ppb_up(probability: float) -> int:
    """Parts per billion, rounded up."""
    return _integer(math.ceil, probability * 1e9, probability, "a probability")


def ppm_down(share: float) -> int:
    """Parts per million, rounded down."""
    return _integer(math.floor, share * 1e6, share, "a share")


def micro_down(value: float) -> int:
    """Millionths of a unit, rounded down."""
    return _integer(math.floor, value * 1e6, value, "a value")


def bits_up(bits: float) -> int:
    """Whole bits, rounded up."""
    return _integer(math.ceil, bits, bits, "bits")


def unix_time(text: str) -> float:
    """Unix time from seconds or from an ISO 8601 time with its offset, such as 2027-01-31T12:00:00Z.

    Raises:
        MalformedError: Neither, a time of no known offset, or no finite number.
    """
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if not math.isfinite(seconds):
            raise MalformedError(f"time {text!r}: expected finite Unix seconds or ISO 8601 with an offset")
        return seconds
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise MalformedError(f"time {text!r}: expected Unix seconds or ISO 8601 with an offset") from error
    if moment.tzinfo is None:
        raise MalformedError(f"time {text!r}: expected an offset such as Z or +02:00")
    return moment.timestamp()


def _integer(rounding: Callable[[float], int], scaled: float, given: float, what: str) -> int:
    if not math.isfinite(scaled) or not 0 <= scaled <= MAX_INTEGER:
        raise MalformedError(f"{given!r}: expected {what} from 0 to what 53 bits hold on the wire")
    return rounding(scaled)
