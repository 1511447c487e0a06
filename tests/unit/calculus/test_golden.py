"""Reference values: GOLDEN_MGF and GOLDEN_EXACT name the files; without files there is nothing to compare with."""

from __future__ import annotations

import pytest

from tests.unit.calculus import golden

TOOLBOX = golden.toolbox_cases()
FIXED = [case for case in TOOLBOX if case["valid_bound"] and case.get("at_fixed_theta")]
EXACT = golden.exact_cases()


def _name(case: dict) -> str:
    return case["id"]


@pytest.mark.parametrize("case", FIXED, ids=_name)
def test_the_toolbox_formula_gives_the_toolbox_value_at_a_fixed_theta(case):
    form = golden.form_of(case)
    for theta, expected in case["at_fixed_theta"].items():
        assert form(float(theta)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", TOOLBOX, ids=_name)
def test_the_best_bound_is_never_larger_than_the_optimised_toolbox(case):
    found, reference = golden.optimised(case)
    assert found <= reference * (1.0 + 1e-9)


@pytest.mark.parametrize("case", EXACT, ids=_name)
def test_exact_forms_and_martingales_are_met_to_nine_digits(case):
    for found, expected in golden.exact_answers(case):
        assert found == pytest.approx(expected, rel=1e-9)
