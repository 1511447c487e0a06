"""What a simulation takes as given of requests: what they are on the wire, how long they are computed, how well.

On paper that is what the scenario declares, the protocols' headers added up, and the record that ships with the models.
A run that counted and measured it is better; its samples are all that is needed. Nothing is guessed: a tenant of whom
nothing says how long its requests are computed is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtr

from inference_server.digits import CLASSES
from inference_server.generated.open_inference_pb2 import ModelInferResponse
from inference_server.protocol import GENERATED, MOST_GENERATED, Stamps
from testbed.errors import ScenarioError
from testbed.report.record import RunRecord, read_record
from testbed.scenario.model import Requests, Scenario, Tenant, Work
from testbed.scenario.tenant_fields import ACCURACIES
from testbed.simulation.asking import Wire
from testbed.simulation.impairment import AtMost, Constant, Draw, Lognormal, Measured
from testbed.simulation.law import Law
from testbed.telemetry import request_samples
from testbed.telemetry.request_samples import RequestSamples
from testbed.traffic.request_demand import EMPTY_BITS, HEADERS_BYTES, SEGMENT_BYTES
from testbed.traffic.request_records import OK
from testbed.traffic.request_wire import ID_DIGITS, OUTPUT

LONGEST_SIGMAS = 3.719
"""Of a lognormal law 99.99 % lie below; what is declared is no longer than that, so that a server can promise it."""

_LARGE = 2**62
"""A clock's reading in ns, for the size of its number in a message."""
_CLOCK = Stamps(_LARGE, _LARGE, _LARGE, _LARGE)
_NO_FRAME_BYTES = 14
"""The header of a DATA frame and gRPC's own five bytes: what a message never goes without."""


@dataclass(frozen=True)
class Known:
    """What is known of one tenant's requests.

    Attributes:
        out: What its messages are on the wire.
        back: What its answers are on the wire.
        answer_bytes: Size of an answer's message.
        work: Draws the seconds that computations take.
        expected_s: Their mean.
        longest_s: None takes longer.
        accuracy: Share of the images that are classified rightly; None where that is not known.
        source: Who says so.
        works_s: The law of computations, rounded up, for bounds.
    """

    out: Wire
    back: Wire
    answer_bytes: int
    work: Draw
    expected_s: float
    longest_s: float
    accuracy: float | None
    works_s: Law
    source: str = "as declared"


def known(scenario: Scenario, measured: Path | None = None) -> dict[str, Known]:
    """What is known of every tenant that sends requests, by name.

    Args:
        scenario: The tenants.
        measured: Folder of a run that measured some or all of them; the others are taken as declared.

    Raises:
        ScenarioError: Nothing says how long somebody's requests are computed, or the run asked something else.
        TestbedError: No such folder, or one that this version cannot read.
    """
    found = known_of_some(scenario, measured)
    for tenant in scenario.tenants:
        if tenant.requests is not None and tenant.name not in found:
            raise ScenarioError(f"tenant {tenant.name}: {unknown(tenant.requests)}")
    return found


def known_of_some(scenario: Scenario, measured: Path | None = None) -> dict[str, Known]:
    """The same without the tenants of whom nothing says how long their requests are computed.

    Raises:
        ScenarioError: The run asked something else.
        TestbedError: No such folder, or one that this version cannot read.
    """
    record = None if measured is None else read_record(measured)
    return {
        tenant.name: found
        for tenant in scenario.tenants
        if (asked := tenant.requests) is not None and (found := _known(tenant, asked, measured, record)) is not None
    }


def unknown(asked: Requests) -> str:
    """What is missing where nothing says how long requests are computed, and how to mend it."""
    return (
        f"found requests to {asked.model} and nothing that says how long one is computed, expected work, such as "
        "work: {mean: 3 ms, cv: 0.2}, under requests or a run that measured it; add it, or name the run's folder with "
        "--measured"
    )


def _known(tenant: Tenant, asked: Requests, folder: Path | None, record: RunRecord | None) -> Known | None:
    if folder is not None and record is not None:
        windows = [folder / w.requests[tenant.name] for w in record.windows if tenant.name in w.requests]
        if windows:
            return _measured(tenant, asked, folder, record, [request_samples.read(path) for path in windows])
    return None if asked.work is None else declared(asked, asked.work)


