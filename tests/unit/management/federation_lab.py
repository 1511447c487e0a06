"""A federation of real agent processes over mutual TLS, whose controllers and switches are simulated.

A controller is a process that speaks the northbound protocol and keeps what it installed in memory; the switch is a
file that outlives it. So an agent, a controller and a switch can each be killed and started again. Processes are forked
from one server that has imported everything, and can be told to die by KILL at a named point.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from controller.program import DomainProgram
from testbed.envelope.keys import SigningKey
from testbed.envelope.store import EnvelopeStore
from testbed.envelope.trust import Role, Root
from testbed.management import service
from testbed.management.admission import Rule
from testbed.management.calls import AgentClient
from testbed.management.entry import State
from testbed.management.identity import Credentials, anchors, authority, credentials
from testbed.management.journal import Journal
from testbed.management.ledger import Ledger
from testbed.management.orchestrator import Orchestrator
from testbed.scenario.federation import Intent, Operator, ServedModel, Site
from testbed.scenario.model import PoissonArrivals

FEDERATION = "lab"
BROKER = "broker"
NEVER_S = 3600.0

SEGMENTS = ("access", "metro", "core")


def operator(name: str, segment: str, price: float = 0.01, delay_s: float = 0.0, site: Site | None = None) -> Operator:
    return Operator(
        name=name, segment=segment, link_rate_bps=10**9, reservable_bps=10**8, classes=16, drain_bps=1e9,
        price_per_mbps=price, link_delay_s=delay_s, site=site,
    )  # fmt: skip


CORE_SITE = Site(
    4, 16, 5.0, (ServedModel("medium", "digits", 0.98, 0.002), ServedModel("large", "digits", 0.992, 0.004))
)
EDGE_SITE = Site(1, 4, 20.0, (ServedModel("small", "digits", 0.88, 0.001),))
OPERATORS = (
    operator("access", "access", site=EDGE_SITE),
    operator("metro-near", "metro", price=0.05, delay_s=0.001),
    operator("metro-cheap", "metro", delay_s=0.009),
    operator("core", "core", site=CORE_SITE),
)


def intent(tenant: str = "t1", **changed: Any) -> Intent:
    asked: dict[str, Any] = {
        "task": "digits", "accuracy": 0.97, "deadline_s": 0.2, "epsilon": 1e-3,
        "arrivals": PoissonArrivals(30.0, 8 * 8000), "price": 10.0,
    }  # fmt: skip
    return Intent(tenant, **{**asked, **changed})


def address_of(tenant: str, _site: str) -> tuple[str, str]:
    number = int(tenant.removeprefix("t"))
    return f"10.1.{number >> 8}.{number & 255}", "10.2.0.1"


def _serve_agent(settings: str, kill_at: str, announced: Any, log: str) -> None:
    """The body of an agent's process; at a named point it kills itself, or after an @ the process of that number."""
    with Path(log).open("a") as written:
        os.dup2(written.fileno(), 2)

    at, _, victim = kill_at.partition("@")
    victims = [int(victim) if victim else os.getpid()]

    def reached(point: str) -> None:
        if point == at and victims:
            os.kill(victims.pop(), signal.SIGKILL)

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    service.hear_handshakes()
    with service.Server(service.Settings.read(Path(settings)), reached) as server:
        announced.send(server.port)
        signal.sigwait({signal.SIGTERM})


