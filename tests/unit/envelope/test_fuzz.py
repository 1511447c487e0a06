"""Damaged, cut, repeated and re-signed envelopes: none accepted, none crashing, none expensive.

The short run is part of the unit tests; `scripts/test --full` runs the hundred thousand.
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable

import pytest

from testbed.envelope import EnvelopeStore, SigningKey, issue, strict_json
from testbed.envelope.descriptor import PAYLOAD_TYPE
from testbed.envelope.dsse import Sealed, pre_authentication_encoding
from testbed.envelope.errors import RefusedError

from .samples import NOW_S, envelope, key, root

CPU_LIMIT_S = 0.05

Damage = Callable[[random.Random, bytes], bytes]

INTERESTING = (b"{", b"[", b'"', b"\\", b"}", b"]", b",", b":", b"0", b"-", b"e9", b"\x00", b"\xff", b"null", b"NaN")


def flip_a_bit(dice: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(damaged)


def cut(dice: random.Random, data: bytes) -> bytes:
    start = dice.choice((0, dice.randrange(1, len(data))))
    return data[start : dice.randrange(len(data))]


def insert(dice: random.Random, data: bytes) -> bytes:
    position = dice.randrange(len(data) + 1)
    return data[:position] + dice.choice(INTERESTING) * dice.choice((1, 1, 1, 13, 9000)) + data[position:]


def repeat_a_piece(dice: random.Random, data: bytes) -> bytes:
    start = dice.randrange(len(data))
    end = min(len(data), start + dice.randrange(1, 200))
    return data[:end] + data[start:end] * dice.choice((1, 1, 50)) + data[end:]


def swap_pieces(dice: random.Random, data: bytes) -> bytes:
    first, second = sorted(dice.sample(range(1, len(data)), 2))
    return data[second:] + data[first:second] + data[:first]


def inside(damage: Damage) -> Damage:
    """Damage to the payload, wrapped up again with the genuine signature."""

    def damaged(dice: random.Random, data: bytes) -> bytes:
        document = json.loads(data)
        document["payload"] = base64.b64encode(damage(dice, base64.b64decode(document["payload"]))).decode()
        return strict_json.dumps(document)

    return damaged


def signed_by(owner: str, *, claims: str) -> Damage:
    """The genuine or a damaged payload, signed by somebody else under a key id of choice."""

    def damaged(dice: random.Random, data: bytes) -> bytes:
        payload = Sealed.from_bytes(data, PAYLOAD_TYPE).payload
        if dice.random() < 0.5:
            payload = flip_a_bit(dice, payload)
        signature = key(owner).sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
        return Sealed(PAYLOAD_TYPE, payload, {key(claims).key_id: signature}).to_bytes()

    return damaged


def another_signature(dice: random.Random, data: bytes) -> bytes:
    """A second signature beside the genuine one, random or by a stranger."""
    sealed = Sealed.from_bytes(data, PAYLOAD_TYPE)
    stranger = SigningKey.generate() if dice.random() < 0.01 else key("stranger")
    signature = dice.choice((dice.randbytes(64), stranger.sign(sealed.payload)))
    return Sealed(PAYLOAD_TYPE, sealed.payload, {**sealed.signatures, stranger.key_id: signature}).to_bytes()


def replay(dice: random.Random, data: bytes) -> bytes:
    return data


def older(dice: random.Random, data: bytes) -> bytes:
    return issue(envelope(version=dice.randrange(1, 7)), [key("east")])


def resign_for_another_domain(dice: random.Random, data: bytes) -> bytes:
    return issue(envelope(domain=dice.choice(("west", "north"))), [key("east")])


DAMAGES: dict[str, Damage] = {
    "a bit flipped": flip_a_bit,
    "cut": cut,
    "bytes inserted": insert,
    "a piece repeated": repeat_a_piece,
    "pieces swapped": swap_pieces,
    "a bit of the payload flipped": inside(flip_a_bit),
    "the payload cut": inside(cut),
    "bytes inserted into the payload": inside(insert),
    "a piece of the payload repeated": inside(repeat_a_piece),
    "signed by a stranger": signed_by("stranger", claims="stranger"),
    "signed by a stranger under the domain's key id": signed_by("stranger", claims="east"),
    "signed by another domain under its own key id": signed_by("west1", claims="west1"),
    "signed by another domain under the domain's key id": signed_by("west1", claims="east"),
    "a signature added": another_signature,
    "replayed": replay,
    "an older version": older,
    "signed for another domain": resign_for_another_domain,
}


def attack(seed: int, rounds: int) -> None:
    dice = random.Random(seed)  # noqa: S311
    genuine = issue(envelope(), [key("east")])
    store = EnvelopeStore(root())
    store.accept(genuine, NOW_S)
    for _ in range(rounds):
        name = dice.choice(list(DAMAGES))
        data = DAMAGES[name](dice, genuine)
        if data == genuine and name != "replayed":
            continue
        started = time.thread_time()
        with pytest.raises(RefusedError):
            store.accept(data, NOW_S)
        spent = time.thread_time() - started
        assert spent < CPU_LIMIT_S, f"{name}: {spent:.3f} s of CPU for {data[:200]!r}"
    assert store.remember()["offers"][0]["version"] == envelope().version


def test_thousands_of_damaged_envelopes_are_refused() -> None:
    attack(seed=1, rounds=5_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_hundred_thousand_damaged_envelopes_are_refused(seed: int) -> None:
    attack(seed, rounds=10_000)
