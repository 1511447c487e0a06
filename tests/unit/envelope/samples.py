"""A federation of two domains and promises to vary, for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from testbed.envelope import (
    Envelope,
    Evidence,
    ExcessTail,
    Guardrails,
    Role,
    Root,
    SigningKey,
    Stage,
    Stochastic,
    Subject,
    Validity,
)

NOW_S = 1_800_000_000
DAY_S = 86_400


@cache
def key(owner: str) -> SigningKey:
    """One key for each name, the same all through a test run."""
    return SigningKey.generate()


def guardrails(**changes: Any) -> Guardrails:
    usual = Guardrails(
        reserved_rate_bps=10_000_000,
        meter_rate_bps=9_000_000,
        peak_rate_bps=20_000_000,
        burst_bits=200_000,
        latency_ns=1_500_000,
        host_allowance_ns=500_000,
        largest_packet_bits=11_312,
        delay_cap_ns=50_000_000,
        loss_cap_ppb=2_000,
        error_cap_ppb=0,
        load_cap_ppm=900_000,
    )
    return replace(usual, **changes)


def tail(**changes: Any) -> ExcessTail:
    usual = ExcessTail(
        rate_bps=10_000_000,
        exceedance_ppb=300_000,
        decay_micro_per_s=2_000_000_000,
        x_min_ns=1_000_000,
        x_max_ns=5_000_000,
    )
    return replace(usual, **changes)


def evidence(**changes: Any) -> Evidence:
    usual = Evidence("ab" * 32, n=100_000, n_effective=9_000, method="counted", confidence_ppm=990_000)
    return replace(usual, **changes)


def envelope(**changes: Any) -> Envelope:
    usual = Envelope(
        domain="east",
        subject=Subject("alice", "reserved", "packet-forwarding", Stage.NETWORK),
        guardrails=guardrails(),
        stochastic=Stochastic(tail(), loss_ppb=1_000, error_ppb=0),
        validity=Validity(NOW_S - DAY_S, NOW_S + DAY_S),
        version=7,
        evidence=evidence(),
    )
    return replace(usual, **changes)


def role(*owners: str, threshold: int = 1) -> Role:
    return Role(frozenset(key(owner).key_id for owner in owners), threshold)


def root(
    version: int = 1,
    root_keys: tuple[str, ...] = ("r1", "r2", "r3"),
    root_threshold: int = 2,
    *,
    domains: dict[str, tuple[tuple[str, ...], int]] | None = None,
    federation: str = "example",
    not_after_s: int = NOW_S + 30 * DAY_S,
) -> Root:
    """A root; by default 2-of-3, with domain east signing by 1 key and west by 2 of 3."""
    named = domains or {"east": (("east",), 1), "west": (("west1", "west2", "west3"), 2)}
    owners = {owner for keys, _ in named.values() for owner in keys} | set(root_keys)
    return Root(
        federation=federation,
        version=version,
        not_after_s=not_after_s,
        keys={key(owner).key_id: key(owner).public_key for owner in owners},
        root=role(*root_keys, threshold=root_threshold),
        domains={domain: role(*keys, threshold=threshold) for domain, (keys, threshold) in named.items()},
    )
