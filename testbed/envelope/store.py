"""From bytes to a promise that may be relied on.

`issue` signs, `verify` checks one envelope on its own, and an `EnvelopeStore` remembers what it accepted, so that an
older, a repeated or a contradictory envelope is refused by name. What an envelope is worth in a bound is not known
here.

Source: The Update Framework specification 1.0, sections 5.3 and 5.4, whose clauses are quoted where they are followed,
and Kuppusamy, Diaz and Cappos, "Mercury" (USENIX ATC 2017), for the attacks enumerated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from testbed.envelope import strict_json
from testbed.envelope.descriptor import PAYLOAD_TYPE, Envelope, Subject
from testbed.envelope.dsse import Sealed, seal
from testbed.envelope.errors import (
    EqualVersionError,
    MalformedError,
    MixAndMatchError,
    ReplayError,
    RollbackError,
    RootVersionError,
)
from testbed.envelope.fields import DIGEST, NAME, Problems, members
from testbed.envelope.keys import SigningKey
from testbed.envelope.trust import Root, Trust


def issue(envelope: Envelope, signers: Iterable[SigningKey]) -> bytes:
    """Sign an envelope.

    Args:
        envelope: The promise.
        signers: Keys of the promising domain, at least as many as its threshold.

    Returns:
        The DSSE envelope, canonical JSON.
    """
    return seal(PAYLOAD_TYPE, envelope.to_dict(), signers)


def verify(data: bytes, trust: Trust, now_s: float) -> Envelope:
    """Check one signed envelope and read it.

    In this order: size and shape, so that hostile bytes cost nothing; signatures; then the meaning of the very bytes
    that were signed; who may speak for the domain; validity.

    Args:
        data: The DSSE envelope as it arrived.
        trust: Who may sign for which domain.
        now_s: Unix time.

    Raises:
        MalformedError, UntrustedKeyError, BadSignatureError, WrongDomainError, ThresholdError, NotYetValidError,
        ExpiredError: The reason for which it is refused.
    """
    sealed = Sealed.from_bytes(data, PAYLOAD_TYPE)
    document = sealed.read("envelope")
    signers = sealed.verify(trust.keys)
    envelope = Envelope.from_dict(document)
    trust.require(envelope.domain, signers)
    envelope.validity.require(now_s, f"envelope of {envelope.domain} for {envelope.subject}")
    return envelope


def require_one_offer(envelopes: Iterable[Envelope]) -> tuple[Envelope, ...]:
    """Check that envelopes were issued to be used together.

    They must be for one tenant and class, and what one domain contributes must carry one offer number.

    Raises:
        MixAndMatchError: They were not.
    """
    together = tuple(envelopes)
    parties = {(envelope.subject.tenant, envelope.subject.tenant_class) for envelope in together}
    if len(parties) > 1:
        raise MixAndMatchError(
            f"envelopes of several tenants or classes: found {sorted(parties)}, expected one; ask each domain to offer "
            "for the same tenant and class"
        )
    offers: dict[str, int] = {}
    for envelope in together:
        number = offers.setdefault(envelope.domain, envelope.version)
        if number != envelope.version:
            raise MixAndMatchError(
                f"envelopes of {envelope.domain} from its offers {number} and {envelope.version}: expected one offer; "
                "use what was offered at once"
            )
    return together


@dataclass(slots=True)
class _Offer:
    """The newest offer of one domain to one tenant.

    Attributes:
        version: Its number.
        digests: Subject to digest of the envelopes accepted from it.
        key_ids: Keys that could sign for the domain then.
        envelopes: Those of them that may still be relied on.
    """

    version: int
    digests: dict[str, str]
    key_ids: frozenset[str]
    envelopes: dict[Subject, Envelope] = field(default_factory=dict)

    def stands(self, domain: str, root: Root) -> bool:
        """Whether all the keys that may have signed it still speak for the domain.

        "If the timestamp and / or snapshot keys have been rotated, then delete the trusted timestamp and snapshot
        metadata files. This is done in order to recover from fast-forward attacks".
        """
        return domain in root.domains and self.key_ids <= root.domains[domain].key_ids


class EnvelopeStore:
    """Verifies against a current root and remembers the newest offer of every domain to every tenant.

    Safe to share between threads.

    Args:
        root: The trusted root.
        remembered: What `remember` returned when the process last ended; without it, rollback to an offer from
            before the restart goes unnoticed until that offer expires.

    Raises:
        MalformedError, RootVersionError: As `recall`.
    """

    def __init__(self, root: Root, remembered: strict_json.Json = None) -> None:
        self._root = root
        self._trust = root.trust
        self._offers: dict[tuple[str, str], _Offer] = {}
        self._lock = threading.Lock()
        if remembered is not None:
            self.recall(remembered)

    def recall(self, remembered: strict_json.Json) -> None:
        """Take over what an earlier store remembered; of two offers the later one counts.

        What was accepted from a domain before one of its keys was withdrawn is forgotten, as by `follow`.

        Raises:
            MalformedError: Not what `remember` returns.
            RootVersionError: It followed a later root than this store has, or one that differs from its root and has
                the same number.
        """
        found = members(remembered, "memory", ("root", "offers"))
        if not isinstance(found["offers"], list):
            raise MalformedError(f"memory.offers: found {type(found['offers']).__name__}, expected a list")
        with self._lock:
            _require_followed(found["root"], self._root)
            for item in found["offers"]:
                domain, tenant, offer = _recalled(item)
                known = self._offers.get((domain, tenant))
                if offer.stands(domain, self._root) and (known is None or known.version < offer.version):
                    self._offers[domain, tenant] = offer

    @property
    def root(self) -> Root:
        """The newest root followed so far."""
        return self._root

    def follow(self, data: bytes) -> Root:
        """Replace the root by its direct successor; see `Root.successor` for what is refused.

        What a domain promised before one of its keys was withdrawn is forgotten, its version number too: whoever stole
        the key may have counted up to the largest number.
        """
        with self._lock:
            successor = self._root.successor(data)
            self._offers = {key: offer for key, offer in self._offers.items() if offer.stands(key[0], successor)}
            self._root, self._trust = successor, successor.trust
            return successor

    def accept(self, data: bytes, now_s: float) -> Envelope:
        """Verify one envelope and take it as the domain's newest word to this tenant.

        Raises:
            RefusedError: As `verify`; also RollbackError, EqualVersionError and ReplayError by comparison with what
                was accepted before, and ExpiredError for an expired root.
        """
        return self.accept_offer((data,), now_s)[0]

    def accept_offer(
        self,
        offered: Iterable[bytes],
        now_s: float,
        check: Callable[[Sequence[Envelope]], None] = lambda _envelopes: None,
    ) -> tuple[Envelope, ...]:
        """Verify envelopes that are to be used together, and accept all of them or none.

        Args:
            offered: The envelopes as they arrived.
            now_s: Unix time.
            check: Told the verified envelopes before they are accepted; what it raises leaves nothing remembered, so
                that nobody can use up the offers of another domain by presenting them first.

        Raises:
            RefusedError: As `accept`; also MixAndMatchError if they were not issued together.
        """
        with self._lock:
            root, trust = self._root, self._trust
        root.require_current(now_s)
        envelopes = require_one_offer([verify(data, trust, now_s) for data in offered])
        check(envelopes)
        with self._lock:
            for envelope in envelopes:
                self._refuse_old(envelope)
            subjects = [(envelope.domain, envelope.subject) for envelope in envelopes]
            if len(set(subjects)) != len(subjects):
                raise ReplayError("offer: found one subject twice, expected each once")
            for envelope in envelopes:
                self._take(envelope)
        return envelopes

    def current(self, domain: str, subject: Subject, now_s: float) -> Envelope | None:
        """The newest accepted envelope for a subject, None where none is accepted or it has ended."""
        with self._lock:
            offer = self._offers.get((domain, subject.tenant))
            envelope = None if offer is None else offer.envelopes.get(subject)
        if envelope is None or not envelope.validity.not_before_s <= now_s <= envelope.validity.not_after_s:
            return None
        return envelope

    def remember(self, tenants: Collection[str] | None = None) -> strict_json.Json:
        """What must survive a restart, as a canonical JSON document.

        Args:
            tenants: Whose offers; None for everybody's.
        """
        with self._lock:
            root = self._root
            offers = [
                {
                    "domain": domain,
                    "tenant": tenant,
                    "version": offer.version,
                    "digests": dict(offer.digests),
                    "key_ids": sorted(offer.key_ids),
                }
                for (domain, tenant), offer in sorted(self._offers.items())
                if tenants is None or tenant in tenants
            ]
        known = {"federation": root.federation, "version": root.version, "digest": root.digest}
        return {"root": known, "offers": offers}

    def _refuse_old(self, envelope: Envelope) -> None:
        offer = self._offers.get((envelope.domain, envelope.subject.tenant))
        if offer is None:
            return
        name = f"envelope of {envelope.domain} for {envelope.subject}"
        # "The version number of the trusted timestamp metadata file, if any, MUST be less than the version number of
        # the new timestamp metadata file"; here the envelopes of one offer share their number.
        if envelope.version < offer.version:
            raise RollbackError(f"{name}: found version {envelope.version}, already accepted {offer.version}")
        if envelope.version == offer.version and (known := offer.digests.get(str(envelope.subject))) is not None:
            if known == envelope.digest:
                raise ReplayError(f"{name}: version {envelope.version} was accepted before; use the accepted one")
            raise EqualVersionError(
                f"{name}: version {envelope.version} was accepted with other contents; the domain must count up"
            )

    def _take(self, envelope: Envelope) -> None:
        key = (envelope.domain, envelope.subject.tenant)
        offer = self._offers.get(key)
        if offer is None or offer.version < envelope.version:
            role = self._root.domains.get(envelope.domain)
            key_ids = frozenset() if role is None else role.key_ids
            offer = self._offers[key] = _Offer(envelope.version, {}, key_ids)
        offer.digests[str(envelope.subject)] = envelope.digest
        offer.envelopes[envelope.subject] = envelope


def _require_followed(document: strict_json.Json, root: Root) -> None:
    """Check that a root is the remembered one or follows it; whoever read the chain has seen that it does."""
    found = members(document, "memory.root", ("federation", "version", "digest"))
    problems = Problems("memory.root")
    problems.text("federation", found["federation"], NAME, "the name of a federation")
    problems.integer("version", found["version"], 1)
    problems.text("digest", found["digest"], DIGEST, "64 lower-case hexadecimal digits")
    problems.check()
    if found["federation"] != root.federation:
        raise RootVersionError(
            f"memory of {found['federation']}: found a root of {root.federation}; use each federation's own memory"
        )
    if found["version"] > root.version:
        raise RootVersionError(
            f"root {root.version} of {root.federation}: root {found['version']} was followed before; give its "
            "successors too"
        )
    if found["version"] == root.version and found["digest"] != root.digest:
        raise RootVersionError(
            f"root {root.version} of {root.federation}: another root of this number was followed before; its keepers "
            "signed two"
        )


def _recalled(item: strict_json.Json) -> tuple[str, str, _Offer]:
    found = members(item, "remembered offer", ("domain", "tenant", "version", "digests", "key_ids"))
    digests, key_ids = found["digests"], found["key_ids"]
    problems = Problems("remembered offer")
    problems.name("domain", found["domain"])
    problems.name("tenant", found["tenant"])
    problems.integer("version", found["version"], 1)
    problems.kind("digests", digests, dict)
    problems.kind("key_ids", key_ids, list)
    problems.check()
    for name, text in (*digests.items(), *(("key_ids", key_id) for key_id in key_ids)):
        problems.text(name, text, DIGEST, "64 lower-case hexadecimal digits")
    problems.check()
    return found["domain"], found["tenant"], _Offer(found["version"], dict(digests), frozenset(key_ids))
