"""The packet simulator: exactness against SimPy and ns-3, textbook queues, speed per core, a billion packets in memory.

Speeds count packets through one domain each, arrivals made beforehand, everything on one core; what a window costs as a
whole, arrivals and counting included, is shown. ns-3 is compiled from `tandem_ns3.cc`, linked with Debian's
`libns3-dev`; its links count 2 bytes of PPP header per packet, so the simulator is given 2 bytes more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from benchmarks.figures import Figure, at_least, at_most
from benchmarks.simulated import BITS, HOPS, LINK_BPS, LOAD, equal_tenants
from testbed.audit.quantile import quantiles
from testbed.errors import PreflightError
from testbed.management.admission import Rule
from testbed.report.record import read_record
from testbed.run.progress import Silent
from testbed.scenario.dictionary import from_dict
from testbed.scenario.model import OnOffArrivals, PoissonArrivals
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.domain import Server
from testbed.simulation.experiments.isolation import IsolationOptions, isolation
from testbed.simulation.experiments.overload import OverloadOptions, overload
from testbed.simulation.experiments.workload import Workload, reservation, smallest_burst_bits
from testbed.simulation.fifo import Bucket, FifoLink, Passed
from testbed.simulation.link import priority_link, weighted_link
from testbed.simulation.meter import Meter, Policy
from testbed.simulation.replay import replay_run
from testbed.simulation.reserved import Reserved, ReservedLink
from testbed.simulation.system import Scheduler
from testbed.simulation.tally import Tally
from testbed.simulation.wave import Wave
from testbed.simulation.window import CHUNK_PACKETS, Plan, simulate
from tests.unit.simulation import references
from tests.unit.simulation.references import wave_of

NS = 1000
CROWD = 1000
QUEUED = 1000
CONTRACTS = (1.1, 1.25, 1.5, 2.0)

_NS3_SOURCE = Path(__file__).with_name("tandem_ns3.cc")
_NS3_HEADER = Path("/usr/include/ns3/point-to-point-module.h")
_PPP_BYTES = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--packets", type=float, default=1e9, help="packets of the run whose memory is measured")
    parser.add_argument("--crowd-packets", type=float, default=1e7, help="packets of a thousand tenants together")
    parser.add_argument("--peer-packets", type=int, default=100_000, help="packets given to SimPy and ns-3")
    parser.add_argument("--run", type=Path, help="folder of a run on the network, to replay its packets")
    parser.add_argument("--only", default="", help="measure only the groups whose names contain this")


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    groups: dict[str, Callable[[argparse.Namespace], Iterator[Figure]]] = {
        "exactness": _exactness,
        "queues": _queues,
        "speed": _speed,
        "arrivals": _arrivals,
        "memory": _memory,
        "crowd": _crowd,
        "overload": _overload,
        "contract": _contract,
        "isolation": _isolation,
        "network": _network,
    }
    chosen = {name: group for name, group in groups.items() if options.only in name}
    if not chosen:
        raise PreflightError(f"--only: found {options.only}, expected a part of one of {', '.join(groups)}")
    if set(chosen) == {"network"} and options.run is None:
        raise PreflightError("--only network: found no --run, expected the folder of a run; name one on the network")
    for group in chosen.values():
        yield from group(options)


def _exactness(options: argparse.Namespace) -> Iterator[Figure]:
    n = options.peer_packets
    rates = (10_000_000, 8_000_000, 7_000_000)
    wave = _packets(n, 1, sizes=(640, 4000, 12_000), slowest_bps=min(rates))
    out = _through([FifoLink(rate, 2 * 10**9) for rate in rates], wave)
    simpy = references.simpy_tandem(
        (wave.time_ps / PS_PER_S).tolist(), wave.size_bits.tolist(), [(rate, 2e-3) for rate in rates]
    )
    furthest = np.abs(out.time_ps - np.array(simpy) * PS_PER_S).max() / NS
    note = f"{n:,} packets of 80, 500 and 1,500 bytes, three links"
    yield at_most("departures from a FIFO tandem, largest difference from SimPy", furthest, 1.0, "ns", note=note)
    departures, _ = _ns3(wave, rates, 2 * 10**9)
    longer = Wave(wave.time_ps, wave.born_ps, wave.number, wave.size_bits + 8 * _PPP_BYTES, wave.tenant, wave.ends)
    out = _through([FifoLink(rate, 2 * 10**9) for rate in rates], longer)
    furthest = np.abs(out.time_ps - departures).max() / NS
    yield at_most("the same, largest difference from ns-3", furthest, 1.0, "ns", note=note)
    yield at_most("packets that leave a reserved port at another picosecond than in the plain model", _differing(), 0)


def _differing() -> int:
    """Packets of 64 reserved tenants, two of them best effort, whose departure differs from the reference's."""
    wave = references.bursty(1, 20_000, 64, 550)
    rates = [None, None, *([Fraction(125_000)] * 62)]
    classes = [references.Class(rate, Fraction(24_000), 50) for rate in rates]
    expected, dropped = references.reserved(
        references.packets_of(wave), LINK_BPS, classes, references.Class(Fraction(LINK_BPS), Fraction(24_000))
    )
    port = ReservedLink(LINK_BPS, [Reserved(rate and float(rate), 24_000, 50) for rate in rates])
    passed = references.push_in_pieces(port, wave, 50)
    found = dict(zip(passed.on.number.tolist(), passed.on.time_ps.tolist(), strict=True))
    wrong = sum(found.get(number) != round(at * PS_PER_S) for number, at in expected.items())
    return wrong + len(set(dropped) ^ set(passed.lost.number.tolist()))


