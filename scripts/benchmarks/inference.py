"""The inference server and the request generator, beside MLServer, a bare gRPC echo and MLPerf LoadGen.

Everything runs on one host, clients beside servers, so throughput is that of the pair and tails have the host in them;
peers are measured the same way in the same run. `--parts` chooses what to measure; `wire` needs root.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from scipy import stats

from benchmarks import inference_clients as clients
from benchmarks import inference_isolation as isolation
from benchmarks import inference_process as process
from benchmarks import inference_servers as servers
from benchmarks import inference_wire as wire
from benchmarks.figures import Figure, Goal, at_least, at_most
from benchmarks.loads import Load, busiest, within
from inference_server.digits import HELD_OUT
from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import method
from testbed.envelope import Validity
from testbed.management.compute_envelope import calibrate_compute, contradictions
from testbed.traffic.request_records import OK, RequestRecord

_CALLS = (1, 2, 4, 8, 16)
"""Unanswered calls of a closed loop: from a server that waits to one that is always busy."""
_ROUNDS = 3
_TURNS = 15
"""Of a generator, in place of the rounds: as long in all."""
_ECHO = "a bare gRPC echo"
_BATCH_ROWS = 32
_WORK = {
    "forward": "one row through PyTorch, bytes to bytes",
    "turn": "one wait for the event loop's next turn",
    "protobuf": "request and answer by protobuf",
}
_COST_CALLS, _COST_SERVERS = 8, len(_WORK) + 3
_STORM = 3.0
_IDLE_RATE = 300.0
_WAITING, _WAITING_IMAGES = 0.7, 16
_WIRE_RATE = 2000.0
_STORM_S = 10.0
_SOAK = 0.7
_QUIET_S = 8.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to measure, and for how long."""
    parser.add_argument("--parts", nargs="*", choices=sorted(_PARTS), default=list(_PARTS), help="default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each window (default 30)")
    parser.add_argument("--images", type=int, default=64, help="in each request, but for throughput (default 64)")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals (default 1)")


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure that was asked for."""
    with tempfile.TemporaryDirectory(prefix="bench-inference-") as folder:
        for part in options.parts:
            yield from _PARTS[part](options, Path(folder))


def _throughput(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Each server under more and more calls, all in turn and several times over, so that the host's moods hit them all.

    A peer is compared where it answers the most: with what ours answers at a p99 of at most the peer's there.
    """
    request, weights = folder / "request", folder / "weights.npz"
    request.write_bytes(clients.message(servers.SMALL, 1))
    np.savez(weights, **load_file(HELD_OUT.parent / f"{servers.SMALL}.safetensors"))
    seconds = options.seconds / _ROUNDS / len(_CALLS)
    rounds: list[dict[str, list[Load]]] = []
    with ExitStack() as stack:
        ours = {
            "batch 1": stack.enter_context(servers.ours("--models", servers.SMALL)),
            f"batches of {_BATCH_ROWS}": stack.enter_context(
                servers.ours("--models", servers.SMALL, "--batch-rows", str(_BATCH_ROWS))
            ),
        }
        answer = {"ModelInfer": clients.answer(ours["batch 1"], request)}
        targets = ours | {
            _ECHO: stack.enter_context(servers.echo(answer)),
            "MLServer": stack.enter_context(servers.mlserver(folder, weights, _free_port())),
            "nvidia-pytriton": stack.enter_context(servers.pytriton(folder, weights, _free_port())),
        }
        for target in targets.values():
            clients.closed(target, request, calls=max(_CALLS), seconds=seconds)
        for _ in range(_ROUNDS):
            found: dict[str, list[Load]] = {name: [] for name in targets}
            for calls, (name, target) in product(_CALLS, targets.items()):
                measured = clients.closed(target, request, calls=calls, seconds=seconds)
                found[name].append(Load(calls, measured["per_s"], measured["p99_ms"]))
            rounds.append(found)
    for mine, (peer, goal) in product(ours, ((_ECHO, 0.7), ("MLServer", 2.0), ("nvidia-pytriton", None))):
        peaks = [busiest(found[peer]) for found in rounds]
        levels = [within(found[mine], peak.p99_ms) for found, peak in zip(rounds, peaks, strict=True)]
        ratios = [level / peak.per_s for level, peak in zip(levels, peaks, strict=True)]
        note = (
            f"{np.median(levels):.0f}/s at a p99 of at most the {np.median([peak.p99_ms for peak in peaks]):.2f} ms of "
            f"{peer} at its {np.median([peak.per_s for peak in peaks]):.0f}/s; median of {_ROUNDS} rounds, ratios "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )
        title, ratio = f"{servers.SMALL}, {mine}: throughput over {peer}", float(np.median(ratios))
        yield Figure(title, ratio, note=note) if goal is None else at_least(title, ratio, goal, note=note)


