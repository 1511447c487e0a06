"""What every sender's specification and record have in common: a JSON object read strictly, and upper quantiles.

Which fields there are is for `testbed.traffic.records` (packets) and `request_records` (requests).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Spec = TypeVar("Spec", bound=DataclassInstance)

_QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}


def save_spec(path: Path, spec: DataclassInstance) -> None:
    """Write a specification as JSON."""
    path.write_text(json.dumps(asdict(spec), indent=1), encoding="utf-8")


def load_spec(path: Path, kind: type[Spec]) -> Spec:
    """Read a specification.

    Raises:
        ValueError: No JSON object, or an unknown or missing key.
        OSError: The file cannot be read.
    """
    data: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path}: found {type(data).__name__}, expected an object")  # noqa: TRY004 - a bad file
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(data) - known):
        raise ValueError(f"{path}: unknown keys {unknown}, expected {sorted(known)}")
    try:
        return kind(**data)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error


def require(path: Path, spec: object, *, whole: Sequence[str] = (), text: Sequence[str] = ()) -> None:
    """Require whole numbers and texts in these fields, and a whole number or null as priority.

    Raises:
        ValueError: A value of another type, named with its field.
    """
    for names, wanted, said in ((whole, int, "a whole number"), (text, str, "text")):
        for name in names:
            if type(getattr(spec, name)) is not wanted:
                raise ValueError(f"{path}: {name} is {getattr(spec, name)!r}, expected {said}")
    priority = getattr(spec, "priority", None)
    if priority is not None and type(priority) is not int:
        raise ValueError(f"{path}: priority is {priority!r}, expected a whole number or null")


def upper(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """Upper quantiles of what is known of an array; null where nothing is."""
    known = values[np.isfinite(values)]
    return {
        name: float(np.quantile(known, q, method="higher")) if known.size else None for name, q in _QUANTILES.items()
    }
