"""docs/envelope.md describes this code: its example is an envelope, its tables are complete."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from testbed.envelope import Envelope, errors
from testbed.envelope.composition import Path as PromisePath
from testbed.envelope.errors import RefusedError
from testbed.envelope.summary import describe, describe_path

TEXT = (Path(__file__).parents[3] / "docs" / "envelope.md").read_text(encoding="utf-8")


def example() -> Envelope:
    block = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None
    return Envelope.from_dict(json.loads(block.group(1)))


def western(east: Envelope) -> Envelope:
    document: dict[str, Any] = {**east.to_dict(), "domain": "west", "stochastic": None, "evidence": None}
    document["guardrails"] = {**document["guardrails"], "latency_ns": 1_200_000, "burst_bits": 960_000}
    return Envelope.from_dict(document)


def test_the_example_is_an_envelope_with_the_digest_that_is_shown() -> None:
    assert example().digest in TEXT


def test_what_the_commands_print_is_what_the_code_says() -> None:
    east = example()
    for line in (*describe(east), *describe_path(PromisePath.of([east, western(east)]), 1e-3)):
        assert line in TEXT


def test_every_reason_for_a_refusal_is_listed() -> None:
    reasons = {
        value.reason for value in vars(errors).values() if isinstance(value, type) and issubclass(value, RefusedError)
    }
    table = TEXT.split("## What is refused")[1].split("## ")[0]
    listed = {
        name for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)
    }
    assert listed == reasons - {RefusedError.reason}


def test_every_member_is_listed() -> None:
    table = TEXT.split("## The format")[1].split("## ")[0]

    def leaves(document: dict[str, Any]) -> set[str]:
        return {
            leaf
            for name, value in document.items()
            for leaf in ({name} if not isinstance(value, dict) else leaves(value))
        }

    for name in leaves(example().to_dict()):
        assert re.search(rf"`([a-z.]*\.)?{name}`", table), name
