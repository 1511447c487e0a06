"""Requests across three domains: the network's part beside the ideal replay, the bound beside the p99.9, a real trace.

One run for each load, on an otherwise idle host, and two of Azure's code trace where it is at hand: compressed so far
that no fit describes its bursts, and little enough that one does. Every run is shown, VALID or not; none is repeated.

Minutes do not tell a p99.9 at such loads, so the bound is also held against that of the ideal queue over millions of
requests, off by as much as the run was from its own ideal.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, at_most
from benchmarks.runs import run_scenario
from testbed.telemetry.lag import fifo

_RATE_BPS = 10e6
_WIRE_BITS = 67_800
"""What a message of 8 kB costs on the wire; the runs count it themselves, this only sets the load."""
_LEVELS = ("p50", "p99", "p99.9")
_LONG = 4_000_000
_FITTED = {"kingman", "blocks"}
_UNFITTED = ("No flow was fitted", *(f"Rejected: {method}, no bound" for method in sorted(_FITTED)))
_TRACE = Path(__file__).parents[3] / "shared" / "traces" / "AzureLLMInferenceTrace_code.csv"
_TOKEN_BITS = {20.0: 32, 3.0: 8}
"""Bits of a token of the trace, by how much that is compressed."""
_WARM_UP_S, _LULL_S = 60.0, 240.0
"""Warm-up and cool-down of independent arrivals: what an idle path takes differs by 4 % between one ten seconds and the
next, and the median of a load of .7 is nothing else. Of the trace, in its own time, longer than its longest pause."""
_SCENARIO = """
name: requests-{name}
seed: {seed}
warm-up: {warm_up:g} s
cool-down: {warm_up:g} s
duration: {seconds:g} s
allow-zero-delay: true
domains:
  - {{name: access, link-rate: 40 Mbit/s}}
  - {{name: metro, link-rate: 40 Mbit/s}}
  - {{name: core, link-rate: 40 Mbit/s, compute: true}}
tenants:
  - name: vision
    arrivals: {arrivals}
    requests: {{model: digits-medium, images: {images}}}
    reservation: {{rate: 10 Mbit/s}}
    promise: {{deadline: {deadline}, epsilon: 0.001}}
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a caller may shorten, and the trace, which is not shipped."""
    parser.add_argument("--loads", type=float, nargs="*", default=[0.7, 0.9], help="of the reservation (default .7 .9)")
    parser.add_argument("--seconds", type=float, default=120.0, help="measured window of each run (default 120)")
    parser.add_argument("--seed", type=int, default=1, help="of every run (default 1)")
    parser.add_argument("--trace", type=Path, default=_TRACE, help=f"{_TRACE.name}, or one of its kind")
    parser.add_argument(
        "--compressed",
        type=float,
        nargs="*",
        default=[*_TOKEN_BITS],
        choices=_TOKEN_BITS,
        help="the trace, so many times",
    )
    for name in ("isolate", "keep-awake"):
        parser.add_argument(f"--{name}", action="store_true", help="as of `testbed run`")
    parser.add_argument("--out", type=Path, help="keep the run folders here")


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure, in the order of the runs."""
    with tempfile.TemporaryDirectory(prefix="bench-requests-") as scratch:
        home = options.out or Path(scratch)
        for load in options.loads:
            rate = load * _RATE_BPS / _WIRE_BITS
            arrivals = f"{{model: poisson, rate: {rate:.2f} requests/s, size: 8 kB}}"
            run = _run(options, Path(scratch), home, f"load-{load:g}", arrivals, images=8)
            yield from _of(run, _poisson(load, run))
        if options.compressed and not options.trace.exists():
            yield at_most("a real trace, bounds below", np.nan, 0, note=f"{options.trace} is not there")
            return
        for speed_up in options.compressed:
            arrivals = (
                f"{{model: trace, file: {options.trace.resolve()}, format: azure-llm, "
                f"bits-per-token: {_TOKEN_BITS[speed_up]}, speed-up: {speed_up:g}}}"
            )
            run = _run(
                options,
                Path(scratch),
                home,
                f"trace-{speed_up:g}",
                arrivals,
                images=8,
                deadline="10 s",
                warm_up_s=_LULL_S / speed_up,
            )
            yield from _of(run, _trace(run, f"trace compressed {speed_up:g} times"))


def _of(run: dict[str, Any], figures: Iterable[Figure]) -> Iterator[Figure]:
    """The figures of a run, which show nothing where its host could not keep up."""
    return (replace(figure, valid=run["verdict"] != "INVALID") for figure in figures)


