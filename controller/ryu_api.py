"""The one module that knows which implementation of the Ryu API is here: os-ken, its maintained continuation, or Ryu.

Everything else of the controller takes its names from here. Where both exist os-ken is used, unless the environment
variable CONTROLLER_RYU_API names `ryu`. Ryu runs on green threads, so it wants the standard library patched before
anything imports it: this module must be the first import of a process that serves switches. os-ken uses native threads
and its `patch` does nothing.
"""

from __future__ import annotations

import contextlib
import os
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

WANTED = os.environ.get("CONTROLLER_RYU_API", "os_ken" if find_spec("os_ken") else "ryu")

if WANTED == "ryu":
    import eventlet.wsgi

    # Ryu 4.34 imports a name that eventlet dropped; it only serves Ryu's web applications, which are not used here.
    if not hasattr(eventlet.wsgi, "ALREADY_HANDLED"):
        eventlet.wsgi.ALREADY_HANDLED = object()
    from ryu.lib import hub

    hub.patch()
    from ryu.base.app_manager import AppManager
    from ryu.base.app_manager import RyuApp as Application
    from ryu.controller import controller, ofp_event
    from ryu.controller.handler import DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
    from ryu.controller.ofp_handler import OFPHandler
    from ryu.ofproto import ofproto_v1_3, ofproto_v1_3_parser
else:
    from os_ken.base.app_manager import AppManager
    from os_ken.base.app_manager import OSKenApp as Application
    from os_ken.controller import controller, ofp_event
    from os_ken.controller.handler import DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
    from os_ken.controller.ofp_handler import OFPHandler
    from os_ken.lib import hub
    from os_ken.ofproto import ofproto_v1_3, ofproto_v1_3_parser

VERSION = version(WANTED.replace("_", "-"))

__all__ = [
    "DEAD_DISPATCHER",
    "MAIN_DISPATCHER",
    "VERSION",
    "WANTED",
    "AppManager",
    "Application",
    "SwitchServer",
    "hub",
    "ofp_event",
    "ofproto_v1_3",
    "ofproto_v1_3_parser",
    "set_ev_cls",
]


class _Connection(controller.Datapath):
    """A switch's connection that says so when it ends.

    With native threads the sender waits for its queue for ever after the switch has gone, the connection is never
    closed and no state change is announced; one last empty message lets the sender see that it is over.
    """

    def _recv_loop(self) -> None:
        try:
            super()._recv_loop()
        finally:
            self.set_state(DEAD_DISPATCHER)
            self.send(b"", close_socket=True)


class SwitchServer(OFPHandler):
    """The framework's OpenFlow handshake on a listening socket of our own.

    The framework's server binds in a thread and only logs that it could not; here an address in use is an `OSError` in
    the caller, and port 0 picks a free port (`address` tells which).
    """

    listen_on: tuple[str, int] = ("127.0.0.1", 0)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._server = hub.StreamServer(self.listen_on, _serve)
        self.address: tuple[str, int] = self._server.server.getsockname()

    def start(self) -> Any:
        """Start handling events and accepting switches."""
        super(OFPHandler, self).start()
        return hub.spawn(self._server.serve_forever)


def _serve(connection: Any, address: tuple[str, int]) -> None:
    with contextlib.closing(_Connection(connection, address)) as datapath:
        datapath.serve()
