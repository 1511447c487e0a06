"""Models of the user's own folder are served like those that are shipped, and what is wrong with one is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference_server import repository
from inference_server.errors import ModelError
from inference_server.models import Model
from inference_server.server import Settings
from tests.unit.inference.serving import LONG_S, infer, request, serving

# PyTorch advises against TorchScript; users have it all the same.
pytestmark = pytest.mark.filterwarnings("ignore:`?torch.jit:DeprecationWarning")

SPEC = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
}
KINDS = {"script": "pytorch_torchscript", "export": "pytorch_export"}
X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)


def layer() -> torch.nn.Linear:
    torch.manual_seed(3)
    return torch.nn.Linear(8, 3).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model of each kind."""
    made = tmp_path_factory.mktemp("repository")
    for name in KINDS:
        (made / name).mkdir()
        (made / name / "model.json").write_text(json.dumps(SPEC))
    torch.jit.trace(layer(), torch.zeros(2, 8)).save(made / "script" / "model.pt")
    shapes = ({0: torch.export.Dim("rows", min=1)},)
    program = torch.export.export(layer(), (torch.zeros(2, 8),), dynamic_shapes=shapes)
    torch.export.save(program, made / "export" / "model.pt2")
    return made


def load(folder: Path, name: str) -> Model:
    (found,) = repository.load([name], folder, device=torch.device("cpu"), max_rows=16)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_it_did_where_it_was_made(folder: Path, kind: str) -> None:
    model = load(folder, kind)
    with torch.inference_mode():
        expected = layer()(torch.from_numpy(X)).numpy()
    assert model.platform == KINDS[kind]
    assert np.allclose(model.compute({"x": X}).outputs["y"], expected, atol=1e-6)


def test_it_is_served_beside_those_that_are_shipped(folder: Path) -> None:
    settings = Settings(listen="127.0.0.1:0", models=["digits-small", "script"], folder=folder, device="cpu")
    with serving(settings) as running, running.channel() as channel:
        message = request("script", X)
        message.inputs[0].name = "x"
        answer = infer(channel)(message, timeout=LONG_S)
        assert infer(channel)(request(), timeout=LONG_S).outputs
    assert (answer.outputs[0].name, list(answer.outputs[0].shape)) == ("y", [3, 3])


def _without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def _described(folder: Path, **changes: Any) -> None:
    (folder / "model.json").write_text(json.dumps(SPEC | changes))


WRONG: dict[str, tuple[Any, str]] = {
    "no program": (lambda folder: _without(folder, "model.pt"), "found neither"),
    "no description": (lambda folder: _without(folder, "model.json"), "expected a JSON object"),
    "a program that is none": (lambda folder: (folder / "model.pt").write_bytes(b"none"), "cannot be loaded"),
    "an unknown key": (lambda folder: _described(folder, version=2), "exactly the lists"),
    "an unknown datatype": (
        lambda folder: _described(folder, inputs=[{"name": "x", "datatype": "FP8", "shape": [-1, 8]}]), "found tensor",
    ),
    "no outputs": (lambda folder: _described(folder, outputs=[]), "no outputs"),
    "other inputs than it takes": (
        lambda folder: _described(folder, inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 9]}]),
        "cannot compute its declared inputs",
    ),
    "other outputs than it gives": (
        lambda folder: _described(folder, outputs=[{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]),
        "found output float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_model_that_cannot_be_served_is_named_with_what_is_wrong(folder: Path, tmp_path: Path, what: str) -> None:
    change, said = WRONG[what]
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("model.pt", "model.json"):
        (mine / name).write_bytes((folder / "script" / name).read_bytes())
    change(mine)
    with pytest.raises(ModelError, match=said):
        load(tmp_path, "mine")


def test_a_name_that_is_nowhere_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"\['huge'\]: found none of these names shipped or in"):
        load(folder, "huge")
