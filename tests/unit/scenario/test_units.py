"""Quantities with units."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.scenario.units import FREQUENCY, RATE, SIZE, TIME, Dimension, UnitError, parse, quantity

DIMENSIONS = (RATE, SIZE, TIME, FREQUENCY)


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("10 Mbit/s", RATE, 10_000_000),
        ("10Mbit/s", RATE, 10_000_000),
        ("1.25 MB/s", RATE, 10_000_000),
        ("1e3 kbit/s", RATE, 1_000_000),
        ("1400 B", SIZE, 11_200),
        ("400 kB", SIZE, 3_200_000),
        ("4.819 Mbit", SIZE, 4_819_000),
        ("5 ms", TIME, Fraction(1, 200)),
        ("7.5 ms", TIME, Fraction(3, 400)),
        (" 2 h ", TIME, 7200),
        ("200 packets/s", FREQUENCY, 200),
    ],
)
def test_a_quantity_is_exact(text: str, dimension: Dimension, value: Fraction) -> None:
    assert parse(text, dimension) == value


@pytest.mark.parametrize(
    ("text", "dimension", "remedy"),
    [
        ("10", RATE, "add the unit, one of bit/s,"),
        ("", TIME, "write a number and a unit"),
        ("ten ms", TIME, "write a number and a unit"),
        ("10 Mbps", RATE, "did you mean 10 Mbit/s?"),
        ("10 mbit/s", RATE, "did you mean 10 Mbit/s?"),
        ("10 Mb/s", RATE, "write 10 Mbit/s if bits are meant and 10 MB/s if bytes are"),
        ("10 b", SIZE, "write 10 bit if bits are meant and 10 B if bytes are"),
        ("10 KB", SIZE, "write 10 kbit if bits are meant and 10 kB if bytes are"),
        ("10 KiB", SIZE, "did you mean 10 kB?"),
        ("1,400 B", SIZE, "write the number without commas: 1400 B"),
        ("-1 ms", TIME, "a time cannot be negative here"),
        ("5 µs", TIME, "did you mean 5 us?"),
        ("5 m", TIME, "did you mean 5 min?"),
        ("5 Mbit/s", TIME, "write one of the units ns, us, ms, s, min, h"),
        ("5 Mb/s", TIME, "write one of the units ns, us, ms, s, min, h"),
        ("1e999 s", TIME, "write one of the units"),
        ("0x10 B", SIZE, "write one of the units bit"),
    ],
)
def test_what_is_no_quantity_is_refused_with_what_to_write(text: str, dimension: Dimension, remedy: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse(text, dimension)
    assert caught.value.remedy.startswith(remedy)


@given(
    st.sampled_from(DIMENSIONS).flatmap(
        lambda dimension: st.tuples(st.just(dimension), st.sampled_from(dimension.units), st.integers(0, 10**6))
    )
)
def test_every_unit_scales_and_its_text_matches_the_pattern(
    case: tuple[Dimension, tuple[str, Fraction], int],
) -> None:
    dimension, (unit, scale), number = case
    text = f"{number} {unit}"
    assert parse(text, dimension) == number * scale
    assert re.search(dimension.pattern, text)


@given(st.sampled_from(DIMENSIONS), st.text(max_size=12))
def test_the_pattern_matches_exactly_what_parses(dimension: Dimension, text: str) -> None:
    try:
        parse(text, dimension)
    except UnitError:
        assert not re.search(dimension.pattern, text)
    else:
        assert re.search(dimension.pattern, text)


@given(st.sampled_from(DIMENSIONS), st.integers(0, 10**12))
def test_a_printed_quantity_reads_back_within_its_six_digits(dimension: Dimension, value: int) -> None:
    assert float(parse(quantity(value, dimension), dimension)) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (0, TIME, "0 s"),
        (0.0123, TIME, "12.3 ms"),
        (90, TIME, "90 s"),
        (7200, TIME, "2 h"),
        (11_200, SIZE, "1400 B"),
        (96_000, SIZE, "12 kB"),
        (1000, SIZE, "1 kbit"),
        (4_819_000, SIZE, "4.819 Mbit"),
        (9_000_000, RATE, "9 Mbit/s"),
    ],
)
def test_quantities_are_printed_as_people_say_them(value: float, dimension: Dimension, text: str) -> None:
    assert quantity(value, dimension) == text
