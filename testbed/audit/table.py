"""Audits any table of latencies: a CSV or Parquet file, from this testbed or from elsewhere.

Columns: `latency_s` (seconds; empty: never answered) and optionally `time_s` (intended sending; rows are sorted by it),
`run` (independent runs), `tenant` (each judged on its own) and `domain_<name>_s` (seconds spent in each domain). Other
columns are ignored. Only an empty cell means that there is no value: a NaN is what a division by zero leaves, so it is
refused, like a negative time or a word. The samples of one window of a run are such a file too, and bring their tenant
and every place that its packets or requests passed along. The statistics are `testbed.audit.record`'s.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from testbed.audit.attribution import MAX_PARTS
from testbed.audit.clusters import FloatArray
from testbed.audit.compliance import Verdict
from testbed.audit.crossing import Crossing, PacketCrossing, RequestCrossing
from testbed.audit.record import LEVELS, Audit, Promise, audit_series
from testbed.errors import TestbedError
from testbed.telemetry import columns, request_samples, samples

NUMBER = re.compile(r"\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?|[+-]?nan)?\s*", re.IGNORECASE)
"""How a cell of seconds may look, empty included."""

_PARQUET = {".parquet", ".pq"}
_WORST_FIRST = (Verdict.FAIL, Verdict.UNDETERMINED, Verdict.PASS)


class TableError(TestbedError):
    """A table that cannot be audited as it is."""


@dataclass(frozen=True, slots=True)
class Series:
    """One tenant's rows, sorted by run and then by time.

    Attributes:
        tenant: Name; None where the table has no tenants.
        latency_s: Latencies in seconds, NaN: never answered.
        runs: Run id of each row; None where the table has no runs.
        parts: Seconds in each domain, or other place, by name.
    """

    tenant: str | None
    latency_s: FloatArray
    runs: npt.NDArray[np.int64] | None
    parts: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class TableAudit:
    """Every tenant of a table, judged.

    Attributes:
        tenants: Name and audit of each tenant; one entry named None where the table has no tenants.
    """

    tenants: tuple[tuple[str | None, Audit], ...]

    @property
    def worst(self) -> tuple[str | None, Audit]:
        """The tenant with the worst verdict, the first of several."""
        return min(self.tenants, key=_severity)

    @property
    def verdict(self) -> Verdict | None:
        """The worst verdict; None where nothing was promised."""
        compliance = self.worst[1].compliance
        return compliance.verdict if compliance else None

    def answer(self) -> dict[str, Any]:
        """As `to_dict`, of each audit only what programs may rely on."""
        return self._document(Audit.answer)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the tenant with the worst verdict, and every tenant under `tenants` where the table names them."""
        return self._document(Audit.to_dict)

    def _document(self, form: Callable[[Audit], dict[str, Any]]) -> dict[str, Any]:
        name, audit = self.worst
        if name is None:
            return form(audit)
        return form(audit) | {"tenant": name, "tenants": {str(tenant): form(found) for tenant, found in self.tenants}}


def audit_table(
    path: Path,
    promise: Promise | None = None,
    *,
    confidence: float = 0.95,
    levels: tuple[float, ...] = LEVELS,
) -> TableAudit:
    """Audit a CSV or Parquet file.

    Args:
        path: The file; `.parquet` and `.pq` are read as Parquet, anything else as CSV.
        promise: What every tenant was promised, None to estimate only.
        confidence: Of every limit.
        levels: Quantiles to report.

    Raises:
        TableError: Not such a file, or values that no latency can have.
        ValueError: An impossible promise.
    """
    return audit_rows(tuple(read_series(path)), promise, confidence=confidence, levels=levels)


