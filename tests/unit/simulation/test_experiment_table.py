"""An experiment as a table: no wider than there is room for, no figure broken, and what is not there is said."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.console import Console

from testbed.simulation.experiments.point import ExperimentPoint, Kept
from testbed.simulation.experiments.table import summary

ADMITTED = ExperimentPoint(
    varied="load",
    value=1.8,
    contender="rule",
    name="stochastic",
    p999_s=0.07171,
    p999_interval_s=(0.06768, 0.07814),
    compliance=0.999864,
    compliance_interval=(0.999654, 0.999969),
    kept=Kept(331, 0.979, (0.957, 0.991), 0, 0.016),
    admitted=0.151,
    admitted_interval=(0.13, 0.17),
    utilisation=0.278,
    bound_s=0.0997,
    packets=2_971_354,
    utilisation_interval=(0.27, 0.29),
)
CROWDED = replace(
    ADMITTED,
    name="none",
    p999_s=None,
    p999_interval_s=(0.3361, None),
    compliance=0.00139,
    compliance_interval=(0.0003, 0.0031),
    kept=Kept(2279, 0.0, (0.0, 0.52), 2277, 1.0),
    admitted=1.0,
    admitted_interval=(1.0, 1.0),
    utilisation=0.9871,
    bound_s=None,
)
MEASURED = replace(
    ADMITTED,
    on="network",
    p999_s=0.0517,
    p999_interval_s=(0.0398, None),
    compliance=1.0,
    compliance_interval=(0.99985, 1.0),
    utilisation_interval=(0.0, 1.0),
)
BOTH = [MEASURED, replace(MEASURED, value=0.5), ADMITTED, CROWDED, replace(ADMITTED, value=0.5)]


def lines(points: list[ExperimentPoint], width: int) -> list[str]:
    console = Console(width=width, force_terminal=False)
    with console.capture() as caught:
        console.print(summary(points, width))
    return [line.rstrip() for line in caught.get().splitlines()]


def rows(points: list[ExperimentPoint], width: int) -> list[list[str]]:
    """The cells of each point: what two spaces or more part."""
    body = [line for line in lines(points, width) if re.match(r" *\d", line)]
    return [re.split(r" {2,}", line.strip()) for line in body]


def test_a_hundred_columns_hold_all_a_reader_concludes_from() -> None:
    assert rows(BOTH, 100)[-3:] == [
        ["1.8", "stochastic", "net", "99.7", "51.7 (39.8 .. ∞)", "100 (99.985 .. 100)", "97.9", "15", "28"],
        ["1.8", "stochastic", "sim", "99.7", "71.7 (67.7 .. 78.1)", "99.986 (99.965 .. 99.997)", "97.9", "15", "28"],
        ["1.8", "none", "sim", "–", "∞ (336 .. ∞)", "0.139 (0.030 .. 0.310)", "0", "100", "99"],
    ]
    assert not any("left out" in line for line in lines(BOTH, 100))


@pytest.mark.parametrize("width", [100, 90, 80, 70, 60])
def test_a_point_is_one_line_and_no_figure_is_broken_whatever_the_width(width: int) -> None:
    assert max(map(len, lines(BOTH, width))) <= width
    found = rows(BOTH, width)
    assert len(found) == len(BOTH)
    for row, whole in zip(found, rows(BOTH, 100), strict=True):
        assert whole[4] in row
        assert all(cell in whole or cell == whole[5].split()[0] for cell in row)


def test_what_there_is_no_room_for_is_named() -> None:
    for width, last, left_out in ((80, ["used"], "limits of on time"), (75, [], "limits of on time, used")):
        heading, units, *others = lines(BOTH, width)
        wanted = ["load", "rule", "on", "bound", "p99.9 (limits)", "on time", "kept", "admitted", *last]
        assert re.split(r" {2,}", heading.strip()) == wanted
        assert units.split() == ["ms", "ms", "%", "%", "%", *["%" for _ in last]]
        assert f"left out for want of room: {left_out}" in others


def test_places_and_admission_are_columns_only_where_points_differ_in_them() -> None:
    alone = [replace(ADMITTED, admitted=1.0), replace(ADMITTED, admitted=1.0, value=0.5)]
    heading, _, *others = lines(alone, 100)
    assert heading.split()[:3] == ["load", "rule", "bound"]
    assert "admitted" not in heading
    assert "all simulated" in others
    assert "net: measured on the network; sim: simulated" in lines(BOTH, 100)


def test_what_was_measured_stands_beside_what_was_simulated() -> None:
    assert [row[:3] for row in rows(BOTH, 100)] == [
        ["0.5", "stochastic", "net"],
        ["0.5", "stochastic", "sim"],
        ["1.8", "stochastic", "net"],
        ["1.8", "stochastic", "sim"],
        ["1.8", "none", "sim"],
    ]


def test_an_invalid_run_has_a_sign_that_is_explained() -> None:
    points = [replace(MEASURED, invalid=("CPU idle",)), ADMITTED]
    assert [row[2] for row in rows(points, 100)] == ["net!", "sim"]
    assert any(line.startswith("! INVALID") for line in lines(points, 100))
    assert not any("INVALID" in line for line in lines(BOTH, 100))


def test_hundred_percent_is_all_and_what_nobody_knows_is_no_number() -> None:
    nearly = replace(ADMITTED, compliance=1 - 4e-7, compliance_interval=(0.0, 1.0), admitted=0.999)
    empty = replace(
        ADMITTED,
        p999_s=None,
        p999_interval_s=(None, None),
        compliance=float("nan"),
        compliance_interval=(0.0, 1.0),
        kept=Kept(0, None, (0.0, 1.0), 0, None),
        packets=0,
    )
    full, nobody = rows([nearly, replace(empty, value=2.0)], 100)
    assert full[4:7] == ["99.999 (–)", "97.9", "99"]
    assert nobody[3:6] == ["– (– .. ∞)", "– (–)", "–"]
