"""Makes the Python of `open_inference.proto`: `python -m inference_server.generate`.

The result is committed, so that installing needs no compiler and a reader sees what runs; a test makes it again and
compares. Only messages are generated: a unary service is a name, a handler and two messages, which `service` states in
fewer lines than generated stubs take.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).parent
PROTO = PACKAGE / "open_inference.proto"
FOLDER = PACKAGE / "generated"


def generate(folder: Path, proto: Path = PROTO) -> None:
    """Write the messages of a proto file and their types into `folder`.

    Args:
        folder: Where to.
        proto: The file; `open_inference.proto` makes `open_inference_pb2.py`.

    Raises:
        RuntimeError: The compiler refused the file; what it said is on standard error.
    """
    from grpc_tools import protoc  # noqa: PLC0415 - a tool of development, not of what runs

    status = protoc.main(["protoc", f"-I{proto.parent}", f"--python_out={folder}", f"--pyi_out={folder}", str(proto)])
    if status != 0:
        raise RuntimeError(f"{proto}: the protocol compiler ended with {status}")


if __name__ == "__main__":
    generate(FOLDER)
    print(f"wrote {FOLDER}", file=sys.stderr)
