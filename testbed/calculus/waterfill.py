"""The optimal split of a risk or of a delay among exponentially bounded parts, in closed form and in bulk.

Parts have `P(W_i > x) <= exp(log_m_i - a_i x)` for x >= floor_i. Minimising a sum of delays at a given sum of
probabilities, or the reverse, makes every part that is above its floor pay the same marginal
`mu = m_i a_i exp(-a_i x_i)`: the probability that one more second buys. The total risk is piecewise linear in mu and
the total delay piecewise linear in ln mu, so sorting the marginals at the floors solves both without iteration.

All functions work on the last axis and broadcast over the others. A part whose floor is reached stays there and keeps
its risk; nothing here knows what the parts are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from testbed.calculus.numeric import FloatArray, pick, reorder

_LARGEST_EXPONENT = 700.0
_NO_RISK = -1e200


class Split(NamedTuple):
    """Delays and what they cost.

    Attributes:
        delay_s: Delay of each part, shape (..., parts).
        log_price: ln of the common marginal mu in 1/s, shape (...); minus infinity when every part is at its floor
            and could not be made riskier.
    """

    delay_s: FloatArray
    log_price: FloatArray


def for_risk(log_m: FloatArray, decay: FloatArray, floor: FloatArray, epsilon: FloatArray | float) -> Split:
    """The smallest sum of delays whose probabilities add up to at most epsilon.

    Args:
        log_m: ln of the prefactors, shape (..., parts).
        decay: Decays in 1/s, broadcastable to log_m.
        floor: Smallest delay of each part in seconds, broadcastable to log_m.
        epsilon: Total probability, shape (...) or scalar.
    """
    log_m, decay, floor = np.broadcast_arrays(log_m, decay, floor)
    epsilon = np.asarray(epsilon, dtype=np.float64)
    level = log_m + np.log(decay)
    marginal = level - decay * floor
    order = np.argsort(marginal, axis=-1)
    ordered = reorder(marginal, order)
    width = 1.0 / reorder(decay, order)
    risk = np.exp(np.minimum(ordered, _LARGEST_EXPONENT)) * width
    below = np.cumsum(risk, axis=-1) - risk
    active = np.cumsum(width[..., ::-1], axis=-1)[..., ::-1]
    reached = np.sum(below + risk / width * active <= epsilon[..., None], axis=-1)
    at_floor = reached == log_m.shape[-1]
    index = np.minimum(reached, log_m.shape[-1] - 1)
    spare = np.broadcast_to(epsilon, index.shape) - pick(below, index)
    log_price = np.where(at_floor, ordered[..., -1], np.log(spare / pick(active, index)))
    return Split(_delays(level, log_price, decay, floor), log_price)


def for_delay(log_m: FloatArray, decay: FloatArray, floor: FloatArray, total_s: FloatArray | float) -> Split:
    """The smallest sum of probabilities whose delays add up to at most total_s.

    Args:
        log_m: ln of the prefactors, shape (..., parts).
        decay: Decays in 1/s, broadcastable to log_m.
        floor: Smallest delay of each part in seconds, broadcastable to log_m.
        total_s: Sum of the delays, shape (...) or scalar; where it is below the sum of the floors no split exists and
            the delays are not a number.
    """
    log_m, decay, floor = np.broadcast_arrays(log_m, decay, floor)
    spare = np.asarray(total_s, dtype=np.float64) - floor.sum(axis=-1)
    level = log_m + np.log(decay)
    marginal = level - decay * floor
    order = np.argsort(-marginal, axis=-1)
    high = np.maximum(reorder(marginal, order), _NO_RISK)
    width = 1.0 / reorder(decay, order)
    active = np.cumsum(width, axis=-1)
    weighted = np.cumsum(high * width, axis=-1)
    # Delay spent beyond the floors when mu falls to the marginal of part k: every part before k is active.
    knots = weighted - high * active
    index = np.maximum(np.sum(knots <= spare[..., None], axis=-1) - 1, 0)
    log_price = (pick(weighted, index) - spare) / pick(active, index)
    delay = np.where(spare[..., None] >= 0.0, _delays(level, log_price, decay, floor), np.nan)
    return Split(delay, log_price)


def _delays(level: FloatArray, log_price: FloatArray, decay: FloatArray, floor: FloatArray) -> FloatArray:
    """Where each part's marginal meets the price, or its floor; a part without risk always rests on its floor."""
    with np.errstate(invalid="ignore"):
        return np.fmax(floor, np.where(level > -np.inf, (level - log_price[..., None]) / decay, -np.inf))


def log_risk(log_m: FloatArray, decay: FloatArray, delay_s: FloatArray) -> FloatArray:
    """Logarithm of the sum of the parts' probabilities at the given delays, shape (...)."""
    return np.asarray(np.logaddexp.reduce(log_m - decay * delay_s, axis=-1))
