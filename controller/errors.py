"""What can go wrong between a program and a switch, each with the objects concerned; no formatting for a terminal."""

from __future__ import annotations

from collections.abc import Iterable


class ControllerError(Exception):
    """Base of everything the controller raises on purpose.

    Attributes:
        problems: One sentence for each thing that is wrong, naming the object, what was found and what was expected.
    """

    kind = "controller"

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class SwitchError(ControllerError):
    """A switch that is not connected, does not answer or refused a message."""

    kind = "switch"


class KernelError(ControllerError):
    """The kernel refused a queueing discipline, class or filter."""

    kind = "kernel"


class ReadBackError(ControllerError):
    """Everything was accepted, and yet what reads back is not what was asked for."""

    kind = "read-back"
