"""The network calculus: agreement with reference values, tightness and soundness against simulation, and speed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import peers
from benchmarks.figures import Figure, at_least, at_most, seconds_per_call
from testbed.calculus import (
    CompoundPoisson,
    EnvelopeService,
    ExcessTail,
    IndependentIncrements,
    LeftOver,
    MarkovOnOff,
    Metered,
    RateLatency,
    Renewal,
    SlottedOnOff,
    TokenBucket,
    closed_forms,
    delay_bound,
    delay_bounds,
    exponential,
)
from tests.unit.calculus import golden, quantiles, systems
from tests.unit.calculus import reference as ref

EPSILON = 1e-3
LOAD = 0.7
STAY = (0.8, 0.9)
BURSTY = MarkovOnOff(20e6, 5e-3, 7.5e-3, packet_bits=11_200)
DOMAINS = [EnvelopeService(10e6, 1e-3, ExcessTail(0.1, 2000.0, 0.0, 0.02), name=name) for name in ("a", "b", "c")]

_LINE_SOLVER = """
import json, time
from line_solver.api.snc import snc_env_cpoisson, snc_perc_delay, snc_srv_rate
def call():
    return snc_perc_delay(lambda t: snc_env_cpoisson(0.5, 1.0, t), lambda t: snc_srv_rate(0.5 / 0.7, t), 1e-3)
call()
best = float("inf")
for _ in range(7):
    start = time.perf_counter()
    for _ in range(20):
        delay, theta = call()
    best = min(best, (time.perf_counter() - start) / 20)
print(json.dumps({"seconds": best, "delay": delay}))
"""

_TOOLBOX = """
import json, math, sys, time
sys.path.insert(0, sys.argv[1] + "/src")
from nc_arrivals.markov_modulated import MMOODisc
from nc_operations.e2e_enum import E2EEnum
from nc_operations.flow import Flow
from nc_operations.perform_enum import PerformEnum
from nc_operations.pmoo_tandem_bound import pmoo_tandem_bound
from nc_server.constant_rate_server import ConstantRateServer
from optimization.optimize import Optimize
from utils.perform_parameter import PerformParameter
hops = int(sys.argv[2])
own = Flow(MMOODisc(0.8, 0.9, 1.0), list(range(hops)))
cross = [Flow(MMOODisc(0.8, 0.9, 1.0, 2), [hop]) for hop in range(hops)]
servers = [ConstantRateServer(1.0 / 0.7) for _ in range(hops)]
class Setting:
    def standard_bound(self, param_list):
        return pmoo_tandem_bound(own, cross, servers, float(param_list[0]), PerformParameter(PerformEnum.DELAY, 1e-3),
                                 E2EEnum.ANALYTIC_COMBINATORICS)
def call():
    return Optimize(Setting(), 1).grid_search([(0.01, 0.3)], 0.01)
call()
start = time.perf_counter()
found = call()
print(json.dumps({"seconds": time.perf_counter() - start, "delay": float(found.obj_value)}))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much to simulate, and where a copy of the toolbox is."""
    parser.add_argument("--systems", type=int, default=2000, help="random systems of the soundness run")
    parser.add_argument("--effort", type=float, default=0.25, help="length of each of their simulations")
    parser.add_argument("--toolbox", type=Path, help="a copy of the MGF toolbox to measure beside (none is shipped)")
    parser.add_argument("--only", choices=list(_PARTS), action="append", help="measure these parts only")


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure, quickest part first."""
    for name, part in _PARTS.items():
        if not options.only or name in options.only:
            yield from part(options)


def _agreement(_: argparse.Namespace) -> Iterator[Figure]:
    toolbox, exact = golden.toolbox_cases(), golden.exact_cases()
    fixed = [case for case in toolbox if case["valid_bound"] and case.get("at_fixed_theta")]
    if fixed:
        apart = max(
            abs(golden.form_of(case)(float(theta)) / expected - 1.0)
            for case in fixed
            for theta, expected in case["at_fixed_theta"].items()
        )
        yield at_most("toolbox values at fixed theta: relative difference", apart, 1e-6, note=f"{len(fixed)} cases")
        ratios = np.array([found / reference for found, reference in map(golden.optimised, toolbox)])
        note = f"{len(toolbox)} cases; median {np.median(ratios):.3f}, smallest {ratios.min():.3f}"
        yield at_most(
            "best bound over the optimised toolbox: largest ratio", float(ratios.max()), 1.0 + 1e-9, note=note
        )
    if exact:
        apart = max(abs(found / expected - 1.0) for case in exact for found, expected in golden.exact_answers(case))
        yield at_most("closed forms: relative difference", apart, 1e-9, note=f"{len(exact)} cases")


