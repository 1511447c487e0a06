"""What a soak says of a server's threads: gRPC's pool, which grows by itself, is told from the rest."""

from __future__ import annotations

import os
import threading
from collections import Counter

from benchmarks.inference_process import Held, held


def test_threads_of_grpc_s_pool_are_not_the_process_s_own() -> None:
    found = Held(1, 1, Counter({"python": 4, "grpc_global_tim": 1, "event_engine": 6, "lifeguard": 1}))
    assert (found.pool, found.own) == (6, 5)


def test_a_thread_more_is_one_of_the_process_s_own() -> None:
    before, over = held(os.getpid()), threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    during = held(os.getpid())
    over.set()
    thread.join()
    assert (during.own, during.pool) == (before.own + 1, before.pool)
    assert during.memory_kb > 0
    assert during.descriptors >= before.descriptors > 0
