"""The demo on this host: bound beside measurement, losses to the packet, how often it is VALID, telemetry's speed.

Runs the demo once for each seed, on an otherwise idle host. Every run is shown, VALID or not; none is repeated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from benchmarks.figures import Figure, at_least, at_most
from benchmarks.runs import RunFailedError, run_scenario
from testbed.telemetry import lag, pcap
from testbed.telemetry.match import SentPackets, match
from testbed.telemetry.samples import TenantSamples
from tests.unit.telemetry import frames

_ROOT = Path(__file__).resolve().parents[2]
_DEMO = _ROOT / "topologies" / "demo.yaml"
_PEAK_BPS, _RATE_BPS, _MEAN_ON_S, _MEAN_OFF_S, _PACKET_BITS = 20e6, 10e6, 5e-3, 7.5e-3, 11_200
_LEVEL = 0.999
_TOP = 1 << 22
_PACKETS, _BORDERS, _SNAP = 1_000_000, 4, 96
_NUMBERS_AT = 14 + 20 + 8 + 8
_COLUMNS = ("sequence", "intended_ns", "sent_ns", "size_bits", "last_of_request")

IntArray = npt.NDArray[np.int64]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a caller may shorten."""
    parser.add_argument("--runs", type=int, default=10, help="demo runs, each with a seed of its own (default 10)")
    parser.add_argument("--packets", type=float, default=4e8, help="packets of the long simulation (default 4e8)")
    parser.add_argument("--out", type=Path, help="keep the run folders here")


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure; the demo runs come first, while nothing else has warmed or tired the host."""
    with tempfile.TemporaryDirectory(prefix="bench-spine-") as scratch:
        home = options.out or Path(scratch)
        ended = [_demo(Path(scratch), home, seed) for seed in range(1, options.runs + 1)]
    true_s, error_s = true_p999_s(int(options.packets))
    yield Figure(
        "true p99.9 wait of alpha", true_s * 1e3, "ms", note=f"simulated, +- {error_s * 1e3:.1f} ms (one sigma)"
    )
    valid = [run for run, _ in ended if run["verdict"] != "INVALID"]
    yield at_least("VALID demo runs", len(valid), 0.9 * len(ended), note=f"of {len(ended)}; {_breaches(ended)}")
    yield at_most("demo, after set-up", max(seconds for _, seconds in ended), 300.0, "s", note="the longest")
    yield from _tenants(valid, true_s)
    yield at_most("a million packets, captured to judged lag", _telemetry_s(), 10.0, "s")


def _tenants(valid: Sequence[dict[str, Any]], true_s: float) -> Iterator[Figure]:
    """What the VALID runs say of alpha, bravo and charlie; none is a missed target."""
    alphas, bravos, charlies = ([_tenant(run, name) for run in valid] for name in ("alpha", "bravo", "charlie"))
    seeds = f"{len(valid)} VALID runs"
    worst = max((abs(a["network_p999_s"] / a["ideal_p999_s"] - 1) for a in alphas), default=np.nan)
    yield at_least("VALID seeds of alpha", len(alphas), 3)
    yield at_most("packets lost by alpha", sum(a["lost"] for a in alphas) if alphas else np.nan, 0, note=seeds)
    yield at_most("alpha's p99.9 against the ideal replay, largest difference", 100 * worst, 3.0, "%", note=seeds)
    yield at_most(
        "alpha's bound over the true p99.9, largest",
        max((a["bound_s"] for a in alphas), default=np.nan) / true_s,
        1.25,
        note="smallest " + f"{min((a['bound_s'] for a in alphas), default=np.nan) / true_s:.3f}",
    )
    broken = sum(t["bound_s"] < t["promised_lower_s"] for t in (*alphas, *charlies) if t["promised_lower_s"])
    yield at_most("bounds below the lower limit of the measured percentile", broken, 0, note=seeds)
    unaccounted = [
        abs(b["lost"] - b["conformance"]["meter_dropped"] - b["conformance"]["queue_dropped"]) for b in bravos
    ]
    lost = sum(b["lost"] for b in bravos)
    yield at_most(
        "packets lost by bravo that its own counters do not show",
        sum(unaccounted) if bravos else np.nan,
        0,
        note=f"of {lost:,} lost",
    )
    passed = sum(c["verdict"] == "PASS" for c in charlies)
    yield Figure("runs in which charlie's promise is certified", passed, note=f"of {len(charlies)}")


def _demo(scratch: Path, home: Path, seed: int) -> tuple[dict[str, Any], float]:
    scenario = scratch / f"demo-{seed}.yaml"
    scenario.write_text(_DEMO.read_text().replace("\nseed: 1\n", f"\nseed: {seed}\n"))
    began = time.monotonic()
    try:
        record = run_scenario(scenario, home)
    except RunFailedError as error:
        print(f"bench: seed {seed}: {error}", file=sys.stderr)
        return {"verdict": "INVALID", "gates": [], "why": str(error).splitlines()[-1:]}, time.monotonic() - began
    seconds = time.monotonic() - began
    alpha = _tenant(record, "alpha")
    said = f"alpha {alpha['p999_s'] * 1e3:.1f} ms under {alpha['bound_s'] * 1e3:.1f}, {seconds:.0f} s, {_why(record)}"
    print(f"bench: seed {seed}: {record['verdict']}, {said}", file=sys.stderr, flush=True)
    return record, seconds


def _tenant(run: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(tenant for tenant in run["tenants"] if tenant["name"] == name)
    return found


def _why(run: dict[str, Any]) -> str:
    return ", ".join(gate["name"] for gate in run["gates"] if not gate["ok"]) or "every gate holds"


def _breaches(ended: Sequence[tuple[dict[str, Any], float]]) -> str:
    return "; ".join(
        f"seed {seed}: {_why(run)}" for seed, (run, _) in enumerate(ended, 1) if run["verdict"] == "INVALID"
    )


def true_p999_s(packets: int, streams: int = 20) -> tuple[float, float]:
    """The 99.9th percentile of the wait of alpha's packets at its reserved rate, and its standard error."""
    found = [_p999_s(seed, packets // streams) for seed in range(streams)]
    return float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(streams))


def _p999_s(seed: int, packets: int) -> float:
    waits = np.zeros(_TOP, dtype=np.int64)
    total = _histogram(seed, packets, waits, 1e-5)
    beyond = total - np.cumsum(waits)
    return 1e-5 * float(np.searchsorted(-beyond, -(1 - _LEVEL) * total) + 1)


@numba.njit(cache=True)
def _histogram(seed: int, packets: int, waits: np.ndarray, width_s: float) -> int:
    """Waits of packets, an unfinished one carried over to the next burst, in bins of `width_s`; how many there were."""
    np.random.seed(seed)  # noqa: NPY002 - the generator that numba compiles
    now = free = remainder = 0.0
    total = 0
    while total < packets:
        length = np.random.exponential(_MEAN_ON_S)  # noqa: NPY002
        produced = remainder + _PEAK_BPS * length
        count = int(produced // _PACKET_BITS)
        for k in range(1, count + 1):
            arrival = now + (k * _PACKET_BITS - remainder) / _PEAK_BPS
            wait = max(0.0, free - arrival)
            waits[min(int(wait / width_s), waits.size - 1)] += 1
            free = max(free, arrival) + _PACKET_BITS / _RATE_BPS
        total += count
        remainder = produced - count * _PACKET_BITS
        now += length + np.random.exponential(_MEAN_OFF_S)  # noqa: NPY002
    return total


def _telemetry_s() -> float:
    """Read the captures of four borders, find a million packets of one tenant in each, and replay them."""
    due_ns = np.arange(_PACKETS, dtype=np.int64) * 1_200_000
    at_ns = [due_ns + border * 2_000_000 for border in range(_BORDERS)]
    with tempfile.TemporaryDirectory(prefix="bench-pcap-") as folder:
        files = [_capture(Path(folder) / f"{border}.pcap", due_ns, stamps) for border, stamps in enumerate(at_ns)]
        sent = SentPackets(
            tenant="one",
            number=1,
            sequence=np.arange(_PACKETS, dtype=np.int64),
            intended_ns=due_ns,
            sent_ns=due_ns,
            size_bits=np.full(_PACKETS, _PACKET_BITS, dtype=np.int64),
            last_of_request=np.ones(_PACKETS, dtype=np.bool_),
        )
        lag.replay(_found(sent, files, 1000), _RATE_BPS, [0.001] * (_BORDERS - 1))
        began = time.perf_counter()
        judged = lag.replay(_found(sent, files, _PACKETS), _RATE_BPS, [0.001] * (_BORDERS - 1))
        seconds = time.perf_counter() - began
    if np.count_nonzero(np.isfinite(judged.excess_s)) != _PACKETS * (_BORDERS - 1):
        raise RuntimeError("packets were not found in the captures, so their speed says nothing")
    return seconds


def _found(sent: SentPackets, files: Sequence[Path], packets: int) -> TenantSamples:
    tables = [pcap.read(file).packets.by_tenant()[1] for file in files]
    some = SentPackets(sent.tenant, sent.number, *(getattr(sent, name)[:packets] for name in _COLUMNS))
    chosen = [table.take(table.sequence < packets) for table in tables]
    names = [f"d{border}" for border in range(1, _BORDERS)]
    return match(some, chosen, domains=names, window_start_ns=0).samples


def _capture(path: Path, due_ns: IntArray, stamps_ns: IntArray) -> Path:
    """A capture of the tenant's packets, one record each, made from one frame by changing what differs."""
    frame = frames.udp_frame(tenant=1, payload_bytes=_PACKET_BITS // 8 - 42)[:_SNAP]
    records = np.zeros(stamps_ns.size, dtype=[("head", "<u4", 4), ("frame", "u1", len(frame))])
    records["head"][:, 0], records["head"][:, 1] = stamps_ns // 10**9, stamps_ns % 10**9
    records["head"][:, 2:] = len(frame), _PACKET_BITS // 8
    records["frame"] = np.frombuffer(frame, dtype=np.uint8)
    # Sequence number and intended time lie side by side in the testbed's header.
    numbers = np.stack([np.arange(stamps_ns.size, dtype=np.int64), due_ns], axis=1).astype(">i8")
    records["frame"][:, _NUMBERS_AT : _NUMBERS_AT + 16] = numbers.view(np.uint8)
    path.write_bytes(frames.pcap([], snap=_SNAP) + records.tobytes())
    return path