def _tightness(_: argparse.Namespace) -> Iterator[Figure]:
    rate = 10e6
    true = quantiles.of_runs(
        quantiles.on_off_packet_wait(ref.OnOff(20e6, 5e-3, 7.5e-3, 11_200.0), rate, EPSILON, 2_000_000, 1e-5), 16
    )
    yield _tight(
        "one on-off flow, packets (martingale)", delay_bound(BURSTY, [RateLatency(rate, 0.0)], EPSILON), true, 1.05
    )
    for flows, per, target in ((1, "time", 1.05), (1, "packet", 1.05), (10, "time", 1.3), (10, "packet", 1.3)):
        flow = SlottedOnOff(1.0, 1.0, *STAY, flows)
        path = [RateLatency(flow.mean_bps / LOAD, 0.0)]
        run = quantiles.slotted_on_off_wait(
            STAY, flows, path[0].rate_bps, EPSILON, 20_000_000 // flows, per_bit=per == "packet"
        )
        true = quantiles.of_runs(run, 12)
        bound = delay_bound(flow, path, EPSILON, per)
        yield _tight(f"{flows} slotted on-off flows per {per} (martingale)", bound, true, target)
        chernoff = delay_bound(flow, path, EPSILON, per, "chernoff")
        yield _tight(f"{flows} slotted on-off flows per {per} (Chernoff)", chernoff, true)
    yield from _tightness_of_packets()
    yield from _tightness_of_tandems()


def _tightness_of_packets() -> Iterator[Figure]:
    count = 4_000_000
    one = [RateLatency(1.0, 0.0)]
    erlang = Renewal.gamma(LOAD, 4.0, 1.0)
    bursts = Renewal.on_off(2.0, 5.0, 7.5 / LOAD * 0.8, 1.0)
    cases = {
        "M/D/1 (Lundberg)": (
            CompoundPoisson(LOAD, 1.0),
            lambda r: r.exponential(1.0 / LOAD, count),
            lambda _: np.ones(count),
        ),
        "M/M/1 (exact)": (
            CompoundPoisson(LOAD, exponential(1.0)),
            lambda r: r.exponential(1.0 / LOAD, count),
            lambda r: r.exponential(1.0, count),
        ),
        "Erlang gaps (Kingman)": (
            erlang,
            lambda r: r.gamma(4.0, 0.25 / LOAD, count),
            lambda _: np.ones(count),
        ),
        "geometric bursts (Kingman)": (
            bursts,
            lambda r: 0.5 + np.where(r.random(count) < 0.1, r.exponential(bursts.gap.mean_off_s, count), 0.0),
            lambda _: np.ones(count),
        ),
    }
    for name, (flow, gaps, sizes) in cases.items():
        true = quantiles.of_runs(quantiles.lindley_wait(gaps, sizes, 1.0, EPSILON), 8)
        yield _tight(name, delay_bound(flow, one, EPSILON), true)
    slots = IndependentIncrements(1.0, exponential(LOAD))
    true = quantiles.of_runs(
        quantiles.lindley_wait(lambda _: np.ones(count), lambda r: r.exponential(LOAD, count), 1.0, EPSILON), 8
    )
    yield _tight("D/M/1 (exact)", delay_bound(slots, one, EPSILON, "time"), true)


def _tightness_of_tandems() -> Iterator[Figure]:
    def jitter(rng: np.random.Generator) -> float:
        return float(np.quantile(rng.exponential(1.0, (2_000_000, 3)).sum(axis=1), 1.0 - EPSILON))

    true = quantiles.of_runs(jitter, 8)
    calm = TokenBucket(0.5, 1e-9)
    path = [EnvelopeService(1.0, 0.0, ExcessTail(1.0, 1.0)) for _ in range(3)]
    yield _tight("three jittery domains (union over domains)", delay_bound(calm, path, EPSILON), true)
    flow, cross = SlottedOnOff(1.0, 1.0, *STAY), SlottedOnOff(1.0, 1.0, *STAY, 2)
    capacity = (flow.mean_bps + cross.mean_bps) / LOAD
    for servers, target in ((1, None), (2, None), (3, 2.8), (5, None)):
        run = quantiles.priority_tandem_delay(STAY, 2, [capacity] * servers, EPSILON, 3_000_000)
        true = quantiles.of_runs(run, 12)
        bound = delay_bound(flow, [LeftOver(capacity, cross, "priority")] * servers, EPSILON, "time", "convolution")
        toolbox = _closed_form_tandem(flow, cross, capacity, servers) / true.value
        row = _tight(f"{servers} servers behind strict priority (MGF convolution)", bound, true, target)
        yield Figure(**{**vars(row), "peer": "toolbox's form", "peer_value": toolbox})


def _tight(name: str, bound, true: quantiles.Quantile, target: float | None = None) -> Figure:
    title, ratio, note = f"{name}: bound over simulation", bound.delay_s / true.value, _note(bound.delay_s, true)
    return Figure(title, ratio, note=note) if target is None else at_most(title, ratio, target, note=note)


def _note(bound_s: float, true: quantiles.Quantile) -> str:
    return f"bound {bound_s:.5g}, p99.9 {true.value:.5g} ± {true.error:.2g}"


