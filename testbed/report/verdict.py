"""What a run says about a promise, and what it says in all of several such verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Verdict = Literal["PASS", "FAIL", "INVALID", "UNDETERMINED", "EXCUSED", "NONE"]

SEVERITY: tuple[Verdict, ...] = ("INVALID", "FAIL", "UNDETERMINED", "PASS", "EXCUSED", "NONE")
"""From worst to best, then those that judge nothing: a run has them only where no promise was judged."""


def worst_verdict(found: Iterable[str]) -> Verdict:
    """The verdict of a run, by those of its promises and faults; NONE where there are none."""
    seen = set(found)
    return next((verdict for verdict in SEVERITY if verdict in seen), "NONE")
