"""The arrival processes that tests draw, and the counts they are judged by."""

import numpy as np
import numpy.typing as npt

from testbed.scenario.model import (
    Arrivals,
    Domain,
    Misbehaviour,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    Scenario,
    Tenant,
)

FloatArray = npt.NDArray[np.float64]

SIZE = 11_200
DEMO = OnOffArrivals(peak_bps=20e6, mean_on_s=0.005, mean_off_s=0.0075, size_bits=SIZE)
POISSON = PoissonArrivals(700.0, SIZE)
RENEWALS = {
    "deterministic": RenewalArrivals(500.0, "deterministic", 0.0, SIZE),
    "erlang": RenewalArrivals(500.0, "erlang", 0.5, SIZE),
    "gamma": RenewalArrivals(500.0, "gamma", 1.7, SIZE),
    "hyperexponential": RenewalArrivals(500.0, "hyperexponential", 3.0, SIZE),
}
CIRCLE = ((0.0, 40.0, 0.0), (0.0, 0.0, 25.0), (100.0, 0.0, 0.0))
"""A chain that runs in a circle, so it is not reversible."""
MMPP = MmppArrivals((200.0, 0.0, 3000.0), CIRCLE, SIZE)
PROCESSES: dict[str, Arrivals] = {"poisson": POISSON, "on-off": DEMO, "mmpp": MMPP, **RENEWALS}


def counts(time_s: FloatArray, window_s: float, duration_s: float) -> npt.NDArray[np.int64]:
    return np.bincount((time_s / window_s).astype(int), minlength=round(duration_s / window_s))


def index_of_dispersion(time_s: FloatArray, window_s: float, duration_s: float) -> float:
    each = counts(time_s, window_s, duration_s)
    return float(each.var() / each.mean())


def scenario(*tenants: Tenant, seed: int = 9) -> Scenario:
    return Scenario("s", (Domain("d1", 40_000_000, compute=True),), tenants, seed, 1.0, 1.0)


def tenant(name: str, arrivals: Arrivals = DEMO, misbehaviour: Misbehaviour | None = None) -> Tenant:
    return Tenant(name, arrivals, "d1", misbehaviour=misbehaviour)