def declared(asked: Requests, work: Work) -> Known:
    """What a scenario says of a tenant's requests, and how long it says that they are computed."""
    law: Draw = Constant(work.mean_s)
    longest_s = work.mean_s
    works_s = Law(((work.mean_s, 1.0),))
    if work.cv > 0:
        sigma = math.sqrt(math.log1p(work.cv**2))
        longest_s = work.mean_s * math.exp(LONGEST_SIGMAS * sigma - sigma**2 / 2)
        law = AtMost(Lognormal(work.mean_s, work.cv), longest_s)
        works_s = Law.of(longest_s, lambda edges: ndtr((np.log(edges / work.mean_s) + sigma**2 / 2) / sigma))
    return Known(
        out=Wire(),
        back=Wire(),
        answer_bytes=_answer_bytes(asked),
        work=law,
        expected_s=work.mean_s,
        longest_s=longest_s,
        accuracy=ACCURACIES.get(asked.model),
        works_s=works_s,
    )


def _answer_bytes(asked: Requests) -> int:
    """Size of the largest answer that the inference server gives to such a request."""
    answer = ModelInferResponse(model_name=asked.model, model_version="1", id="0" * ID_DIGITS)
    if asked.images:
        answer.outputs.add(name=OUTPUT, datatype="FP32", shape=[asked.images, CLASSES])
        answer.raw_output_contents.append(bytes(4 * asked.images * CLASSES))
    else:
        answer.outputs.add(name=GENERATED, datatype="UINT8", shape=[MOST_GENERATED])
        answer.raw_output_contents.append(bytes(MOST_GENERATED))
    _CLOCK.write(answer.parameters)
    return len(answer.SerializeToString())


def _measured(tenant: Tenant, asked: Requests, folder: Path, record: RunRecord, windows: list[RequestSamples]) -> Known:
    """What a run counted and measured of a tenant's requests."""
    found = next((one.requests for one in record.tenants if one.name == tenant.name), None)
    if found is None or (found.model, found.images) != (asked.model, asked.images):
        raise ScenarioError(
            f"tenant {tenant.name}: found {'no requests' if found is None else _asks(found.model, found.images)} in "
            f"{folder}, expected {_asks(asked.model, asked.images)} as in the scenario; name a run of the same requests"
        )
    told = [window.take(_undisturbed(window)) for window in windows]
    work_s = np.concatenate([window.compute_s for window in told])
    if not work_s.size:
        raise ScenarioError(
            f"tenant {tenant.name}: found no answered request in {folder}, expected some whose computations were "
            "measured; name another run"
        )
    answers = np.concatenate([window.response_bytes for window in told])
    return Known(
        out=_wire(told, back=False, factor=found.framing_out),
        back=_wire(told, back=True, factor=found.framing_back),
        answer_bytes=int(answers.max()),
        work=Measured(tuple(work_s.tolist())),
        expected_s=float(work_s.mean()),
        longest_s=float(work_s.max()),
        accuracy=found.accuracy,
        works_s=Law.of_sample(work_s),
        source=f"as run {record.run_id} measured it",
    )


def _asks(model: str, images: int) -> str:
    return f"{images} images for {model}" if images else f"text from {model}"


def _undisturbed(window: RequestSamples) -> np.ndarray:
    """Which requests were answered, were seen on the wire both ways, and were touched by no impairment; [n]."""
    seen = (window.status == OK) & np.isfinite(window.compute_s) & (window.out_bits > 0) & (window.back_bits > 0)
    return np.asarray(seen if window.impaired is None else seen & (window.impaired == 0))


def _wire(windows: list[RequestSamples], *, back: bool, factor: float | None) -> Wire:
    """Frames and packets without payload of one direction, as they were counted, whole numbers of them."""
    messages = np.concatenate([window.response_bytes if back else window.request_bytes for window in windows])
    call_bits = np.concatenate([window.back_bits if back else window.out_bits for window in windows])
    frames = np.array(list(_frame_bytes(messages, call_bits)))
    other_bits = 0.0 if factor is None else factor * 8 * float(messages.sum()) - float(call_bits.sum())
    return Wire(max(0, round(float(frames.mean()))), max(0, round(other_bits / messages.size / EMPTY_BITS)))


def _frame_bytes(messages: np.ndarray, call_bits: np.ndarray) -> Iterator[float]:
    """What each call added to its message, beside the headers of as few packets as its bytes need."""
    for message, bits in zip(messages.tolist(), call_bits.tolist(), strict=True):
        packets = -(-(message + _NO_FRAME_BYTES) // SEGMENT_BYTES)
        yield bits / 8 - message - HEADERS_BYTES * packets


def sources(found: Mapping[str, Known]) -> str:
    """Who says what is known, in a few words; empty where nobody sends requests."""
    by: dict[str, list[str]] = {}
    for name, one in found.items():
        by.setdefault(one.source, []).append(name)
    return "; ".join(f"requests of {', '.join(names)} {source}" for source, names in by.items())
