"""The page that derives the formulas: every citation in the code leads to a heading of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "calculus.md").read_text()
HEADINGS = set(re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE))
CITATIONS = sorted(
    {
        (str(path.relative_to(ROOT)), title)
        for path in (ROOT / "testbed").rglob("*.py")
        for title in re.findall(r'docs/calculus\.md,\s+"([^"]+)"', path.read_text())
    }
)


def test_the_code_cites_the_page():
    assert len(CITATIONS) > 10


@pytest.mark.parametrize(("module", "title"), CITATIONS)
def test_a_citation_leads_to_a_heading(module, title):
    assert title in HEADINGS


def test_links_inside_the_page_lead_to_headings():
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS}
    for link in re.findall(r"\]\(#([^)]+)\)", PAGE):
        assert link in anchors


def test_the_first_example_runs():
    """As printed, copied into a file of one's own."""
    example = re.search(r"```python\n(.+?)```", PAGE, re.DOTALL)[1]
    names: dict = {}
    exec(compile(example, "docs/calculus.md", "exec"), names)  # noqa: S102 - our own page
    assert 0.1 < names["bound"].delay_s < 0.2
