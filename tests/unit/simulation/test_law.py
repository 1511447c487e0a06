"""Laws on a grid are never smaller than what they stand for, and not much larger."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from testbed.simulation.law import EVENED, Law, evened_turns, turns


def mean(law: Law) -> float:
    return sum(value * share for value, share in law.atoms)


def test_a_sample_is_rounded_up_by_less_than_a_step() -> None:
    drawn = np.random.default_rng(1).lognormal(0.0, 0.5, 10_000)
    law = Law.of_sample(drawn)
    values, share = np.array(law.atoms).T
    assert share.sum() == pytest.approx(1.0)
    assert values[-1] == drawn.max()
    for level in (0.1, 0.5, 0.9, 0.999):
        rounded = values[np.searchsorted(np.cumsum(share), level)]
        assert 1.0 <= rounded / np.quantile(drawn, level) < 1.06


def test_a_sum_is_that_of_independent_values() -> None:
    one, other = Law(((1.0, 0.5), (2.0, 0.5))), Law(((0.0, 0.75), (10.0, 0.25)))
    total = one.plus(other)
    assert sum(share for _, share in total.atoms) == pytest.approx(1.0)
    assert mean(one) + mean(other) <= mean(total) < 1.06 * (mean(one) + mean(other))
    assert total.atoms[-1] == (pytest.approx(12.0), pytest.approx(0.125))


def test_what_happens_sometimes_is_nothing_otherwise() -> None:
    law = Law(((4.0, 1.0),)).sometimes(0.25)
    assert law.atoms == ((0.0, 0.75), (4.0, 0.25))
    assert law.times(2.0).atoms[1] == (8.0, 0.25)
    assert law.sometimes(1.0) is law


def test_turns_are_whole_ones_and_as_often_one_more_as_is_left_over() -> None:
    coin = Law(((1.0, 0.5), (2.0, 0.5)))
    assert turns([(2.0, Law(((3.0, 1.0),)))]).atoms == ((6.0, 1.0),)
    assert mean(coin.power(3)) == pytest.approx(4.5, rel=0.1)
    assert coin.power(3).atoms[-1] == (pytest.approx(6.0), pytest.approx(0.125))
    both = turns([(0.25, coin), (0.5, coin)])
    assert 1.125 <= mean(both) < 1.25
    assert both.atoms[0][1] == pytest.approx(0.5), "whose turn comes less often has it when the other one has, too"
    assert turns([]).atoms == ((0.0, 1.0),)


# Others that take turns of about 1 during one of a tenant's, on average so many of each; its own computation of .5; and
# what the network keeps it busy with.
NEARLY = Law(((1.0, 0.9), (1.05, 0.1)))
COIN = Law(((0.2, 0.5), (1.0, 0.5)))
TURNS = {
    "half a turn of each of two": ([(0.5, NEARLY), (0.5, NEARLY)], 0.0),
    "the same behind a network as busy": ([(0.5, NEARLY), (0.5, NEARLY)], 1.5),
    "one and a half behind a network": ([(1.5, NEARLY)], 2.0),
    "one and a half that vary": ([(1.5, COIN)], 0.0),
    "few of one and many of another": ([(0.3, COIN), (2.7, COIN)], 2.0),
}


def sizes(each: list[tuple[float, Law]], n: int) -> np.ndarray:
    """What a tenant's requests and whole turns of others between them take of a server."""
    rng = np.random.default_rng(7)
    size = np.full(n, 0.5)
    for number, law in each:
        values, share = np.array(law.atoms).T
        until = np.floor(np.arange(n + 1) * number).astype(np.int64)
        total = np.append(0.0, np.cumsum(rng.choice(values, until[-1], p=share)))
        size += np.diff(total[until])
    return size


def gaps(rate: float, n: int) -> np.ndarray:
    return np.random.default_rng(8).exponential(1 / rate, n)


def departures(arrival: np.ndarray, size: np.ndarray | float) -> np.ndarray:
    """Of a queue that serves one after the other."""
    done = np.cumsum(np.broadcast_to(size, arrival.shape))
    return np.maximum.accumulate(arrival - (done - size)) + done


def decay(law: Law, network: float, rate: float) -> float:
    """Theta of Lundberg's bound for Poisson requests."""
    size, share = np.array(law.atoms).T
    size = np.maximum(size + 0.5, network)

    def drift(theta: float) -> float:
        return rate * float(share @ np.expm1(theta * size)) - theta

    return float(brentq(drift, 1e-6, next(high for high in 0.01 * 1.5 ** np.arange(40) if drift(high) > 0)))


def rate_at(law: Law, network: float, load: float) -> float:
    size, share = np.array(law.atoms).T
    return load / float(share @ np.maximum(size + 0.5, network))


@pytest.mark.parametrize("name", TURNS)
def test_waits_behind_turns_that_are_no_whole_number_keep_lundbergs_bound_without_a_prefactor(name: str) -> None:
    """Each request keeps the busier of two stages, one of them with whole turns of others."""
    each, network = TURNS[name]
    law, n = turns(each), 1_000_000
    rate = rate_at(law, network, 0.8)
    arrival, size = np.cumsum(gaps(rate, n)), np.maximum(sizes(each, n), network)
    waited, theta = departures(arrival, size) - size - arrival, decay(law, network, rate)
    for epsilon in (0.1, 0.01, 0.001):
        assert np.mean(waited >= -np.log(epsilon) / theta) <= epsilon


@pytest.mark.parametrize("name", TURNS)
def test_latencies_of_two_stages_keep_the_bound_of_turns_that_are_evened_out_at_its_price(name: str) -> None:
    each, network = TURNS[name]
    law, n = evened_turns(each), 1_000_000
    rate = rate_at(law, network, 0.8)
    arrival, served = np.cumsum(gaps(rate, n)), sizes(each, n)
    latency, theta = departures(departures(arrival, network), served) - arrival, decay(law, network, rate)
    # The request's own on both stages, and of each of the others the turn in its way and those for evening them out.
    own = network + 0.5 + (1 + EVENED) * sum(one.atoms[-1][0] for _, one in each)
    for epsilon in (0.1, 0.01, 0.001):
        assert np.mean(latency >= own - np.log(epsilon) / theta) <= epsilon