def _run(
    options: argparse.Namespace,
    scratch: Path,
    home: Path,
    name: str,
    arrivals: str,
    *,
    images: int,
    deadline: str = "500 ms",
    warm_up_s: float = _WARM_UP_S,
) -> dict[str, Any]:
    scenario = scratch / f"{name}.yaml"
    given = {"name": name.replace(".", ""), "arrivals": arrivals, "images": images, "deadline": deadline}
    times = {"seed": options.seed, "seconds": options.seconds, "warm_up": warm_up_s}
    scenario.write_text(_SCENARIO.format(**given, **times))
    kept = {"--isolate": options.isolate, "--keep-awake": options.keep_awake}
    record = run_scenario(scenario, home, *(name for name, wanted in kept.items() if wanted))
    if record["tenants"][0]["bound"] is None:
        raise RuntimeError(f"bench: {name}: {', '.join(gate['detail'] for gate in record['gates'] if not gate['ok'])}")
    return record


def _poisson(load: float, run: dict[str, Any]) -> Iterator[Figure]:
    (tenant,) = run["tenants"]
    asked, bound_s = tenant["requests"], tenant["bound_s"]
    said = f"{tenant['n']:,} requests, {_validity(run)}"
    for level, measured_s, ideal_s in zip(_LEVELS, asked["network_s"], asked["ideal_network_s"], strict=True):
        pair = f"{measured_s * 1e3:.2f} ms, ideal {ideal_s * 1e3:.2f} ms"
        off = 100 * abs(measured_s / ideal_s - 1)
        yield at_most(
            f"network part at load {load:g}, {level} against the replay", off, 5.0, "%", note=f"{pair}; {said}"
        )
    idle_s = asked["idle_s"]
    yield Figure(
        f"idle path at load {load:g}",
        idle_s * 1e3,
        "ms",
        note="median of the warm-up or the cool-down; their law is in every ideal",
    )
    lower_s, measured_s = tenant["promised_lower_s"], tenant["p999_s"]
    beside = f"bound {bound_s * 1e3:.1f} ms ({tenant['bound_method']}), measured {measured_s * 1e3:.1f} ms"
    broken = lower_s is not None and bound_s < lower_s
    yield at_most(f"bounds at load {load:g} below the lower limit", float(broken), 0, note=f"{beside}; {said}")
    yield Figure(
        f"bound over measured p99.9 at load {load:g}", bound_s / measured_s, note=f"of {tenant['n']:,} requests"
    )
    long_s = measured_s - asked["ideal_network_s"][2] + _long_ideal_p999_s(run, tenant)
    name = f"bound over the p99.9 of a long run at load {load:g}"
    how = f"{long_s * 1e3:.1f} ms: as far from the ideal as this run, with the ideal of {_LONG:,} requests"
    yield at_most(name, bound_s / long_s, 1.5, note=how)


def _long_ideal_p999_s(run: dict[str, Any], tenant: dict[str, Any]) -> float:
    """What the ideal replay's p99.9 would be of very many such requests."""
    asked, arrivals = tenant["requests"], run["scenario"]["tenants"][0]["arrivals"]
    queues = [queue for domain in run["installed"].values() for queue in domain["tenants"]["vision"]["queues"].values()]
    bits = asked["framing_out"] * arrivals["size_bits"]
    arrival_s = np.cumsum(np.random.default_rng(0).exponential(1.0 / arrivals["rate_per_s"], _LONG))
    wait_s = fifo(arrival_s, np.full(_LONG, bits), _RATE_BPS).start_s - arrival_s
    own_s = (bits - asked["last_packet_bits"] - 8 * min(queue["burst_bytes"] for queue in queues)) / _RATE_BPS
    return float(np.quantile(wait_s, 0.999)) + own_s + float(asked["idle_s"])


def _trace(run: dict[str, Any], name: str) -> Iterator[Figure]:
    """The trace's deterministic bound and the fitted one; where the fit is refused, why."""
    (tenant,) = run["tenants"]
    bound, lower_s = tenant["bound"], tenant["promised_lower_s"]
    known = {bound["method"]: bound["bound_s"], **bound["rejected"]}
    said = f"{tenant['n']:,} requests, {_validity(run)}"
    yield Figure(f"{name}, p99.9 measured", tenant["p999_s"] * 1e3, "ms", note=said)
    for method, bound_s in known.items():
        yield Figure(f"{name}, bound by {method}", bound_s * 1e3, "ms")
    if not known.keys() & _FITTED:
        why = next(line for line in bound["explanation"].splitlines() if line.startswith(_UNFITTED))
        yield Figure(f"{name}, fitted bound", np.nan, "ms", note=why)
    broken = lower_s is not None and bound["bound_s"] < lower_s
    yield at_most(
        f"{name}, bounds below the lower limit", float(broken), 0, note=f"the smallest is by {bound['method']}"
    )


def _validity(run: dict[str, Any]) -> str:
    closed = ", ".join(gate["name"] for gate in run["gates"] if not gate["ok"])
    return f"{run['verdict']}: {closed}" if closed else str(run["verdict"])
