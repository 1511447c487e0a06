"""A perceptron from the bytes of requests to the bytes of their answers, with no arrays in between.

Making tensors of bytes and bytes of tensors takes longer than so small a network computes. So few rows are written into
a tensor that is there already, and PyTorch leaves its results in others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from inference_server.digits import CLASSES, PIXELS
from inference_server.networks import FusedPerceptron

ROWS = 32
"""Most rows at a time."""
_layer_with_relu = torch._addmm_activation  # noqa: SLF001 - in one call of PyTorch, which costs more than its arithmetic
_ROW_BYTES, _ANSWER_BYTES = 4 * PIXELS, 4 * CLASSES


class Contents(NamedTuple):
    """What a computation gave.

    Attributes:
        outputs: Raw contents of each request's answer.
        ready_ns: CLOCK_MONOTONIC when the inputs were in place.
        computed_ns: CLOCK_MONOTONIC when the outputs were.
    """

    outputs: list[bytes]
    ready_ns: int
    computed_ns: int


class Direct:
    """A perceptron on the CPU and its buffers; for one thread at a time."""

    def __init__(self, network: FusedPerceptron) -> None:
        """Make the buffers."""
        *hidden, self._last = network.parameters_of_layers
        widths = [PIXELS, *(weight.shape[1] for weight, _ in hidden), CLASSES]
        buffers = [torch.zeros(ROWS, width) for width in widths]
        # For so many rows: each hidden layer with where its input is and its output goes, and the same of the last one.
        self._rows = []
        for rows in range(ROWS + 1):
            views = [buffer[:rows] for buffer in buffers]
            layers = [(bias, x, weight, y) for (weight, bias), x, y in zip(hidden, views, views[1:], strict=False)]
            self._rows.append((layers, views[-2], views[-1]))
        self._inputs, self._outputs = buffers[0].numpy().data.cast("B"), buffers[-1].numpy().data.cast("B")

    def compute(self, contents: Sequence[memoryview]) -> Contents:
        """Compute requests together.

        Args:
            contents: Little-endian FP32 of whole rows for each request, `ROWS` in all at most.
        """
        end, ends = 0, []
        for each in contents:
            begin, end = end, end + len(each)
            self._inputs[begin:end] = each
            ends.append(end // _ROW_BYTES * _ANSWER_BYTES)
        ready_ns = time.monotonic_ns()
        hidden, found, into = self._rows[end // _ROW_BYTES]
        for bias, x, weight, y in hidden:
            _layer_with_relu(bias, x, weight, out=y)
        weight, bias = self._last
        torch.addmm(bias, found, weight, out=into)
        computed_ns = time.monotonic_ns()
        outputs, begin = [], 0
        for end in ends:
            outputs.append(bytes(self._outputs[begin:end]))
            begin = end
        return Contents(outputs, ready_ns, computed_ns)
