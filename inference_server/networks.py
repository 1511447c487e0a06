"""The digit classifiers: three sizes of network over the same input and output, untrained.

They are small on purpose, yet differ in cost by more than an order of magnitude, so that a compute stage has something
to reserve. Weights come from `inference_server.train`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from inference_server.digits import CLASSES, PIXELS

BRIGHTEST = 16.0
_SIDE = 8


class Perceptron(nn.Module):
    """Fully connected layers.

    Args:
        hidden: Width of each hidden layer.
    """

    def __init__(self, *hidden: int) -> None:
        super().__init__()
        widths = (PIXELS, *hidden)
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [n, 10] of pixels [n, 64]."""
        logits: Tensor = self.layers(pixels / BRIGHTEST)
        return logits

    def parameters_by_layer(self) -> list[tuple[Tensor, Tensor]]:
        """Weight [out, in] and bias [out] of each layer, to read only."""
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        return [(layer.weight.detach(), layer.bias.detach()) for layer in linear]


class Convolutional(nn.Module):
    """Two convolutions and two fully connected layers."""

    def __init__(self, first: int, second: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (_SIDE // 2) ** 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, CLASSES),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [n, 10] of pixels [n, 64]."""
        logits: Tensor = self.layers(pixels.reshape(-1, 1, _SIDE, _SIDE) / BRIGHTEST)
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits-small": lambda: Perceptron(32),
    "digits-medium": lambda: Perceptron(256, 128),
    "digits-large": lambda: Convolutional(32, 64, 64),
}
