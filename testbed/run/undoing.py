"""Undoing what a run has made without losing what it has measured: an error in it is noted and ends nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableSequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

from controller.client import CallError
from testbed.errors import TestbedError

NOT_UNDONE = "given back and taken down"

LOG = logging.getLogger("testbed.run")

T = TypeVar("T")


@contextmanager
def noted(made: AbstractContextManager[T], problems: MutableSequence[str]) -> Iterator[T]:
    """What `made` makes; where all went well meanwhile, what goes wrong in undoing it ends up among `problems`.

    Where something went wrong meanwhile there are no results to keep, and an error in undoing is raised as ever.

    Args:
        made: Makes something and undoes it.
        problems: Receives a sentence for each thing that could not be undone.
    """
    with ExitStack() as stack:
        yield stack.enter_context(made)
        undoing = stack.pop_all()
    try:
        undoing.close()
    except (TestbedError, CallError) as error:
        problems += error.problems
    except Exception as error:
        # Nobody has foreseen it, so where it came from is worth saying.
        LOG.exception("an error in undoing what the run had made")
        problems.append(f"{type(error).__name__}: {error}")
