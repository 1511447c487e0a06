"""Trains the transformer from nothing: `python -m inference_server.train_text [--into DIR]`.

Its text is the descriptions of the data sets that scikit-learn bundles, English of one kind, with the last tenth of
each put aside. One seed and one thread make the same bytes on the same processor and PyTorch; beside the weights,
`text-record.json` holds the error on the text put aside, in bits a byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from inference_server.digits import HELD_OUT
from inference_server.repository import TEXT
from inference_server.transformer import VOCABULARY, Transformer

WEIGHTS = HELD_OUT.parent
SEED = 20261124
STEPS = 800
HELD_OUT_SHARE = 0.1
_BATCH, _CONTEXT = 16, 96
_LEARNING_RATE, _WEIGHT_DECAY, _WARM_UP = 3e-3, 0.1, 100
_READABLE = 0o644


@dataclass(frozen=True)
class Text:
    """Bytes to learn from and bytes to judge by, int64[n] each."""

    learned: Tensor
    held_out: Tensor


def text() -> Text:
    """The descriptions, divided."""
    files = resources.files("sklearn.datasets.descr").iterdir()
    whole = [file.read_bytes() for file in sorted(files, key=lambda file: file.name) if file.name.endswith(".rst")]
    cuts = [round(len(each) * (1 - HELD_OUT_SHARE)) for each in whole]
    learned = b"".join(each[:cut] for each, cut in zip(whole, cuts, strict=True))
    held_out = b"".join(each[cut:] for each, cut in zip(whole, cuts, strict=True))
    return Text(*(torch.tensor(list(part), dtype=torch.int64) for part in (learned, held_out)))


def train(data: Text, *, steps: int = STEPS) -> Transformer:
    """Train; nothing but the text and the number of steps decides the result."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(SEED)
    network = Transformer()
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    loss = nn.CrossEntropyLoss()
    network.train()
    window = torch.arange(_CONTEXT + 1)
    for _ in range(steps):
        start = torch.randint(data.learned.numel() - _CONTEXT, (_BATCH, 1))
        taken = data.learned[start + window]
        optimiser.zero_grad()
        logits, _ = network(taken[:, :-1])
        loss(logits.reshape(-1, VOCABULARY), taken[:, 1:].reshape(-1)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return network.eval()


def bits_per_byte(network: Transformer, held_out: Tensor) -> float:
    """Mean error of predicting each byte from those before it, at most a training context back."""
    rows = held_out[: held_out.numel() // (_CONTEXT + 1) * (_CONTEXT + 1)].reshape(-1, _CONTEXT + 1)
    with torch.inference_mode():
        logits, _ = network(rows[:, :-1])
        nats = nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), rows[:, 1:].reshape(-1))
    return float(nats) / math.log(2)


def write(folder: Path) -> dict[str, Any]:
    """Train, write weights, text put aside and the record; return the record."""
    data = text()
    folder.mkdir(parents=True, exist_ok=True)
    network = train(data)
    weights, held_out = folder / f"{TEXT}.safetensors", folder / "text-held-out.safetensors"
    save_file(network.state_dict(), weights)
    save_arrays({"bytes": data.held_out.numpy().astype(np.uint8)}, held_out)
    for path in (weights, held_out):
        path.chmod(_READABLE)
    record = {
        "data": "descriptions of data sets that scikit-learn bundles (BSD-3-Clause)",
        "trained_on_bytes": data.learned.numel(),
        "held_out_bytes": data.held_out.numel(),
        "held_out_bits_per_byte": bits_per_byte(network, data.held_out),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "seed": SEED,
        "torch": torch.__version__.split("+")[0],
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }
    (folder / "text-record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def main(arguments: list[str] | None = None) -> int:
    """Train and print the record."""
    parser = argparse.ArgumentParser(prog="python -m inference_server.train_text", description="Train the transformer.")
    parser.add_argument("--into", type=Path, default=WEIGHTS, help="folder to write (default: the package's own)")
    options = parser.parse_args(arguments)
    print(json.dumps(write(options.into), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
