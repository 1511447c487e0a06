"""A loaded model: what it takes and gives, what a request costs, and the computation itself, on CPU or CUDA.

Requests arrive here as checked numpy arrays and leave as numpy arrays; protocol and queues are elsewhere. Where models
come from is `repository`'s business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import nn

from inference_server.direct import Direct
from inference_server.errors import InvalidRequestError, ModelError
from inference_server.statistics import Execution
from inference_server.tensors import DTYPES, Array, TensorSpec

_COST_REPEATS = 7
_COST_ROWS = 1024
"""Most rows that costs are measured with, however many a request may have."""
_OTHER_SIZE = 2
"""Of free dimensions that count no rows, where inputs are made up."""


class Watch(Protocol):
    """Who waits for a computation."""

    def wanted(self) -> bool:
        """Whether somebody still does."""

    def emit(self, outputs: Mapping[str, Array]) -> None:
        """Take a part of the outputs that is there before the rest."""


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """What a computation gave.

    Attributes:
        outputs: By name.
        execution: How long it took.
    """

    outputs: Mapping[str, Array]
    execution: Execution


@dataclass(frozen=True, eq=False)
class Model:
    """A model that can compute.

    Attributes:
        name: Its name in requests.
        version: Its only version.
        platform: What made it.
        inputs: What it takes, in the order of its arguments.
        outputs: What it gives, in the order of its results.
        network: The network, on its device and in evaluation mode.
        device: Where it computes.
        max_rows: Largest first dimension of a request, where that dimension is free.
        steady: Whether a computation takes what it is expected to, and waits for nothing but the processor.
        direct: Computes few rows without arrays, for the thread of the event loop; None where nothing does.
    """

    name: str
    version: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    network: nn.Module
    device: torch.device
    max_rows: int
    steady: bool = False
    direct: Direct | None = None

    @cached_property
    def batched(self) -> bool:
        """Whether the first dimension of the first input is free."""
        return self.inputs[0].shape[:1] == (-1,)

    @cached_property
    def joins(self) -> bool:
        """Whether several requests can be computed as one: the first dimension of every tensor counts rows."""
        return all(spec.shape[:1] == (-1,) for spec in (*self.inputs, *self.outputs))

    @property
    def decoupled(self) -> bool:
        """Whether a request of a stream has several answers."""
        return False

    @property
    def known_by_shape(self) -> bool:
        """Whether the shapes of the inputs alone say if a request is accepted and what it costs."""
        return True

    def rows(self, inputs: Mapping[str, Array]) -> int:
        """Rows of a request, 1 where the model takes only one size.

        Raises:
            InvalidRequestError: More rows than the server accepts.
        """
        rows = inputs[self.inputs[0].name].shape[0] if self.batched else 1
        if rows > self.max_rows:
            raise InvalidRequestError(
                f"model {self.name!r}: found {rows} rows, expected at most {self.max_rows}; split the request"
            )
        return int(rows)

    def compute(self, inputs: Mapping[str, Array], watch: Watch | None = None) -> Computed:  # noqa: ARG002
        """Compute; returns when the outputs are there, on CUDA too.

        Args:
            inputs: Checked inputs by name.
            watch: Who waits for the outputs, where that is one; of use to computations with several steps.
        """
        begun_ns = time.monotonic_ns()
        with torch.inference_mode():
            arguments = [_tensor(inputs[spec.name]).to(self.device) for spec in self.inputs]
            ready_ns = time.monotonic_ns()
            results = self.network(*arguments)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            computed_ns = time.monotonic_ns()
            tensors: Sequence[torch.Tensor] = [results] if isinstance(results, torch.Tensor) else results
            outputs = {spec.name: result.cpu().numpy() for spec, result in zip(self.outputs, tensors, strict=True)}
        execution = Execution(ready_ns - begun_ns, computed_ns - ready_ns, time.monotonic_ns() - computed_ns)
        return Computed(outputs, execution)

    def examples(self, rows: int) -> dict[str, Array]:
        """Inputs of zeros with so many rows, where these are free."""
        shapes = {spec: [_OTHER_SIZE if size == -1 else size for size in spec.shape] for spec in self.inputs}
        for spec, shape in shapes.items():
            if self.batched and spec.shape[:1] == (-1,):
                shape[0] = rows
        return {spec.name: np.zeros(shape, DTYPES[spec.datatype]) for spec, shape in shapes.items()}

    def verify(self) -> None:
        """Compute once and compare with what the model says of its outputs.

        Raises:
            ModelError: It cannot compute, or gives something else.
        """
        try:
            results = self.compute(self.examples(2)).outputs
        # A model may raise anything, and give anything.
        except Exception as error:
            raise ModelError(
                f"model {self.name!r}: cannot compute its declared inputs: {type(error).__name__}: {error}"
            ) from error
        for spec in self.outputs:
            found = results[spec.name]
            if found.dtype != DTYPES[spec.datatype] or not spec.accepts(found.shape):
                raise ModelError(
                    f"model {self.name!r}: found output {found.dtype} {list(found.shape)}, expected {spec}"
                )

    @cached_property
    def cost(self) -> Callable[[Mapping[str, Array]], float]:
        """What requests are expected to take of one worker, in seconds; measured once.

        Raises:
            ModelError: It cannot compute as many rows as it may be asked for.
        """
        try:
            return self.measure_cost()
        except Exception as error:
            raise ModelError(
                f"model {self.name!r}: cannot compute requests of 1 to {min(self.max_rows, _COST_ROWS)} rows: "
                f"{type(error).__name__}: {error}; declare the sizes that it takes, or limit the rows of requests"
            ) from error

    def measure_cost(self) -> Callable[[Mapping[str, Array]], float]:
        """What requests are expected to take of one worker, in seconds.

        One row and many are timed, each by the fastest of several runs, because a host only ever adds time. What is
        larger in other free dimensions counts as that many more rows.
        """
        single, rows = self._fastest_s(1), min(self.max_rows, _COST_ROWS)
        if not self.batched or rows == 1:
            return lambda _inputs: single
        row_s = max(0.0, self._fastest_s(rows) - single) / (rows - 1)
        call_s = max(0.0, single - row_s)
        first = self.inputs[0].name
        elements = self.examples(1)[first].size
        return lambda inputs: call_s + inputs[first].size / elements * row_s

    def _fastest_s(self, rows: int) -> float:
        inputs = self.examples(rows)
        self.compute(inputs)
        taken = []
        for _ in range(_COST_REPEATS):
            begin = time.perf_counter()
            self.compute(inputs)
            taken.append(time.perf_counter() - begin)
        return min(taken)


def _tensor(array: Array) -> torch.Tensor:
    """A tensor that a network may write to: the array's memory, or a copy where that belongs to a message."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
