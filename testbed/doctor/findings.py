"""What the doctor found: one `Check` per thing tried, and the tier that follows from them.

Pure data and the rule from checks to tier; trying things is `testbed.doctor.probes`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Tier(StrEnum):
    """How much of the testbed a host can run."""

    NONE = "none"
    USERSPACE = "userspace"
    KERNEL = "kernel"

    @property
    def meaning(self) -> str:
        """The tier in one sentence."""
        return _MEANING[self]


_MEANING = {
    Tier.NONE: "no network can be built here; validate, bound and simulate work without one",
    Tier.USERSPACE: "runs on the userspace datapath; link delays must be zero",
    Tier.KERNEL: "runs on the kernel datapath, with propagation delays",
}
_COMMON = ("privileges", "tools", "real-time", "namespaces", "capture")
_OF_DATAPATH = ("datapath", "meter", "queue", "tcp")
_NEEDED: Mapping[Tier, tuple[str, ...]] = {
    Tier.KERNEL: (*_COMMON, *(f"kernel-{name}" for name in _OF_DATAPATH), "netem"),
    Tier.USERSPACE: (*_COMMON, "tun", "descriptors", *(f"userspace-{name}" for name in _OF_DATAPATH)),
}


@dataclass(frozen=True)
class Check:
    """One thing tried.

    Attributes:
        name: Stable name, for scripts.
        ok: Whether it worked.
        detail: What was seen.
        remedy: What to do about it, None if it worked.
    """

    name: str
    ok: bool
    detail: str
    remedy: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was tried, in that order, and the tier the host reaches."""

    tier: Tier
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, checks: Sequence[Check]) -> Diagnosis:
        """The diagnosis that follows from `checks`: the highest tier all of whose needs were seen to work."""
        working = {check.name for check in checks if check.ok}
        tier = next((tier for tier, needed in _NEEDED.items() if working.issuperset(needed)), Tier.NONE)
        return cls(tier, tuple(checks))

    def missing(self, tier: Tier) -> tuple[str, ...]:
        """Names of the checks that keep the host from `tier`."""
        working = {check.name for check in self.checks if check.ok}
        return tuple(name for name in _NEEDED.get(tier, ()) if name not in working)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: `tier` and `checks[]` with `name`, `ok`, `detail` and `remedy`."""
        return {"tier": self.tier.value, "checks": [asdict(check) for check in self.checks]}
