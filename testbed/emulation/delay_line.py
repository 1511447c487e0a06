"""A link made longer, for as long as it is wanted, on either datapath and without netem.

Packets that leave the link are kept from the switch, held for the delay, sent through the link once more with a mark,
and let through by it. They stay in order. The queue in front of the link is passed by the second time, so no packet
counts twice, and what the line itself adds is the time its thread takes to wake up.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from testbed.emulation import packet_filter

MARK = 0x7E57_DE1A
"""What the line's own packets bear."""
ONLY_DELAYED = packet_filter.only_marked(MARK)
"""For the switch at the end of the link: it gets what the line sends."""
_EVERYTHING = 0x0003
_FRAME_BYTES = 0x10000
_PACKET_QDISC_BYPASS = 20
_SOL_PACKET = 263
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 64 * 1024 * 1024


@contextmanager
def delayed(enters: str, leaves: str, held: AbstractContextManager[None], delay_s: float) -> Iterator[None]:
    """Make a link of the calling thread's network namespace longer.

    When it ends, what is still on the link arrives at once, in order.

    Args:
        enters: Interface that packets enter the link by.
        leaves: Interface that they leave it by.
        held: Has `ONLY_DELAYED` in front of the switch at `leaves`, while it is entered.
        delay_s: How much longer.
    """
    with ExitStack() as stack:
        source = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        packet_filter.attach(source, packet_filter.DROP)
        source.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        source.bind((leaves, _EVERYTHING))
        source.setblocking(False)
        sink = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        sink.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        sink.bind((enters, 0))
        line = _Line(source, sink, delay_s)
        stack.callback(line.stop)
        line.start()
        # Between the two changes a packet may be lost, which may be any link's; none may come twice.
        with held:
            packet_filter.attach(source, packet_filter.arriving_unmarked(MARK))
            try:
                yield
            finally:
                line.empty()
                packet_filter.attach(source, packet_filter.DROP)
                # One that came just before would else be overtaken by those that may pass again.
                line.empty()


class _Line(threading.Thread):
    def __init__(self, source: socket.socket, sink: socket.socket, delay_s: float) -> None:
        super().__init__(name="delay line", daemon=True)
        self._source, self._sink = source, sink
        self._delay_ns = round(delay_s * 1e9)
        self._held: deque[tuple[int, bytes]] = deque()
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        self._stopped = False

    def empty(self) -> None:
        """Hold nothing any longer; returns when all that had come by now is sent."""
        self._delay_ns = 0
        self._asked += 1
        with self._changed:
            self._changed.wait_for(lambda: self._answered == self._asked, 5.0)

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self.join()

    def run(self) -> None:
        """Hold and send until told to stop."""
        while not self._stopped:
            asked, now_ns = self._asked, time.monotonic_ns()
            while self._held and self._held[0][0] + self._delay_ns <= now_ns:
                self._sink.send(self._held.popleft()[1])
            left_s = (self._held[0][0] + self._delay_ns - now_ns) / 1e9 if self._held else 0.02
            # Who waits for an answer wants to know of what has come, not of what may come soon.
            left_s = left_s if self._answered == asked else 0.0
            if select.select([self._source], [], [], min(0.02, max(0.0, left_s)))[0]:
                self._held.append((time.monotonic_ns(), self._source.recv(_FRAME_BYTES)))
            elif not self._held and self._answered != asked:
                with self._changed:
                    self._answered = asked
                    self._changed.notify_all()
        for _, frame in self._held:
            self._sink.send(frame)