def audit_rows(
    series: Sequence[Series],
    promise: Promise | None = None,
    *,
    confidence: float = 0.95,
    levels: tuple[float, ...] = LEVELS,
) -> TableAudit:
    """Audit what `read_series` read; see `audit_table`."""
    return TableAudit(
        tuple(
            (
                rows.tenant,
                audit_series(
                    rows.latency_s, promise, parts=rows.parts, runs=rows.runs, confidence=confidence, levels=levels
                ),
            )
            for rows in series
        )
    )


def read_series(path: Path) -> Iterator[Series]:
    """Read a table, tenant by tenant in order of name.

    Raises:
        TableError: Not such a file, or values that no latency can have.
    """
    if (window := _window(path)) is not None:
        yield window
        return
    table = _read(path)
    numbers = {name: _numbers(path, table, name) for name in table.column_names if _is_number(name)}
    domains = {name[len("domain_") : -len("_s")]: values for name, values in numbers.items() if _is_domain(name)}
    _check(path, numbers["latency_s"], numbers.get("time_s"), domains)
    run, tenant = _labelled(table, "run"), _labelled(table, "tenant")
    keys: list[npt.NDArray[Any]] = [numbers["time_s"]] if "time_s" in numbers else []
    keys += [run[1]] if run else []
    order = np.lexsort(keys) if keys else np.arange(table.num_rows)
    for code, name in enumerate(tenant[0] if tenant else [None]):
        rows = order[tenant[1][order] == code] if tenant else order
        yield Series(
            tenant=name,
            latency_s=numbers["latency_s"][rows],
            runs=run[1][rows] if run else None,
            parts={domain: values[rows] for domain, values in domains.items()},
        )


def _window(path: Path) -> Series | None:
    """The tenant of a run's window whose samples this file holds; None if it is no such file."""
    if path.suffix not in _PARQUET:
        return None
    try:
        schema = pa_parquet.read_schema(path)
    except (OSError, pa.ArrowInvalid):
        return None
    crossing: Crossing
    if columns.is_kind(schema, request_samples.KIND):
        asked = request_samples.read(path)
        tenant, crossing = asked.tenant, RequestCrossing.of([asked], None)
    elif columns.is_kind(schema, samples.KIND):
        sent, _ = samples.read(path)
        tenant, crossing = sent.tenant, PacketCrossing.of([sent], [])
    else:
        return None
    if not crossing.latency_s.size:
        raise TableError(f"{path}: found no {crossing.what} of {tenant} that were due, expected one at least")
    return Series(tenant, crossing.latency_s, None, crossing.places())


def _read(path: Path) -> pa.Table:
    try:
        table = pa_parquet.read_table(path) if path.suffix in _PARQUET else _read_csv(path)
    except OSError as error:
        raise TableError(f"{path}: {error.strerror or error}; expected a CSV or Parquet file of latencies") from error
    except pa.ArrowInvalid as error:
        raise TableError(
            f"{path}: not a readable table ({error}); expected CSV with a header line, or Parquet"
        ) from error
    table = table.rename_columns([name.strip() for name in table.column_names])
    doubled = sorted(name for name in set(table.column_names) if table.column_names.count(name) > 1)
    if doubled:
        raise TableError(f"{path}: found column {doubled[0]} more than once, expected it once; rename the others")
    if "latency_s" not in table.column_names:
        raise TableError(
            f"{path}: found columns {', '.join(table.column_names) or 'none'}, expected latency_s; rename the column "
            "that holds each request's latency in seconds"
        )
    if table.num_rows == 0:
        raise TableError(f"{path}: found no rows, expected one for each request")
    return table


def _read_csv(path: Path) -> pa.Table:
    with path.open("rb") as file:
        names = [name.strip('"\r\n') for name in file.readline().decode("utf-8-sig", "replace").split(",")]
    # A type guessed from the first rows would refuse a first fraction after a million whole numbers.
    types = {name: pa.float64() for name in names if _is_number(name.strip())}
    types |= {name: pa.string() for name in names if name.strip() in {"run", "tenant"}}
    try:
        return pa_csv.read_csv(
            path,
            # Where latency_s is the only column, an empty line is a request never answered, not a blank to skip.
            parse_options=pa_csv.ParseOptions(ignore_empty_lines=len(names) > 1),
            convert_options=pa_csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True),
        )
    except pa.ArrowInvalid:
        # The fast reader does not say in which row; looking again is only worth it now.
        problem = _first_bad_row(path)
        if problem is None:
            raise
        raise TableError(problem) from None


