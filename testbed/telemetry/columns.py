"""Parquet files of a window: columns of one length, and what holds for all rows as JSON in the file's metadata.

A moment that was not seen is NaN in memory and an empty cell (null) in the file, so that a request without an answer
reads as one everywhere. What the columns mean is for `testbed.telemetry.samples` and `request_samples`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from testbed.errors import TestbedError

Column = npt.NDArray[Any]

_REMEDY = "take the folder from a backup, or run again"


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        key: Its name in a file's metadata.
        version: Newest schema that is understood.
        holds: What its rows are, for messages.
    """

    key: bytes
    version: int
    holds: str


def write(path: Path, kind: Kind, columns: Mapping[str, Column], metadata: Mapping[str, object]) -> None:
    """Write columns of one length, NaN as an empty cell."""
    arrays = {name: pa.array(np.ascontiguousarray(column), from_pandas=True) for name, column in columns.items()}
    document = {"schema_version": kind.version, **metadata}
    table = pa.table(arrays).replace_schema_metadata({kind.key: json.dumps(document)})
    pq.write_table(table, path, compression="zstd")


def read(path: Path, kind: Kind) -> tuple[dict[str, Column], dict[str, Any]]:
    """Read what `write` wrote: columns, an empty cell as NaN, and metadata.

    Raises:
        TestbedError: No such file, not one of this kind, or one of a newer schema; of a column, that it lacks it.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise TestbedError(f"{path}: found no such file, expected {kind.holds}; {_REMEDY}") from error
    except (pa.ArrowException, OSError) as error:
        raise TestbedError(f"{path}: not a Parquet file that can be read ({error}); {_REMEDY}") from error
    stored = (table.schema.metadata or {}).get(kind.key)
    if stored is None:
        raise TestbedError(
            f"{path}: found a Parquet file without this testbed's metadata, expected {kind.holds}; {_REMEDY}"
        )
    metadata = json.loads(stored)
    if metadata["schema_version"] > kind.version:
        raise TestbedError(
            f"{path}: found schema version {metadata['schema_version']}, "
            f"expected at most {kind.version}; read it with the version that wrote it"
        )
    return _Columns(path, {name: table[name].to_numpy() for name in table.column_names}), metadata


class _Columns(dict[str, Column]):
    """Columns of a file, which says what it lacks."""

    def __init__(self, path: Path, columns: Mapping[str, Column]) -> None:
        super().__init__(columns)
        self._path = path

    def __missing__(self, name: str) -> Column:
        raise TestbedError(f"{self._path}: found no column {name}, expected one; {_REMEDY}")


def is_kind(schema: pa.Schema, kind: Kind) -> bool:
    """Whether a Parquet file with this schema is of a kind."""
    return kind.key in (schema.metadata or {})
