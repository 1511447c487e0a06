"""Reference values of an independent toolbox and of closed forms, and this package's answers to the same questions."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from testbed.calculus import (
    BoundedBurstiness,
    CompoundPoisson,
    Gamma,
    IndependentIncrements,
    LeftOver,
    MarkovOnOff,
    PoissonCount,
    RandomPhaseBuckets,
    RateLatency,
    SlottedOnOff,
    TokenBucket,
    closed_forms,
    delay_bound,
    exponential,
)

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "golden"


def read(variable: str, default: str) -> list[dict]:
    """The cases of the file that an environment variable names; of the default file if it exists, else none."""
    path = Path(os.environ.get(variable, FOLDER / default))
    if not path.is_file() and variable not in os.environ:
        return []
    document = json.loads(path.read_text())
    return document["cases"] if isinstance(document, dict) else document


def toolbox_cases() -> list[dict]:
    """Optimised bounds of the toolbox, each with its values at fixed thetas."""
    return read("GOLDEN_MGF", "snc_mgf.json")


def exact_cases() -> list[dict]:
    """Closed forms and martingales."""
    return read("GOLDEN_EXACT", "snc_exact.json")


_KINDS: dict[str, Callable[[dict], object]] = {
    "MMOOCont": lambda p: MarkovOnOff(p["peak_rate"], 1.0 / p["lamb"], 1.0 / p["mu"], p["n"]),
    "MMOODisc": lambda p: SlottedOnOff(1.0, p["peak_rate"], p["stay_on"], p["stay_off"], p["n"]),
    "MM1": lambda p: CompoundPoisson(p["n"] * p["lamb"], exponential(1.0 / p["mu"])),
    "MD1": lambda p: CompoundPoisson(p["n"] * p["lamb"], 1.0 / p["mu"]),
    "DM1": lambda p: IndependentIncrements(1.0, exponential(1.0 / p["lamb"]), p["n"]),
    "DPoisson1": lambda p: IndependentIncrements(1.0, PoissonCount(p["lamb"]), p["n"]),
    "DGamma1": lambda p: IndependentIncrements(1.0, Gamma(p["alpha"] / p["beta"], p["alpha"]), p["n"]),
    "EBB": lambda p: BoundedBurstiness(1.0, p["rho"], p["M"], p["decay"], p["n"]),
    "LeakyBucketMassoulie": lambda p: RandomPhaseBuckets(1.0, p["rho"], p["sigma"], p["n"]),
    "": lambda p: TokenBucket(p["n"] * p["rho"], p["n"] * p["sigma"]),
}


def flow_of(params: dict):
    """The flow of a single-server case; its class is the first word of the case's."""
    return _KINDS[re.split(r"\W", params.get("class_", ""))[0]](params)


def tandem_flow(words: str, params: dict):
    """The tandems' flows: `MMOODisc n=2 ...` or `DM1 lamb=1 ...`."""
    if words.startswith("MMOODisc"):
        flows = int(re.search(r"n=(\d+)", words)[1])
        return SlottedOnOff(1.0, params["peak_rate"], params["stay_on"], params["stay_off"], flows)
    return IndependentIncrements(1.0, exponential(1.0 / float(re.search(r"lamb=([\d.]+)", words)[1])))


def envelope(flow, theta: float) -> tuple[float, float]:
    """(sigma, rho) as the toolbox has them: its sigma of slotted on-off flows is larger than ours."""
    at = np.asarray(theta)
    rho = float(flow.envelope_rate(at))
    if not isinstance(flow, SlottedOnOff):
        return float(flow.envelope_burst(at)), rho
    growth = math.exp(float(flow.log_growth(at)))
    vector = (1.0 - flow.stay_off, growth - flow.stay_off)
    one = flow.peak_bits + math.log(max(vector) / min(vector) / growth) / theta
    assert float(flow.envelope_burst(at)) <= flow.flows * one + 1e-12
    return flow.flows * one, rho


SINGLE = {
    ("continuous", "geom"): closed_forms.continuous_geometric,
    ("continuous", "int"): closed_forms.continuous_integral,
    ("discrete slots", "geom"): closed_forms.discrete_geometric,
    ("discrete slots", "int"): closed_forms.discrete_integral,
}


def _rate_difference_with_slip(theta, sigma, rho, rates, epsilon):
    """The toolbox multiplies one factor once per server instead of once: loose, still valid."""
    slowest = min(rates)
    tied = sum(math.isclose(rate, slowest, rel_tol=1e-12) for rate in rates) > 1
    # A tie lowers the slowest rate by half the gap, but only after the factor of the first server.
    gaps = [slowest - rho] + [(slowest - rho) * (0.5 if tied else 1.0)] * (len(rates) - 2)
    extra = -math.fsum(math.log(-math.expm1(-theta * gap)) for gap in gaps) / theta
    return closed_forms.rate_difference_tandem(theta, sigma + extra, rho, rates, epsilon)