def _serve_controller(path: str, switch: str, announced: Any) -> None:
    """The body of a simulated controller's process: the difference between the file and the program, and the file."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - a socket
    listener.bind(path)
    listener.listen()
    announced.send(True)
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                asked = json.loads(line)
                stream.write(json.dumps({"id": asked["id"], **_answer(asked, Path(switch))}).encode() + b"\n")
                stream.flush()


def _answer(asked: Mapping[str, Any], switch: Path) -> dict[str, Any]:
    broken = switch.with_suffix(".broken")
    if broken.exists():
        return {"error": {"kind": "switch", "problems": [broken.read_text()]}}
    if asked["call"] != "install":
        return {"result": []}
    found = read_switch(switch)
    wanted = {rule["tenant"]: rule for rule in asked["args"]["program"]["rules"]}
    swap = switch.with_suffix(".new")
    swap.write_text(json.dumps(wanted))
    swap.replace(switch)
    return {
        "result": {
            "added": [name for name in wanted if name not in found],
            "changed": [name for name in wanted if name in found and found[name] != wanted[name]],
            "removed": [name for name in found if name not in wanted],
        }
    }


def read_switch(switch: Path) -> dict[str, Any]:
    """Tenant to rule; a test may take the file away at any moment."""
    try:
        return dict(json.loads(switch.read_text()))
    except FileNotFoundError:
        return {}


@dataclass
class Seat:
    """One domain of the lab: its files and its two processes."""

    lab: Lab
    operator: Operator
    folder: Path
    key: SigningKey
    agent: Any = None
    controller: Any = None
    port: int = 0

    @property
    def name(self) -> str:
        return self.operator.name

    @property
    def switch(self) -> Path:
        return self.folder / "switch.json"

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def start_controller(self) -> None:
        self.controller = self.lab.fork(_serve_controller, str(self.folder / "c.sock"), str(self.switch))[0]

    def start_agent(self, kill_at: str = "") -> None:
        arguments = (str(self.folder / "settings.json"), kill_at)
        self.agent, self.port = self.lab.fork(_serve_agent, *arguments, after=(str(self.folder / "agent.log"),))
        settings = json.loads((self.folder / "settings.json").read_text())
        # A restarted agent is found where it was.
        (self.folder / "settings.json").write_text(json.dumps({**settings, "listen": f"127.0.0.1:{self.port}"}))

    def kill(self, what: str) -> None:
        process = getattr(self, what)
        process.kill()
        process.join()

    def end_agent(self) -> None:
        self.agent.terminate()
        self.agent.join()

    def ledger(self) -> Ledger:
        """Its ledger, while nobody serves it or beside who does."""
        return Ledger(self.folder / "ledger.sqlite", None)

    def committed(self) -> dict[str, tuple[int, int]]:
        """Tenant to (seat, rate) by the ledger."""
        ledger = self.ledger()
        found = {e.tenant: (e.number or 0, e.amounts["network"]) for e in ledger.entries(State.COMMITTED)}
        ledger.close()
        return found

    def installed(self) -> dict[str, tuple[int, int]]:
        """Tenant to (seat, rate) by the switch."""
        return {name: (r["number"], r["queue"]["rate_bps"]) for name, r in read_switch(self.switch).items()}

    def held(self) -> int:
        """What the ledger counts as held."""
        ledger = self.ledger()
        held = ledger.use()["network"].held
        ledger.close()
        return held


@dataclass
class Lab:
    """A federation with one member more, the broker, whom the orchestrator speaks for."""

    folder: Path
    operators: Sequence[Operator] = OPERATORS
    look_every_s: float = NEVER_S
    seats: dict[str, Seat] = field(default_factory=dict)
    context: Any = None

    def __post_init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])
        self.root_key = SigningKey.generate()
        self.keys = {name: SigningKey.generate() for name in (*(o.name for o in self.operators), BROKER)}
        self.root = make_root(self.root_key, self.keys)
        sealed = self.folder / "root.json"
        sealed.write_bytes(self.root.sign([self.root_key]))
        self.authorities = []
        for name, key in self.keys.items():
            path = self.folder / f"{name}.ca.pem"
            path.write_bytes(authority(FEDERATION, name, key))
            self.authorities.append(path)
        for one in self.operators:
            folder = self.folder / one.name
            folder.mkdir()
            self.keys[one.name].save(folder / "domain.key")
            settings = {
                "operator": asdict(one),
                "root": str(sealed),
                "key": str(folder / "domain.key"),
                "authorities": [str(path) for path in self.authorities],
                "ledger": str(folder / "ledger.sqlite"),
                "controller": str(self.controller_socket(one)),
                "skeleton": self.skeleton(one).to_dict(),
                "look_every_s": self.look_every_s,
                "evidence": str(folder / "calibrations.json"),
            }
            (folder / "settings.json").write_text(json.dumps(settings))
            self.seats[one.name] = self.seat(one, folder)

    def seat(self, one: Operator, folder: Path) -> Seat:
        """Where a domain's processes are; a lab with real switches has others."""
        return Seat(self, one, folder, self.keys[one.name])

    def skeleton(self, one: Operator) -> DomainProgram:
        return DomainProgram(one.name, "userspace", one.link_rate_bps, (), ())

    def controller_socket(self, one: Operator) -> Path:
        return self.folder / one.name / "c.sock"

    def fork(self, body: Callable[..., None], *arguments: str, after: tuple[Any, ...] = ()) -> tuple[Any, Any]:
        """A process and what it announced."""
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(target=body, args=(*arguments, there, *after), daemon=True)
        process.start()
        there.close()
        try:
            announced = here.recv()
        except EOFError:
            process.join()
            return process, 0
        finally:
            here.close()
        return process, announced

    def start(self, kill_at: Mapping[str, str] | None = None) -> None:
        for seat in self.seats.values():
            seat.start_controller()
            seat.start_agent((kill_at or {}).get(seat.name, ""))

    def stop(self) -> None:
        for seat in self.seats.values():
            for process in (seat.agent, seat.controller):
                if process is not None and process.is_alive():
                    process.kill()
                    process.join()

    def credentials(self, name: str = BROKER) -> Credentials:
        trusted = anchors(self.root, [path.read_bytes() for path in self.authorities])
        return credentials(FEDERATION, name, self.keys[name], trusted)

    def client(self, domain: str, own: Credentials | None = None, attempts: int = 2) -> AgentClient:
        target = f"127.0.0.1:{self.seats[domain].port}"
        return AgentClient(domain, target, own or self.credentials(), timeout_s=20.0, attempts=attempts, pause_s=0.1)

    @contextlib.contextmanager
    def orchestrator(
        self,
        reached: Callable[[str], None] = lambda _: None,
        *,
        rule: Rule = Rule.STOCHASTIC,
        journal: Path | None = None,
        attempts: int = 2,
    ) -> Iterator[Orchestrator]:
        """An orchestrator with the lab's journal, or one of its own; leaving the context is its end."""
        own = self.credentials()
        clients = {name: self.client(name, own, attempts) for name in self.seats}
        kept = Journal(journal or self.folder / "journal.sqlite")
        try:
            yield Orchestrator(clients, SEGMENTS, rule, EnvelopeStore(self.root), kept, address_of, reached=reached)
        finally:
            kept.close()
            for client in clients.values():
                client.close()

    def require_in_step(self) -> None:
        """The sum of the ledgers is what is on the switches, and nothing but what is committed is held."""
        for seat in self.seats.values():
            assert seat.committed() == seat.installed(), seat.name
            assert seat.held() == sum(rate for _, rate in seat.committed().values()), seat.name

    def tenants(self) -> dict[str, set[str]]:
        """Domain to who is committed there."""
        return {name: set(seat.committed()) for name, seat in self.seats.items() if seat.committed()}


