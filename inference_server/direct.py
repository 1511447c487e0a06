"""A perceptron from the bytes of requests to the bytes of their answers, with no arrays in between.

Making tensors of bytes and bytes of tensors takes longer than so small a network computes. So few rows are written into
a tensor that is there already, and PyTorch leaves its results in others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch

from inference_server.digits import CLASSES, PIXELS
from inference_server.networks import FusedPerceptron

ROWS = 32
"""Most rows at a time."""
_layer_with_relu = torch._addmm_activation  # noqa: SLF001 - in one call of PyTorch, which costs more than its arithmetic
_ROW_BYTES, _ANSWER_BYTES = 4 * PIXELS, 4 * CLASSES


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

    def one(self, contents: memoryview) -> tuple[bytes, int, int]:
        """Compute one request.

        Args:
            contents: Little-endian FP32 of at most `ROWS` whole rows.

        Returns:
            Raw contents of the answer, and CLOCK_MONOTONIC ns when the inputs and when the outputs were in place.
        """
        size = len(contents)
        self._inputs[:size] = contents
        ready_ns = time.monotonic_ns()
        rows = size // _ROW_BYTES
        self._forward(rows)
        computed_ns = time.monotonic_ns()
        return bytes(self._outputs[: rows * _ANSWER_BYTES]), ready_ns, computed_ns

    def many(self, contents: Sequence[memoryview]) -> tuple[list[bytes], int, int]:
        """Compute requests together.

        Args:
            contents: Of each as in `one`, `ROWS` rows in all at most.

        Returns:
            As `one`, the contents of each answer.
        """
        end, ends = 0, []
        for each in contents:
            begin, end = end, end + len(each)
            self._inputs[begin:end] = each
            ends.append(end // _ROW_BYTES * _ANSWER_BYTES)
        ready_ns = time.monotonic_ns()
        self._forward(end // _ROW_BYTES)
        computed_ns = time.monotonic_ns()
        return [bytes(self._outputs[begin:end]) for begin, end in pairwise((0, *ends))], ready_ns, computed_ns

    def _forward(self, rows: int) -> None:
        """From the first rows of the inputs to those of the outputs."""
        hidden, found, into = self._rows[rows]
        for bias, x, weight, y in hidden:
            _layer_with_relu(bias, x, weight, out=y)
        weight, bias = self._last
        torch.addmm(bias, found, weight, out=into)
