"""The controller's northbound: one JSON object a line over a Unix socket that only its owner can open.

A request is {"id", "call", "args"}; the answer {"id", "result"} or {"id", "error": {"kind", "problems"}}. Calls of
several clients are served one after the other. This module knows which calls there are and how their arguments are
checked; what they do is `controller.application`.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controller.application import DomainController
from controller.errors import ControllerError
from controller.program import DomainProgram, ProgramError
from controller.ryu_api import hub

LONGEST_LINE = 64 * 1024 * 1024


class RequestError(ControllerError):
    """A request that is not one."""

    kind = "request"


class Northbound:
    """Serves one application on a Unix socket until closed."""

    def __init__(self, application: DomainController, path: Path, stop: Callable[[], None]) -> None:
        self._application = application
        self._path = path
        self._stop = stop
        self._stopping = False
        self._closed = False
        self._calls: dict[str, Callable[..., Any]] = {
            "install": self._install,
            "remove": self._remove,
            "read_back": application.read_back,
            "verify": application.verify,
            "counters": application.counters,
            "health": application.health,
            "shutdown": self._shutdown,
        }
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        previous = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(previous)
        self._listener.listen()

    def start(self) -> None:
        """Accept clients from now on."""
        hub.spawn(self._accept)

    def close(self) -> None:
        """Accept nobody any more and remove the socket from the file system; connections under way go on."""
        self._closed = True
        # Closing alone would leave the accepting thread asleep, and with it the process.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def answer(self, line: bytes) -> dict[str, Any]:
        """The answer to one request, whatever a client can send."""
        identity: Any = None
        try:
            request = _request(line)
            identity = request.get("id")
            result = self._call(request.get("call"), request.get("args", {}))
        except ProgramError as error:
            return _error(identity, "program", str(error).splitlines())
        except ControllerError as error:
            return _error(identity, error.kind, error.problems)
        return {"id": identity, "result": result}

    def _call(self, name: Any, args: Any) -> Any:
        call = self._calls.get(name) if isinstance(name, str) else None
        if call is None:
            raise RequestError(f"call: found {name!r}, expected one of {', '.join(self._calls)}")
        try:
            inspect.signature(call).bind(**args)
        except TypeError as error:
            raise RequestError(f"arguments of {name}: {error}") from None
        return call(**args)

    def _install(self, program: dict[str, Any]) -> dict[str, Any]:
        return self._application.install(DomainProgram.from_dict(program))

    def _remove(self, numbers: list[int]) -> dict[str, Any]:
        if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
            raise ProgramError(f"remove: found numbers {numbers!r}, expected a list of integers")
        return self._application.remove(numbers)

    def _shutdown(self) -> None:
        self._stopping = True

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                raise
            hub.spawn(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            while line := stream.readline(LONGEST_LINE):
                stream.write(json.dumps(self.answer(line)).encode() + b"\n")
                stream.flush()
                if self._stopping:
                    self._stop()


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError as error:
        raise RequestError(f"request: not JSON ({error})") from None
    well_formed = isinstance(request, dict) and set(request) <= {"id", "call", "args"}
    if not well_formed or not isinstance(request.get("args", {}), dict):
        raise RequestError("request: expected an object with id, call and args (an object)")
    return dict(request)


def _error(identity: Any, kind: str, problems: Any) -> dict[str, Any]:
    return {"id": identity, "error": {"kind": kind, "problems": list(problems)}}
