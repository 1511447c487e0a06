"""Who made the slow requests slow: each part's share of the excess in the tail, by two named methods, with intervals.

The excess is how far the mean of the slowest requests (CVaR) lies above the mean of all. Euler gives each part its own
mean excess in exactly those requests. Shapley gives it the average of what the CVaR rises when its variation is added
to that of others, over all orders of adding. Both add up to the whole; they answer different questions and can
disagree threefold on a domain with rare long pauses, so neither is shown without its name. Parts may be domains or
causes. Whether a part broke a promise is not decided here (`testbed.audit.contracts`): somebody always has the largest
share.

Sources: Tasche, "Risk contributions and performance measurement" (1999), for Euler; Shapley, "A value for n-person
games" (1953), on the game of the CVaR deviation; Castro, Gomez and Tejada, "Polynomial calculation of the Shapley value
based on sampling", Comput. Oper. Res. 36 (2009), for some orders in place of all; Davison and Hinkley, "Bootstrap
Methods" (1997), section 8.2.3, for the bootstrap of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from testbed.audit.clusters import FloatArray, IntArray, decluster, run_boundaries

LEVELS = (0.999, 0.998, 0.995, 0.99, 0.98, 0.95)
"""Tails that are tried, the most extreme first."""

MIN_CLUSTERS = 30
"""Fewer independent tail events than this give way to a larger tail, and in the largest to no interval."""

EXACT_PARTS = 9
"""Shapley looks at every subset of up to so many parts, and at 26 to 52 orders of adding more than that."""

MAX_PARTS = 20
"""More parts would leave too few orders for each."""

BOOTSTRAP_SEED = 0
"""Fixed, so that the same evidence gives the same shares to whoever computes them."""

_RESAMPLES = 400
_MOST_BLOCKS = 1000
_SPARE = 4
"""Of each subset so many times the tail is kept, so that a resampled quantile always lies inside."""

_THIN = 16

_MOST_SUBSETS = 2**EXACT_PARTS


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the tail's excess, between 0 and 1 unless a part was faster than usual when the whole was slow.

    Attributes:
        share: Estimate; the shares of one method sum to 1.
        lower: Lower end of the two-sided interval; None where too few independent tail events were seen.
        upper: Upper end; None likewise.
    """

    share: float
    lower: float | None
    upper: float | None


@dataclass(frozen=True, slots=True)
class Blame:
    """One part's share by each method."""

    euler: Share
    shapley: Share


@dataclass(frozen=True, slots=True)
class Attribution:
    """The tail's excess and who it belongs to.

    Attributes:
        level: The tail is the slowest (1 - level) of the requests.
        confidence: Of each two-sided interval.
        cvar_s: Mean latency of the tail.
        excess_s: The same minus the mean of all requests: what is shared out.
        clusters: Independent events that the tail consists of.
        left_out: Requests without a latency to share out: never answered, or with a part that is not known.
        blame: Each part's shares, by name.
        named: The part whose share is the largest by both methods at the stated confidence; None if that is unclear.
    """

    level: float
    confidence: float
    cvar_s: float
    excess_s: float
    clusters: int
    left_out: int
    blame: Mapping[str, Blame]
    named: str | None


