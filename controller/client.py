"""A small synchronous client of a controller's northbound; it needs nothing but the standard library.

One request at a time, answered before the next is sent. It starts no process and retries nothing.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from controller.program import DomainProgram


class CallError(Exception):
    """A call the controller could not do.

    Attributes:
        kind: `request` (not understood), `program` (no switch could install it), `switch` or `kernel` (refused there),
            `read-back` (accepted but different), `connection` (no answer).
        problems: One sentence each, naming the object, what was found and what was expected.
    """

    def __init__(self, kind: str, problems: Sequence[str]) -> None:
        self.kind = kind
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ControllerClient:
    """A connection to one domain's controller; a context manager.

    Args:
        path: The controller's Unix socket.
        timeout_s: How long one call may take; an installation waits for its switches to connect.
    """

    def __init__(self, path: Path | str, timeout_s: float = 60.0) -> None:
        self.path = Path(path)
        self._timeout_s = timeout_s
        self._next = 0
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def reconnect(self) -> None:
        """Leave the connection that there was, and connect to the controller that listens there now.

        Raises:
            CallError: None does.
        """
        self.close()
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(self._timeout_s)
        try:
            self._socket.connect(str(self.path))
        except OSError as error:
            self._socket.close()
            raise CallError(
                "connection", [f"controller socket {self.path}: {error}; expected a running controller"]
            ) from None
        self._stream = self._socket.makefile("rwb")

    def close(self) -> None:
        """End the connection; the controller goes on."""
        # A request that a lost connection left in the buffer has been reported; closing must not report it again.
        with contextlib.suppress(OSError):
            self._stream.close()
        self._socket.close()

    def install(self, program: DomainProgram) -> dict[str, Any]:
        """Make the domain follow `program`: {added, changed, removed, tenants, sent: {openflow, netlink}}.

        Raises:
            CallError: Nothing was changed, or the previous program was put back (the problems say so if not).
        """
        return dict(self.call("install", program=program.to_dict()))

    def remove(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Remove the rules with these numbers; the answer is that of `install`."""
        return dict(self.call("remove", numbers=list(numbers)))

    def read_back(self) -> dict[str, Any]:
        """What switches and kernel hold: {domain, datapath, objects, tenants}."""
        return dict(self.call("read_back"))

    def verify(self) -> list[dict[str, str]]:
        """Every difference from the program: [{object, tenant, found, expected}]."""
        return list(self.call("verify"))

    def counters(self) -> dict[str, Any]:
        """Meter and queue counters: {domain, tenants, unclassified}."""
        return dict(self.call("counters"))

    def health(self) -> dict[str, Any]:
        """Connected switches, packets in the control plane, errors."""
        return dict(self.call("health"))

    def shutdown(self) -> None:
        """End the controller's process; what it installed stays."""
        self.call("shutdown")

    def call(self, name: str, **args: Any) -> Any:
        """One call by name.

        Raises:
            CallError: The controller answered with an error, or not at all.
        """
        self._next += 1
        try:
            self._stream.write(json.dumps({"id": self._next, "call": name, "args": args}).encode() + b"\n")
            self._stream.flush()
            line = self._stream.readline()
        except OSError as error:
            raise CallError("connection", [f"call {name} to {self.path}: {error or type(error).__name__}"]) from None
        if not line:
            raise CallError("connection", [f"call {name} to {self.path}: the controller closed the connection"])
        try:
            answer = json.loads(line)
        except ValueError:
            # A controller that ends while it writes leaves the beginning of a line.
            found = f"found {len(line)} bytes that are no JSON, expected a whole answer; did the controller end?"
            raise CallError("connection", [f"call {name} to {self.path}: {found}"]) from None
        if "error" in answer:
            raise CallError(answer["error"]["kind"], answer["error"]["problems"])
        return answer["result"]
