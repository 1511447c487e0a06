"""Where verbs put pictures and pages: refused before anything is computed for them."""

from __future__ import annotations

from pathlib import Path

import typer

_SUFFIXES = {".svg", ".png", ".pdf"}


def require_picture(path: Path, option: str) -> None:
    """Check that a picture can be written.

    Args:
        path: Where to.
        option: That names it, for messages.

    Raises:
        typer.BadParameter: Its suffix is that of no format, or there is no folder for it.
    """
    if path.suffix not in _SUFFIXES:
        raise typer.BadParameter(f"{path} ends in {path.suffix!r}; expected .svg, .png or .pdf", param_hint=option)
    require_folder(path, option)


def require_folder(path: Path, option: str) -> None:
    """Check that there is a folder for a file.

    Args:
        path: The file.
        option: That names it, for messages.

    Raises:
        typer.BadParameter: There is none.
    """
    if not path.parent.is_dir():
        raise typer.BadParameter(
            f"found no folder {path.parent}, expected one for {path.name}; make it", param_hint=option
        )
