"""Dead Simple Signing Envelope: bytes, their type, and who signed both.

What is signed is the pre-authentication encoding of type and bytes, so a signature on one kind of document is never one
on another. The order is fixed: cheap limits first, then signatures, and only then does a caller read the very bytes
that were verified. What the payload means, and who may sign it, is not known here.

Source: https://github.com/secure-systems-lab/dsse, protocol.md and envelope.md (version 1.0). Narrower than it in three
points, so that one signed statement is one byte string: the envelope itself is canonical JSON, every signature present
must verify, and each is named by its key id.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from testbed.envelope import strict_json
from testbed.envelope.errors import BadSignatureError, MalformedError, UntrustedKeyError
from testbed.envelope.keys import SIGNATURE_BYTES, PublicKey, SigningKey

MAX_SIGNATURES = 16
"""More signatures than any threshold here needs are refused before one is checked."""

_SHOWN_CHARACTERS = 16


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: `DSSEv1`, then type and payload, each with its length."""
    kind = payload_type.encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, document: strict_json.Json, signers: Iterable[SigningKey]) -> bytes:
    """Sign the canonical bytes of a document.

    Args:
        payload_type: Media type of the document.
        document: JSON of integers, text, lists and objects.
        signers: One or more keys.

    Returns:
        The DSSE envelope, canonical JSON.
    """
    payload = strict_json.dumps(document)
    message = pre_authentication_encoding(payload_type, payload)
    return Sealed(payload_type, payload, {signer.key_id: signer.sign(message) for signer in signers}).to_bytes()


@dataclass(frozen=True, slots=True)
class Sealed:
    """A signed document as it arrived: well formed, not yet believed.

    Attributes:
        payload_type: Media type of the payload.
        payload: The signed bytes, unread.
        signatures: Key id to 64-byte signature, at least one.
    """

    payload_type: str
    payload: bytes
    signatures: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if not 1 <= len(self.signatures) <= MAX_SIGNATURES:
            raise MalformedError(f"signatures: found {len(self.signatures)}, expected 1 to {MAX_SIGNATURES}")

    @classmethod
    def from_bytes(cls, data: bytes, *payload_types: str, max_bytes: int = strict_json.MAX_BYTES) -> Self:
        """Read an envelope without believing or even reading its payload.

        Args:
            data: The envelope as it arrived.
            payload_types: The only media types accepted.
            max_bytes: Largest size accepted.

        Raises:
            MalformedError: Not one canonical DSSE envelope of these types.
        """
        document = strict_json.loads(data, "signed envelope", max_bytes=max_bytes)
        match document:
            case {"payload": str(payload), "payloadType": str(found), "signatures": list(listed)} if len(document) == 3:
                if found not in payload_types:
                    raise MalformedError(f"payload type: found {found:.80}, expected {' or '.join(payload_types)}")
                signatures = dict(map(_signature, listed))
                if len(signatures) != len(listed):
                    raise MalformedError("signatures: found two by one key, expected one each")
                return cls(found, _base64(payload, "payload"), signatures)
        raise MalformedError("signed envelope: expected an object of payload, payloadType and signatures")

    def to_bytes(self) -> bytes:
        """The canonical bytes; inverse of `from_bytes`."""
        listed = [
            {"keyid": key_id, "sig": base64.b64encode(signature).decode("ascii")}
            for key_id, signature in sorted(self.signatures.items())
        ]
        payload = base64.b64encode(self.payload).decode("ascii")
        return strict_json.dumps({"payload": payload, "payloadType": self.payload_type, "signatures": listed})

    def cosigned(self, signers: Iterable[SigningKey]) -> Sealed:
        """The same document with more signatures, for roles whose keys are never in one place."""
        message = pre_authentication_encoding(self.payload_type, self.payload)
        added = {signer.key_id: signer.sign(message) for signer in signers}
        return Sealed(self.payload_type, self.payload, {**self.signatures, **added})

    def read(self, what: str) -> strict_json.Json:
        """The payload as an inert JSON tree.

        It may be called before `verify`, to refuse ambiguous or hostile bytes before they cost a signature check; what
        it returns must be given a meaning only after `verify`. Both see the same immutable bytes.

        Raises:
            MalformedError: Not one canonical JSON document.
        """
        return strict_json.loads(self.payload, what, max_bytes=len(self.payload))

    def by(self, key_ids: Iterable[str]) -> dict[str, bytes]:
        """Those of the signatures, unchecked, that name one of these keys."""
        wanted = set(key_ids)
        return {key_id: signature for key_id, signature in self.signatures.items() if key_id in wanted}

    def verify(self, keys: Mapping[str, PublicKey]) -> frozenset[str]:
        """Check every signature.

        Args:
            keys: Key id to key; a signature by any other key is refused, before any signature is checked.

        Returns:
            Ids of the keys that signed, at least one.

        Raises:
            UntrustedKeyError: Signed by a key that is not among `keys`.
            BadSignatureError: A signature does not fit.
        """
        for key_id in self.signatures:
            if key_id not in keys:
                raise UntrustedKeyError(
                    f"signature by key {key_id[:_SHOWN_CHARACTERS]}...: expected one of {len(keys)} trusted keys; "
                    "update the trust root if the signer rotated"
                )
        message = pre_authentication_encoding(self.payload_type, self.payload)
        for key_id, signature in self.signatures.items():
            if not keys[key_id].verifies(signature, message):
                raise BadSignatureError(
                    f"signature by key {key_id[:_SHOWN_CHARACTERS]}...: does not fit these bytes; they were changed "
                    "or signed by someone else"
                )
        return frozenset(self.signatures)


def _signature(item: strict_json.Json) -> tuple[str, bytes]:
    match item:
        case {"keyid": str(key_id), "sig": str(text)} if len(item) == 2:
            signature = _base64(text, "signature")
            if len(signature) != SIGNATURE_BYTES:
                raise MalformedError(f"signature: found {len(signature)} bytes, expected {SIGNATURE_BYTES}")
            return key_id, signature
    raise MalformedError("signature: expected an object of keyid and sig")


def _base64(text: str, what: str) -> bytes:
    """Decode the one canonical spelling: padded, standard alphabet, no stray bits."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise MalformedError(f"{what}: {error}; expected base64") from error
    if base64.b64encode(data).decode("ascii") != text:
        raise MalformedError(f"{what}: found a second spelling of its bytes, expected canonical base64")
    return data