TANDEM = {
    "pmoo_explicit": closed_forms.explicit_tandem,
    "pmoo_rate_diff": closed_forms.rate_difference_tandem,
    "sfa_rate_diff": _rate_difference_with_slip,
    "pmoo_ac": closed_forms.analytic_combinatorics_tandem,
    "sfa_ac": closed_forms.analytic_combinatorics_tandem,
    "pmoo_arr_rate": closed_forms.arrival_rate_tandem,
    "sfa_arr_rate": closed_forms.arrival_rate_tandem,
    "convolve_geom": closed_forms.convolved_chain,
}


def form_of(case: dict) -> Callable[[float], float]:
    """The toolbox's formula for a case, as a function of theta."""
    params, epsilon = case["params"], case["eps"]
    if "hops" not in params:
        flow, rate = flow_of(params), params["server_rate"]
        form = SINGLE[case["time"], case["id"].rsplit("_", 1)[1]]
        held = rate * params.get("latency", 0.0)

        def single(theta: float) -> float:
            sigma, rho = envelope(flow, theta)
            return form(theta, sigma + held, rho, rate, epsilon)

        return single
    overlapping = "ALL servers" in params["cross"]
    flow = tandem_flow(params.get("foi", "MMOODisc n=1"), params)
    cross = tandem_flow(params["cross"], params)
    form = TANDEM[next(name for name in TANDEM if case["id"].endswith(name))]

    def tandem(theta: float) -> float:
        sigma, rho = envelope(flow, theta)
        cross_sigma, cross_rho = envelope(cross, theta)
        rates = [rate - cross_rho for rate in params["server_rates"]]
        sigma += cross_sigma * (1 if overlapping else len(rates))
        return form(theta, sigma, rho, rates, epsilon)

    return tandem


def bound_of(case: dict) -> float | None:
    """This package's best bound for a case; None where the case's cross traffic is not independent at each server."""
    params = case["params"]
    epsilon = case["eps"] or 1e-9  # 0 marks a sure bound, which holds at any epsilon
    if "hops" not in params:
        server = RateLatency(params["server_rate"], params.get("latency", 0.0))
        return delay_bound(flow_of(params), [server], epsilon, "time").delay_s
    if "ALL servers" in params["cross"]:
        return None
    flow = tandem_flow(params["foi"], params)
    cross = tandem_flow(params["cross"], params)
    servers = [LeftOver(rate, cross) for rate in params["server_rates"]]
    return delay_bound(flow, servers, epsilon, "time").delay_s


def optimised(case: dict) -> tuple[float, float]:
    """(found, reference): this package's best bound beside the toolbox's, as statements about the same delays.

    Behind several servers a delay in slots is a whole number, so a reference of 53.4 slots says the same as one of 54.
    Where the cross traffic is not independent at each server the toolbox's own formula is evaluated.
    """
    found, reference = bound_of(case), case["delay_bound"]
    if found is None:
        return form_of(case)(case["theta_opt"]), reference
    return found, math.ceil(reference) if "hops" in case["params"] else reference


def exact_answers(case: dict) -> list[tuple[float, float]]:
    """(found, expected) of a closed form: its decay, and the delay per time and per packet as far as given."""
    epsilon = float(re.search(r"eps([\d.e-]+)", case["id"])[1])
    expected = {"time": case["delay_time"], "packet": case.get("delay_packet")}
    if case["id"].startswith("exact_mmoo_cont"):
        flow = MarkovOnOff(case["peak"], 1.0 / case["lam_on_off"], 1.0 / case["mu_off_on"])
        rate, method, decay = case["C"], "martingale", case["eta"]
    elif case["id"].startswith("mart_mmoo_disc"):
        flow = SlottedOnOff(1.0, case["peak"], case["p_on_on"], case["p_off_off"], case["n"])
        rate, method, decay = case["c"], "martingale", case["theta_star"]
    elif case["id"].startswith("exact_dm1"):
        flow = IndependentIncrements(1.0, exponential(1.0 / case["lamb"]))
        rate, method, decay = case["c"], "lundberg", case["theta_star"]
    else:
        flow = CompoundPoisson(case["lamb"], exponential(case["mu_jobsize"]))
        rate, method, decay = case["c"], "lundberg", case["theta_star"]
        expected["packet"] = case["delay_time"]
    path = [RateLatency(rate, 0.0)]
    answers = [(flow.theta_at_rate(rate), decay)]
    for per, delay in expected.items():
        if delay is not None:
            answers.append((delay_bound(flow, path, epsilon, per, method).delay_s, delay))
    return answers
