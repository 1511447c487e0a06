"""What numba keeps of what it compiled: where, for a user who can write no usual place, and for how long."""

from __future__ import annotations

import ast
import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
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
    forget_stale()
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


def forget_stale() -> None:
    """Remove compiled code that another module's change made stale; to be called before anything of it is loaded.

    Numba asks only whether the file of a function has changed. What it took from other files, their constants and the
    functions it calls, is in the compiled code as well, and after an update of those alone would be silently old.
    """
    package = Path(testbed.__file__).parent
    found = (index for index in package.rglob("__pycache__/*.nbi") if os.access(index.parent, os.W_OK))
    kept = dict(_changed(found))  # Numba uses no folder that it cannot write.
    changed = dict(_changed(package.rglob("*.py")))
    if not kept or min(kept.values()) > max(changed.values()):
        return
    newest: dict[Path, int] = {}
    for index, at_ns in kept.items():
        source = index.parent.parent / (index.name.partition(".")[0] + ".py")
        if source not in newest:
            newest[source] = max((changed[each] for each in _needed(source, package)), default=at_ns + 1)
        if newest[source] >= at_ns:
            index.unlink(missing_ok=True)
        else:
            with suppress(FileNotFoundError):
                os.utime(index)  # known to be fresh: not to be looked at again


def _changed(files: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    """When each was changed, ns; another command that begins just now may take some away."""
    for file in files:
        with suppress(FileNotFoundError):
            yield file, file.stat().st_mtime_ns


def _needed(source: Path, package: Path) -> set[Path]:
    """The modules of the package that one imports, directly or not, and itself; none where it does not exist."""
    found: set[Path] = set()
    waiting = {source}
    while waiting:
        module = waiting.pop()
        if module.is_file() and module not in found:
            found.add(module)
            waiting |= set(_imported(module, package))
    return found


def _imported(module: Path, package: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        elif isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == package.name and rest:
                yield package.joinpath(*rest).with_suffix(".py")


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