def _queues(_: argparse.Namespace) -> Iterator[Figure]:
    n, load, service_s = 4_000_000, 0.7, BITS / LINK_BPS
    rng = np.random.default_rng(5)
    steady = np.ones(n)

    def sojourn(gaps: np.ndarray, works: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        wave = wave_of(np.rint(np.cumsum(gaps) * service_s / load * PS_PER_S), np.rint(works[0] * BITS))
        out = wave
        for work in works:
            sized = np.rint(work * BITS).astype(np.int32)
            out = FifoLink(LINK_BPS).push(Wave(out.time_ps, out.born_ps, out.number, sized, out.tenant, out.ends), 0).on
        return (out.time_ps - wave.time_ps)[n // 20 :] / PS_PER_S, wave.size_bits[n // 20 :] / LINK_BPS

    def md1(level: float) -> float:
        def beyond(t: float) -> float:
            k = np.arange(math.floor(t) + 1)
            x = load * (k - t)
            return 1 - (1 - load) * math.fsum(math.exp(-v) * v**i / math.factorial(i) for i, v in enumerate(x))

        return brentq(lambda t: beyond(t) - (1 - level), 0.0, 20.0) * service_s

    sigma = brentq(lambda s: s - math.exp(-(1 - s) / load), 1e-9, 1 - 1e-9)
    random = rng.standard_exponential
    cases = {
        "M/M/1": (sojourn(random(n), [random(n)])[0], lambda p: -math.log(1 - p) * service_s / (1 - load)),
        "M/D/1": (np.maximum(0, np.subtract(*sojourn(random(n), [steady]))), md1),
        "D/M/1": (sojourn(steady, [random(n)])[0], lambda p: -math.log(1 - p) * service_s / (1 - sigma)),
        "Jackson tandem of 3": (
            sojourn(random(n), [random(n) for _ in range(3)])[0],
            lambda p: stats.gamma.ppf(p, 3, scale=service_s / (1 - load)),
        ),
    }
    outside = []
    for name, (delay_s, exact_s) in cases.items():
        for found in quantiles(delay_s, (0.5, 0.99, 0.999)):
            exact = exact_s(found.level)
            if found.lower_s is None or found.upper_s is None or not found.lower_s <= exact <= found.upper_s:
                outside.append(f"{name} p{100 * found.level:g}")
            if found.level == 0.999:
                yield Figure(
                    f"{name} at load {load}, p99.9",
                    (found.estimate_s or math.nan) * 1e3,
                    "ms",
                    peer="exact",
                    peer_value=exact * 1e3,
                    note=f"95 % limits {(found.lower_s or 0) * 1e3:.3f} .. {(found.upper_s or 0) * 1e3:.3f}",
                )
    note = f"{n:,} packets each; outside: {', '.join(outside) or 'none'}"
    yield at_most("textbook quantiles of 12 outside their own 95 % limits", len(outside), 1, note=note)


def _speed(options: argparse.Namespace) -> Iterator[Figure]:
    wave = _packets(CHUNK_PACKETS, 1)
    fifo = _hops_per_s(lambda: [FifoLink(LINK_BPS) for _ in range(HOPS)], wave)
    peers = _packets(options.peer_packets, 1)
    began = time.perf_counter()
    references.simpy_tandem((peers.time_ps / PS_PER_S).tolist(), peers.size_bits.tolist(), [(LINK_BPS, 0.0)] * HOPS)
    simpy = HOPS * len(peers) / (time.perf_counter() - began)
    ns3 = HOPS * len(peers) / _ns3(peers, [LINK_BPS] * HOPS, 0)[1]
    per_s = "packet-hops/s"
    yield at_least("FIFO tandem", fifo, 100e6, per_s)
    yield at_least("FIFO tandem, times SimPy", fifo / simpy, 1000, peer="SimPy, hops/s", peer_value=simpy)
    yield at_least("FIFO tandem, times ns-3", fifo / ns3, 50, peer="ns-3, hops/s", peer_value=ns3)
    buckets = _hops_per_s(lambda: [Bucket(LINK_BPS, 12_000) for _ in range(HOPS)], wave)
    yield at_least("reserved, independent buckets", buckets, 100e6, per_s)
    for tenants, target in ((4, 20e6), (64, 8e6)):
        shared = _packets(CHUNK_PACKETS, tenants)
        rate = _hops_per_s(lambda k=tenants: [_reserved(k) for _ in range(HOPS)], shared)
        yield at_least(f"reserved, a shared root link, {tenants} tenants", rate, target, per_s)
    four = _packets(CHUNK_PACKETS, 4)
    rate = _hops_per_s(lambda: [priority_link(LINK_BPS, range(4)) for _ in range(HOPS)], four)
    yield at_least("priority, 4 ranks", rate, 20e6, per_s)
    policies = [Policy(LINK_BPS / 5, 12_000)] * 4
    rate = _hops_per_s(
        lambda: [server for _ in range(HOPS) for server in (Meter(policies), FifoLink(LINK_BPS))], four, 2
    )
    yield at_least("policed FIFO, 4 tenants", rate, 20e6, per_s)
    rate = _hops_per_s(lambda: [FifoLink(LINK_BPS, 0, QUEUED) for _ in range(HOPS)], wave)
    yield Figure(f"FIFO tandem, queues of {QUEUED} packets", rate, per_s)
    rate = _hops_per_s(lambda: [weighted_link(LINK_BPS, [4, 2, 1, 1]) for _ in range(HOPS)], four)
    yield Figure("weighted, 4 tenants", rate, per_s)
    tally = Tally.of([PS_PER_S])
    out = FifoLink(LINK_BPS).push(wave, 0).on
    yield Figure("counting a delivered packet", len(wave) / _seconds(lambda: tally.deliver(out, 2**40)), "packets/s")


def _arrivals(_: argparse.Namespace) -> Iterator[Figure]:
    models = {
        "Poisson": PoissonArrivals(LOAD * LINK_BPS / BITS, BITS),
        "on-off": OnOffArrivals(2 * LINK_BPS, 5e-3, 7.5e-3, BITS),
    }
    for name, model in models.items():
        for tenants in (1, 16):
            outcome = simulate(equal_tenants(model, tenants), Plan(1, 1, 4000.0 / tenants))
            rate = outcome.packets / outcome.generating_s
            yield Figure(f"drawing arrivals, {name}, {tenants} tenants", rate, "packets/s")


def _memory(options: argparse.Namespace) -> Iterator[Figure]:
    found = _apart("window", str(options.packets))
    note = (
        f"{found['packets']:,} packets through {HOPS} domains in {found['seconds']:.0f} s, arrivals and counts included"
    )
    yield at_most("memory of a window", found["peak_gib"], 2.0, "GiB", note=note)
    yield Figure("the same, whole window", found["packet_hops"] / found["seconds"], "packet-hops/s", note=note)


def _crowd(options: argparse.Namespace) -> Iterator[Figure]:
    few, many = (_apart("crowd", str(tenants), str(int(options.crowd_packets))) for tenants in (CROWD // 4, CROWD))
    note = (
        f"{many['packets']:,} packets of reserved tenants through {HOPS} domains in {many['seconds']:.1f} s, arrivals "
        f"and counts included; {many['bounds']:,} bounds, {many['broken']} broken"
    )
    yield Figure(f"{CROWD:,} tenants of a file, packets/s", many["packets"] / many["seconds"], "packets/s", note=note)
    yield Figure("the same", many["packet_hops"] / many["seconds"], "packet-hops/s")
    yield at_most("memory of the same", many["peak_gib"], 2.0, "GiB", note=f"{few['peak_gib']:.2f} GiB for a quarter")
    note = f"reading the file, bounds, samples, judging: {many['other_seconds']:.0f} s and {few['other_seconds']:.0f} s"
    ratio = many["other_seconds"] / few["other_seconds"]
    yield at_most("all else than packets, over that for a quarter of the tenants", ratio, 8.0, note=note)


def _apart(*arguments: str) -> dict[str, float]:
    """What `benchmarks.simulated` prints."""
    command = [sys.executable, "-m", "benchmarks.simulated", *arguments]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def _overload(options: argparse.Namespace) -> Iterator[Figure]:
    del options
    asked = OverloadOptions(workers=os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        found = {(point.value, point.name): point for point in overload(asked, Path(folder), Silent())}
    ratio, load = min(
        (found[load, Rule.STOCHASTIC].admitted / found[load, Rule.DETERMINISTIC].admitted, load) for load in asked.loads
    )
    windows = f"{asked.replications} windows of {asked.duration_s:g} s, the same tenants under every rule"
    shares = ", ".join(f"{100 * found[load, rule].admitted:.1f} %" for rule in (Rule.STOCHASTIC, Rule.DETERMINISTIC))
    note = f"least of the loads, at {load:g}: {shares}; {windows}"
    yield at_least("tenants admitted, stochastic over deterministic", ratio, 1.75, note=note)
    for rule in (Rule.STOCHASTIC, Rule.DETERMINISTIC):
        least = min((found[load, rule] for load in asked.loads), key=lambda point: point.compliance_interval[0])
        note = f"their packets together, lower 95 % limit, worst of the loads, at {least.value:g}"
        target = 100 * (1 - asked.workload.epsilon)
        yield at_least(f"in time of those admitted, {rule}", 100 * least.compliance_interval[0], target, "%", note=note)
        kept = [found[load, rule].kept for load in asked.loads]
        tenants, refuted = sum(one.tenants for one in kept), sum(one.refuted for one in kept)
        # Each is told with 95 % confidence, so chance may tell as many of one in twenty.
        note = f"{refuted} of {tenants}, each by its own packets, all loads"
        yield at_most(f"tenants sure to be late too often, {rule}", 100 * refuted / tenants, 5.0, "%", note=note)
    late = max((found[load, Rule.NONE] for load in asked.loads if load > 1), key=lambda point: point.compliance)
    note = f"best of the loads above 1, at {late.value:g}"
    yield at_most("in time without control", 100 * late.compliance, 100 * (1 - asked.workload.epsilon), "%", note=note)


def _contract(_: argparse.Namespace) -> Iterator[Figure]:
    """How the ratio of the rules depends on what tenants declare, and on how bursty they are."""
    bursty = Workload()
    smoother = replace(bursty, arrivals=replace(bursty.arrivals, peak_bps=5e6, mean_off_s=7.5e-3))
    for name, workload in (("on a tenth of the time", bursty), ("on two fifths", smoother)):
        for factor in CONTRACTS:
            asked = replace(workload, contract_factor=factor)
            burst_bits = smallest_burst_bits(asked)
            rates = [reservation(rule, asked, burst_bits).rate_bps for rule in (Rule.DETERMINISTIC, Rule.STOCHASTIC)]
            note = f"burst {burst_bits / 1e6:.3f} Mbit; {rates[0] / 1e6:.2f} and {rates[1] / 1e6:.2f} Mbit/s"
            what = f"contract of {factor} times the mean, {name}: deterministic over stochastic rate"
            yield Figure(what, rates[0] / rates[1], note=note)


def _isolation(options: argparse.Namespace) -> Iterator[Figure]:
    del options
    asked = IsolationOptions(workers=os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        found = {(point.value, point.name): point for point in isolation(asked, Path(folder), Silent())}
    for scheduler, goal in ((Scheduler.RESERVED, at_most), (Scheduler.FIFO, at_least)):
        alone_s = found[0.0, scheduler].p999_s
        moved = {c: found[c, scheduler].p999_s for c in asked.correlations}
        off = [math.nan if s is None or alone_s is None else 100 * abs(s / alone_s - 1) for s in moved.values()]
        # Of a p99.9 that is not known nothing is said: unlike `max`, NumPy does not skip what is not a number.
        note = f"the same packets at {len(moved)} correlations; {asked.replications} windows of {asked.duration_s:g} s"
        yield goal(
            f"victim's p99.9 moved most from its own at correlation 0, {scheduler}",
            float(np.max(off)),
            5,
            "%",
            note=note,
        )


def _network(options: argparse.Namespace) -> Iterator[Figure]:
    if options.run is None:
        yield Figure("the same packets as on a network", math.nan, note="not measured: --run FOLDER of a VALID run")
        return
    record = read_record(options.run)
    valid = {window.index: window.valid for window in record.windows}
    reserved = {tenant.name for tenant in from_dict(record.scenario).tenants if tenant.reservation is not None}
    held = [found for found in replay_run(options.run) if found.tenant in reserved]
    if not held:
        raise PreflightError(f"--run {options.run}: found no tenant with a reservation, expected one; name another run")
    for found in held:
        measured, simulated = found.quantiles()
        note = f"window {found.window}, {'valid' if valid[found.window] else 'INVALID'}"
        if found.host_s.size:
            typical_s, longest_s = np.quantile(found.host_s, (0.5, 0.999))
            share = found.host_s.size / len(found.measured_s)
            note += f"; {share:.0%} wait for nobody; host {typical_s * 1e3:.2f} ms, p99.9 {longest_s * 1e3:.2f}"
        dropped, would_drop = found.metered
        if dropped:
            note += f"; meter dropped {dropped:,} packets, would have dropped {would_drop:,}"
        for level, network_s, simulator_s in zip((50, 99, 99.9), measured, simulated, strict=True):
            yield at_most(
                f"{found.tenant}, p{level} of the same packets, off by",
                100 * abs(simulator_s / network_s - 1),
                3.0,
                "%",
                note=f"{note}; network {network_s * 1e3:.2f} ms, simulator {simulator_s * 1e3:.2f} ms",
                valid=record.verdict != "INVALID",
            )


def _packets(n: int, tenants: int, sizes: Sequence[int] = (BITS,), slowest_bps: int = LINK_BPS) -> Wave:
    rng = np.random.default_rng(2)
    bits = rng.choice(sizes, n)
    times = np.cumsum(rng.standard_exponential(n) * np.mean(sizes) / slowest_bps / LOAD * PS_PER_S)
    return wave_of(np.rint(times), bits, rng.integers(0, tenants, n))


def _reserved(tenants: int) -> Server:
    return ReservedLink(LINK_BPS, [Reserved(LINK_BPS / tenants, 24_000.0)] * tenants)


def _through(servers: Sequence[Server], wave: Wave) -> Wave:
    for server in servers:
        wave = Passed(*server.push(wave, 2**61)).on
    return wave


def _hops_per_s(build: Callable[[], Sequence[Server]], wave: Wave, servers_a_hop: int = 1) -> float:
    """Packets through one domain each per second, the fastest of many passes; servers are new at each pass."""
    hops = len(build()) // servers_a_hop
    return hops * len(wave) / _seconds(lambda: _through(build(), wave))


def _seconds(call: Callable[[], object]) -> float:
    call()
    best = math.inf
    for _ in range(60):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


def _ns3(wave: Wave, rates: Sequence[int], delay_ps: int) -> tuple[np.ndarray, float]:
    """Departure times in ns-3, and the seconds that its simulation took; NaN where it cannot be installed."""
    if not _ns3_is_there():
        return np.full(len(wave), np.nan), math.nan
    with tempfile.TemporaryDirectory() as folder:
        program, arrivals, departures = (Path(folder, name) for name in ("tandem", "arrivals", "departures"))
        libraries = ["-lns3-point-to-point", "-lns3-network", "-lns3-core"]
        subprocess.run(["g++", "-O2", "-std=c++17", "-o", str(program), str(_NS3_SOURCE), *libraries], check=True)
        np.stack([wave.time_ps, wave.size_bits // 8], axis=1).astype(np.int64).tofile(arrivals)
        command = [str(program), str(arrivals), str(departures), str(delay_ps), *map(str, rates)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        return np.fromfile(departures, np.int64), float(run.stdout)


def _ns3_is_there() -> bool:
    """Whether ns-3 can be compiled against, after an attempt to install it."""
    if not _NS3_HEADER.exists():
        install = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", "libns3-dev"]
        subprocess.run(install, check=False, stdout=subprocess.DEVNULL)
    return _NS3_HEADER.exists()
