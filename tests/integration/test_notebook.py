"""The notebook in docs does what it says, from its first cell to its last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from tests.integration.conftest import ROOT

pytestmark = pytest.mark.network

NOTEBOOK = ROOT / "docs" / "scenario-to-verdict.ipynb"


def test_the_notebook_goes_from_a_scenario_to_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)  # noqa: S102 - what a notebook is
    names["plt"].close("all")
    said = capsys.readouterr().out
    # Whether this host kept up is said, not hidden; everything else has to hold.
    assert f"verdict of the run: {names['measured'].verdict}" in said
    assert names["simulated"].tenants[0].verdict == "PASS"
    assert not names["judged"].bound_broken
    assert names["judged"].bound_s < 2 * names["paper"].bound_s
    assert len(names["axes"].lines) == 4
