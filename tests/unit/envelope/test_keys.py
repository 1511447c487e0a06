"""Keys that are strong, unambiguous, private on disk and never shown."""

from __future__ import annotations

import copy
import hashlib
import logging
import pickle
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from testbed.envelope import PublicKey, SigningKey, curve
from testbed.envelope.curve import ORDER, P, why_unfit
from testbed.envelope.errors import KeyRefusedError

Y_OF_ORDER_8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
"""One of the two y of points of order eight; the other is its negative."""


def encode(y: int, sign: int) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


SMALL_ORDER = {
    "the identity": encode(1, 0),
    "the point of order 2": encode(P - 1, 0),
    "a point of order 4": encode(0, 0),
    "the other point of order 4": encode(0, 1),
    "a point of order 8": encode(Y_OF_ORDER_8, 0),
    "a second point of order 8": encode(Y_OF_ORDER_8, 1),
    "a third point of order 8": encode(P - Y_OF_ORDER_8, 0),
    "a fourth point of order 8": encode(P - Y_OF_ORDER_8, 1),
}

AMBIGUOUS = {
    "the identity with the sign bit of x = 0": encode(1, 1),
    "the point of order 2 with the sign bit of x = 0": encode(P - 1, 1),
    "y = p, which is 0 again": encode(P, 0),
    "y = p + 1, which is the identity again": encode(P + 1, 0),
    "y = p with the sign bit": encode(P, 1),
    "the largest number of 255 bits": encode(2**255 - 1, 0),
}


@pytest.mark.parametrize("raw", SMALL_ORDER.values(), ids=SMALL_ORDER.keys())
def test_small_order_is_refused(raw: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(raw)  # the library takes it
    with pytest.raises(KeyRefusedError, match="small order"):
        PublicKey(raw)


@pytest.mark.parametrize("raw", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_a_second_encoding_is_refused(raw: bytes) -> None:
    with pytest.raises(KeyRefusedError, match="second encoding"):
        PublicKey(raw)


def test_a_small_order_key_would_verify_a_signature_that_nobody_made() -> None:
    identity = SMALL_ORDER["the identity"]
    forged = identity + bytes(32)
    Ed25519PublicKey.from_public_bytes(identity).verify(forged, b"any message")


def test_a_key_outside_the_prime_order_subgroup_is_refused() -> None:
    raw = SigningKey.generate().public_key.raw
    number = int.from_bytes(raw, "little")
    y = number & (2**255 - 1)
    x = curve._recover_x(y)
    assert x is not None
    # Adding the point of order 2 maps (x, y) to (-x, -y).
    mixed = encode(P - y, (P - x if x & 1 == number >> 255 else x) & 1)
    assert why_unfit(raw) is None
    with pytest.raises(KeyRefusedError, match="outside the prime-order subgroup"):
        PublicKey(mixed)


@given(st.binary(min_size=32, max_size=32))
def test_any_32_bytes_are_a_fit_key_or_refused(raw: bytes) -> None:
    reason = why_unfit(raw)
    if reason is None:
        assert PublicKey(raw).key_id == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(KeyRefusedError, match=f"{length} bytes instead of 32"):
        PublicKey(bytes(length))


@pytest.mark.parametrize("_", range(20))
def test_every_generated_key_is_fit(_: int) -> None:
    assert why_unfit(SigningKey.generate().public_key.raw) is None


def test_a_signature_with_s_raised_by_the_group_order_is_refused() -> None:
    signer = SigningKey.generate()
    signature = signer.sign(b"message")
    s = int.from_bytes(signature[32:], "little") + ORDER
    assert signer.public_key.verifies(signature, b"message")
    assert not signer.public_key.verifies(signature[:32] + s.to_bytes(32, "little"), b"message")


def test_a_private_key_survives_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    signer, path = SigningKey.generate(), tmp_path / "east.key"
    signer.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).key_id == signer.key_id


def test_a_public_key_survives_a_file(tmp_path: Path) -> None:
    public = SigningKey.generate().public_key
    public.save(tmp_path / "east.pub")
    assert PublicKey.load(tmp_path / "east.pub") == public


def test_a_key_file_is_never_overwritten_and_no_link_is_followed(tmp_path: Path) -> None:
    first, second = SigningKey.generate(), SigningKey.generate()
    first.save(tmp_path / "east.key")
    (tmp_path / "link.key").symlink_to(tmp_path / "elsewhere.key")
    for name in ("east.key", "link.key"):
        with pytest.raises(KeyRefusedError):
            second.save(tmp_path / name)
    assert SigningKey.load(tmp_path / "east.key").key_id == first.key_id
    assert not (tmp_path / "elsewhere.key").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_private_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "east.key"
    SigningKey.generate().save(path)
    path.chmod(mode)
    with pytest.raises(KeyRefusedError, match="chmod 600"):
        SigningKey.load(path)


def test_a_private_key_is_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    signer, path = SigningKey.generate(), tmp_path / "east.key"
    signer.save(path)
    secret = signer._private.private_bytes_raw()
    path.write_bytes(path.read_bytes().replace(b"-----END", b"!-----END"))
    with caplog.at_level(logging.DEBUG), pytest.raises(KeyRefusedError) as refusal:
        SigningKey.load(path)
    shown = repr(signer) + str(signer) + str(refusal.value) + repr(refusal.value.__cause__) + caplog.text
    assert secret.hex() not in shown
    assert path.read_text().splitlines()[1][:20] not in shown
    assert signer.key_id in repr(signer)


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy, vars])
def test_a_private_key_is_not_copied(leak: object) -> None:
    assert callable(leak)
    with pytest.raises(TypeError):
        leak(SigningKey.generate())


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    other = X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "other.key"
    path.touch(mode=0o600)
    path.write_bytes(other)
    with pytest.raises(KeyRefusedError, match="expected an Ed25519 key"):
        SigningKey.load(path)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"keytype": "rsa", "public": "00" * 32}, id="another key type"),
        pytest.param({"keytype": "ed25519"}, id="no key"),
        pytest.param({"keytype": "ed25519", "public": "00" * 32, "keyid": "mine"}, id="an id of its own choice"),
        pytest.param({"keytype": "ed25519", "public": "zz" * 32}, id="no hexadecimal"),
        pytest.param({"keytype": "ed25519", "public": ("AB" * 32)}, id="upper case"),
        pytest.param({"keytype": "ed25519", "public": "ab " * 32}, id="spaces between digits"),
        pytest.param(["ed25519"], id="a list"),
    ],
)
def test_a_public_key_document_of_another_shape_is_refused(document: object) -> None:
    with pytest.raises(KeyRefusedError):
        PublicKey.from_dict(document)
