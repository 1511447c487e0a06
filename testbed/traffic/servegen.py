"""ServeGen's parametric clients: not a recording but a description of one, from which requests are drawn.

A client is two files of the ServeGen project (arXiv 2505.09999): `chunk-N-trace.csv`, with the rate and the law of the
gaps in every window of ten minutes, and `chunk-N-dataset.json` beside it, with the distribution of a request's tokens
now and then. What is drawn is a `Trace` like any other. Multimodal and reasoning fields are not read.
"""

from __future__ import annotations

import ast
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError
from testbed.traffic.renewal import gamma, points, weibull
from testbed.traffic.rows import Rows
from testbed.traffic.traces import Trace

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_COLUMNS = ("window_start_s", "rate_req_per_s", "cv_of_interarrival", "pattern", "shape", "scale_s")
_LAWS = {"Gamma": gamma, "Weibull": weibull}
_REQUEST, _RESPONSE = "input_tokens", "output_tokens"


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """One client of a ServeGen pool.

    Attributes:
        path: Its trace file.
        start_s: Starts of its windows, equally spaced, int64[n].
        rate_per_s: Request rate in each window, 0 where it is silent, float64[n].
        law: `Gamma` or `Weibull` in each window, empty where it is silent.
        shape: Shape of the law of the gaps, float64[n].
        tokens: Distributions of tokens as the file has them, by the start of the window from which they hold.
    """

    path: Path
    start_s: IntArray
    rate_per_s: FloatArray
    law: tuple[str, ...]
    shape: FloatArray
    tokens: dict[int, dict[str, str]]

    def draw(self, *, seed: int | np.random.SeedSequence, start_s: float, duration_s: float) -> Trace:
        """Draw the requests of a stretch of the client's time.

        In each window the gaps have the file's law and shape and the mean that its rate says: the file's own scale
        and rate disagree wherever requests came in lumps, and the rate is what was counted.

        Args:
            seed: Of this drawing.
            start_s: Start of the stretch in the client's own time.
            duration_s: Its length.

        Raises:
            ScenarioError: Fewer than two requests come, or a distribution of tokens cannot be used.
        """
        rng = np.random.default_rng(seed)
        window_s = int(self.start_s[1] - self.start_s[0])
        times, asked, answered = [np.empty(0)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        touched = (self.start_s < start_s + duration_s) & (self.start_s + window_s > start_s) & (self.rate_per_s > 0)
        for window in np.flatnonzero(touched):
            begins_s = max(float(self.start_s[window]), start_s)
            ends_s = min(float(self.start_s[window] + window_s), start_s + duration_s)
            gap = _LAWS[self.law[window]](float(self.shape[window]))
            mean_s = 1 / float(self.rate_per_s[window])
            arrivals_s = points(gap, mean_s, rng=rng, duration_s=ends_s - begins_s)
            times.append(begins_s - start_s + arrivals_s)
            since_s, fields = self._tokens_at(int(self.start_s[window]))
            for name, drawn in ((_REQUEST, asked), (_RESPONSE, answered)):
                drawn.append(self._sample(since_s, name, fields, rng.random(arrivals_s.size)))
        time_s = np.concatenate(times)
        if time_s.size < 2:
            raise ScenarioError(
                f"ServeGen client {self.path}: found {time_s.size} requests from {start_s:g} s on in {duration_s:g} s, "
                "expected at least 2; choose a longer or busier stretch"
            )
        return Trace(self.path, "servegen", time_s - time_s[0], np.concatenate(asked), np.concatenate(answered))

    def _tokens_at(self, start_s: int) -> tuple[int, dict[str, str]]:
        """The distributions that hold in a window: the last ones before it that are not empty, else the first."""
        known = sorted(start for start, fields in self.tokens.items() if fields.get(_REQUEST, "{}") != "{}")
        if not known:
            raise ScenarioError(f"ServeGen client {self.path}: found no distribution of {_REQUEST}, expected one")
        before = [start for start in known if start <= start_s]
        since_s = before[-1] if before else known[0]
        return since_s, self.tokens[since_s]

    def _sample(self, since_s: int, name: str, fields: dict[str, str], chance: FloatArray) -> IntArray:
        where = f"ServeGen client {self.path}, dataset window {since_s}, {name}"
        values, weights = _distribution(where, fields.get(name, ""))
        total = np.cumsum(weights)
        return values[np.minimum(np.searchsorted(total / total[-1], chance, side="right"), values.size - 1)]


def read_client(path: Path) -> Client:
    """Read one client from its `chunk-N-trace.csv` and the dataset file beside it.

    Raises:
        ScenarioError: A file is missing or bad; bad rows are all counted and the first ones named.
    """
    rows = Rows.from_csv(path, _COLUMNS, header=False)
    start_s, rate_per_s = (
        rows.whole("window_start_s", at_least=0),
        rows.decimals("rate_req_per_s", "requests per second"),
    )
    law, shape = rows.words("pattern", ("", *_LAWS)), rows.decimals("shape", "the shape of a law")
    silent = np.array([name == "" for name in law])
    rows.note("rate_req_per_s", silent & (rate_per_s > 0), "0 where there is no pattern")
    rows.note("shape", ~silent & ~(shape > 0), "more than 0")
    rows.check_order(start_s)
    rows.refuse_bad()
    steps = np.diff(start_s)
    if np.any(steps != steps[0]) or steps[0] == 0:
        raise ScenarioError(
            f"ServeGen client {path}: found windows of {sorted(set(steps.tolist()))} s, expected one length"
        )
    return Client(path, start_s, rate_per_s, law, shape, _read_tokens(path))


def dataset_of(trace: Path) -> Path:
    """The dataset file beside a client's trace file."""
    return trace.with_name(trace.name.removesuffix("-trace.csv") + "-dataset.json")


def _read_tokens(trace: Path) -> dict[int, dict[str, str]]:
    path = dataset_of(trace)
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        return {
            int(start): {name: text for name, text in fields.items() if isinstance(text, str)}
            for start, fields in data.items()
        }
    except OSError as error:
        raise ScenarioError(
            f"ServeGen client {trace}: its dataset cannot be read: {error}; keep both files of a client together"
        ) from error
    except (ValueError, AttributeError) as error:
        raise ScenarioError(f"ServeGen dataset {path}: found no object of windows ({error}); fetch it again") from error


def _distribution(where: str, text: str) -> tuple[IntArray, FloatArray]:
    """Values and weights of a distribution that the file writes as a Python dict; never evaluated, only parsed."""
    try:
        parsed: Any = ast.literal_eval(text)
        values = np.array(list(parsed.keys()), dtype=np.int64)
        weights = np.array(list(parsed.values()), dtype=np.float64)
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError) as error:
        raise ScenarioError(f"{where}: found {text[:40]!r}, expected {{tokens: share, ...}}") from error
    if (
        not values.size
        or values.min() < 0
        or weights.min() < 0
        or not math.isfinite(weights.sum())
        or not weights.any()
    ):
        raise ScenarioError(f"{where}: found {text[:40]!r}, expected numbers of tokens with shares of at least 0")
    return values, weights