def attribute(
    parts: Mapping[str, npt.ArrayLike],
    level: float | None = None,
    confidence: float = 0.95,
    runs: npt.ArrayLike | None = None,
    seed: int = BOOTSTRAP_SEED,
) -> Attribution:
    """Share out the tail's excess among parts whose sum is the latency.

    Args:
        parts: Name to seconds spent there, one value for each request in order of intended sending. A request in
            which any part is NaN or infinite never finished; it has no latency to share out and is left out.
        level: Which tail; None for the most extreme of `LEVELS` with at least `MIN_CLUSTERS` independent events.
        confidence: Of the intervals and of `named`.
        runs: Run id of each request if several independent runs are pooled.
        seed: Of the bootstrap, so that the same evidence gives the same shares.

    Raises:
        ValueError: No parts or more than `MAX_PARTS`, parts of unequal length, or fewer than two finished requests.
    """
    names, x, boundaries = _finished(parts, runs)
    total = x.sum(axis=0)
    tail = _tail(total, boundaries, level)
    blocks = _blocks(total.size, 2 * tail.gap, boundaries)
    enough = tail.clusters >= MIN_CLUSTERS
    weights = np.ones((1, blocks.count))
    if enough:
        weights = np.vstack([weights, _resampled(blocks, seed)])
    members, joining = _game(len(names))
    means = blocks.means(x, weights)
    euler = _tail_means(total, x, tail.level, blocks, weights) - means
    cvar = [_tail_means(part := row @ x, part[None], tail.level, blocks, weights) for row in members]
    value = np.hstack(cvar) - means @ members.T
    shapley = value @ joining.T
    whole = value[:, -1:]
    if not whole[0, 0] > 0:
        raise ValueError("every finished request took the same time: there is no excess to share out")
    resampled = whole[1:, 0] > 0
    shares = {
        method: np.vstack([phi[:1] / whole[:1], phi[1:][resampled] / whole[1:][resampled]])
        for method, phi in (("euler", euler), ("shapley", shapley))
    }
    return Attribution(
        level=tail.level,
        confidence=confidence,
        cvar_s=float(whole[0, 0] + total.mean()),
        excess_s=float(whole[0, 0]),
        clusters=tail.clusters,
        left_out=np.size(next(iter(parts.values()))) - total.size,
        blame={
            name: Blame(**{method: _share(found[:, i], confidence, enough=enough) for method, found in shares.items()})
            for i, name in enumerate(names)
        },
        named=_named(names, list(shares.values()), confidence) if enough else None,
    )


