"""Makes the Python of `management.proto`: `python -m testbed.management.generate`; as `inference_server.generate`."""

from __future__ import annotations

import sys
from pathlib import Path

from inference_server.generate import generate

PACKAGE = Path(__file__).parent
PROTO = PACKAGE / "management.proto"
FOLDER = PACKAGE / "generated"

if __name__ == "__main__":
    generate(FOLDER, PROTO)
    print(f"wrote {FOLDER}", file=sys.stderr)
