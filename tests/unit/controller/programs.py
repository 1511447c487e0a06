"""Small programs that unit tests of the controller start from."""

from __future__ import annotations

from controller.program import DomainProgram, Hop, Meter, Queue, Rule


def rule(number: int = 1, /, **changes: object) -> Rule:
    fields: dict[str, object] = {
        "tenant": f"tenant-{number}",
        "number": number,
        "client": f"10.1.0.{number}",
        "server": "10.2.0.1",
        "meter": Meter(number, 8_000, 200),
        "queue": Queue(0x10 + number, 10_000_000, 10_000_000, 5000, 3000, 100),
    }
    return Rule(**{**fields, **changes})  # type: ignore[arg-type]


def hop(bridge: str = "d0i", dpid: int = 17, /, **changes: object) -> Hop:
    fields: dict[str, object] = {
        "bridge": bridge,
        "dpid": dpid,
        "ingress": True,
        "towards_client": f"{bridge}-up",
        "towards_server": f"{bridge}-dn",
        "client_ports": (),
        "server_ports": (),
        "queued_ports": (f"{bridge}-up", f"{bridge}-dn"),
    }
    return Hop(**{**fields, **changes})  # type: ignore[arg-type]


def program(*rules: Rule, datapath: str = "userspace", hops: tuple[Hop, ...] | None = None) -> DomainProgram:
    return DomainProgram("d0", datapath, 100_000_000, hops or (hop(),), rules or (rule(),))
