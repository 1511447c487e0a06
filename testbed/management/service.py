"""`python -m testbed.management.service SETTINGS`: one domain's agent as a process that members of the federation call.

Connections are TLS with certificates on both sides. The certificate's name is looked up in the trust root before a call
is read any further; whoever is not a member is refused, counted and logged. One line of JSON on standard output says
where the agent listens; it ends on SIGTERM, leaving what is installed in place.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Self

import grpc
from google.protobuf.message import DecodeError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from controller.program import DomainProgram, ProgramError
from testbed.envelope.files import read_root
from testbed.envelope.keys import SigningKey
from testbed.errors import ReservationError, TestbedError
from testbed.management.agent import Agent
from testbed.management.calibrations import Calibrations
from testbed.management.calls import CALLS, OPTIONS, SERVICE, status_of
from testbed.management.identity import Gate, IdentityError, anchors, credentials
from testbed.management.installer import Installer, Keeper
from testbed.management.ledger import Ledger
from testbed.management.market import capacities, operator_from_json
from testbed.management.sizing import PAUSE_S

LOG = logging.getLogger("testbed.agent")

THREADS = 8
_ENDS = {signal.SIGTERM, signal.SIGINT}
_FLUSH_S = 5.0
"""How long answers may take to leave when the agent ends."""


def _chain(given: object) -> object:
    return (given,) if isinstance(given, str | Path) else given


class Settings(BaseModel):
    """What an agent is told, as a JSON file.

    Attributes:
        operator: What the domain is and sells (`testbed.management.market`).
        root: Signed trust root of the federation, as it was obtained through a trusted channel; or a list of it and its
            successors, in order.
        key: The domain's private key.
        authorities: Certificate authorities of all domains.
        ledger: Database file; made when missing.
        controller: Unix socket of the domain's controller.
        skeleton: The domain's switches and ports (`controller.program`), without rules.
        listen: HOST:PORT, where port 0 picks one, or unix:PATH.
        evidence: What the domain's calibrations support (`testbed.management.calibrations`); read at every offer.
        look_every_s: How often ledger and switches are compared.
        pause_s: How long the host may leave a class unserved without its losing rate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator: dict[str, Any]
    root: Annotated[tuple[Path, ...], BeforeValidator(_chain), Field(min_length=1)]
    key: Path
    authorities: tuple[Path, ...]
    ledger: Path
    controller: Path
    skeleton: dict[str, Any]
    listen: str = "127.0.0.1:0"
    evidence: Path | None = None
    look_every_s: Annotated[float, Field(gt=0, le=threading.TIMEOUT_MAX, allow_inf_nan=False)] = 2.0
    pause_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = PAUSE_S

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a file.

        Raises:
            ReservationError: Every field that is wrong is named.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ReservationError(f"{path}: {error.strerror}; expected the settings of an agent") from error
        except ValidationError as error:
            raise ReservationError(
                [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            ) from error


def _nothing(_point: str) -> None:
    """Called at each named point; tests end the process there."""


class Server:
    """An agent that listens; a context manager that has recovered when it is entered."""

    def __init__(self, settings: Settings, reached: Callable[[str], None] = _nothing) -> None:
        """Open the ledger and bind the port.

        Raises:
            TestbedError: A file that is not what it should be.
            OSError: The address cannot be used.
        """
        operator = operator_from_json(json.dumps(settings.operator))
        self._root = read_root(settings.root)
        key = SigningKey.load(settings.key)
        try:
            skeleton = DomainProgram.from_dict(settings.skeleton)
        except ProgramError as error:
            raise ReservationError(f"skeleton of {operator.name}: {error}") from error
        ledger = Ledger(settings.ledger, capacities(operator), reached=reached)
        installer = Installer(ledger, settings.controller, skeleton)
        calibrations = Calibrations(settings.evidence)
        self.agent = Agent(
            operator, key, self._root, ledger, installer, calibrations, reached=reached, pause_s=settings.pause_s
        )
        self._gate = Gate(self._root)
        self._keeper = Keeper(installer.look_after, settings.look_every_s)
        trusted = anchors(self._root, [path.read_bytes() for path in settings.authorities])
        own = credentials(self._root.federation, operator.name, key, trusted)
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="call"), options=(*OPTIONS, ("grpc.so_reuseport", 0))
        )
        self._server.add_generic_rpc_handlers((self._handler(),))
        try:
            self.port = self._server.add_secure_port(settings.listen, own.server())
        except RuntimeError as error:
            raise OSError(f"{settings.listen}: cannot listen there ({error}); is the port taken?") from error

    def __enter__(self) -> Self:
        self.agent.recover()
        self._server.start()
        self._keeper.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._keeper.stop()
        self._server.stop(_FLUSH_S).wait()
        self.agent.ledger.close()

    def _handler(self) -> grpc.GenericRpcHandler:
        calls: dict[str, Callable[[str, Any], Any]] = {
            "Offer": self.agent.offer,
            "Prepare": self.agent.prepare,
            "Commit": self.agent.commit,
            "Abort": self.agent.abort,
            "Release": self.agent.release,
            "Renew": self.agent.renew,
            "Report": self.agent.report,
            "Health": self.agent.health,
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(self._answer(name, call)) for name, call in calls.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _answer(self, name: str, call: Callable[[str, Any], Any]) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        """A call from bytes to bytes: who is it, what does it ask, and every refusal with the status it deserves."""
        kind = CALLS[name][0]

        def answer(message: bytes, context: grpc.ServicerContext) -> bytes:
            caller = "nobody"
            try:
                caller = self._caller(context)
                return bytes(call(caller, kind.FromString(message)).SerializeToString())
            except DecodeError as error:
                self._refuse(context, name, caller, ReservationError(f"{name}: found no {kind.__name__} ({error})"))
            except TestbedError as error:
                self._refuse(context, name, caller, error)
            except sqlite3.OperationalError as error:
                LOG.exception("%s of %s: the ledger cannot be used", name, caller)
                context.abort(grpc.StatusCode.UNAVAILABLE, f"{name}: the ledger cannot be used now ({error})")
            raise AssertionError("abort raises")

        return answer

    def _caller(self, context: grpc.ServicerContext) -> str:
        shown: Any = context.auth_context().get("x509_pem_cert", [])
        if not shown:
            raise IdentityError("connection: found no certificate, expected one of a domain of the federation")
        return self._gate.identify(bytes(shown[0]))

    def _refuse(self, context: grpc.ServicerContext, name: str, caller: str, error: TestbedError) -> None:
        reason = getattr(error, "reason", type(error).__name__)
        self.agent.refusals[reason] += 1
        LOG.warning("refused %s of %s (%s): %s: %s", name, caller, context.peer(), reason, error)
        context.abort(status_of(error), str(error))


def hear_handshakes() -> None:
    """Have a process's log say who failed a handshake; for the process of an agent, before its server exists.

    Handshakes fail below Python; only the library can say who was refused there, and it does so from INFO on.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "INFO")


def main(arguments: list[str], reached: Callable[[str], None] = _nothing) -> int:
    """Serve until told to stop; 2 when the settings are wrong."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Blocked before any thread starts, so that only the wait below ever sees them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        (path,) = arguments
        settings = Settings.read(Path(path))
        hear_handshakes()
        server = Server(settings, reached)
    except ValueError:
        print("usage: python -m testbed.management.service SETTINGS.json", file=sys.stderr)
        return 2
    except TestbedError as error:
        print("\n".join(f"agent: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"agent: {error}", file=sys.stderr)
        return 2
    with server:
        print(json.dumps({"ready": True, "domain": server.agent.operator.name, "port": server.port}), flush=True)
        signal.sigwait(_ENDS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
