"""Several requests computed as one: their inputs put together, the outputs taken apart again.

Who belongs together is decided in the scheduler by `key`; here it is only done.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from inference_server.models import Model
from inference_server.tensors import Array


def key(model: Model, inputs: Mapping[str, Array]) -> Hashable | None:
    """What requests have in common that may be computed together; None for one that must be computed alone."""
    rows = {array.shape[0] for array in inputs.values()} if model.joins else set()
    if len(rows) != 1:
        return None
    return model.name, tuple(inputs[spec.name].shape[1:] for spec in model.inputs)


def joined(inputs: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    """The inputs of all requests, row after row."""
    if len(inputs) == 1:
        return inputs[0]
    return {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]}


def divided(outputs: Mapping[str, Array], rows: Sequence[int]) -> list[Mapping[str, Array]]:
    """The outputs of each request.

    Args:
        outputs: Of all together.
        rows: Rows of each request, in the order they were joined.

    Raises:
        ValueError: A model that gave another number of rows than it took.
    """
    if len(rows) == 1:
        return [outputs]
    for name, array in outputs.items():
        if array.shape[0] != sum(rows):
            raise ValueError(f"output {name!r}: found {array.shape[0]} rows for {sum(rows)} rows of a batch")
    ends = [0, *accumulate(rows)]
    return [{name: array[begin:end] for name, array in outputs.items()} for begin, end in pairwise(ends)]
