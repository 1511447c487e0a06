"""Quantities as people write them ("10 Mbit/s", "5 ms", "1400 B") and as the code computes with them (SI numbers).

A number without a unit is refused, never guessed at. Prefixes are decimal (1 kB is 1000 B), a bit is always spelt
`bit` and a byte always `B`, so that no reader has to know which of the two a lone `b` was. Values stay exact
(`Fraction`) until the model decides whether it wants an integer. Nothing here knows what a quantity is used for.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from fractions import Fraction

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*([^\s\d.](?:.*\S)?)?\s*")
_LONE_B = re.compile(r"([kmg]?)b(/s)?", re.IGNORECASE)
_PREFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_SPELT_DIFFERENTLY = {
    "bps": "bit/s", "kbps": "kbit/s", "mbps": "Mbit/s", "gbps": "Gbit/s",
    "kib": "kB", "mib": "MB", "gib": "GB", "byte": "B", "bytes": "B", "bits": "bit",
    "sec": "s", "secs": "s", "second": "s", "seconds": "s", "msec": "ms", "usec": "us", "µs": "us", "μs": "us",
    "minute": "min", "minutes": "min", "m": "min", "hour": "h", "hours": "h",
    "pps": "packets/s", "rps": "requests/s", "packet/s": "packets/s", "request/s": "requests/s",
}  # fmt: skip


class UnitError(ValueError):
    """A text that is not a quantity of the dimension asked for.

    Attributes:
        remedy: What to write instead, as an imperative clause.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(remedy)


@dataclass(frozen=True)
class Dimension:
    """One kind of quantity and the units it may be written in.

    Attributes:
        name: What messages call it, with its article.
        example: A well-formed quantity.
        units: Unit to its value in the base unit, smallest first; the base unit has the value 1.
    """

    name: str
    example: str
    units: tuple[tuple[str, Fraction], ...]

    @property
    def base(self) -> str:
        """Spelling of the unit with the value 1."""
        return next(unit for unit, scale in self.units if scale == 1)

    @property
    def pattern(self) -> str:
        """Regular expression (ECMA 262, anchored) of every text `parse` accepts."""
        units = "|".join(re.escape(unit).replace(r"\-", "-") for unit, _ in self.units)
        return rf"^\s*{_NUMBER}\s*(?:{units})\s*$"


def _scaled(base: str, prefixes: dict[str, int], factor: int = 1) -> tuple[tuple[str, Fraction], ...]:
    return tuple((prefix + base, Fraction(value * factor)) for prefix, value in prefixes.items())


_BIT_RATES = tuple(sorted(_scaled("bit/s", _PREFIXES) + _scaled("B/s", _PREFIXES, 8), key=lambda unit: unit[1]))
_SIZES = tuple(sorted(_scaled("bit", _PREFIXES) + _scaled("B", _PREFIXES, 8), key=lambda unit: unit[1]))

RATE = Dimension("a rate", "10 Mbit/s", _BIT_RATES)
SIZE = Dimension("a size", "1400 B", _SIZES)
TIME = Dimension(
    "a time",
    "5 ms",
    (
        ("ns", Fraction(1, 10**9)),
        ("us", Fraction(1, 10**6)),
        ("ms", Fraction(1, 10**3)),
        ("s", Fraction(1)),
        ("min", Fraction(60)),
        ("h", Fraction(3600)),
    ),
)
FREQUENCY = Dimension("a number per second", "200 packets/s", (("packets/s", Fraction(1)), ("requests/s", Fraction(1))))


def parse(text: str, dimension: Dimension) -> Fraction:
    """Value of `text` in the base unit of `dimension` (bit/s, bit, s, 1/s), exactly.

    Raises:
        UnitError: `text` is no number with a unit of this dimension; the message says what to write.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or "," in text:
        raise UnitError(_remedy_for_text(text, dimension))
    number, unit = match.groups()
    for known, scale in dimension.units:
        if unit == known:
            return Fraction(number) * scale
    raise UnitError(_remedy_for_unit(number, unit, dimension))


def quantity(value: float | Fraction, dimension: Dimension) -> str:
    """`value` (base unit) for a reader, in the largest unit that keeps at least one whole digit.

    Bytes are used for sizes of whole bytes and bits for everything else that has both.
    """
    exact = Fraction(value)
    if exact == 0:
        return f"0 {dimension.base}"
    candidates = [(unit, scale) for unit, scale in dimension.units if _preferred(unit, exact, dimension)]
    name, scale = max((fit for fit in candidates if fit[1] <= exact), key=lambda fit: fit[1], default=candidates[0])
    return f"{float(exact / scale):.6g} {name}"


def _preferred(unit: str, value: Fraction, dimension: Dimension) -> bool:
    if dimension is RATE:
        return unit.endswith("bit/s")
    if dimension is SIZE:
        # 1400 B and 12 kB are how frames and buffers are spoken of; 1 kbit and a bucket of 5 Mbit stay in bits.
        in_bytes = value % 8 == 0 and value < 10**6 and (value % 1000 != 0 or value % 8000 == 0)
        largest = "B" if value < 80_000 else "kB"
        return unit in {"B", largest} if in_bytes else unit.endswith("bit")
    if dimension is TIME:
        # 60 s and 90 s are easier to compare with other seconds than 1 min and 1.5 min.
        return unit not in {"h", "min"} or (value % 60 == 0 and value >= 120)
    return True


def _remedy_for_text(text: str, dimension: Dimension) -> str:
    without_commas = text.replace(",", "")
    if without_commas != text and _QUANTITY.fullmatch(without_commas):
        return f"write the number without commas: {without_commas.strip()}"
    if text.lstrip().startswith("-"):
        return f"{dimension.name} cannot be negative here"
    return f"write a number and a unit ({_listing(dimension)})"


def _remedy_for_unit(number: str, unit: str | None, dimension: Dimension) -> str:
    if unit is None:
        return f"add the unit, one of {_listing(dimension)}"
    in_bits_or_bytes = _bits_or_bytes(unit, dimension)
    if in_bits_or_bytes is not None:
        bits, in_bytes = in_bits_or_bytes
        return f"write {number} {bits} if bits are meant and {number} {in_bytes} if bytes are"
    spelling = _near(unit, dimension)
    if spelling is not None:
        return f"did you mean {number} {spelling}?"
    return f"write one of the units {_listing(dimension)}"


def _bits_or_bytes(unit: str, dimension: Dimension) -> tuple[str, str] | None:
    """The two units that a `b` of unclear meaning may stand for, None if `unit` has none or they do not fit."""
    match = _LONE_B.fullmatch(unit)
    if match is None:
        return None
    prefix, per_second = match[1].lower().replace("m", "M").replace("g", "G"), match[2] or ""
    candidates = f"{prefix}bit{per_second}", f"{prefix}B{per_second}"
    return candidates if candidates[0] in dict(dimension.units) else None


def _near(unit: str, dimension: Dimension) -> str | None:
    known = [name for name, _ in dimension.units]
    by_lower_case = {name.lower(): name for name in known}
    candidate = _SPELT_DIFFERENTLY.get(unit.lower()) or by_lower_case.get(unit.lower())
    if candidate in known:
        return candidate
    close = difflib.get_close_matches(unit, known, n=1, cutoff=0.75)
    return close[0] if close else None


def _listing(dimension: Dimension) -> str:
    return ", ".join(name for name, _ in dimension.units)
