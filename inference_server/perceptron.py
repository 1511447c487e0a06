"""The perceptrons as served models: few rows are computed in numpy, more of them in PyTorch.

For a few rows of a small network nearly all of PyTorch's time is spent on the way to its arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from inference_server.models import Computed, Model, Watch
from inference_server.networks import BRIGHTEST, Perceptron
from inference_server.statistics import Execution
from inference_server.tensors import Array, TensorSpec

_FEW_ROWS = 8
"""Up to these numpy computes, on one thread whatever the libraries behind it are told."""

Layer = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class PerceptronModel(Model):
    """A perceptron on the CPU.

    Attributes:
        layers: Weights [in, out] and biases [out] of each layer; the first takes pixels as they are sent.
    """

    layers: tuple[Layer, ...] = ()

    @classmethod
    def of(cls, name: str, network: Perceptron, inputs: TensorSpec, outputs: TensorSpec, max_rows: int) -> Self:
        """Serve a network whose parameters stay as they are."""
        layers = [(weight.T.contiguous().numpy(), bias.numpy()) for weight, bias in network.parameters_by_layer()]
        layers[0] = (layers[0][0] / np.float32(BRIGHTEST), layers[0][1])  # a power of two, so nothing is rounded
        return cls(
            name,
            "1",
            "pytorch",
            (inputs,),
            (outputs,),
            network,
            torch.device("cpu"),
            max_rows,
            steady=True,
            layers=tuple(layers),
        )

    def compute(self, inputs: Mapping[str, Array], watch: Watch | None = None) -> Computed:
        """Compute; returns when the outputs are there."""
        x = inputs[self.inputs[0].name]
        if x.shape[0] > _FEW_ROWS:
            return super().compute(inputs, watch)
        begun_ns = time.monotonic_ns()
        *hidden, (weight, bias) = self.layers
        for each, shift in hidden:
            x = x.dot(each)
            x += shift
            np.maximum(x, 0, out=x)
        x = x.dot(weight)
        x += bias
        return Computed({self.outputs[0].name: x}, Execution(0, time.monotonic_ns() - begun_ns, 0))

    def measure_cost(self) -> Callable[[Mapping[str, Array]], float]:
        """What requests are expected to take of one worker, in seconds: a line for few rows, another for more."""
        few = self.line(1, min(_FEW_ROWS, self.max_rows))
        more = self.line(_FEW_ROWS + 1, self.max_rows) if self.max_rows > _FEW_ROWS else few

        def cost_s(inputs: Mapping[str, Array]) -> float:
            rows = self.rows(inputs)
            call_s, row_s = few if rows <= _FEW_ROWS else more
            return call_s + rows * row_s

        return cost_s
