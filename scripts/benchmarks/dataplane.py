"""The emulated data plane on this host: fidelity idle and beside hogs, highest VALID rate, scale, and kills.

Everything else on the host should be idle. Every run is shown, VALID or not; none is repeated.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, at_least, at_most
from benchmarks.runs import TESTBED, RunFailedError, run_scenario
from testbed.emulation.clean import left_behind
from testbed.emulation.journal import MARK
from testbed.emulation.network import TandemNetwork
from testbed.run.pipeline import found_federation, start_controller
from testbed.run.preflight import choose_datapath
from testbed.scenario.loader import load
from testbed.scenario.model import Datapath

_ROOT = Path(__file__).resolve().parents[2]
_DEMO = _ROOT / "topologies" / "demo.yaml"
_SMOKE = _ROOT / "topologies" / "smoke.yaml"
_PARTS = ("fidelity", "rate", "scale", "run", "kills")
_HOGS = 2
_PACKET_BYTES = 1400
_DOMAINS = 8
_WINDOWS = 3
"""How many windows a rate is tried in."""

_ONE = """
name: rate
warm-up: 4 s
duration: 10 s
allow-zero-delay: true
domains:
  - {{name: one, link-rate: 1 Gbit/s}}
  - {{name: two, link-rate: 1 Gbit/s}}
  - {{name: three, link-rate: 1 Gbit/s, compute: true}}
tenants:
  - name: alpha
    arrivals: {{{arrivals}, size: {size} B}}
    reservation: {{rate: {reserved:.3f} Mbit/s}}
    promise: {{deadline: 200 ms, epsilon: 0.01}}
