"""What is written in several places about running the tests in a container is the same everywhere."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE, DOCS = (ROOT / name for name in ("Dockerfile", "docs/ci.md"))
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def steps() -> list[str]:
    """Commands of the workflow, in order."""
    jobs = YAML(typ="safe").load(WORKFLOW)["jobs"]
    return [step["run"] for step in jobs["tests"]["steps"] if "run" in step]


def said(path: Path, words: str) -> list[list[str]]:
    """Arguments of each command in a file that begins with these words."""
    lines = steps() if path == WORKFLOW else path.read_text(encoding="utf-8").splitlines()
    found = (re.search(rf"^(?:#\s+)?(?:sudo )?{words} (.*)$", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


def split(arguments: list[str], image: str) -> tuple[set[str], list[str]]:
    """Options of one `docker run`, without the volumes that differ by nature, and the command in the container."""
    at = arguments.index(image)
    options = arguments[:at]
    while "--volume" in options:
        where = options.index("--volume")
        del options[where : where + 2]
    return set(options), arguments[at + 1 :]


@pytest.mark.parametrize("path", [DOCKERFILE, DOCS, WORKFLOW], ids=lambda path: path.name)
def test_the_image_has_one_name_and_is_run_with_the_same_privileges_everywhere(path: Path) -> None:
    assert {tuple(build) for build in said(path, "docker build")} == {("--tag", "tail-latency-testbed", ".")}
    runs = [split(arguments, "tail-latency-testbed") for arguments in said(path, "docker run")]
    assert [options for options, _ in runs] == [{"--rm", "--init", "--privileged"}] * len(runs)
    assert runs


def test_a_container_runs_the_tests_of_the_workflow_by_default() -> None:
    (default,) = [
        json.loads(line.removeprefix("CMD ")) for line in DOCKERFILE.read_text().splitlines() if "CMD [" in line
    ]
    ((_, asked),) = [split(arguments, "tail-latency-testbed") for arguments in said(WORKFLOW, "docker run")]
    assert default == ["scripts/test"] == asked[:1]
    options = {word for word in asked if word.startswith("--")} | {"--full"}
    text, script = DOCS.read_text(encoding="utf-8"), (ROOT / "scripts" / "test").read_text(encoding="utf-8")
    assert all(f"scripts/test {option}" in text and f"{option})" in script for option in options)


def test_the_emulated_kernel_is_allowed_as_many_mappings_in_the_workflow_as_the_page_asks_for() -> None:
    ((asked,), (done,)) = (said(path, "sysctl -w") for path in (DOCS, WORKFLOW))
    assert asked == done
    assert asked[0].startswith("vm.max_map_count=")