@dataclass(frozen=True, slots=True)
class _Tail:
    """The tail that is looked at: its level, independent events in it, and samples between two of them at least."""

    level: float
    clusters: int
    gap: int


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Stretches of requests that are resampled together: the block of each request, and the size of each block."""

    of: IntArray
    sizes: FloatArray

    @property
    def count(self) -> int:
        return self.sizes.size

    def means(self, values: FloatArray, weights: FloatArray) -> FloatArray:
        """Mean of each row of values under each weighting of the blocks, shape [weightings, rows]."""
        sums = np.stack([np.bincount(self.of, row, self.count) for row in values])
        means: FloatArray = weights @ sums.T / (weights @ self.sizes)[:, None]
        return means


def _finished(
    parts: Mapping[str, npt.ArrayLike], runs: npt.ArrayLike | None
) -> tuple[tuple[str, ...], FloatArray, IntArray]:
    if not 1 <= len(parts) <= MAX_PARTS:
        raise ValueError(
            f"parts of the latency: found {len(parts)}, expected 1 to {MAX_PARTS}; merge the smallest ones"
        )
    columns = [np.asarray(part, dtype=np.float64) for part in parts.values()]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise ValueError(
            f"parts of the latency: found shapes {[c.shape for c in columns]}, expected one length for all"
        )
    x = np.stack(columns)
    finished = np.isfinite(x).all(axis=0)
    if np.count_nonzero(finished) < 2:
        raise ValueError("parts of the latency: fewer than two requests finished in every part")
    ids = None if runs is None else np.asarray(runs)[finished]
    x = np.ascontiguousarray(x[:, finished])
    return tuple(parts), x, run_boundaries(ids, x.shape[1])


def _tail(total: FloatArray, boundaries: IntArray, level: float | None) -> _Tail:
    for candidate in LEVELS if level is None else (level,):
        size = max(1, int(total.size * (1 - candidate) + 1e-9))
        threshold = np.partition(total, total.size - size)[total.size - size]
        found = decluster(np.flatnonzero(total >= threshold).astype(np.int64), total.size, boundaries)
        tail = _Tail(candidate, int(found.exceedances / found.design_effect), found.gap)
        if tail.clusters >= MIN_CLUSTERS:
            break
    return tail


def _blocks(n: int, least: int, boundaries: IntArray) -> _Blocks:
    """Blocks of at least so many requests, never across runs."""
    starts = np.zeros(n, dtype=np.int64)
    starts[:: max(least, math.ceil(n / _MOST_BLOCKS))] = 1
    starts[boundaries] = 1
    starts[0] = 0
    of = np.cumsum(starts)
    return _Blocks(of, np.bincount(of).astype(np.float64))


def _resampled(blocks: _Blocks, seed: int) -> FloatArray:
    """How often each block is drawn in each resample, shape [resamples, blocks]."""
    draws = np.random.default_rng(seed).multinomial(blocks.count, np.full(blocks.count, 1 / blocks.count), _RESAMPLES)
    return draws.astype(np.float64)


def _game(parts: int) -> tuple[FloatArray, FloatArray]:
    """Subsets of parts to put a value on, and what takes those values to each part's Shapley value.

    Returns:
        Subsets as rows of zeros and ones, the whole last, [subsets, parts]; weights, [parts, subsets].
    """
    if parts > EXACT_PARTS:
        return _some_orders(parts)
    numbers = np.arange(1, 2**parts)
    members = ((numbers[:, None] >> np.arange(parts)) & 1).astype(np.float64)
    size = members.sum(axis=1).astype(int)
    joins = np.array([1 / (parts * math.comb(parts - 1, s - 1)) for s in size])
    stays = np.array([1 / (parts * math.comb(parts - 1, s)) if s < parts else 0.0 for s in size])
    return members, np.where(members.T == 1, joins, -stays)


def _some_orders(parts: int) -> tuple[FloatArray, FloatArray]:
    """The same from some orders of adding, each forwards and backwards: the shares come within some 2 points.

    Backwards too, so that each part comes as often before each other one as behind it. The values still add up to the
    whole, for they do in every single order.
    """
    rng = np.random.default_rng(parts)
    orders = [rng.permutation(parts) for _ in range(round(_MOST_SUBSETS / (2 * parts)))]
    orders += [order[::-1] for order in orders]
    found: dict[tuple[int, ...], FloatArray] = {}
    for order in orders:
        for place, part in enumerate(order):
            joined, before = (tuple(sorted(order[:end].tolist())) for end in (place + 1, place))
            for subset, sign in ((joined, 1.0), (before, -1.0)):
                if subset:
                    found.setdefault(subset, np.zeros(parts))[part] += sign / len(orders)
    subsets = sorted(found, key=len)
    members = np.array([[float(part in subset) for part in range(parts)] for subset in subsets])
    return members, np.stack([found[subset] for subset in subsets], axis=1)


def _tail_means(by: FloatArray, values: FloatArray, level: float, blocks: _Blocks, weights: FloatArray) -> FloatArray:
    """Mean of each row of values over the requests slowest by `by`, under each weighting; shape [weightings, rows]."""
    slowest = _slowest(by, min(by.size, math.ceil(_SPARE * by.size * (1 - level)) + 100))
    wanted = (1 - level) * (weights @ blocks.sizes)
    means: FloatArray = _slowest_means(np.ascontiguousarray(values[:, slowest].T), blocks.of[slowest], weights, wanted)
    return means


def _slowest(by: FloatArray, least: int) -> IntArray:
    """Positions of at least so many of the largest values, largest first."""
    every = by[::_THIN]
    asked = min(every.size - 1, 2 * least // _THIN + 20)
    # A thinned series finds a threshold in a fraction of the time that the whole would take.
    slowest = np.flatnonzero(by >= np.partition(every, every.size - 1 - asked)[every.size - 1 - asked])
    if slowest.size < least:
        slowest = np.argpartition(by, by.size - least)[by.size - least :]
    return slowest[np.argsort(-by[slowest], kind="stable")]


@numba.njit(cache=True)
def _slowest_means(values: FloatArray, block: IntArray, weights: FloatArray, wanted: FloatArray) -> FloatArray:
    """Weighted mean of rows from the first on until their weights reach what is wanted; the last may count in part."""
    means = np.zeros((wanted.size, values.shape[1]))
    for r in range(wanted.size):
        left = wanted[r]
        for i in range(values.shape[0]):
            weight = min(weights[r, block[i]], left)
            if weight > 0:
                for j in range(values.shape[1]):
                    means[r, j] += weight * values[i, j]
                left -= weight
                if left <= 0:
                    break
        means[r] /= wanted[r] - left
    return means


def _share(found: FloatArray, confidence: float, *, enough: bool) -> Share:
    if not enough:
        return Share(float(found[0]), None, None)
    half = (1 - confidence) / 2
    lower, upper = np.quantile(found[1:], [half, 1 - half])
    return Share(float(found[0]), float(lower), float(upper))


def _named(names: Sequence[str], methods: list[FloatArray], confidence: float) -> str | None:
    largest = {int(found[0].argmax()) for found in methods}
    if len(largest) != 1:
        return None
    (part,) = largest
    sure = all(np.mean(found[1:].argmax(axis=1) == part) >= confidence for found in methods)
    return names[part] if sure else None
