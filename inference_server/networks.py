"""The digit classifiers: three sizes of network over the same input and output, untrained.

They are small on purpose, yet differ in cost by more than an order of magnitude, so that a compute stage has something
to reserve. Weights come from `inference_server.train`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from inference_server.digits import CLASSES, PIXELS

_BRIGHTEST = 16.0
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
        logits: Tensor = self.layers(pixels / _BRIGHTEST)
        return logits


class FusedPerceptron(nn.Module):
    """A perceptron as it is served: as many calls of PyTorch as layers, the scaling of pixels folded into the weights.

    For a few rows of so small a network nearly all of the time is spent on the way to its arithmetic.

    Attributes:
        parameters_of_layers: Weights [inputs, outputs] and biases [outputs] of each layer, on their device.
    """

    def __init__(self, perceptron: Perceptron) -> None:
        """Take the parameters as they are, on their device."""
        super().__init__()
        linear = [layer for layer in perceptron.layers if isinstance(layer, nn.Linear)]
        parameters = [(layer.weight.detach().T.contiguous(), layer.bias.detach()) for layer in linear]
        # A power of two, so that nothing is rounded.
        parameters[0] = (parameters[0][0] / _BRIGHTEST, parameters[0][1])
        self.parameters_of_layers = parameters

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [n, 10] of pixels [n, 64]."""
        (weight, bias), *others = self.parameters_of_layers
        found = torch.addmm(bias, pixels, weight)
        for weight, bias in others:
            found = torch.addmm(bias, found.relu_(), weight)
        return found


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
        logits: Tensor = self.layers(pixels.reshape(-1, 1, _SIDE, _SIDE) / _BRIGHTEST)
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits-small": lambda: Perceptron(32),
    "digits-medium": lambda: Perceptron(256, 128),
    "digits-large": lambda: Convolutional(32, 64, 64),
}
