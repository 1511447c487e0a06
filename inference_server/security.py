"""Transport security of the server: its certificate, and whether clients must show one of their own.

Files are read once, when the server starts; who may call is decided by the authority that signed, nothing finer.
"""

from __future__ import annotations

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
            ValueError: A file does not hold what its name promises.
        """
        authority = self.client_authority
        return grpc.ssl_server_credentials(
            [(_pem(self.key, "PRIVATE KEY"), _pem(self.certificate, "CERTIFICATE"))],
            root_certificates=None if authority is None else _pem(authority, "CERTIFICATE"),
            require_client_auth=authority is not None,
        )


def _pem(path: Path, kind: str) -> bytes:
    data = path.read_bytes()
    if f"{kind}-----".encode() not in data:
        raise ValueError(f"{path}: found no PEM of a {kind.lower()}, expected one; are the files swapped?")
    return data
