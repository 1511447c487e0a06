"""`python -m controller`: one domain's controller as a process, from the first switch to a signal or `shutdown`.

It prints one line of JSON when it listens to switches and to its northbound, and leaves what it installed in place when
it ends. The import of `controller.ryu_api` comes first on purpose (it may patch the standard library).
"""

from __future__ import annotations

from controller.ryu_api import VERSION, WANTED, AppManager, SwitchServer  # isort: skip

import argparse
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from controller.application import DomainController
from controller.northbound import Northbound


class _ErrorCollector(logging.Handler):
    """Puts every error that the framework only logs where `health` shows it."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(self.format(record))


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop; 2 when an address cannot be used."""
    options = _parse(arguments)
    logging.basicConfig(level=options.log_level, stream=sys.stderr)
    stopped, stopper = socket.socketpair()

    def stop(*_signal: object) -> None:
        stopper.send(b"x")

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    SwitchServer.listen_on = options.listen
    manager = AppManager.get_instance()
    try:
        application = manager.instantiate(DomainController, domain=options.domain)
        logging.getLogger().addHandler(_ErrorCollector(application.errors))
        server = manager.instantiate(SwitchServer)
        northbound = Northbound(application, options.socket, stop)
    except OSError as error:
        print(f"controller of {options.domain}: cannot listen: {error}", file=sys.stderr)
        return 2
    for part in (application, server, northbound):
        part.start()
    ready = {"ready": True, "listen": list(server.address), "socket": str(options.socket), "api": f"{WANTED} {VERSION}"}
    print(json.dumps(ready), flush=True)
    stopped.recv(1)
    northbound.close()
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m controller", description=__doc__)
    parser.add_argument("--domain", required=True, help="name of the domain, as in its programs")
    parser.add_argument("--listen", required=True, type=_address, help="HOST:PORT for switches; port 0 picks one")
    parser.add_argument("--socket", required=True, type=Path, help="Unix socket of the northbound (created, 0600)")
    parser.add_argument("--log-level", default="WARNING", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return parser.parse_args(arguments)


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected HOST:PORT")
    return host, int(port)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the framework wait for switches for ever and cannot be joined.
    os._exit(status)