"""


def _poisson(mbps: float) -> str:
    """A Poisson process at .8 of its reservation."""
    return _ONE.format(arrivals=f"model: poisson, rate: {mbps:.3f} Mbit/s", size=_PACKET_BYTES, reserved=mbps / 0.8)


def _bursts(mbps: float) -> str:
    """Bursts that wait for tens of milliseconds.

    Most of their queues are gone before the next burst: what never drains would keep what one pause of the host added.
    """
    arrivals = f"model: on-off, peak: {1.2 * mbps:.3f} Mbit/s, mean-on: 50 ms, mean-off: 10 ms"
    return _ONE.format(arrivals=arrivals, size=_PACKET_BYTES, reserved=1.1 * mbps)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a caller may leave out or shorten."""
    parser.add_argument("--only", choices=_PARTS, action="append", help="only this part, repeatable (default: all)")
    parser.add_argument("--rates", default="50,100,150,200,250", help="rates to try, Mbit/s (default %(default)s)")
    parser.add_argument("--tenants", default="16,32,64,128", help="numbers of tenants (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of kills (default %(default)s)")
    parser.add_argument("--kills", type=int, default=100, help="runs to kill at a random moment (default %(default)s)")


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure asked for, quiet ones first."""
    chosen = options.only or _PARTS
    with tempfile.TemporaryDirectory(prefix="bench-dataplane-") as scratch:
        folder = Path(scratch)
        if "fidelity" in chosen:
            yield from _fidelity(folder)
        if "rate" in chosen:
            yield from _highest_rates(folder, [float(rate) for rate in options.rates.split(",")])
        counts = [int(count) for count in options.tenants.split(",")]
        if "scale" in chosen:
            yield from _scale(folder, counts)
        if "run" in chosen:
            yield from _whole_run(folder, max(count for count in counts if count <= 64))
        if "kills" in chosen:
            yield from _kills(folder, options.kills, options.seed)


# Fidelity.


def _fidelity(folder: Path) -> Iterator[Figure]:
    quiet = _run(_DEMO, folder / "quiet")
    yield at_most("p99.9 against the ideal replay, idle host", _difference(quiet), 3.0, "%", note=_said(quiet))
    with _hogs():
        shared = _run(_DEMO, folder / "shared")
        isolated = _run(_DEMO, folder / "isolated", "--isolate")
    yield Figure(f"the same beside {_HOGS} CPU hogs", _difference(shared), "%", note=_said(shared))
    yield at_most(
        f"the same beside {_HOGS} CPU hogs with --isolate", _difference(isolated), 10.0, "%", note=_said(isolated)
    )
    yield at_least("runs beside hogs that say INVALID without --isolate", float(shared["verdict"] == "INVALID"), 1)
    yield at_least("runs beside hogs that are VALID with --isolate", float(isolated["verdict"] != "INVALID"), 1)


def _difference(run: dict[str, Any], tenant: str = "alpha") -> float:
    found = _tenant(run, tenant)
    if not found.get("network_p999_s") or not found.get("ideal_p999_s"):
        return float("nan")
    return 100 * abs(found["network_p999_s"] / found["ideal_p999_s"] - 1)


@contextmanager
def _hogs() -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(_HOGS):
            hog = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(hog.kill)
        yield


# Rate.


def _highest_rates(folder: Path, rates_mbps: Sequence[float]) -> Iterator[Figure]:
    datapath = choose_datapath(Datapath.AUTO).value
    what = f"highest rate at which most windows are VALID through 3 domains, {datapath} datapath, captures on"
    highest, note = _highest(folder, "bursts", _bursts, rates_mbps)
    yield at_least(f"{what}, bursts", highest, 150.0, "Mbit/s", note=note)
    highest, note = _highest(folder, "poisson", _poisson, rates_mbps)
    yield Figure(f"{what}, a Poisson process", highest, "Mbit/s", note=note)


def _highest(
    folder: Path, name: str, of_rate: Callable[[float], str], rates_mbps: Sequence[float]
) -> tuple[float, str]:
    """Goes up until most windows of a run are INVALID; the last rate at which most were VALID, and a note on it."""
    highest, note = 0.0, "most windows at none were VALID"
    for rate in sorted(rates_mbps):
        scenario = folder / f"{name}-{rate:g}.yaml"
        scenario.write_text(of_rate(rate))
        found = _run(scenario, folder / f"{name}-{rate:g}", "--isolate", "--keep-awake", "--seeds", str(_WINDOWS))
        valid = sum(window["valid"] for window in found.get("windows", ()))
        said = f"{valid} of {_WINDOWS} windows VALID at {rate:g} Mbit/s, {_why(found)}"
        if 2 * valid < _WINDOWS:
            note += f"; {said}"
            break
        highest, note = rate, said
    return highest, f"{highest * 1e6 / (8 * _PACKET_BYTES):,.0f} packets/s of {_PACKET_BYTES} B; {note}"


# Scale.


@dataclass(frozen=True)
class _Sized:
    """What a number of tenants costs on all domains together: seconds, and bytes of controllers and switch."""

    tenants: int
    build_s: float
    install_s: float
    verify_s: float
    remove_s: float
    memory_bytes: int


def _scale(folder: Path, counts: Sequence[int]) -> Iterator[Figure]:
    sizes = [_sized(folder, count) for count in sorted(counts)]
    for size in sizes:
        yield Figure(
            f"{size.tenants} tenants in {_DOMAINS} domains, a tenant",
            1e3 * (size.install_s + size.verify_s + size.remove_s) / size.tenants,
            "ms",
            note=f"build {size.build_s:.1f} s; install with read-back {size.install_s:.2f} s, verify "
            f"{size.verify_s:.2f} s, remove {size.remove_s:.2f} s; {size.memory_bytes / 2**20:.0f} MiB in all",
        )
    few, many = sizes[0], sizes[-1]
    spent = (many.install_s + many.verify_s + many.remove_s) / (few.install_s + few.verify_s + few.remove_s)
    yield at_most(
        f"time of {many.tenants} tenants over that of {few.tenants}, each tenant",
        spent * few.tenants / many.tenants,
        1.5,
        note="1 is linear, less is better",
    )
    yield Figure(
        "memory of a further tenant",
        (many.memory_bytes - few.memory_bytes) / (many.tenants - few.tenants) / 2**10,
        "KiB",
        note=f"of controllers and switch, from {few.tenants} to {many.tenants} tenants",
    )


def _sized(folder: Path, count: int) -> _Sized:
    file = folder / f"scale-{count}.yaml"
    file.write_text(many(count))
    scenario = load(file)
    began = time.monotonic()
    with ExitStack() as stack:
        network = stack.enter_context(TandemNetwork(scenario, choose_datapath(Datapath.AUTO)))
        controllers = {
            domain.name: stack.enter_context(start_controller(network, index, domain.name))
            for index, domain in enumerate(scenario.domains)
        }
        built = time.monotonic()
        federation = found_federation(network, controllers)
        federation.collect_offers()
        federation.reserve()
        installed = time.monotonic()
        if drift := federation.drift():
            raise RuntimeError(f"{count} tenants: {drift[0]}")
        verified = time.monotonic()
        memory = sum(_resident_bytes(child.pid) for child in network.supervisor.children.values())
        counted = time.monotonic()
        federation.release()
        removed = time.monotonic()
    return _Sized(count, built - began, installed - built, verified - installed, removed - counted, memory)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def many(tenants: int, *, warmup_s: int = 3, duration_s: int = 10) -> str:
    """A scenario of eight domains and so many tenants, each with a reservation of its own size."""
    domains = "".join(
        f"  - {{name: d{d}, link-rate: 1 Gbit/s{', compute: true' if d == _DOMAINS else ''}}}\n"
        for d in range(1, _DOMAINS + 1)
    )
    members = "".join(
        f"  - name: t{t}\n"
        "    arrivals: {model: poisson, rate: " + str(40 + t) + " kbit/s, size: 500 B}\n"
        "    reservation: {rate: " + str(2 * (40 + t)) + " kbit/s}\n"
        "    promise: {deadline: 2 s, epsilon: 0.1}\n"
        for t in range(1, tenants + 1)
    )
    times = f"warm-up: {warmup_s} s\nduration: {duration_s} s\nallow-zero-delay: true\n"
    return f"name: many\n{times}domains:\n{domains}tenants:\n{members}"


def _whole_run(folder: Path, count: int) -> Iterator[Figure]:
    scenario = folder / f"run-{count}.yaml"
    scenario.write_text(many(count))
    began = time.monotonic()
    run = _run(scenario, folder / "many")
    spent = time.monotonic() - began
    yield Figure(f"a run of {count} tenants in {_DOMAINS} domains, a tenant", spent / count, "s", note=_said(run))
    fine = [tenant for tenant in run["tenants"] if tenant["verdict"] in {"PASS", "UNDETERMINED"}]
    yield at_least("tenants of it whose promise was not broken", len(fine), count)


# Kills.


def _kills(folder: Path, count: int, seed: int) -> Iterator[Figure]:
    """Kills runs at a moment that is uniform over a whole one, then cleans, and looks at the host."""
    before = _host()
    began = time.monotonic()
    _run(_SMOKE, folder / "whole")
    whole_s = time.monotonic() - began
    moments_s = whole_s * np.random.default_rng(seed).random(count)
    dirty = []
    for number, moment_s in enumerate(moments_s.tolist()):
        run = subprocess.Popen(
            [*TESTBED, "run", str(_SMOKE), "--out", str(folder / f"kill-{number}")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
        )
        try:
            run.wait(moment_s)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
        subprocess.run([*TESTBED, "clean"], check=True, capture_output=True, cwd=_ROOT)
        if (left := _left(before)) or left_behind():
            dirty.append(f"after {moment_s:.1f} s: {left}")
            before = _host()
    yield at_most(
        f"of {count} killed runs, those of which something was left", len(dirty), 0, note="; ".join(dirty[:3])
    )


def _host() -> dict[str, set[str]]:
    return {
        "namespaces": set(_lines("ip", "netns", "list")),
        "links": set(_lines("ip", "-brief", "link")),
        "queues": set(_lines("tc", "qdisc", "show")),
        "marked processes": {
            entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _marked(entry / "environ")
        },
    }


def _left(before: dict[str, set[str]]) -> str:
    after = _host()
    return "; ".join(f"{kind}: {sorted(after[kind] - before[kind])}" for kind in after if after[kind] - before[kind])


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _marked(environ: Path) -> bool:
    try:
        return MARK.encode() in environ.read_bytes()
    except OSError:
        return False


# Runs.


def _run(scenario: Path, out: Path, *options: str) -> dict[str, Any]:
    try:
        record = run_scenario(scenario, out, *options)
    except RunFailedError as error:
        said = " ".join(str(error).split())[-300:]
        return {"verdict": "INVALID", "tenants": [], "gates": [{"name": said, "ok": False}]}
    print(f"bench: {out.name}: {_said(record)}", file=sys.stderr, flush=True)
    return record


def _tenant(run: dict[str, Any], name: str) -> dict[str, Any]:
    return next((tenant for tenant in run["tenants"] if tenant["name"] == name), {})


def _said(run: dict[str, Any]) -> str:
    return f"{run['verdict']}: {_why(run)}"


def _why(run: dict[str, Any]) -> str:
    broken = [
        f"{g['name']} {g['value']:.3g} of {g['limit']:.3g}" if "value" in g else g["name"]
        for g in run["gates"]
        if not g["ok"]
    ]
    return ", ".join(broken) or f"{len(run['gates'])} gates hold"
