"""A federation founded for one run: who its members are, and the files that make a process the agent of one of them.

Every domain has a folder of its own with its key, its ledger and what its agent is told. Whoever founds a run founds
the federation too, so here one hand makes all keys; between operators that is a matter of `testbed envelope` on each
one's own machine. Nothing is started here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from controller.program import DomainProgram
from testbed.envelope.keys import SigningKey
from testbed.envelope.trust import Role, Root
from testbed.management.calibrations import Calibrations
from testbed.management.calls import AgentClient
from testbed.management.identity import anchors, authority, credentials
from testbed.management.sizing import PAUSE_S
from testbed.scenario.federation import Operator

ROOT_LIFE_S = 7 * 24 * 3600


@dataclass(frozen=True)
class Member:
    """One domain's files.

    Attributes:
        settings: What its agent is told.
        ledger: Its database.
        skeleton: Its switches and ports, without rules.
    """

    settings: Path
    ledger: Path
    skeleton: DomainProgram


@dataclass
class Members:
    """Keys, trust root and certificate authorities of a federation, and each agent's files.

    Attributes:
        folder: Holds everything; for its owner only.
        broker: The member that the orchestrator speaks for.
        keys: Of every domain and of the broker.
        root: Says who may sign for which domain.
        root_file: The same, signed.
        authorities: Certificates of all members.
        settled: Domains whose agents have been told what they need.
    """

    folder: Path
    broker: str
    keys: Mapping[str, SigningKey]
    root: Root
    root_file: Path
    authorities: Sequence[Path]
    settled: dict[str, Member]

    @classmethod
    def found(cls, folder: Path, federation: str, domains: Sequence[str]) -> Self:
        """Make keys and trust root; the root's own key is forgotten with this call."""
        folder.mkdir(mode=0o700)
        broker = f"orchestrator-of-{federation}"
        keys = {name: SigningKey.generate() for name in (*domains, broker)}
        root_key = SigningKey.generate()
        held = {key.key_id: key.public_key for key in (root_key, *keys.values())}
        roles = {name: Role(frozenset({key.key_id}), 1) for name, key in keys.items()}
        root = Root(federation, 1, int(time.time()) + ROOT_LIFE_S, held, Role(frozenset({root_key.key_id}), 1), roles)
        root_file = folder / "root.json"
        root_file.write_bytes(root.sign([root_key]))
        authorities = []
        for name, key in keys.items():
            path = folder / f"{name}.ca.pem"
            path.write_bytes(authority(federation, name, key))
            authorities.append(path)
        return cls(folder, broker, keys, root, root_file, authorities, {})

    def settle(
        self,
        operator: Operator,
        skeleton: DomainProgram,
        controller: Path,
        *,
        look_every_s: float,
        pause_s: float = PAUSE_S,
    ) -> Member:
        """Write what an agent is told.

        Args:
            operator: What its domain sells.
            skeleton: The domain's switches and ports, without rules.
            controller: Northbound of its controller.
            look_every_s: How often it compares ledger and switches.
            pause_s: How long the host may leave a class unserved without its losing rate.
        """
        own = self.folder / operator.name
        own.mkdir(mode=0o700)
        self.keys[operator.name].save(own / "domain.key")
        member = Member(own / "settings.json", own / "ledger.sqlite", skeleton)
        settings = {
            "operator": asdict(operator),
            "root": str(self.root_file),
            "key": str(own / "domain.key"),
            "authorities": [str(path) for path in self.authorities],
            "ledger": str(member.ledger),
            "controller": str(controller),
            "skeleton": skeleton.to_dict(),
            "listen": self._address(operator.name),
            "look_every_s": look_every_s,
            "pause_s": pause_s,
            "evidence": str(self.calibrations(operator.name).path),
        }
        member.settings.write_text(json.dumps(settings), encoding="utf-8")
        self.settled[operator.name] = member
        return member

    def calibrations(self, domain: str) -> Calibrations:
        """What a domain has measured."""
        return Calibrations(self.folder / domain / "calibrations.json")

    def client(self, domain: str) -> AgentClient:
        """The orchestrator's connection to a domain's agent."""
        trusted = anchors(self.root, [path.read_bytes() for path in self.authorities])
        own = credentials(self.root.federation, self.broker, self.keys[self.broker], trusted)
        return AgentClient(domain, self._address(domain), own)

    def _address(self, domain: str) -> str:
        # A socket in the file system: gRPC's threads need not be in the fabric's network namespace.
        return f"unix:{self.folder / domain / 'agent.sock'}"
