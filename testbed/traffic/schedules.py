"""The packets a tenant will send in one window, decided before the window opens, and the file that carries them.

A schedule is plain arrays, so a sender, the simulation and the ideal replay can all be fed the very same packets. How
the packets were drawn is `testbed.traffic.arrivals`' business; when they really left is `testbed.traffic.records`'.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Packets of one tenant in one window, in the order they leave.

    Attributes:
        time_s: Intended send times from the start of the window, non-decreasing, float64[n].
        size_bits: Frame sizes without FCS, int32[n].
        last_of_request: Whether a packet completes a request, bool[n]; always true for packet tenants.
    """

    time_s: FloatArray
    size_bits: npt.NDArray[np.int32]
    last_of_request: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        n = self.time_s.shape
        if len(n) != 1 or self.size_bits.shape != n or self.last_of_request.shape != n:
            raise ValueError(
                f"schedule: found shapes {n}, {self.size_bits.shape} and {self.last_of_request.shape}, "
                "expected one length"
            )
        if self.time_s.size and (self.time_s[0] < 0 or np.any(np.diff(self.time_s) < 0)):
            raise ValueError("schedule: send times must not be negative nor decrease")

    def __len__(self) -> int:
        return int(self.time_s.size)

    def rate_bps(self, duration_s: float) -> float:
        """Mean L2 rate offered over a window of the given length."""
        return float(self.size_bits.sum(dtype=np.int64)) / duration_s

    def save(self, path: Path) -> None:
        """Write the schedule to an `.npz` file that only its owner can read, all at once or not at all."""
        save_arrays(path, {"time_s": self.time_s, "size_bits": self.size_bits, "last_of_request": self.last_of_request})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a schedule written by `save`.

        Raises:
            ValueError: The file is no schedule.
            OSError: The file cannot be read.
        """
        arrays = load_arrays(path, ("time_s", "size_bits", "last_of_request"))
        return cls(
            arrays["time_s"].astype(np.float64),
            arrays["size_bits"].astype(np.int32),
            arrays["last_of_request"].astype(np.bool_),
        )


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], *, compressed: bool = False) -> None:
    """Write arrays to `path` as `.npz`, mode 0600; a reader sees the whole file or none.

    Args:
        path: The file.
        arrays: By name.
        compressed: Worth its time for arrays that are mostly zero.

    Raises:
        OSError: The folder cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_arrays(path: Path, names: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> dict[str, npt.NDArray[Any]]:
    """Read the named arrays of an `.npz` file; objects that would need pickle are refused.

    Args:
        path: The file.
        names: Arrays that must be there.
        optional: Arrays that are read where they are there.

    Raises:
        ValueError: No such file format, or an array is missing.
        OSError: The file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*names, *optional) if name in file}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy's own words would have the reader run what lies in the file.
        raise ValueError(f"{path}: found no .npz file of plain arrays; written by another program, or cut?") from error
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{path}: found no arrays {missing}; written by another version or program?")
    return arrays
