"""Makes the Python of `management.proto`: `python -m testbed.management.generate`.

The result is committed, so that installing needs no compiler and a reader sees what runs; a test makes it again and
compares. Only messages are generated: a unary service is a name, a handler and two messages, which `wire` states in
fewer lines than generated stubs take.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).parent
PROTO = PACKAGE / "management.proto"
FOLDER = PACKAGE / "generated"


def generate(folder: Path) -> None:
    """Write `management_pb2.py` and its types into `folder`.

    Raises:
        RuntimeError: The compiler refused the file; what it said is on standard error.
    """
    from grpc_tools import protoc  # noqa: PLC0415 - a tool of development, not of an agent

    status = protoc.main(["protoc", f"-I{PACKAGE}", f"--python_out={folder}", f"--pyi_out={folder}", str(PROTO)])
    if status != 0:
        raise RuntimeError(f"{PROTO}: the protocol compiler ended with {status}")


if __name__ == "__main__":
    generate(FOLDER)
    print(f"wrote {FOLDER}", file=sys.stderr)
