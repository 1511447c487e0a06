"""Who is at the other end of a connection: certificates that hang on the federation's trust root and on nothing else.

Each domain is its own certificate authority, with the very key that signs its envelopes: the root that says whose
promises count says whose connections do. A certificate names federation and domain; a connection belongs to a domain if
a key that the current root gives that domain signed its certificate. TLS itself only has to bring the certificate here
unforged; withdrawn keys, foreign federations and a domain that certifies itself under another name are refused here.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from testbed.envelope.errors import RefusedError
from testbed.envelope.keys import PublicKey, SigningKey
from testbed.envelope.trust import Root

SCHEME = "tail-latency"
LIFE = dt.timedelta(days=90)
_BACKDATED = dt.timedelta(minutes=5)
"""Clocks of different operators differ a little."""


class IdentityError(RefusedError):
    """A connection whose certificate does not come from this federation, or not from the domain it names."""

    reason = "foreign-certificate"


def server_name(federation: str, domain: str) -> str:
    """The name that a client checks a domain's certificate for, wherever the domain listens."""
    return f"{domain}.{federation}.invalid"


def authority(federation: str, domain: str, key: SigningKey, *, now: dt.datetime | None = None) -> bytes:
    """A domain's certificate authority, PEM; to be given to everybody beside the trust root.

    Args:
        federation: Name of the federation.
        domain: Name of the domain.
        key: The domain's key of the trust root.
        now: Start of its life.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{domain} of {federation}")])
    builder = (
        _builder(name, name, now)
        .public_key(key.certified_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return key.certify(builder).public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class Credentials:
    """What one end of a connection shows and whom it believes.

    Attributes:
        domain: Whose they are.
        federation: Of which federation.
        certificate: PEM chain.
        key: PEM private key.
        anchors: PEM authorities of all domains of the federation.
    """

    domain: str
    federation: str
    certificate: bytes
    key: bytes
    anchors: bytes

    def server(self) -> grpc.ServerCredentials:
        """For a server that talks to members of the federation only."""
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], root_certificates=self.anchors, require_client_auth=True
        )

    def channel(self, target: str, domain: str, options: Sequence[tuple[str, object]] = ()) -> grpc.Channel:
        """A connection to the agent of `domain`, and to nobody else, at HOST:PORT."""
        mine = grpc.ssl_channel_credentials(self.anchors, self.key, self.certificate)
        name = ("grpc.ssl_target_name_override", server_name(self.federation, domain))
        return grpc.secure_channel(target, mine, options=[name, *options])


def credentials(
    federation: str, domain: str, key: SigningKey, anchors: bytes, *, now: dt.datetime | None = None
) -> Credentials:
    """A new connection key of a domain with its certificate.

    Args:
        federation: Name of the federation.
        domain: Name of the domain.
        key: The domain's key of the trust root, which certifies it.
        anchors: From `anchors`.
        now: Start of its life.
    """
    # TLS stacks do not agree on Ed25519 in handshakes; in certificates they do.
    own = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{domain} of {federation}")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain)])
    names = x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(f"{SCHEME}://{federation}/{domain}"),
            x509.DNSName(server_name(federation, domain)),
        ]
    )
    builder = (
        _builder(subject, issuer, now)
        .public_key(own.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(names, critical=False)
    )
    pem = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate = key.certify(builder).public_bytes(serialization.Encoding.PEM)
    return Credentials(domain, federation, certificate, pem, anchors)


def anchors(root: Root, authorities: Iterable[bytes]) -> bytes:
    """The authorities of a federation's domains as one PEM, each checked against the trust root.

    Raises:
        IdentityError: One is not signed by, and for, a key that the root gives to a domain.
    """
    held = [key for key_id, key in root.keys.items() if key_id not in root.root.key_ids]
    accepted = []
    for pem in authorities:
        certificate = _read(pem)
        raw = certificate.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        if not any(key.raw == raw and _signed(certificate, key) for key in held):
            raise IdentityError(
                f"authority {certificate.subject.rfc4514_string()}: its key is none of a domain of {root.federation}; "
                "leave it out"
            )
        accepted.append(pem)
    return b"".join(accepted)


class Gate:
    """Says which domain a certificate speaks for, by the current root.

    Args:
        root: The trust root.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._known = functools.lru_cache(maxsize=256)(self._examine)

    def identify(self, pem: bytes, now: dt.datetime | None = None) -> str:
        """The domain at the other end.

        Raises:
            IdentityError: Not a member of this federation, or not who it says.
        """
        domain, begins, ends = self._known(pem)
        if not begins <= (now or dt.datetime.now(dt.UTC)) <= ends:
            raise IdentityError(f"certificate of {domain}: valid from {begins} to {ends}; the domain must renew it")
        return domain

    def _examine(self, pem: bytes) -> tuple[str, dt.datetime, dt.datetime]:
        certificate = _read(pem)
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            raise IdentityError("certificate: found no alternative name, expected federation and domain") from None
        found = names.get_values_for_type(x509.UniformResourceIdentifier)
        prefix = f"{SCHEME}://{self._root.federation}/"
        if len(found) != 1 or not found[0].startswith(prefix):
            raise IdentityError(f"certificate: found the names {found}, expected one that begins with {prefix}")
        domain = found[0].removeprefix(prefix)
        role = self._root.domains.get(domain)
        if role is None:
            raise IdentityError(f"certificate of {domain!r}: no domain of {self._root.federation}")
        if not any(_signed(certificate, self._root.keys[key_id]) for key_id in role.key_ids):
            raise IdentityError(f"certificate of {domain!r}: not signed by a key of that domain")
        return domain, certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _builder(subject: x509.Name, issuer: x509.Name, now: dt.datetime | None) -> x509.CertificateBuilder:
    begins = (now or dt.datetime.now(dt.UTC)) - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + LIFE)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _read(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise IdentityError(f"certificate: found {len(pem)} bytes that are none ({error})") from error


def _signed(certificate: x509.Certificate, key: PublicKey) -> bool:
    return key.verifies(certificate.signature, certificate.tbs_certificate_bytes)
