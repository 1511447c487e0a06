"""Cores kept awake, by threads that everything else goes before."""

from __future__ import annotations

import os
from pathlib import Path

from testbed.emulation.awake import keep_awake
from testbed.emulation.journal import Journal
from testbed.emulation.supervisor import Supervisor


def test_every_core_has_a_thread_of_its_own_that_gives_way_to_everything(tmp_path: Path) -> None:
    with Supervisor(Journal.create(tmp_path)) as supervisor:
        awake = keep_awake(supervisor)
        threads = {int(core): thread for core, thread in awake.announcement["threads"].items()}
        assert set(threads) == os.sched_getaffinity(0)
        for core, thread in threads.items():
            assert os.sched_getaffinity(thread) == {core}
            assert os.sched_getscheduler(thread) == os.SCHED_IDLE
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert not Path(f"/proc/{awake.pid}").exists()


def test_they_wake_thousands_of_times_a_second_and_hardly_run(tmp_path: Path) -> None:
    with Supervisor(Journal.create(tmp_path)) as supervisor:
        awake = keep_awake(supervisor)
        thread = min(awake.announcement["threads"].values())
        schedstat = Path(f"/proc/{awake.pid}/task/{thread}/schedstat")
        woken = 0
        # However busy the host, it gets its turn some time.
        while woken < 1000:
            ran_ns, _, woken = map(int, schedstat.read_text().split())
            os.sched_yield()
    assert ran_ns / woken < 100_000
