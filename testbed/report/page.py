"""The templates of this project's pages: one file each, no script, nothing from outside."""

from __future__ import annotations

import shlex
from pathlib import Path

import jinja2

from testbed.report.terminal import milliseconds


def template(name: str) -> jinja2.Template:
    """A page of this folder; values are escaped, and one that is missing is an error."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["ms"] = milliseconds
    environment.filters["command"] = shlex.join
    return environment.get_template(name)