def _cost(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Processor time of a server for each call: of the echo, of the echo with what no server can spare, and of ours."""
    request = folder / "request"
    request.write_bytes(clients.message(servers.SMALL, 1))
    seconds = options.seconds / _ROUNDS / _COST_SERVERS
    with ExitStack() as stack:
        ours = stack.enter_context(servers.ours_process("--models", servers.SMALL))
        answer = {"ModelInfer": clients.answer(ours[0], request)}
        targets = {"nothing else (the bare echo)": stack.enter_context(servers.echo_process(answer))}
        for work, about in _WORK.items():
            parts = (answer, "127.0.0.1", work, str(request))
            targets[about] = stack.enter_context(servers.echo_process(*parts))
        targets |= {
            "everything, batch 1 (our server)": ours,
            f"everything, batches of {_BATCH_ROWS}": stack.enter_context(
                servers.ours_process("--models", servers.SMALL, "--batch-rows", str(_BATCH_ROWS))
            ),
        }
        for target, _ in targets.values():
            clients.closed(target, request, calls=_COST_CALLS, seconds=seconds)
        spent: dict[str, list[float]] = {name: [] for name in targets}
        for _, (name, (target, pid)) in product(range(_ROUNDS), targets.items()):
            before_s = process.busy_s(pid)
            answered = clients.closed(target, request, calls=_COST_CALLS, seconds=seconds)["answered"]
            spent[name].append((process.busy_s(pid) - before_s) / answered)
    bare = np.array(spent["nothing else (the bare echo)"])
    for name, each in spent.items():
        ratio = float(np.median(bare / np.array(each)))
        note = f"{_COST_CALLS} calls unanswered, median of {_ROUNDS} rounds; the bare echo takes {ratio:.2f} of it"
        yield Figure(f"processor time of a call, {name}", float(np.median(each)) * 1e6, "us", note=note)


def _agreement(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Both generators before a server that is hardly used, and before one that keeps its requests waiting.

    Where requests hardly wait, what a sender sleeps past the moment is part of the tail. LoadGen sleeps, so ours does
    to be compared; how much earlier it is as it watches for the moment is shown as well.
    """
    light: dict[str, Any] = {"model": servers.SMALL, "images": 1, "rate": _IDLE_RATE}
    heavy: dict[str, Any] = {"model": servers.LARGE, "images": _WAITING_IMAGES, "load": _WAITING}
    yield from _agreed(options, folder, "hardly waiting, both sleeping", **light, watching=False)
    yield from _agreed(options, folder, "hardly waiting, ours watching", **light)
    yield from _agreed(options, folder, "waiting", **heavy)


def _agreed(
    options: argparse.Namespace,
    folder: Path,
    title: str,
    *,
    model: str,
    images: int,
    rate: float = 0.0,
    load: float = 0.0,
    watching: bool = True,
) -> Iterator[Figure]:
    """Both generators at once, each with half of the load: what the host and the queue do hits both alike.

    In turns, a host's moods are most of what they differ by. Both draw Poisson arrivals as LoadGen does, from seeds of
    their own, and count from when a request was due.
    """
    request, seconds = folder / "request", options.seconds * _ROUNDS / _TURNS
    request.write_bytes(clients.message(model, images))
    records, driven = list[RequestRecord](), list[clients.Driven]()
    *rest, last = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        with servers.on_cores([last]):
            target = stack.enter_context(servers.ours("--models", model))
        stack.enter_context(servers.on_cores(rest or [last]))
        if load:
            rate = load * clients.capacity(folder, target, model, images)
        for seed in range(options.seed, options.seed + _TURNS):
            drawn = clients.like_loadgen(rate / 2, seconds, seed + _TURNS, request.stat().st_size)
            how: dict[str, Any] = {"rate": rate / 2, "seconds": seconds, "deadline_s": 1.0, "watching": watching}
            sender = clients.Sender(
                folder, "alone", target, model=model, images=images, seed=seed, schedule=drawn, **how
            )
            generator = clients.LoadGen(target, request, rate=rate / 2, seconds=seconds, seed=seed)
            start_ns = clients.in_a_moment()
            generator.start(start_ns)
            sender.start_at(start_ns)
            driven.append(generator.driven())
            records.append(sender.record())
    answered = float(np.mean(np.concatenate([each.status for each in records]) == OK))
    for name, level, target_share in (("p50", 0.5, None), ("p99", 0.99, 5.0), ("p99.9", 0.999, 10.0)):
        mine = [float(np.quantile(each.latency_s[each.status == OK], level, method="higher")) * 1e3 for each in records]
        theirs = [each.ms[name] for each in driven]
        ratio, limits = _mean_ratio(mine, theirs)
        note = (
            f"ours over LoadGen's {ratio:.3f} ({limits[0]:.3f} to {limits[1]:.3f}); medians {np.median(mine):.3f} and "
            f"{np.median(theirs):.3f} ms of {_TURNS} times {seconds:g} s at once, {rate / 2:.0f}/s each, "
            f"{answered:.2%} answered"
        )
        apart = Figure(f"generator against LoadGen, {title}, {name}: apart", _apart(ratio), "%", note=note)
        if target_share is not None:
            least = 0.0 if limits[0] <= 1.0 <= limits[1] else min(map(_apart, limits))
            known = (least, max(map(_apart, limits)))
            apart = replace(apart, goal=Goal.AT_MOST, target=target_share, limits=known)
        yield apart
    late = np.concatenate([each.lateness_s for each in records])
    late = late[np.isfinite(late)]
    theirs_late = np.concatenate([each.late_s for each in driven])
    levels = [float(np.quantile(each, 0.999)) * 1e3 for each in (late, theirs_late)]
    yield Figure(
        f"lateness of handing over, {title}, p99.9",
        levels[0],
        "ms",
        note=f"{rate / 2:.0f}/s; LoadGen's {levels[1]:.3f} ms",
    )


def _mean_ratio(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Geometric mean of the ratios of turns, and where it lies with 95 % confidence (Student's t)."""
    logs = np.log(np.array(mine) / np.array(theirs))
    half = float(stats.t.ppf(0.975, logs.size - 1) * stats.sem(logs))
    mean = float(logs.mean())
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))


def _apart(ratio: float) -> float:
    return 100 * abs(ratio - 1)


def _wire(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """The sender's lateness before a server that costs the least, on a core of its own, and before ours."""
    how: dict[str, Any] = {"model": servers.SMALL, "images": 1, "rate": _WIRE_RATE, "seconds": options.seconds}
    for receiver in wire.Receiver:
        found = wire.captured(folder, receiver, deadline_s=1.0, seed=options.seed, **how)
        samples, missed = found.samples, found.counts.missed
        answered = float(np.mean(samples.status == OK))
        said = f"{_WIRE_RATE:g}/s, {len(samples)} due, {answered:.0%} answered in time; {missed} packets not captured"
        for what, seen_s in (("first", samples.first_s), ("last", samples.out_s[:, 0])):
            late_ms = (seen_s - samples.intended_s)[np.isfinite(seen_s)] * 1e3
            levels = np.quantile(late_ms, (0.5, 0.99, 0.999), method="higher").tolist()
            p50, p99, p999 = levels if not missed else [np.nan] * 3
            note = f"p50 {p50:.3f} ms, p99 {p99:.3f} ms; {said}"
            yield at_most(f"lateness at the wire to {receiver}, {what} byte, p99.9", p999, 0.5, "ms", note=note)
        handed_s = (samples.sent_s - samples.intended_s)[np.isfinite(samples.sent_s)]
        for name, late_s in (("handing over", handed_s), ("waking up before anything is sent", found.idle_s)):
            about = f"lateness of {name} to {receiver}, p99.9"
            yield Figure(about, float(np.quantile(late_s, 0.999)) * 1e3, "ms", note=f"{_WIRE_RATE:g}/s")


def _storm(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    with servers.ours("--models", servers.LARGE) as target:
        capacity = clients.capacity(folder, target, servers.LARGE, options.images)
        how: dict[str, Any] = {"model": servers.LARGE, "images": options.images}
        whole_s = 2 * _QUIET_S + _STORM_S
        before = _counted(target, servers.LARGE)
        probe = clients.Sender(
            folder, "probe", target, rate=0.1 * capacity, seconds=whole_s, deadline_s=2.0, seed=options.seed, **how
        )
        storm = clients.Sender(
            folder, "storm", target, rate=_STORM * capacity, seconds=_STORM_S, deadline_s=0.25, seed=options.seed, **how
        )
        probe.start()
        storm.start(_QUIET_S)
        stormed, probed = storm.record(), probe.record()
        after = _counted(target, servers.LARGE)
    end_s = _QUIET_S + _STORM_S
    time_s = probed.schedule.time_s
    idle_s, later_s = (
        float(np.nanquantile(probed.latency_s[chosen], 0.99)) for chosen in (time_s < _QUIET_S, time_s > end_s + 1.0)
    )
    note = f"{idle_s * 1e3:.2f} ms before, {later_s * 1e3:.2f} ms from 1 s after on; offered {_STORM:g} times capacity"
    yield at_most("storm: p99 from 1 s after it over that before it", later_s / idle_s, 1.1, note=note)
    computed, answered = (a - b for a, b in zip(after, before, strict=True))
    note = f"of {computed} computed, {answered} were answered; {np.mean(stormed.status == OK):.0%} of the storm were"
    late_s = np.concatenate([_begun_late_s(each) for each in (stormed, probed)])
    yield at_most("storm: requests begun after their deadline", int(np.count_nonzero(late_s > 0)), 0, note=note)


def _soak(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """A server at .7 of its capacity: what it holds in the last tenth of the time over the second, when it is warm."""
    with servers.ours_process("--models", servers.LARGE) as (target, pid):
        capacity = clients.capacity(folder, target, servers.LARGE, options.images)
        how: dict[str, Any] = {
            "model": servers.LARGE,
            "images": options.images,
            "deadline_s": 1.0,
            "seed": options.seed,
        }
        sender = clients.Sender(folder, "soak", target, rate=_SOAK * capacity, seconds=options.seconds, **how)
        sender.start()
        held = []
        begin_s = time.monotonic()
        while (now_s := time.monotonic() - begin_s) < options.seconds:
            held.append((now_s, process.held(pid)))
            time.sleep(min(1.0, options.seconds / 100))
        record = sender.record()
    answered = float(np.mean(record.status == OK))
    tenth = len(held) // 10
    said = f"{options.seconds:g} s at {_SOAK:g} of {capacity:.0f}/s, {answered:.2%} of {len(record.schedule)} answered"
    early, late = ([each for _, each in part] for part in (held[tenth : 2 * tenth], held[-tenth:]))
    for about, name, unit, most in (
        ("memory", "memory_kb", " kB", 1.0),
        ("descriptors", "descriptors", "", 0.0),
        ("threads beside gRPC's pool", "own", "", 0.0),
    ):
        was, became = (max(getattr(each, name) for each in part) for part in (early, late))
        note = f"at most {was} and {became}{unit}; {said}"
        yield at_most(f"soak: growth of {about}", 100 * (became / was - 1), most, "%", note=note)
    was, became = (max(each.pool for each in part) for part in (early, late))
    by_name = " and ".join(str(dict(sorted(part[-1].threads.items()))) for part in (early, late))
    note = (
        f"{was} before; gRPC keeps {process.pool_reserve()} and starts more while all are busy; all by name: {by_name}"
    )
    yield Figure("soak: threads of gRPC's pool", became, note=note)
    at_s, memory_kb = np.array([(at_s, each.memory_kb) for at_s, each in held[len(held) // 2 :]]).T
    slope = float(np.polyfit(at_s, memory_kb, 1)[0]) * 3600
    yield Figure("soak: slope of memory over the last half", slope, "kB/h", note=f"mean {memory_kb.mean():.0f} kB")


def _calibration(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    with servers.ours("--models", servers.LARGE, "--share", "alpha=0.5", "--share", "bravo=0.5:64") as target:
        capacity = clients.capacity(folder, target, servers.LARGE, options.images)
        records = []
        for seed in (options.seed, options.seed + 1):
            how: dict[str, Any] = {
                "model": servers.LARGE,
                "images": options.images,
                "seconds": options.seconds,
                "deadline_s": 2.0,
            }
            mine = clients.Sender(folder, "alpha", target, rate=0.3 * capacity, seed=seed, **how)
            other = clients.Sender(folder, "bravo", target, rate=0.3 * capacity, seed=seed + 100, **how)
            records.append(clients.records_of(mine, other)[0])
    promise = {"domain": "core", "tenant": "alpha", "model": servers.LARGE, "capacity": 0.5, "validity": Validity(0, 1)}
    envelope = calibrate_compute(records[0], **promise)
    found = contradictions(envelope, records[1])
    rate = envelope.guardrails.reserved_rate_bps / envelope.guardrails.largest_packet_bits
    note = f"T {envelope.latency_s * 1e3:.2f} ms, R {rate:.1f} requests/s, {len(records[1].schedule)} requests held out"
    yield at_most("calibration: contradictions in a held-out run", len(found), 0, note=note)


_PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[Figure]]] = {
    "throughput": _throughput,
    "cost": _cost,
    "agreement": _agreement,
    "wire": _wire,
    "isolation": isolation.heavy_requests,
    "light": isolation.light_requests,
    "storm": _storm,
    "calibration": _calibration,
    "soak": _soak,
}


def _begun_late_s(record: RequestRecord) -> npt.NDArray[np.float64]:
    """How long after its deadline the computation of each answered request began; negative before it.

    The deadline is the client's: gRPC's own counts from a call's arrival at the server.
    """
    answered = record.status == OK
    return (record.server_s[:, 2] - record.schedule.time_s - record.deadline_s)[answered]


def _counted(target: str, model: str) -> tuple[int, int]:
    """Requests computed and requests answered so far, as the server counts them."""
    with grpc.insecure_channel(target) as channel:
        ask = channel.unary_unary(
            method("ModelStatistics"),
            request_serializer=pb.ModelStatisticsRequest.SerializeToString,
            response_deserializer=pb.ModelStatisticsResponse.FromString,
        )
        (found,) = ask(pb.ModelStatisticsRequest(name=model), timeout=30).model_stats
    return found.inference_stats.compute_infer.count, found.inference_stats.success.count


def _free_port() -> int:
    """A port that is free now, and the one after it as a rule."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
