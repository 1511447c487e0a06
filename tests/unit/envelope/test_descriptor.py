"""Promises that contradict themselves are refused by whoever would make or read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.envelope import Envelope, Stage, Subject, Validity, strict_json
from testbed.envelope.errors import ExpiredError, MalformedError, NotYetValidError
from testbed.envelope.units import micro_down, ns_up, ppb_up, ppm_down

from .samples import NOW_S, envelope, evidence, guardrails, tail


@pytest.mark.parametrize(
    "promise",
    [
        pytest.param(envelope(), id="with a stochastic part"),
        pytest.param(envelope(stochastic=None, evidence=None), id="without an impairment"),
        pytest.param(envelope(stochastic=None), id="with evidence for the guardrails alone"),
        pytest.param(envelope(guardrails=guardrails(peak_rate_bps=None)), id="without a peak"),
    ],
)
def test_a_promise_survives_the_wire(promise: Envelope) -> None:
    data = strict_json.dumps(promise.to_dict())
    assert Envelope.from_dict(strict_json.loads(data, "envelope")) == promise
    assert b"." not in data.replace(b"packet-forwarding", b"").split(b'"method"')[0]


@pytest.mark.parametrize(
    ("build", "named"),
    [
        pytest.param(lambda: guardrails(meter_rate_bps=10_000_000), "never drain", id="a meter as fast as the queue"),
        pytest.param(
            lambda: guardrails(peak_rate_bps=8_000_000), "peak_rate_bps 8000000", id="a peak below the meter rate"
        ),
        pytest.param(lambda: guardrails(burst_bits=11_311), "drop every such packet", id="a burst below one packet"),
        pytest.param(
            lambda: guardrails(host_allowance_ns=1_500_001), "of which it is a part", id="more allowance than T"
        ),
        pytest.param(lambda: guardrails(latency_ns=-1), "latency_ns: found -1", id="a negative latency"),
        pytest.param(lambda: guardrails(loss_cap_ppb=10**9 + 1), "loss_cap_ppb", id="more losses than packets"),
        pytest.param(lambda: guardrails(load_cap_ppm=0), "load_cap_ppm", id="no load at all"),
        pytest.param(lambda: guardrails(burst_bits=2.0e5), "burst_bits: found 200000.0", id="a float"),
        pytest.param(lambda: guardrails(burst_bits=True), "burst_bits: found True", id="a truth value as a number"),
        pytest.param(lambda: guardrails(reserved_rate_bps=2**53), "reserved_rate_bps", id="a rate beyond 53 bits"),
        pytest.param(lambda: tail(exceedance_ppb=0), "exceedance_ppb: found 0", id="a tail of probability zero"),
        pytest.param(lambda: tail(decay_micro_per_s=0), "decay_micro_per_s: found 0", id="a tail that never decays"),
        pytest.param(
            lambda: tail(x_max_ns=999_999), "x_max_ns 999999 is below", id="a range that ends before it begins"
        ),
        pytest.param(lambda: evidence(n_effective=100_001), "never say more", id="more effective samples than samples"),
        pytest.param(lambda: evidence(digest="AB" * 32), "evidence.digest", id="a digest in upper case"),
        pytest.param(lambda: evidence(confidence_ppm=10**6), "confidence_ppm", id="certainty from samples"),
        pytest.param(lambda: evidence(method="a\nb"), "evidence.method", id="a method of two lines"),
        pytest.param(lambda: envelope(evidence=None), "without evidence", id="a stochastic part without evidence"),
        pytest.param(lambda: envelope(version=0), "version: found 0", id="version zero"),
        pytest.param(lambda: envelope(domain="east west"), "domain: found", id="a domain with a space"),
        pytest.param(lambda: envelope(domain=""), "domain: found", id="a domain without a name"),
        pytest.param(
            lambda: envelope(guardrails=guardrails(reserved_rate_bps=9_500_000)),
            "tail.rate_bps 10000000 is above",
            id="a tail calibrated at more than is reserved",
        ),
        pytest.param(lambda: Validity(2, 1), "is before", id="a validity that ends before it begins"),
        pytest.param(lambda: Subject("a b", "c", "d", Stage.NETWORK), "subject.tenant", id="a tenant with a space"),
    ],
)
def test_refused_when_built(build: Callable[[], object], named: str) -> None:
    with pytest.raises(MalformedError) as refusal:
        build()
    assert named in str(refusal.value)


def test_all_problems_of_one_object_are_reported_together() -> None:
    with pytest.raises(MalformedError) as refusal:
        guardrails(burst_bits=0, latency_ns=-1, loss_cap_ppb=-1)
    assert [problem.split(":")[0] for problem in refusal.value.problems] == [
        "guardrails.burst_bits",
        "guardrails.latency_ns",
        "guardrails.loss_cap_ppb",
    ]


PATHS = [
    (),
    ("subject",),
    ("guardrails",),
    ("stochastic",),
    ("stochastic", "tail"),
    ("validity",),
    ("evidence",),
]


@pytest.mark.parametrize("path", PATHS, ids=[".".join(path) or "envelope" for path in PATHS])
@pytest.mark.parametrize("damage", ["unknown", "missing", "list"])
def test_members_are_exactly_those_of_the_schema(path: tuple[str, ...], damage: str) -> None:
    document: Any = {"document": envelope().to_dict()}
    parent, name = document, "document"
    for step in path:
        parent, name = parent[name], step
    if damage == "unknown":
        parent[name]["extra"] = 1
    elif damage == "missing":
        parent[name].pop(min(parent[name]))
    else:
        parent[name] = []
    with pytest.raises(MalformedError):
        Envelope.from_dict(document["document"])


@pytest.mark.parametrize("schema", [0, 2, True, "1", None])
def test_another_schema_is_refused_before_its_members_are_judged(schema: object) -> None:
    with pytest.raises(MalformedError, match=r"envelope\.schema"):
        Envelope.from_dict({"schema": schema, "news": 1})


@pytest.mark.parametrize(
    ("moment", "error"),
    [(NOW_S - 86_401, NotYetValidError), (NOW_S + 86_401, ExpiredError), (NOW_S + 86_400.5, ExpiredError)],
)
def test_validity_ends_on_both_sides(moment: float, error: type[Exception]) -> None:
    with pytest.raises(error):
        envelope().validity.require(moment, "envelope")


def test_the_first_and_the_last_second_are_valid() -> None:
    for moment in (NOW_S - 86_400, NOW_S + 86_400):
        envelope().validity.require(moment, "envelope")


def test_the_tail_is_silent_below_its_range_decays_in_it_and_stays_level_beyond() -> None:
    promised = tail()
    assert promised.exceedance(0.0009) == 1.0
    assert promised.exceedance(0.001) == pytest.approx(3e-4)
    assert promised.exceedance(0.002) == pytest.approx(3e-4 * 0.1353352832)
    assert promised.exceedance(0.005) == pytest.approx(promised.floor)
    assert promised.exceedance(1.0) == promised.floor


def test_the_multiplier_form_is_the_same_tail() -> None:
    promised = tail()
    for x_s in (0.001, 0.003, 0.005):
        expected = promised.multiplier * 2.718281828459045 ** (-promised.decay_per_s * x_s)
        assert promised.exceedance(x_s) == pytest.approx(expected)


@given(st.floats(0, 1e5), st.floats(0, 1))
def test_rounding_to_the_wire_never_promises_more(seconds: float, share: float) -> None:
    assert ns_up(seconds) >= seconds * 1e9 > ns_up(seconds) - 1
    assert ppb_up(share) >= share * 1e9
    assert ppm_down(share) <= share * 1e6
    assert micro_down(seconds) <= seconds * 1e6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_what_the_wire_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(MalformedError):
        ns_up(value)


def test_losses_and_errors_are_the_smaller_of_estimate_and_cap() -> None:
    assert envelope().loss_probability == 1e-6
    assert envelope(guardrails=guardrails(loss_cap_ppb=10)).loss_probability == 1e-8
    assert envelope(stochastic=None).loss_probability == 2e-6
