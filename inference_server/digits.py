"""The digit images that no model was trained on, with what they show: what clients send and judge answers by.

They are a part of scikit-learn's bundled digits (8 x 8 pixels, values 0 to 16), put aside by `inference_server.train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

HELD_OUT = Path(__file__).parent / "weights" / "held-out.safetensors"
PIXELS = 64
CLASSES = 10


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Images and what they show.

    Attributes:
        pixels: Row by row, values 0 to 16, float32[n, 64].
        labels: The digits, int64[n].
    """

    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.labels.size)


def held_out() -> Digits:
    """The images put aside, in one fixed order."""
    arrays = load_file(HELD_OUT)
    return Digits(arrays["pixels"].astype(np.float32), arrays["labels"].astype(np.int64))
