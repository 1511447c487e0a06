"""Where models come from: the digit classifiers shipped with this package, and a folder of the user's own.

A folder holds one sub-folder for each model: `model.pt` (TorchScript) or `model.pt2` (`torch.export`), and `model.json`
with `inputs` and `outputs`, each a list of `{"name", "datatype", "shape"}` with -1 for a free size. A model is a
program: load only what you trust. Shipped weights are plain arrays whose checksums are recorded beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from inference_server import text
from inference_server.digits import CLASSES, HELD_OUT, PIXELS
from inference_server.direct import Direct
from inference_server.errors import ModelError
from inference_server.models import Model
from inference_server.networks import NETWORKS, FusedPerceptron, Perceptron
from inference_server.tensors import DTYPES, TensorSpec
from inference_server.text import TextModel
from inference_server.transformer import Transformer

_DIGIT_INPUTS = (TensorSpec("pixels", "FP32", (-1, PIXELS)),)
_DIGIT_OUTPUTS = (TensorSpec("logits", "FP32", (-1, CLASSES)),)
_KEYS = {"inputs", "outputs"}

TEXT = "text-small"
"""Name of the transformer."""


def load(names: Sequence[str] | None, folder: Path | None, *, device: torch.device, max_rows: int) -> list[Model]:
    """Load models and see each of them compute.

    Args:
        names: Which ones; None for all.
        folder: The user's folder, which may hide shipped models of the same name.
        device: Where they shall compute.
        max_rows: See `Model`.

    Raises:
        ModelError: A name that is nowhere, or a model that cannot be loaded or does not compute what it says.
    """
    own = _own(folder)
    available = list(dict.fromkeys((*NETWORKS, TEXT, *own)))
    unknown = [name for name in names or () if name not in available]
    if unknown:
        where = f" or in {folder}" if folder else ""
        raise ModelError(f"models {unknown}: found none of these names shipped{where}, expected some of {available}")
    models = []
    for name in available if names is None else names:
        make = _from_folder if name in own else _shipped
        model = make(name, own.get(name, HELD_OUT.parent), device, max_rows)
        model.verify()
        models.append(model)
    return models


def record() -> dict[str, Any]:
    """What was measured when the shipped models were trained: accuracies, sizes, checksums, origin."""
    found: dict[str, Any] = json.loads((HELD_OUT.parent / "record.json").read_text(encoding="utf-8"))
    return found


def text_record() -> dict[str, Any]:
    """What was measured when the transformer was trained."""
    found: dict[str, Any] = json.loads((HELD_OUT.parent / "text-record.json").read_text(encoding="utf-8"))
    return found


def _checksum(name: str) -> str:
    measured = text_record() if name == TEXT else record()["models"][name]
    return str(measured["sha256"])


def _shipped(name: str, folder: Path, device: torch.device, max_rows: int) -> Model:
    path = folder / f"{name}.safetensors"
    found, expected = hashlib.sha256(path.read_bytes()).hexdigest(), _checksum(name)
    if found != expected:
        raise ModelError(f"{path}: found checksum {found}, expected the recorded {expected}; train or install again")
    network = Transformer() if name == TEXT else NETWORKS[name]()
    network.load_state_dict(load_file(path))
    network.eval().to(device)
    if name == TEXT:
        return TextModel(name, "1", "pytorch", text.INPUTS, text.OUTPUTS, network, device, 1)
    served = FusedPerceptron(network) if isinstance(network, Perceptron) else network
    steady = device.type == "cpu"
    direct = Direct(served) if steady and isinstance(served, FusedPerceptron) else None
    return Model(name, "1", "pytorch", _DIGIT_INPUTS, _DIGIT_OUTPUTS, served, device, max_rows, steady, direct)


def _own(folder: Path | None) -> dict[str, Path]:
    if folder is None:
        return {}
    try:
        return {entry.name: entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    except OSError as error:
        raise ModelError(
            f"repository {folder}: {error.strerror}; expected a folder with one for each model, see docs/inference.md"
        ) from error


def _from_folder(name: str, folder: Path, device: torch.device, max_rows: int) -> Model:
    specs = _specs(folder / "model.json")
    script, exported = folder / "model.pt", folder / "model.pt2"
    if not exported.exists() and not script.exists():
        raise ModelError(f"model {name!r}: found neither {exported} nor {script}, expected one of them")
    try:
        if exported.exists():
            # An exported program has no evaluation mode: what it does was fixed when it was exported.
            network, platform = torch.export.load(exported).module(), "pytorch_export"
        else:
            network, platform = torch.jit.load(script, map_location="cpu").eval(), "pytorch_torchscript"  # type: ignore[no-untyped-call]
    # PyTorch's readers raise whatever they meet in a file that is none of theirs.
    except Exception as error:
        raise ModelError(f"model {name!r}: cannot be loaded: {type(error).__name__}: {error}") from error
    return Model(name, "1", platform, *specs, network.to(device), device, max_rows)


def _specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: {error}; expected a JSON object with inputs and outputs") from error
    if not isinstance(data, dict) or set(data) != _KEYS or not all(isinstance(data[key], list) for key in _KEYS):
        raise ModelError(f"{path}: expected an object with exactly the lists {sorted(_KEYS)}")
    found = tuple(tuple(_spec(path, item) for item in data[key]) for key in ("inputs", "outputs"))
    if not all(found):
        raise ModelError(f"{path}: found no inputs or no outputs, expected at least one of each")
    for specs in found:
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise ModelError(f"{path}: found tensors named {names}, expected each name once")
    return found[0], found[1]


def _spec(path: Path, item: Any) -> TensorSpec:
    match item:
        case {"name": str(name), "datatype": str(datatype), "shape": list(shape)} if (
            len(item) == 3
            and datatype in DTYPES
            and all(type(size) is int and (size == -1 or size > 0) for size in shape)
        ):
            return TensorSpec(name, datatype, tuple(shape))
    raise ModelError(
        f"{path}: found tensor {item!r}, expected name, datatype (one of {sorted(DTYPES)}) and shape (sizes above 0, "
        "or -1)"
    )
