"""Trains the digit classifiers from nothing: `python -m inference_server.train [--into DIR]`.

One command, one seed and one thread: on the same processor and the same PyTorch it writes the same bytes again. Other
processors round differently, so what is shipped is the weights, and beside them `record.json`: where they came from,
their checksums, and the accuracy measured on images that training never saw.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from inference_server.digits import HELD_OUT
from inference_server.networks import NETWORKS

WEIGHTS = HELD_OUT.parent
SEED = 20260215
HELD_OUT_IMAGES = 500
EPOCHS = 120
_BATCH = 64
_LEARNING_RATE = 2e-3
_WEIGHT_DECAY = 1e-3
_LARGEST_SHIFT = 1
_READABLE = 0o644
"""Mode of what is shipped; the library writes files that only their owner may read."""


@dataclass(frozen=True)
class Split:
    """Images as bundled, values 0 to 16: pixels float32[n, 64] and labels int64[n], for training and for judging."""

    pixels: Tensor
    labels: Tensor
    held_out_pixels: Tensor
    held_out_labels: Tensor


def split() -> Split:
    """Divide scikit-learn's bundled digits with the seed."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - needed for training only, see pyproject.toml

    bundled = load_digits()
    order = np.random.default_rng(SEED).permutation(bundled.target.size)
    pixels = torch.from_numpy(bundled.data[order].astype(np.float32))
    labels = torch.from_numpy(bundled.target[order].astype(np.int64))
    n = HELD_OUT_IMAGES
    return Split(pixels[n:], labels[n:], pixels[:n], labels[:n])


def train(name: str, data: Split, *, epochs: int = EPOCHS) -> nn.Module:
    """Train one network; nothing but the name, the data and the epochs decides the result."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(SEED)
    network = NETWORKS[name]()
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    loss = nn.CrossEntropyLoss()
    network.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(data.labels.numel()), _BATCH):
            optimiser.zero_grad()
            loss(network(_shifted(data.pixels[batch])), data.labels[batch]).backward()
            optimiser.step()
        rate.step()
    return network.eval()


def accuracy(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the right one."""
    with torch.inference_mode():
        return float((network(pixels).argmax(dim=1) == labels).double().mean())


def write(folder: Path) -> dict[str, Any]:
    """Train every network, write weights, held-out images and the record; return the record."""
    data = split()
    folder.mkdir(parents=True, exist_ok=True)
    held_out = {
        "pixels": data.held_out_pixels.to(torch.uint8).numpy(),
        "labels": data.held_out_labels.to(torch.uint8).numpy(),
    }
    save_arrays(held_out, folder / HELD_OUT.name)
    (folder / HELD_OUT.name).chmod(_READABLE)
    models = {}
    for name in NETWORKS:
        network = train(name, data)
        path = folder / f"{name}.safetensors"
        save_file(network.state_dict(), path)
        path.chmod(_READABLE)
        models[name] = {
            "held_out_accuracy": accuracy(network, data.held_out_pixels, data.held_out_labels),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    record = {
        "data": "scikit-learn's bundled digits (UCI, optical recognition of handwritten digits)",
        "trained_on": data.labels.numel(),
        "held_out": HELD_OUT_IMAGES,
        "seed": SEED,
        "torch": torch.__version__.split("+")[0],
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "models": models,
    }
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _shifted(pixels: Tensor) -> Tensor:
    """A batch moved by at most a pixel in both directions: with few writers, where a digit sits must not matter."""
    side = int(pixels.shape[1] ** 0.5)
    images = pixels.reshape(-1, side, side)
    shifts = torch.randint(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1, (2,)).tolist()
    padded = nn.functional.pad(images, (_LARGEST_SHIFT,) * 4)
    top, left = (_LARGEST_SHIFT + shift for shift in shifts)
    return padded[:, top : top + side, left : left + side].reshape(-1, side * side)


def main(arguments: list[str] | None = None) -> int:
    """Train and print the record."""
    parser = argparse.ArgumentParser(prog="python -m inference_server.train", description="Train the digit models.")
    parser.add_argument("--into", type=Path, default=WEIGHTS, help="folder to write (default: the package's own)")
    options = parser.parse_args(arguments)
    print(json.dumps(write(options.into)["models"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