def _closed_form_tandem(flow, cross, capacity: float, servers: int) -> float:
    """The toolbox's best published form at its best theta, with its own sigmas."""

    def delay(theta: float) -> float:
        (sigma, rho), (cross_sigma, cross_rho) = golden.envelope(flow, theta), golden.envelope(cross, theta)
        rates = [capacity - cross_rho] * servers
        total = sigma + servers * cross_sigma
        return closed_forms.analytic_combinatorics_tandem(theta, total, rho, rates, EPSILON)

    limit = _theta_limit(flow, cross, capacity)
    return min(delay(float(theta)) for theta in limit * np.arange(1, 400) / 400)


def _theta_limit(flow, cross, capacity: float) -> float:
    """The largest stable theta of a flow beside cross traffic of its own kind."""
    return SlottedOnOff(1.0, 1.0, *STAY, flow.flows + cross.flows).theta_at_rate(capacity) * (1.0 - 1e-9)


def _soundness(options: argparse.Namespace) -> Iterator[Figure]:
    broken, loose, exact, largest = 0, 0, 0, -np.inf
    for seed in range(options.systems):
        verdict = systems.judge(systems.random_system(seed, options.effort))
        exact += verdict.two_sided
        largest = max(largest, verdict.t)
        if verdict.broken or verdict.loose:
            print(f"counterexample, seed {seed}: {verdict}", file=sys.stderr)
        broken += verdict.broken
        loose += verdict.loose
        if seed % 200 == 199:
            print(f"bench: {seed + 1} of {options.systems} systems, {broken} broken", file=sys.stderr, flush=True)
    note = (
        f"{options.systems} random systems at 1e-6 each; largest share {largest:.1f} standard errors above epsilon, "
        f"{verdict.critical:.1f} allowed"
    )
    yield at_most("bounds below their simulation's lower confidence limit", broken, 0, note=note)
    yield at_most("exact forms that are not the truth", loose, 0, note=f"{exact} systems, compared from both sides")


def _speed(options: argparse.Namespace) -> Iterator[Figure]:
    path = [RateLatency(10e6, 0.0)]
    mm1, at = CompoundPoisson(0.5, exponential(1.0)), [RateLatency(0.5 / LOAD, 0.0)]
    python = peers.environment("line-solver", "line-solver==3.0.8.0")
    peer = peers.ask(python, _LINE_SOLVER)
    for name, flow, servers, method in (
        ("Chernoff, M/M/1", mm1, at, "chernoff"),
        ("Lundberg, M/M/1", mm1, at, "lundberg"),
        ("Chernoff, on-off", BURSTY, path, "chernoff"),
        ("martingale, on-off", BURSTY, path, "martingale"),
    ):
        spent = seconds_per_call(lambda f=flow, s=servers, m=method: delay_bound(f, s, EPSILON, method=m))
        beside = {"peer": "line-solver", "peer_value": peer["seconds"] * 1e3} if flow is mm1 else {}
        yield at_most(f"one bound: {name}", spent * 1e3, 0.2, "ms", **beside)
        if flow is mm1:
            note = f"bound {delay_bound(flow, servers, EPSILON, method=method).delay_s:.4g}, peer's {peer['delay']:.4g}"
            yield at_least(f"faster than line-solver: {name}", peer["seconds"] / spent, 5.0, "x", note=note)
    metered = Metered(BURSTY, TokenBucket(8.5e6, 2e6))
    for name, flow, servers in (
        ("one server", BURSTY, path),
        ("behind a meter", metered, path),
        ("behind a meter, three uncertain domains", metered, DOMAINS),
    ):
        spent = seconds_per_call(lambda f=flow, s=servers: delay_bound(f, s, EPSILON))
        yield at_most(f"best of every candidate: {name}", spent * 1e3, 1.0, "ms")
    yield from _tandem_speed(options)
    flows = [MarkovOnOff(20e6 * (1 + i / 1e5), 5e-3, 7.5e-3, packet_bits=11_200) for i in range(10_000)]
    spent = seconds_per_call(lambda: delay_bounds(flows, DOMAINS, EPSILON, 10.5e6), repeat=3, least_s=0.5)
    yield at_most("ten thousand on-off tenants on three domains", spent, 1.0, "s")


def _tandem_speed(options: argparse.Namespace) -> Iterator[Figure]:
    flow, cross = SlottedOnOff(1.0, 1.0, *STAY), SlottedOnOff(1.0, 1.0, *STAY, 2)
    tandem = [LeftOver((flow.mean_bps + cross.mean_bps) / LOAD, cross)] * 5

    def call():
        return delay_bound(flow, tandem, EPSILON, "time", "convolution")

    spent = seconds_per_call(call)
    beside, note = {}, f"bound {call().delay_s:g} slots"
    if options.toolbox is not None:
        python = peers.environment("mgf-toolbox", "numpy==2.4.6", "scipy==1.17.1", "pandas==3.1.1", "mpmath==1.4.1")
        peer = peers.ask(python, _TOOLBOX, str(options.toolbox), "5")
        beside = {"peer": "toolbox", "peer_value": peer["seconds"] * 1e3}
        note += f", toolbox's {peer['delay']:.4g}"
    yield at_most("five servers, MGF convolution", spent * 1e3, 3.0, "ms", note=note, **beside)


_PARTS = {"agreement": _agreement, "speed": _speed, "tightness": _tightness, "soundness": _soundness}
