"""A federation of real agents whose controllers are real and whose switches are Open vSwitch, one instance a domain.

Namespaces, switches and controllers outlive a test; agents, keys and ledgers are each test's own, and an agent that
starts with an empty ledger empties its domain. What is on a switch is read with the tools of Open vSwitch and iproute2,
never by asking a controller.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from controller.program import DomainProgram
from testbed.scenario.federation import Operator
from tests.integration.controller_lab import DEADLINE_S, SERVER, Lab, folder, hop, wait_for_end
from tests.unit.management import federation_lab
from tests.unit.management.federation_lab import CORE_SITE, Seat, operator

OPERATORS = (
    operator("access", "access"),
    operator("metro", "metro", delay_s=0.001),
    operator("core", "core", site=CORE_SITE),
)
WAY = tuple(one.name for one in OPERATORS)
VICTIM = "metro"
BRIDGE = "d0i"
PORTS = (f"{BRIDGE}-up", f"{BRIDGE}-dn")

_RATE = re.compile(r"class htb 1:(\w+) parent 1:1 leaf \w+: prio 0 rate (\d+)(\w*)bit")
_UNITS = {"": 1, "K": 1000, "M": 10**6, "G": 10**9}


@dataclass
class Place:
    """One domain's network namespace, its Open vSwitch and its controller."""

    domain: str
    net: Lab
    controller: subprocess.Popen[str] | None = None
    _listen: str = "127.0.0.1:0"
    _log: IO[str] | None = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.net.directory / "northbound.sock"

    @property
    def switch_pid(self) -> int:
        return int((self.net.directory / "ovs-vswitchd.pid").read_text())

    @property
    def controller_pid(self) -> int:
        assert self.controller is not None
        return self.controller.pid

    def start_controller(self) -> None:
        """Start it, again at the address that the switch knows."""
        self.socket.unlink(missing_ok=True)
        command = ["-m", "controller", "--domain", self.domain, "--listen", self._listen, "--socket", str(self.socket)]
        self._log = self._log or (self.net.directory / "controller.log").open("a")
        self.controller = subprocess.Popen(
            ["ip", "netns", "exec", self.net.namespace, sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self.controller.stdout is not None
        host, port = json.loads(self.controller.stdout.readline())["listen"]
        self._listen = f"{host}:{port}"
        self.net.vsctl("set-controller", BRIDGE, f"tcp:{self._listen}")

    def start_switch(self) -> None:
        self.net.restart_switch()

    def kill(self, what: str) -> None:
        os.kill(self.pid_of(what), signal.SIGKILL)
        self.await_death(what)

    def pid_of(self, what: str) -> int:
        return self.switch_pid if what == "switch" else self.controller_pid

    def await_death(self, what: str) -> None:
        pid = self.pid_of(what)
        if what == "controller":
            assert self.controller is not None
            self.controller.wait(DEADLINE_S)
            assert self.controller.stdout is not None
            self.controller.stdout.close()
        wait_for_end(pid, f"the {what} of {self.domain}")

    def start(self, what: str) -> None:
        self.start_switch() if what == "switch" else self.start_controller()

    def stop(self) -> None:
        if self.controller is not None and self.controller.poll() is None:
            self.controller.kill()
            self.controller.wait()
        if self.controller is not None and self.controller.stdout is not None:
            self.controller.stdout.close()
        if self._log is not None:
            self._log.close()
        self.net.stop()
        shutil.rmtree(self.net.directory)

    def installed(self) -> dict[str, tuple[int, int]]:
        """Tenant to (seat, rate): those of whom flows of both directions, meter and both classes are there, and agree.

        Whoever has only some of them is there with a rate of 0.
        """
        flows: dict[int, list[str]] = {}
        clients: dict[int, set[str]] = {}
        for line in self.net.ofctl("dump-flows", BRIDGE).splitlines():
            cookie = re.search(r"cookie=0x([0-9a-f]+)", line)
            number = int(cookie[1], 16) if cookie else 0
            if number:
                flows.setdefault(number, []).append(line)
                clients.setdefault(number, set()).update(re.findall(r"nw_(?:src|dst)=(10\.1\.\d+\.\d+)", line))
        meters = {int(found) for found in re.findall(r"meter=(\d+)", self.net.ofctl("dump-meters", BRIDGE))}
        classes = [self._classes(port) for port in PORTS]
        found = {}
        for number in {*flows, *meters, *classes[0], *classes[1]}:
            (client,) = clients.get(number, {"10.1.0.0"})
            rates = {one.get(number, 0) for one in classes}
            whole = len(flows.get(number, ())) == 2 and number in meters and len(rates) == 1
            found[f"t{client.rpartition('.')[2]}"] = (number, rates.pop() if whole else 0)
        return found

    def _classes(self, port: str) -> dict[int, int]:
        """Seat to rate, of the classes of tenants."""
        return {
            int(minor, 16) - 0x10: int(rate) * _UNITS[unit]
            for minor, rate, unit in _RATE.findall(self.net.tc(f"class show dev {port}"))
            if int(minor, 16) >= 0x10
        }


class RealSeat(Seat):
    """A seat whose controller and switch are those of a place."""

    @property
    def place(self) -> Place:
        assert isinstance(self.lab, RealLab)
        return self.lab.places[self.name]

    def start_controller(self) -> None:
        """It runs already, for all tests."""

    def installed(self) -> dict[str, tuple[int, int]]:
        return self.place.installed()

    def in_step(self) -> bool:
        return self.committed() == self.installed()


@dataclass
class RealLab(federation_lab.Lab):
    """The federation of a test."""

    places: Mapping[str, Place] = field(default_factory=dict)

    def seat(self, one: Operator, folder: Path) -> Seat:
        return RealSeat(self, one, folder, self.keys[one.name])

    def skeleton(self, one: Operator) -> DomainProgram:
        return DomainProgram(one.name, "userspace", one.link_rate_bps, (hop(BRIDGE),), ())

    def controller_socket(self, one: Operator) -> Path:
        return self.places[one.name].socket

    def in_step(self) -> bool:
        """Whether every domain's switch holds what its ledger says."""
        return all(isinstance(seat, RealSeat) and seat.in_step() for seat in self.seats.values())


@contextlib.contextmanager
def places() -> Iterator[dict[str, Place]]:
    """The namespaces, switches and controllers of all domains."""
    with contextlib.ExitStack() as stack:
        made = {}
        for name in WAY:
            net = Lab(f"tlt-{name}{os.getpid()}", folder("agents"))
            place = made[name] = Place(name, net)
            stack.callback(place.stop)
            net.start()
            place.start_controller()
        yield made


class Reviver(threading.Thread):
    """Waits until somebody else kills a part of a place, and starts it again."""

    def __init__(self, place: Place, what: str) -> None:
        super().__init__(daemon=True)
        self._place, self._what = place, what
        self.died_s = 0.0
        self.start()

    def run(self) -> None:
        self._place.await_death(self._what)
        self.died_s = time.monotonic()
        self._place.start(self._what)


def traffic_of(tenant: str) -> tuple[str, str]:
    """Source and destination of a tenant's packets."""
    return federation_lab.address_of(tenant, "core")[0], SERVER
