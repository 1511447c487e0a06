"""Root rotation, row by row: who must have signed for the next root to be followed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from testbed.envelope import PublicKey, Role, Root, SigningKey, Trust, issue, strict_json, verify
from testbed.envelope.dsse import Sealed, seal
from testbed.envelope.errors import (
    ExpiredError,
    KeyRefusedError,
    MalformedError,
    RefusedError,
    RootVersionError,
    ThresholdError,
    UntrustedKeyError,
    WrongDomainError,
)
from testbed.envelope.trust import MAX_KEYS, PAYLOAD_TYPE

from .samples import DAY_S, NOW_S, envelope, key, root
from .test_fuzz import CPU_LIMIT_S, DAMAGES

Owners = tuple[str, ...]

OLDER = "an older version"


def signed(candidate: Root, *owners: str) -> bytes:
    return candidate.sign([key(owner) for owner in owners])


@pytest.mark.parametrize(
    ("owners", "error"),
    [
        pytest.param(("r1", "r2"), None, id="2-of-3 signed by two"),
        pytest.param(("r1", "r2", "r3"), None, id="2-of-3 signed by all"),
        pytest.param(("r1",), ThresholdError, id="2-of-3 fail: signed by one"),
        pytest.param(("r1", "r4"), UntrustedKeyError, id="2-of-3 fail: second signature by a stranger"),
        pytest.param(("r1", "east"), UntrustedKeyError, id="2-of-3 fail: second signature by a domain's key"),
    ],
)
def test_the_first_root(owners: Owners, error: type[RefusedError] | None) -> None:
    data = signed(root(), *owners)
    if error is None:
        assert Root.first(data) == root()
    else:
        with pytest.raises(error):
            Root.first(data)


KEYS = {
    "r1 alone": (("r1",), 1),
    "r2 alone": (("r2",), 1),
    "r1 and r2": (("r1", "r2"), 2),
    "two of r1 r2 r3": (("r1", "r2", "r3"), 2),
    "two of r1 r2 r4": (("r1", "r2", "r4"), 2),
    "two of r1 r4 r5": (("r1", "r4", "r5"), 2),
    "two of r4 r5 r6": (("r4", "r5", "r6"), 2),
}

ROTATIONS = {
    "1-of-1 without rotation": ("r1 alone", "r1 alone", "r1", None),
    "1-of-1 key rotation": ("r1 alone", "r2 alone", "r1 r2", None),
    "1-of-1 key rotation fail: not signed with old key": ("r1 alone", "r2 alone", "r2", ThresholdError),
    "1-of-1 key rotation fail: not signed with new key": ("r1 alone", "r2 alone", "r1", ThresholdError),
    "1-of-1 key rotation fail: also by a stranger": ("r1 alone", "r2 alone", "r1 r2 r3", UntrustedKeyError),
    "2-of-3 one key rotated, by the two that stay": ("two of r1 r2 r3", "two of r1 r2 r4", "r1 r2", None),
    "2-of-3 two keys rotated, intersecting set": ("two of r1 r2 r3", "two of r1 r4 r5", "r1 r2 r4", None),
    "2-of-3 fail: one old and one new": ("two of r1 r2 r3", "two of r1 r4 r5", "r1 r4", ThresholdError),
    "2-of-3 fail: new threshold not met": ("two of r1 r2 r3", "two of r1 r4 r5", "r1 r2", ThresholdError),
    "2-of-3 all keys rotated, disjoint sets": ("two of r1 r2 r3", "two of r4 r5 r6", "r1 r2 r4 r5", None),
    "2-of-3 fail: all keys rotated, new keys only": ("two of r1 r2 r3", "two of r4 r5 r6", "r4 r5 r6", ThresholdError),
    "1-of-1 to 2-of-2": ("r1 alone", "r1 and r2", "r1 r2", None),
    "1-of-1 to 2-of-2 fail: new threshold not met": ("r1 alone", "r1 and r2", "r1", ThresholdError),
    "2-of-2 to 1-of-1": ("r1 and r2", "r1 alone", "r1 r2", None),
    "2-of-2 to 1-of-1 fail: old threshold not met": ("r1 and r2", "r1 alone", "r1", ThresholdError),
}


@pytest.mark.parametrize(("before", "after", "owners", "error"), ROTATIONS.values(), ids=ROTATIONS.keys())
def test_rotation(before: str, after: str, owners: str, error: type[RefusedError] | None) -> None:
    old, new = root(1, *KEYS[before]), root(2, *KEYS[after])
    data = signed(new, *owners.split())
    if error is None:
        assert old.successor(data) == new
    else:
        with pytest.raises(error):
            old.successor(data)


@pytest.mark.parametrize(
    ("candidate", "error"),
    [
        pytest.param(root(4), None, id="the direct successor"),
        pytest.param(root(3), RootVersionError, id="equal version"),
        pytest.param(root(2), RootVersionError, id="rollback"),
        pytest.param(root(5), RootVersionError, id="a version skipped"),
        pytest.param(root(4, federation="other"), RootVersionError, id="another federation"),
        pytest.param(root(4, not_after_s=1), None, id="a successor that has ended, on the way to a later one"),
    ],
)
def test_the_chain_has_no_gaps(candidate: Root, error: type[RefusedError] | None) -> None:
    data = signed(candidate, "r1", "r2")
    if error is None:
        assert root(3).successor(data) == candidate
    else:
        with pytest.raises(error):
            root(3).successor(data)


def test_an_ended_root_is_not_used() -> None:
    with pytest.raises(ExpiredError):
        root(not_after_s=NOW_S - 1).require_current(NOW_S)
    root(not_after_s=NOW_S).require_current(NOW_S)


@cache
def crowded(keys: int) -> Any:
    """A document that wants to be the next root, with as many keys."""
    made = [SigningKey.generate().public_key for _ in range(keys)]
    held = {one.key_id: one.to_dict() for one in made}
    first, *others = sorted(held)
    roles = {f"d{n}": {"key_ids": [key_id], "threshold": 1} for n, key_id in enumerate(others)}
    return document(version=2, keys=held, root={"key_ids": [first], "threshold": 1}, domains=roles)


@pytest.mark.parametrize("claimed", ["0" * 64, key("r1").key_id], ids=["of nobody", "of a keeper"])
@pytest.mark.parametrize("read", [Root.first, root().successor])
def test_a_root_that_nobody_trusted_signed_has_none_of_its_domains_keys_read(
    read: Callable[[bytes], Root], claimed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Sealed(PAYLOAD_TYPE, strict_json.dumps(crowded(MAX_KEYS)), {claimed: bytes(64)}).to_bytes()
    made: list[bytes] = []
    genuine = PublicKey.__post_init__

    def counted(made_key: PublicKey) -> None:
        made.append(made_key.raw)
        genuine(made_key)

    monkeypatch.setattr(PublicKey, "__post_init__", counted)
    started = time.thread_time()
    with pytest.raises(RefusedError):
        read(data)
    assert time.thread_time() - started < CPU_LIMIT_S
    # Who bootstraps has nobody else's word for the keepers than the root's own.
    assert len(made) <= (read.__name__ == "first")


def test_more_keys_than_a_reader_would_bear_are_no_root() -> None:
    with pytest.raises(MalformedError, match=f"root.keys: found {MAX_KEYS + 1}, expected at most {MAX_KEYS}"):
        Root.from_dict(crowded(MAX_KEYS + 1))
    with pytest.raises(MalformedError, match="role: found 17 keys, expected at most 16"):
        Role(frozenset(f"{number:064x}" for number in range(17)), 1)


def test_a_root_that_names_a_keeper_without_a_key_is_refused() -> None:
    keys = {key_id: found for key_id, found in document()["keys"].items() if key_id != key("r1").key_id}
    data = seal(PAYLOAD_TYPE, document(version=2, keys=keys), [key("r1"), key("r2")])
    for read in (Root.first, root().successor):
        with pytest.raises(MalformedError, match="which signs roots"):
            read(data)


@pytest.mark.parametrize("read", [Root.first, root().successor])
@pytest.mark.parametrize("name", [name for name in DAMAGES if "sign" not in name and name not in {"replayed", OLDER}])
def test_a_damaged_root_is_refused_at_little_cost(name: str, read: Callable[[bytes], Root]) -> None:
    dice = random.Random(3)  # noqa: S311
    genuine = signed(root(2), "r1", "r2")
    for _ in range(40):
        data = DAMAGES[name](dice, genuine)
        if data == genuine:
            continue
        started = time.thread_time()
        with pytest.raises(RefusedError):
            read(data)
        assert time.thread_time() - started < CPU_LIMIT_S


def test_an_envelope_is_not_taken_for_a_root_nor_a_root_for_an_envelope() -> None:
    with pytest.raises(MalformedError, match="payload type"):
        Root.first(issue(envelope(), [key("r1"), key("r2")]))
    with pytest.raises(MalformedError, match="payload type"):
        verify(signed(root(), "r1", "r2"), root().trust, NOW_S)


def test_a_root_key_may_not_sign_envelopes() -> None:
    with pytest.raises(UntrustedKeyError):
        verify(issue(envelope(), [key("r1")]), root().trust, NOW_S)


@pytest.mark.parametrize(
    ("domain", "owners", "error"),
    [
        pytest.param("east", ("east",), None, id="1-of-1 signed"),
        pytest.param("west", ("west1", "west3"), None, id="2-of-3 signed by two"),
        pytest.param("west", ("west2",), ThresholdError, id="2-of-3 fail: signed by one"),
        pytest.param("west", ("east",), WrongDomainError, id="another domain's key"),
        pytest.param(
            "west", ("west1", "west2", "east"), WrongDomainError, id="another domain's key beside enough others"
        ),
        pytest.param("north", ("east",), WrongDomainError, id="a domain the federation does not have"),
        pytest.param("east", ("stranger",), UntrustedKeyError, id="a stranger's key"),
    ],
)
def test_who_may_sign_for_a_domain(domain: str, owners: Owners, error: type[RefusedError] | None) -> None:
    data = issue(envelope(domain=domain), [key(owner) for owner in owners])
    if error is None:
        assert verify(data, root().trust, NOW_S).domain == domain
    else:
        with pytest.raises(error):
            verify(data, root().trust, NOW_S)


def document(**changes: Any) -> Any:
    return {**root().to_dict(), **changes}


WEAK = {"keytype": "ed25519", "public": "01" + "00" * 31}


@pytest.mark.parametrize(
    ("found", "error"),
    [
        pytest.param(document(schema=2), MalformedError, id="another schema"),
        pytest.param(document(extra=1), MalformedError, id="an unknown member"),
        pytest.param(document(keys=[]), MalformedError, id="keys that are no object"),
        pytest.param(document(domains=[]), MalformedError, id="domains that are no object"),
        pytest.param(document(version=0), MalformedError, id="version zero"),
        pytest.param(document(root={"key_ids": [], "threshold": 1}), MalformedError, id="a root nobody signs"),
        pytest.param(
            document(root={**root().root.to_dict(), "threshold": 4}), MalformedError, id="a threshold above the keys"
        ),
        pytest.param(document(root={**root().root.to_dict(), "threshold": 0}), MalformedError, id="a zero threshold"),
        pytest.param(
            document(root={"key_ids": root().root.to_dict()["key_ids"][::-1], "threshold": 2}),
            MalformedError,
            id="key ids out of order",
        ),
        pytest.param(
            document(domains={**root().to_dict()["domains"], "north": root().to_dict()["domains"]["east"]}),
            MalformedError,
            id="one key for two domains",
        ),
        pytest.param(document(domains={}), MalformedError, id="keys without a role"),
        pytest.param(
            document(keys={**root().to_dict()["keys"], key("east").key_id: key("stranger").public_key.to_dict()}),
            MalformedError,
            id="a key filed under another key's id",
        ),
        pytest.param(
            document(keys={**root().to_dict()["keys"], key("east").key_id: WEAK}),
            KeyRefusedError,
            id="a key of small order",
        ),
    ],
)
def test_a_root_that_contradicts_itself_is_refused(found: Any, error: type[RefusedError]) -> None:
    with pytest.raises(error):
        Root.from_dict(found)


def test_a_root_survives_the_wire() -> None:
    data = strict_json.dumps(root().to_dict())
    assert Root.from_dict(strict_json.loads(data, "root")) == root()
    assert PAYLOAD_TYPE.encode() in signed(root(), "r1", "r2")


def test_trust_given_by_hand_needs_no_root() -> None:
    trust = Trust.of({"east": [key("east").public_key, key("east2").public_key]}, threshold=2)
    assert verify(issue(envelope(), [key("east"), key("east2")]), trust, NOW_S) == envelope()
    with pytest.raises(ThresholdError):
        verify(issue(envelope(), [key("east")]), trust, NOW_S)


def test_an_offer_outlives_nothing() -> None:
    with pytest.raises(ExpiredError):
        verify(issue(envelope(), [key("east")]), root().trust, NOW_S + DAY_S + 1)