def run_orchestrator(lab: Lab, kill_at: str, *, releases: bool) -> int:
    """Admit one tenant, and release it if asked, in a process that dies at a named point; its exit status."""
    ports = {name: seat.port for name, seat in lab.seats.items()}
    files = (str(lab.folder / "root.json"), str(lab.folder / "journal.sqlite"))
    process, _ = lab.fork(_orchestrate, *files, kill_at, after=(lab.credentials(), ports, releases))
    process.join()
    return int(process.exitcode)


def _orchestrate(  # noqa: PLR0917
    root: str, journal: str, kill_at: str, announced: Any, own: Credentials, ports: Mapping[str, int], releases: bool
) -> None:
    def reached(point: str) -> None:
        if point == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    clients = {name: AgentClient(name, f"127.0.0.1:{port}", own) for name, port in ports.items()}
    store, kept = EnvelopeStore(Root.first(Path(root).read_bytes())), Journal(Path(journal))
    announced.send(True)
    orchestrator = Orchestrator(clients, SEGMENTS, Rule.STOCHASTIC, store, kept, address_of, reached=reached)
    orchestrator.admit([intent()])
    if releases:
        orchestrator.release(["t1"])


def make_root(root_key: SigningKey, keys: Mapping[str, SigningKey], federation: str = FEDERATION) -> Root:
    held = {key.key_id: key.public_key for key in (root_key, *keys.values())}
    roles = {name: Role(frozenset({key.key_id}), 1) for name, key in keys.items()}
    return Root(federation, 1, 2**33, held, Role(frozenset({root_key.key_id}), 1), roles)
