"""Ed25519 keys: made, stored, named and used, and never shown.

A key is named by the SHA-256 of its 32 public bytes, so nobody chooses a key id. A private key exists in memory as an
opaque object and on disk in one file that only its owner can read; no representation, message or error contains it.
What a key may sign for is not decided here but by the trust root (`testbed.envelope.trust`).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from testbed.envelope import strict_json
from testbed.envelope.curve import why_unfit
from testbed.envelope.errors import KeyRefusedError

SIGNATURE_BYTES = 64

_OWNER_ONLY = 0o600
_MAX_KEY_FILE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key that passed every check, ready to verify.

    Attributes:
        raw: The 32 bytes of RFC 8032.
        key_id: SHA-256 of `raw`, in lower-case hexadecimal.
    """

    raw: bytes
    key_id: str = field(init=False)
    _verifier: Ed25519PublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse weak and ambiguous points.

        Raises:
            KeyRefusedError: Not a canonical point of prime order.
        """
        if reason := why_unfit(self.raw):
            raise KeyRefusedError(
                f"public key {self.raw.hex()[:16]}...: expected a canonical point of prime order, found {reason}"
            )
        object.__setattr__(self, "key_id", hashlib.sha256(self.raw).hexdigest())
        object.__setattr__(self, "_verifier", Ed25519PublicKey.from_public_bytes(self.raw))

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is this key's signature of `message`."""
        try:
            self._verifier.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def to_dict(self) -> dict[str, str]:
        """The wire form; the key id is derived, so it is not stored."""
        return {"keytype": "ed25519", "public": self.raw.hex()}

    @classmethod
    def from_dict(cls, document: strict_json.Json) -> Self:
        """Inverse of `to_dict`.

        Raises:
            KeyRefusedError: Another shape, another key type, or a key that is refused.
        """
        match document:
            case {"keytype": "ed25519", "public": str(public)} if len(document) == 2:
                try:
                    raw = bytes.fromhex(public)
                except ValueError as error:
                    raise KeyRefusedError(f"public key {public[:16]}...: expected 64 hexadecimal digits") from error
                if raw.hex() != public:
                    raise KeyRefusedError(f"public key {public[:16]}...: expected lower-case hexadecimal digits only")
                return cls(raw)
        raise KeyRefusedError(
            f"public key: found {document!r:.120}, expected keytype ed25519 and public in hexadecimal"
        )

    def save(self, path: Path) -> None:
        """Write the wire form to a new file."""
        _write_new(path, strict_json.dumps(self.to_dict()), 0o644)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file written by `save`.

        Raises:
            KeyRefusedError: Missing, the private key, or a key that is refused.
            MalformedError: Not one canonical document.
        """
        content = _read_key_file(path)
        if content.startswith(b"-----BEGIN") and b"PRIVATE KEY-----" in content:
            raise KeyRefusedError(
                f"{path}: this is the private key, expected the public one that keygen wrote beside it; keep this one "
                "to whoever signs"
            )
        return cls.from_dict(strict_json.loads(content, str(path)))


class SigningKey:
    """A private key. It signs; it cannot be printed, compared, copied or pickled."""

    __slots__ = ("_private", "public_key")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = PublicKey(
            private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        )

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def key_id(self) -> str:
        """Name of the key pair."""
        return self.public_key.key_id

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of `message`."""
        return self._private.sign(message)

    @property
    def certified_key(self) -> Ed25519PublicKey:
        """The public half as certificates hold it."""
        return self._private.public_key()

    def certify(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a certificate: the key that speaks for a domain also says which connections are the domain's."""
        return builder.sign(self._private, algorithm=None)

    def save(self, path: Path) -> None:
        """Write the key, unencrypted PKCS #8 PEM, to a new file that only its owner can read (mode 0600).

        Raises:
            KeyRefusedError: The file exists: a key is never overwritten.
        """
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write_new(path, pem, _OWNER_ONLY)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file written by `save`.

        Raises:
            KeyRefusedError: Missing, readable by others than its owner, or not an Ed25519 key.
        """
        pem = _read_key_file(path, owner_only=True)
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            # The library's own message may quote the file, so it is not passed on.
            raise KeyRefusedError(f"{path}: found no unencrypted PKCS #8 key, expected one made by keygen") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyRefusedError(f"{path}: found {type(private).__name__}, expected an Ed25519 key")
        return cls(private)

    def __repr__(self) -> str:
        return f"SigningKey(key_id={self.key_id!r})"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled or copied; save it to a file of mode 0600")


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Create a file with its final mode from the first moment on."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError as error:
        raise KeyRefusedError(f"{path}: exists; keys are never overwritten, choose another folder or name") from error
    except OSError as error:
        raise KeyRefusedError(f"{path}: {error.strerror}; choose a folder that can be written") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read_key_file(path: Path, *, owner_only: bool = False) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise KeyRefusedError(f"{path}: {error.strerror}; expected a key file made by keygen") from error
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if owner_only and mode & 0o077:
            raise KeyRefusedError(f"{path}: found mode {mode:04o}, expected 0600; run chmod 600 {path}")
        return file.read(_MAX_KEY_FILE_BYTES)
