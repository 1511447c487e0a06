"""What is wrong with a scenario file, one finding at a time, and the place where findings gather.

Checking never stops at the first finding: a reader who mends one line should not have to run the command again to hear
about the next. Formatting for a terminal is `testbed.cli`'s; a `Problem` only knows how to be one complete line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from testbed.errors import ScenarioError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: The file as the user named it.
        line: 1-based; None where the whole file is meant.
        where: The object, for example `tenant alpha: reservation.rate`.
        message: What was found, what was expected and what to do about it.
    """

    file: Path
    line: int | None
    where: str
    message: str

    def __str__(self) -> str:
        place = str(self.file) if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.where}: {self.message}"


class ScenarioFileError(ScenarioError):
    """A scenario file with findings.

    Attributes:
        findings: The findings in the order of the file; `problems` holds them as text.
    """

    def __init__(self, findings: Iterable[Problem]) -> None:
        self.findings = tuple(sorted(findings, key=lambda problem: problem.line or 0))
        super().__init__(str(problem) for problem in self.findings)


@dataclass
class Report:
    """Findings about one file, gathered while it is checked."""

    file: Path
    findings: list[Problem] = field(default_factory=list)

    def add(self, line: int | None, where: str, *, found: str, expected: str, remedy: str) -> None:
        """Record one finding; `remedy` is a clause or a question, without its full stop."""
        ending = "" if remedy.endswith("?") else "."
        self.quote(line, where, f"found {found}; expected {expected}. {remedy[:1].upper()}{remedy[1:]}{ending}")

    def quote(self, line: int | None, where: str, message: str) -> None:
        """Record a finding that another part of the program has put into words."""
        self.findings.append(Problem(self.file, line, where, message))

    def raise_if_any(self) -> None:
        """Raise everything found so far together.

        Raises:
            ScenarioFileError: There is at least one finding.
        """
        if self.findings:
            raise ScenarioFileError(self.findings)


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A remedy naming the known word nearest to `word`, or `otherwise` if none is near."""
    spelling = word.lower().replace("_", "-")
    near = difflib.get_close_matches(spelling, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else otherwise
