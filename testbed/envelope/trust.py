"""Who may sign what: the trust root of a federation, and its rotation.

A root names, for every domain, which keys may sign its envelopes and how many of them must, and the same for itself.
Roots form a chain: each is signed by a threshold of the keys of the one before and by a threshold of its own, so a
federation can replace lost or stolen keys without meeting again. The root knows keys and names, not promises.

Source: The Update Framework specification 1.0, section 5.3, whose clauses are quoted where they are followed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

from testbed.envelope import strict_json
from testbed.envelope.dsse import MAX_SIGNATURES, Sealed, seal
from testbed.envelope.errors import (
    ExpiredError,
    MalformedError,
    RootVersionError,
    ThresholdError,
    WrongDomainError,
)
from testbed.envelope.fields import DIGEST, NAME, Problems, members, require_schema
from testbed.envelope.keys import PublicKey, SigningKey

PAYLOAD_TYPE = "application/vnd.tail-risk-envelope.root+json"
SCHEMA_VERSION = 1
MAX_ROOT_BYTES = 262_144

MAX_ROLE_KEYS = MAX_SIGNATURES
"""Keys of one role; more could never all sign one document."""

MAX_KEYS = 512
"""Keys of a whole root. Reading one costs about a millisecond, which only a signed root may cost its readers."""

_ROOT_MEMBERS = frozenset({"schema", "federation", "version", "not_after_s", "keys", "root", "domains"})


@dataclass(frozen=True, slots=True)
class Role:
    """A set of keys of which some must sign together.

    Attributes:
        key_ids: Who may sign.
        threshold: How many of them must.
    """

    key_ids: frozenset[str]
    threshold: int

    def __post_init__(self) -> None:
        """Raises `MalformedError` unless 1 <= threshold <= number of keys <= `MAX_ROLE_KEYS`."""
        problems = Problems("role")
        if len(self.key_ids) > MAX_ROLE_KEYS:
            raise MalformedError(f"role: found {len(self.key_ids)} keys, expected at most {MAX_ROLE_KEYS}")
        for key_id in self.key_ids:
            problems.text("key_ids", key_id, DIGEST, "64 lower-case hexadecimal digits")
        problems.integer("threshold", self.threshold, 1, max(1, len(self.key_ids)))
        if not self.key_ids:
            problems.add("no keys, so nobody could sign; name at least one")
        problems.check()

    def count(self, signers: frozenset[str]) -> int:
        """How many of the role's keys are among the signers."""
        return len(self.key_ids & signers)

    def require(self, signers: frozenset[str], what: str) -> None:
        """Check that enough of the role's keys signed.

        Raises:
            ThresholdError: Too few did.
        """
        if self.count(signers) < self.threshold:
            raise ThresholdError(
                f"{what}: signed by {self.count(signers)} of its keys, expected {self.threshold} of {len(self.key_ids)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Wire form; key ids sorted."""
        return {"key_ids": sorted(self.key_ids), "threshold": self.threshold}

    @classmethod
    def from_dict(cls, document: strict_json.Json, what: str) -> Self:
        """Inverse of `to_dict`; raises `MalformedError`."""
        found = members(document, what, ("key_ids", "threshold"))
        listed = found["key_ids"]
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise MalformedError(f"{what}.key_ids: found {listed!r:.80}, expected a list of key ids")
        if listed != sorted(set(listed)):
            raise MalformedError(f"{what}.key_ids: expected each once and in order")
        return cls(frozenset(listed), found["threshold"])


@dataclass(frozen=True, slots=True)
class Trust:
    """Which keys may sign for which domain: all that checking one envelope needs.

    Attributes:
        keys: Key id to key.
        domains: Domain to the role that signs its envelopes.
    """

    keys: Mapping[str, PublicKey]
    domains: Mapping[str, Role]

    @classmethod
    def of(cls, domains: Mapping[str, Iterable[PublicKey]], *, threshold: int = 1) -> Self:
        """Trust given by hand, without a root: each domain signs with `threshold` of its keys."""
        held = {domain: tuple(keys) for domain, keys in domains.items()}
        return cls(
            MappingProxyType({key.key_id: key for keys in held.values() for key in keys}),
            MappingProxyType(
                {domain: Role(frozenset(key.key_id for key in keys), threshold) for domain, keys in held.items()}
            ),
        )

    def require(self, domain: str, signers: frozenset[str]) -> None:
        """Check that these signers may speak for a domain.

        Raises:
            WrongDomainError: The federation has no such domain, or a signer belongs to another one.
            ThresholdError: Too few of the domain's keys signed.
        """
        role = self.domains.get(domain)
        if role is None:
            raise WrongDomainError(f"domain {domain!r}: unknown here, expected one of {sorted(self.domains)}")
        if foreign := signers - role.key_ids:
            owners = sorted(name for name, other in self.domains.items() if foreign & other.key_ids)
            raise WrongDomainError(f"domain {domain!r}: signed by a key of {owners}, expected keys of {domain!r} only")
        role.require(signers, f"domain {domain!r}")


@dataclass(frozen=True, slots=True)
class Root:
    """One version of a federation's trust root.

    Attributes:
        federation: Name of the federation.
        version: 1 for the first, one more for each successor.
        not_after_s: Last second in which it may be used, Unix time.
        keys: Key id to key, all that the roles name and no other.
        root: Role that signs roots.
        domains: Domain to the role that signs its envelopes; no key serves two domains.
    """

    federation: str
    version: int
    not_after_s: int
    keys: Mapping[str, PublicKey]
    root: Role
    domains: Mapping[str, Role]

    def __post_init__(self) -> None:
        """Raises `MalformedError` naming every field out of range and every contradiction."""
        problems = Problems("root")
        problems.name("federation", self.federation)
        problems.integer("version", self.version, 1)
        problems.integer("not_after_s", self.not_after_s, 0)
        if len(self.keys) > MAX_KEYS:
            problems.add(f"found {len(self.keys)} keys, expected at most {MAX_KEYS}; nobody would read it")
        for domain in self.domains:
            problems.text("domains", domain, NAME, "a domain name")
        roles = [self.root, *self.domains.values()]
        named = [key_id for role in roles for key_id in role.key_ids]
        if len(set(named)) != len(named):
            problems.add("one key has two roles, so one theft would break both; give each role its own keys")
        if set(named) != set(self.keys):
            problems.add("keys and roles differ; list exactly the keys that roles name")
        problems.check()

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes: the name of exactly this root."""
        return hashlib.sha256(strict_json.dumps(self.to_dict())).hexdigest()

    @property
    def trust(self) -> Trust:
        """What checking envelopes needs."""
        return Trust(
            MappingProxyType({key_id: key for key_id, key in self.keys.items() if key_id not in self.root.key_ids}),
            MappingProxyType(dict(self.domains)),
        )

    def require_current(self, now_s: float) -> None:
        """Refuse to trust a root beyond its end.

        Raises:
            ExpiredError: It ended, or the moment is none (NaN).
        """
        if not now_s <= self.not_after_s:
            raise ExpiredError(
                f"root {self.version} of {self.federation}: valid until {self.not_after_s}, now is {now_s:.0f}; "
                "fetch its successor"
            )

    def rotated(
        self,
        *,
        not_after_s: int,
        root_keys: Iterable[PublicKey] = (),
        threshold: int | None = None,
        domains: Mapping[str, Iterable[PublicKey]] = MappingProxyType({}),
        removed: Iterable[str] = (),
    ) -> Root:
        """The next version, still unsigned.

        Args:
            not_after_s: Last second of its use, Unix time.
            root_keys: Keys that sign roots from now on; none keeps the present ones.
            threshold: How many of them must; None keeps the present number.
            domains: New or changed domains with all their keys; a changed one keeps its threshold, a new one has 1.
            removed: Domains that leave.

        Raises:
            MalformedError: The result contradicts itself, or a domain to be removed is none.
        """
        leaving = set(removed)
        if unknown := leaving - self.domains.keys():
            raise MalformedError(
                f"root: {sorted(unknown)} are no domains of it, expected some of {sorted(self.domains)}"
            )
        keepers = {key.key_id: key for key in root_keys}
        changed = {name: {key.key_id: key for key in held} for name, held in domains.items()}
        known = dict(self.keys) | keepers
        root = Role(frozenset(keepers) or self.root.key_ids, self.root.threshold if threshold is None else threshold)
        roles = {name: role for name, role in self.domains.items() if name not in leaving}
        for name, held in changed.items():
            known |= held
            roles[name] = Role(frozenset(held), roles[name].threshold if name in roles else 1)
        named = {key_id for role in (root, *roles.values()) for key_id in role.key_ids}
        keys = {key_id: key for key_id, key in known.items() if key_id in named}
        return Root(self.federation, self.version + 1, not_after_s, keys, root, roles)

    def sign(self, signers: Iterable[SigningKey]) -> bytes:
        """The signed root, for `Root.first` or `Root.successor` of those who read it."""
        return seal(PAYLOAD_TYPE, self.to_dict(), signers)

    @classmethod
    def first(cls, data: bytes) -> Self:
        """Read a root obtained through a trusted channel: its own keys must have signed it.

        The keys that sign roots are read first, and the others only once those have signed.

        Raises:
            MalformedError, UntrustedKeyError, BadSignatureError, ThresholdError: It is not consistent in itself.
        """
        sealed, found = _unverified(data)
        role, keepers = _keepers(found)
        role.require(sealed.verify(keepers), f"root {found['version']!r:.20}")
        return cls.from_dict(found)

    def successor(self, data: bytes) -> Root:
        """Follow a rotation to the next root; expiry is checked on use, so that a late reader can catch up.

        Args:
            data: The signed candidate.

        Raises:
            MalformedError, UntrustedKeyError, BadSignatureError: Not a signed root.
            ThresholdError: Not signed by enough keys of this root and of the candidate.
            RootVersionError: Not the direct successor, or of another federation.
        """
        sealed, found = _unverified(data)
        claimed = f"root {found['version']!r:.20}"
        # "Version N+1 of the root metadata file MUST have been signed by: (1) a threshold of keys specified in the
        # trusted root metadata file (version N), and (2) a threshold of keys specified in the new root metadata file
        # being validated (version N+1)."
        # Keys that are known come first: who holds none of them has no key of their own read, which is what costs.
        known = {key_id: self.keys[key_id] for key_id in self.root.key_ids}
        ours = replace(sealed, signatures=own) if (own := sealed.by(known)) else None
        self.root.require(
            frozenset() if ours is None else ours.verify(known), f"{claimed}, by the keys of root {self.version}"
        )
        role, keepers = _keepers(found)
        role.require(sealed.verify({**known, **keepers}), claimed)
        candidate = self.from_dict(found)
        if candidate.federation != self.federation:
            raise RootVersionError(f"root of {candidate.federation!r}: expected one of {self.federation!r}")
        # "Effectively, this means checking that the version number signed in the new root metadata file is indeed N+1."
        if candidate.version != self.version + 1:
            raise RootVersionError(f"root version: found {candidate.version}, expected {self.version + 1}")
        return candidate

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "schema": SCHEMA_VERSION,
            "federation": self.federation,
            "version": self.version,
            "not_after_s": self.not_after_s,
            "keys": {key_id: key.to_dict() for key_id, key in self.keys.items()},
            "root": self.root.to_dict(),
            "domains": {domain: role.to_dict() for domain, role in self.domains.items()},
        }

    @classmethod
    def from_dict(cls, document: strict_json.Json) -> Self:
        """Inverse of `to_dict`.

        Raises:
            MalformedError: Another schema or shape, or a key filed under another key's id.
            KeyRefusedError: A weak or ambiguous key.
        """
        found = _members(document)
        keys = {key_id: _key(key_id, item) for key_id, item in found["keys"].items()}
        return cls(
            federation=found["federation"],
            version=found["version"],
            not_after_s=found["not_after_s"],
            keys=MappingProxyType(keys),
            root=Role.from_dict(found["root"], "root.root"),
            domains=MappingProxyType(
                {domain: Role.from_dict(item, f"root.domains.{domain}") for domain, item in found["domains"].items()}
            ),
        )


def _unverified(data: bytes) -> tuple[Sealed, dict[str, Any]]:
    """A root's members, still without meaning: it names some of the keys that verify it."""
    sealed = Sealed.from_bytes(data, PAYLOAD_TYPE, max_bytes=MAX_ROOT_BYTES)
    return sealed, _members(sealed.read("root"))


def _members(document: strict_json.Json) -> dict[str, Any]:
    require_schema(document, "root", SCHEMA_VERSION)
    found = members(document, "root", _ROOT_MEMBERS)
    for name in ("keys", "domains"):
        if not isinstance(found[name], dict):
            raise MalformedError(f"root.{name}: found {type(found[name]).__name__}, expected an object")
    if len(found["keys"]) > MAX_KEYS:
        raise MalformedError(f"root.keys: found {len(found['keys'])}, expected at most {MAX_KEYS}")
    return found


def _keepers(found: dict[str, Any]) -> tuple[Role, dict[str, PublicKey]]:
    """The role that signs a root and its keys, and nothing else of it."""
    role = Role.from_dict(found["root"], "root.root")
    if missing := sorted(role.key_ids - found["keys"].keys()):
        raise MalformedError(f"root.keys: found no {missing[0]}, which signs roots; list exactly the keys of all roles")
    return role, {key_id: _key(key_id, found["keys"][key_id]) for key_id in role.key_ids}


def _key(key_id: str, document: strict_json.Json) -> PublicKey:
    key = PublicKey.from_dict(document)
    if key.key_id != key_id:
        raise MalformedError(f"root.keys: key {key.key_id} is filed under {key_id}; ids follow from key bytes")
    return key
