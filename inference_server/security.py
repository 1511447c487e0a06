"""Transport security of the server: its certificate, and whether clients must show one of their own.

Files are read once, when the server starts; who may call is decided by the authority that signed, nothing finer.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class Security:
    """Files in PEM.

    Attributes:
        certificate: The server's certificate, with those that lead to its authority.
        key: Its private key.
        client_authority: Certificates of the authorities whose clients may call; None lets everybody call.
    """

    certificate: Path
    key: Path
    client_authority: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC needs.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file does not hold what its name promises, or the key is another certificate's.
        """
        authority = self.client_authority
        pair = _pem(self.key, "PRIVATE KEY"), _pem(self.certificate, "CERTIFICATE")
        self._check()
        return grpc.ssl_server_credentials(
            [pair],
            root_certificates=None if authority is None else _pem(authority, "CERTIFICATE"),
            require_client_auth=authority is not None,
        )

    def _check(self) -> None:
        """See that the files can be used; gRPC says no more than that it cannot listen."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password="")
        except ssl.SSLError as error:
            raise ValueError(
                f"{self.certificate} and {self.key}: {error}; expected a certificate and its own key without a password"
            ) from error
        if self.client_authority is not None:
            try:
                context.load_verify_locations(self.client_authority)
            except ssl.SSLError as error:
                raise ValueError(f"{self.client_authority}: {error}; expected certificates") from error


def _pem(path: Path, kind: str) -> bytes:
    data = path.read_bytes()
    if f"{kind}-----".encode() not in data:
        raise ValueError(f"{path}: found no PEM of a {kind.lower()}, expected one; are the files swapped?")
    return data
