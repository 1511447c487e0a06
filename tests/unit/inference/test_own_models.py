"""Models of the user's own folder are served like those that are shipped, and what is wrong with one is said."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference_server import repository, triton
from inference_server.errors import ModelError
from inference_server.models import Model
from inference_server.server import Settings
from inference_server.triton import Serving
from tests.unit.inference.serving import LONG_S, infer, request, serving, until

pytestmark = [
    # PyTorch advises against TorchScript; users have it all the same.
    pytest.mark.filterwarnings("ignore:`?torch.jit:DeprecationWarning"),
    # PyTorch 2.11 makes tensors of the bytes of an exported program, and warns of what it does there itself.
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]

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


class Named(torch.nn.Module):
    """Gives its output in a dictionary."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x[:, :3]}


def _exported(folder: Path, **rows: int) -> None:
    (folder / "model.pt").unlink()
    shapes = ({0: torch.export.Dim("rows", **rows)},) if rows else None
    torch.export.save(torch.export.export(layer(), (torch.zeros(2, 8),), dynamic_shapes=shapes), folder / "model.pt2")


def _cut(folder: Path) -> None:
    _exported(folder, min=1)
    program = (folder / "model.pt2").read_bytes()
    (folder / "model.pt2").write_bytes(program[: len(program) // 2])


WRONG: dict[str, tuple[Any, str]] = {
    "an exported program that is none": (lambda folder: (folder / "model.pt2").write_bytes(b"none"), "BadZipFile"),
    "a folder in its place": (lambda folder: (folder / "model.pt2").mkdir(), "cannot be loaded: IsADirectory"),
    "half a program": (_cut, "cannot be loaded: BadZipFile"),
    "a program for one number of rows": (_exported, "cannot compute requests of 1 to 16 rows: AssertionError"),
    "a program for fewer rows than are accepted": (
        lambda folder: _exported(folder, min=1, max=8), "cannot compute requests of 1 to 16 rows: AssertionError",
    ),
    "outputs in a dictionary": (
        lambda folder: torch.jit.script(Named()).save(folder / "model.pt"), "cannot compute its declared inputs",
    ),
    "two inputs of one name": (lambda folder: _described(folder, inputs=2 * SPEC["inputs"]), "expected each name once"),
    "a description without an end": (
        lambda folder: (folder / "model.json").write_text("[" * 100_000), "expected a JSON object",
    ),
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
        assert load(tmp_path, "mine").cost


def test_a_name_that_is_nowhere_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"\['huge'\]: found none of these names shipped or in"):
        load(folder, "huge")


class Scaled(torch.nn.Module):
    """Multiplies what counts rows by a tensor that does not."""

    def forward(self, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return x * by


TWO = {
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, -1, 4]},
        {"name": "by", "datatype": "FP32", "shape": [4]},
    ],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1, 4]}],
}


@pytest.fixture
def scaled(tmp_path: Path) -> Model:
    (tmp_path / "scaled").mkdir()
    (tmp_path / "scaled" / "model.json").write_text(json.dumps(TWO))
    torch.jit.script(Scaled()).save(tmp_path / "scaled" / "model.pt")
    (found,) = repository.load(["scaled"], tmp_path, device=torch.device("cpu"), max_rows=1 << 20)
    return found


def test_costs_are_measured_with_as_many_rows_as_fit_and_grow_with_every_free_size(
    scaled: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def fastest_s(_: Model, rows: int) -> float:
        measured.append(rows)
        return 1e-3 + 1e-4 * rows

    monkeypatch.setattr(Model, "_fastest_s", fastest_s)
    assert scaled.examples(1024)["x"].shape == (1024, 2, 4)
    costs = [scaled.cost({"x": np.zeros(shape, "<f4")}) for shape in ((1, 2, 4), (2, 1000, 4), (1000, 2, 4))]
    assert costs == pytest.approx([1.1e-3, 0.101, 0.101])
    assert measured == [1, 1024]


def test_a_configuration_names_a_batch_only_where_every_tensor_has_one(scaled: Model, folder: Path) -> None:
    found = triton.config(scaled, Serving())
    assert found.max_batch_size == 0
    assert [list(tensor.dims) for tensor in (*found.input, *found.output)] == [[-1, -1, 4], [4], [-1, -1, 4]]
    batched = triton.config(load(folder, "script"), Serving())
    assert (batched.max_batch_size, list(batched.input[0].dims)) == (16, [8])


def test_costs_are_measured_while_the_event_loop_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    measure_cost = Model.measure_cost

    def seen(self: Model) -> Any:
        if self.name == "digits-small":
            threads.append(threading.current_thread())
        return measure_cost(self)

    monkeypatch.setattr(Model, "measure_cost", seen)
    settings = Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu")
    with serving(settings) as running:
        found: list[threading.Thread] = []
        running.loop.call_soon_threadsafe(lambda: found.append(threading.current_thread()))
        until(lambda: len(found) == 1)
    assert len(threads) == 1
    assert threads != found
