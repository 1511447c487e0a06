"""The `testbed` command: one verb one module, and no logic beyond reading options and printing answers.

Exit codes are the same for every verb (`testbed.cli.exits`).
"""

import sys


def main() -> None:
    """Entry point of the command."""
    try:
        # Importing takes a moment, in which Ctrl-C must be as quiet as it is later.
        from testbed.cli import app  # noqa: PLC0415
    except KeyboardInterrupt:
        sys.exit(130)
    app.main()
