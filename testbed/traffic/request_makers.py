"""Which maker a tenant's requests have: images for a digit classifier, a trace's tokens for a model of text."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from inference_server.digits import Digits, held_out
from inference_server.protocol import MOST_CONTEXT, MOST_GENERATED
from testbed.errors import ScenarioError
from testbed.scenario.model import Arrivals, Requests, TraceArrivals
from testbed.traffic.request_wire import Maker, RequestMaker, TextMaker
from testbed.traffic.workloads import read_workload

IntArray = npt.NDArray[np.int64]


def maker_of(tenant: str, asked: Requests, arrivals: Arrivals) -> Maker:
    """Makes the messages of a tenant.

    Args:
        tenant: Its name.
        asked: What it asks of the server.
        arrivals: How its requests arrive.

    Raises:
        ScenarioError: No trace of tokens for a model of text, or tokens beyond what the model takes.
    """
    if asked.images:
        return RequestMaker(tenant, asked.model, asked.images, _images())
    return TextMaker(tenant, asked.model, text_tokens(arrivals, asked.token_scale))


def text_tokens(arrivals: Arrivals, scale: float) -> IntArray:
    """Bytes of context and bytes to generate that each row of a trace becomes, at least one of each; int64[n, 2].

    Raises:
        ScenarioError: No trace of tokens, or tokens beyond what the model takes.
    """
    if not isinstance(arrivals, TraceArrivals) or arrivals.bits_per_token < 1:
        raise ScenarioError(
            f"requests for text: found {type(arrivals).__name__}, expected the trace of a format that counts tokens; "
            "choose such a trace, or a digit classifier"
        )
    trace = read_workload(arrivals)
    tokens: IntArray = np.rint(scale * np.stack([trace.request, trace.response], axis=1)).astype(np.int64).clip(1)
    beyond = int(np.any(tokens > (MOST_CONTEXT, MOST_GENERATED), axis=1).sum())
    if beyond:
        context, count = tokens.max(axis=0).tolist()
        raise ScenarioError(
            f"trace {arrivals.path}: found up to {context:,} bytes of context and {count:,} to generate ({beyond:,} of "
            f"{len(tokens):,} rows are beyond the model), expected at most {MOST_CONTEXT:,} and {MOST_GENERATED:,}; "
            f"choose a token-scale of {_largest_scale(trace.request, trace.response):.3g} or less"
        )
    return tokens


def _largest_scale(request: IntArray, response: IntArray) -> float:
    most = min(MOST_CONTEXT / max(1, int(request.max())), MOST_GENERATED / max(1, int(response.max())))
    return float(np.floor(1000 * most) / 1000)


@cache
def _images() -> Digits:
    return held_out()
