"""The `testbed` command: one verb one module, and no logic beyond reading options and printing answers.

Exit codes are the same for every verb (`testbed.cli.exits`).
"""

from testbed.cli.main import main

__all__ = ["main"]
