"""The signed envelope as others read it, and everything that is refused before a signature is checked."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import securesystemslib.dsse
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from testbed.envelope import PublicKey, SigningKey, Trust, issue, strict_json, verify
from testbed.envelope.descriptor import PAYLOAD_TYPE
from testbed.envelope.dsse import MAX_SIGNATURES, Sealed, pre_authentication_encoding, seal
from testbed.envelope.errors import BadSignatureError, MalformedError, UntrustedKeyError

from .samples import NOW_S, envelope, key

TRUST = Trust.of({"east": [key("east").public_key]})


def foreign_key(signer: SigningKey) -> SSlibKey:
    return SSlibKey(signer.key_id, "ed25519", "ed25519", {"public": signer.public_key.raw.hex()})


def foreign_reading(data: bytes) -> securesystemslib.dsse.Envelope:
    return securesystemslib.dsse.Envelope.from_dict(json.loads(data))


def test_the_signed_bytes_are_those_of_the_protocol() -> None:
    encoding = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoding == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"  # the protocol's own test vector


def test_an_independent_verifier_accepts_what_is_issued() -> None:
    signers = [key("west1"), key("west2")]
    theirs = foreign_reading(issue(envelope(), signers))
    assert theirs.payload_type == PAYLOAD_TYPE
    accepted = theirs.verify([foreign_key(signer) for signer in signers], threshold=2)
    assert set(accepted) == {signer.key_id for signer in signers}


def test_what_an_independent_signer_made_is_accepted() -> None:
    ours = Sealed.from_bytes(issue(envelope(), [key("east")]), PAYLOAD_TYPE)
    theirs = securesystemslib.dsse.Envelope(ours.payload, PAYLOAD_TYPE, {})
    rebuilt = Sealed(PAYLOAD_TYPE, ours.payload, {key("east").key_id: key("east").sign(theirs.pae())})
    assert verify(rebuilt.to_bytes(), TRUST, NOW_S) == envelope()


@pytest.mark.parametrize("position", range(0, 1400, 97))
def test_both_verifiers_refuse_a_changed_payload(position: int) -> None:
    data = issue(envelope(), [key("east")])
    document = json.loads(data)
    payload = bytearray(base64.b64decode(document["payload"]))
    payload[position % len(payload)] ^= 1
    document["payload"] = base64.b64encode(payload).decode()
    sealed = Sealed.from_bytes(strict_json.dumps(document), PAYLOAD_TYPE)
    with pytest.raises(BadSignatureError):
        sealed.verify(TRUST.keys)
    with pytest.raises(VerificationError):
        foreign_reading(strict_json.dumps(document)).verify([foreign_key(key("east"))], threshold=1)


def test_a_signature_on_another_type_of_document_does_not_count() -> None:
    other = seal("application/vnd.other+json", envelope().to_dict(), [key("east")])
    relabelled = other.replace(b"application/vnd.other+json", PAYLOAD_TYPE.encode())
    with pytest.raises(BadSignatureError):
        verify(relabelled, TRUST, NOW_S)


class CountingKey(PublicKey):
    """A key that notes how often it was asked to verify."""

    asked = 0

    def verifies(self, signature: bytes, message: bytes) -> bool:
        type(self).asked += 1
        return super().verifies(signature, message)


def sealed_raw(payload: bytes) -> bytes:
    """Payload bytes that no honest signer writes, under a genuine signature."""
    signature = key("east").sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    return Sealed(PAYLOAD_TYPE, payload, {key("east").key_id: signature}).to_bytes()


def genuine() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(issue(envelope(), [key("east")]))
    return document


def changed(**members: Any) -> bytes:
    return strict_json.dumps({**genuine(), **members})


def signature(**members: Any) -> dict[str, Any]:
    found: dict[str, Any] = {**genuine()["signatures"][0], **members}
    return found


def stray(text: str) -> str:
    """The same bytes in base64 whose last character has bits that decoding drops."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = text.rstrip("=")[-1]
    return text.rstrip("=")[:-1] + alphabet[alphabet.index(last) ^ 1] + "=="


GOOD = strict_json.dumps(envelope().to_dict())

BEFORE_CRYPTO = {
    "a payload with a duplicate key": sealed_raw(GOOD.replace(b'"version":7', b'"version":6,"version":7')),
    "a payload with NaN": sealed_raw(GOOD.replace(b'"version":7', b'"version":NaN')),
    "a payload with a float": sealed_raw(GOOD.replace(b'"version":7', b'"version":7.0')),
    "a payload with white space": sealed_raw(GOOD.replace(b'"version":7', b'"version": 7')),
    "a payload nested too deep": sealed_raw(b"[" * 13 + b"]" * 13),
    "a payload that is no JSON": sealed_raw(b"hello"),
    "a payload that is too large": sealed_raw(b'"' + b"a" * 13_000 + b'"'),
    "an envelope that is too large": b" " * 20_000,
    "an envelope with white space": json.dumps(genuine()).encode(),
    "an envelope with a member more": changed(note="hello"),
    "an envelope with a duplicate member": issue(envelope(), [key("east")]).replace(
        b'{"payload":', b'{"payload":"","payload":'
    ),
    "another payload type": changed(payloadType="application/vnd.tail-risk-envelope.root+json"),
    "no signature": changed(signatures=[]),
    "more signatures than any threshold needs": changed(
        signatures=[signature(keyid=f"{i:064x}") for i in range(MAX_SIGNATURES + 1)]
    ),
    "one key signing twice": changed(signatures=[signature(), signature()]),
    "a signature of another length": changed(signatures=[signature(sig=base64.b64encode(bytes(63)).decode())]),
    "a signature with stray bits in its last character": changed(signatures=[signature(sig=stray(signature()["sig"]))]),
    "a signature with a member more": changed(signatures=[signature(cert="x")]),
    "a signature without a key id": changed(signatures=[{"sig": signature()["sig"]}]),
    "a payload in the URL-safe alphabet": changed(payload="_-8="),
    "a payload with stray bits in its last character": changed(payload="YWJjZB=="),
    "a payload without padding": changed(payload="YWJjZA"),
}


@pytest.mark.parametrize("data", BEFORE_CRYPTO.values(), ids=BEFORE_CRYPTO.keys())
def test_refused_as_malformed_before_any_signature_is_checked(data: bytes) -> None:
    CountingKey.asked = 0
    counting = CountingKey(key("east").public_key.raw)
    trust = Trust.of({"east": [counting]})
    with pytest.raises(MalformedError):
        verify(data, trust, NOW_S)
    assert CountingKey.asked == 0
    verify(issue(envelope(), [key("east")]), trust, NOW_S)
    assert CountingKey.asked == 1


def test_an_unknown_key_is_refused_before_any_signature_is_checked() -> None:
    CountingKey.asked = 0
    trust = Trust.of({"east": [CountingKey(key("east").public_key.raw)]})
    with pytest.raises(UntrustedKeyError):
        verify(issue(envelope(), [key("east"), key("stranger")]), trust, NOW_S)
    assert CountingKey.asked == 0
