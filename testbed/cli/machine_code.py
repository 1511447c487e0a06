"""Where numba keeps what it compiles, for a user who can write neither this package's folders nor a home."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import testbed
from testbed.errors import PreflightError

_SETTING = "NUMBA_CACHE_DIR"


def ensure_place() -> None:
    """Give numba a private folder for this command where it would find none: it refuses to be imported with none.

    Numba looks in NUMBA_CACHE_DIR, in `__pycache__` beside each module, then in the user's caches. The folder is for
    this command and its children alone and goes when it ends: what lies there is loaded and run, so a name that
    another user could have taken first is no place for it. To be called before numba is imported.

    Raises:
        PreflightError: There is no room for temporary files either.
    """
    if _has_place(Path(testbed.__file__).parent):
        return
    try:
        place = tempfile.mkdtemp(prefix="tail-latency-testbed-")  # 0700
    except OSError as error:
        raise PreflightError(
            f"nowhere to keep compiled code: neither this package's folders, nor the user's caches, nor a temporary "
            f"folder can be written ({error.strerror}); set {_SETTING} to a folder that you can write"
        ) from error
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    os.environ[_SETTING] = place


def _has_place(package: Path) -> bool:
    # As numba's own `appdirs` has it, which cannot be asked without importing numba.
    caches = Path(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")))  # noqa: PTH111 - ~ where no home is
    chosen = [Path(place) for place in (os.environ.get(_SETTING), caches / "numba") if place]
    beside = [module.parent / "__pycache__" for module in package.rglob("__init__.py")]
    return any(map(_can_write, chosen)) or all(map(_can_write, beside))


def _can_write(folder: Path) -> bool:
    """Whether files can be made in `folder`, or it could be made itself."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if os.access(each, os.F_OK))
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