def _first_bad_row(path: Path) -> str | None:
    """What is wrong with the first row that no table of latencies can have, in one sentence; None if nothing is."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file)
        names = [name.strip() for name in next(rows, [])]
        for number, cells in enumerate((row for row in rows if row or len(names) == 1), start=1):
            if len(cells) != len(names) and cells:
                return f"{path}: row {number} has {len(cells)} cells, expected {len(names)} as the header has"
            for name, cell in zip(names, cells, strict=False):
                if _is_number(name) and not NUMBER.fullmatch(cell):
                    return f"{path}: row {number} has {name} {cell!r:.40}, expected a number of seconds, or nothing"
    return None


def _is_domain(name: str) -> bool:
    return name.startswith("domain_") and name.endswith("_s") and len(name) > len("domain__s")


def _is_number(name: str) -> bool:
    return name in {"latency_s", "time_s"} or _is_domain(name)


def _numbers(path: Path, table: pa.Table, name: str) -> FloatArray:
    """A column of seconds, NaN where a cell is empty."""
    column = table[name]
    if pa.types.is_null(column.type):
        return np.full(table.num_rows, np.nan)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise TableError(f"{path}: column {name} holds {column.type}, expected numbers in seconds, or empty")
    values = np.asarray(pc.cast(column, pa.float64()).to_numpy(), dtype=np.float64)
    undefined = np.isnan(values) & column.is_valid().to_numpy()
    if undefined.any():
        raise TableError(
            f"{path}: row {int(undefined.argmax()) + 1} has {name} NaN, expected a number of seconds, or nothing for a "
            f"request that was never answered; {np.count_nonzero(undefined)} of {values.size} rows have it"
        )
    return values


def _check(path: Path, latency: FloatArray, time: FloatArray | None, domains: dict[str, FloatArray]) -> None:
    problems = []
    for name, values in {"latency_s": latency, **{f"domain_{name}_s": part for name, part in domains.items()}}.items():
        negative = np.flatnonzero(values < 0)
        if negative.size:
            problems.append(
                f"{path}: row {negative[0] + 1} has {name} {values[negative[0]]:g}, expected at least 0; "
                f"{negative.size} of {values.size} rows are negative, correct their clocks"
            )
    if time is not None and not np.isfinite(time).all():
        row = int(np.flatnonzero(~np.isfinite(time))[0]) + 1
        problems.append(f"{path}: row {row} has no time_s, expected when the request was meant to be sent")
    if len(domains) >= MAX_PARTS:
        problems.append(f"{path}: found {len(domains)} domains, expected at most {MAX_PARTS - 1}; merge some")
    if problems:
        raise TableError(problems[0])


def _labelled(table: pa.Table, name: str) -> tuple[list[str], npt.NDArray[np.int64]] | None:
    """The values of a column in order, and which of them each row has; None without the column.

    An empty cell is a value of its own.
    """
    if name not in table.column_names:
        return None
    column = pc.fill_null(pc.cast(table[name], pa.string()), "").combine_chunks().dictionary_encode()
    values = np.asarray(column.dictionary.to_pylist(), dtype=np.str_)
    order = np.argsort(values)
    place = np.empty(order.size, dtype=np.int64)
    place[order] = np.arange(order.size)
    return [str(value) for value in values[order]], place[column.indices.to_numpy()]


def _severity(tenant: tuple[str | None, Audit]) -> int:
    compliance = tenant[1].compliance
    return _WORST_FIRST.index(compliance.verdict) if compliance else 0
