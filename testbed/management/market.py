"""What a domain sells and what is left of it: the prospectus that planning starts from, and what a purchase costs.

A prospectus binds nobody; only a signed envelope does. It is computed from the operator's own description
(`testbed.scenario.federation.Operator`) and travels as JSON, checked when it arrives.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from testbed.errors import ReservationError
from testbed.management.admission import Guest
from testbed.management.house import House
from testbed.management.sealing import QUEUED_HOPS
from testbed.scenario.federation import Operator, ServedModel, Site

NETWORK = "network"
"""Resource: bit/s reserved on the links."""
CLASSES = "classes"
"""Resource: reserved classes of a port."""
COMPUTE = "compute"
"""Resource: millionths of the inference server."""
SEATS = "seats"
"""Resource: tenants that share the inference server."""

WHOLE_PPM = 1_000_000

MAX_PROSPECTUS_BYTES = 65_536
MAX_MODELS = 64
"""Models of one site; every one of them is a route of its own by each way there."""


def house_of(operator: Operator) -> House:
    """The fullest its ports become."""
    return House(operator.reservable_bps, operator.classes, operator.packet_bits, operator.drain_bps)


def network_latency_s(operator: Operator) -> float:
    """T of the domain for every reservation: both queued ports of a full house, the link, the host's allowance."""
    return QUEUED_HOPS * house_of(operator).latency_s + operator.link_delay_s + operator.host_allowance_s


def compute_latency_s(site: Site, model: ServedModel) -> float:
    """T of the server for a tenant of `model` when every seat is taken.

    `(c - 1)/c w + w` for its own requests, and one longest computation of everybody else, spread over the workers
    (docs/calculus.md, "Compute stage").
    """
    own_s = (site.workers - 1) / site.workers * model.work_s + model.work_s
    return own_s + (site.seats - 1) * _longest_s(site) / site.workers


def compute_guest(tenant: str, site: Site, model: ServedModel) -> Guest:
    """A tenant of the server as one of its crowd, in seconds of computation."""
    return Guest(tenant, model.work_s, (site.seats - 1) * _longest_s(site))


def _longest_s(site: Site) -> float:
    return max(model.work_s for model in site.models)


def capacities(operator: Operator) -> dict[str, int]:
    """How much of each resource there is, for the domain's ledger."""
    found = {NETWORK: operator.reservable_bps, CLASSES: operator.classes}
    if operator.site is not None:
        found |= {COMPUTE: WHOLE_PPM, SEATS: operator.site.seats}
    return found


def network_price(operator: Operator, rate_bps: float) -> float:
    """Per hour, of a reserved rate."""
    return operator.price_per_mbps * rate_bps / 1e6


def compute_price(site: Site, share: float) -> float:
    """Per hour, of a share of the server."""
    return site.price * share


@dataclass(frozen=True)
class Prospectus:
    """What a domain sells and what of it nobody holds.

    Attributes:
        operator: The domain.
        free: What is left of each resource.
    """

    operator: Operator
    free: dict[str, int]

    @classmethod
    def of(cls, operator: Operator) -> Self:
        """A domain with nothing sold yet."""
        return cls(operator, capacities(operator))

    def to_json(self) -> bytes:
        """Wire form."""
        return _Prospectus(operator=_Operator(**asdict(self.operator)), free=self.free).model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Inverse of `to_json`.

        Raises:
            ReservationError: Not a prospectus, or none that can be planned with; every field that is wrong is named.
        """
        if len(data) > MAX_PROSPECTUS_BYTES:
            raise ReservationError(f"prospectus: found {len(data)} bytes, expected at most {MAX_PROSPECTUS_BYTES}")
        try:
            found = _Prospectus.model_validate_json(data)
        except ValidationError as error:
            raise ReservationError(
                [f"prospectus: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            ) from error
        operator = found.operator.operator()
        # A house that promises nothing finite is found out here, before a plan for everybody rests on it.
        network_latency_s(operator)
        sold = capacities(operator)
        if found.free.keys() != sold.keys():
            raise ReservationError(f"prospectus: free: found {sorted(found.free)}, expected {sorted(sold)}")
        if over := [name for name, left in found.free.items() if left > sold[name]]:
            raise ReservationError(f"prospectus: free: found more of {', '.join(over)} left than there is altogether")
        return cls(operator, found.free)


_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
# Wide enough for any domain, and narrow enough that no arithmetic with them overflows.
_Positive = Annotated[float, Field(ge=1e-12, le=1e15)]
_NotNegative = Annotated[float, Field(ge=0, le=1e15)]
_Count = Annotated[int, Field(gt=0, le=2**53 - 1)]


class _Model(BaseModel):
    model_config = _STRICT
    name: str
    task: str
    accuracy: Annotated[float, Field(ge=0, le=1)]
    work_s: _Positive
    answer_bits: _Count


class _Site(BaseModel):
    model_config = _STRICT
    workers: _Count
    seats: _Count
    price: _NotNegative
    models: Annotated[tuple[_Model, ...], Field(min_length=1, max_length=MAX_MODELS, strict=False)]


class _Operator(BaseModel):
    model_config = _STRICT
    name: str
    segment: str
    link_rate_bps: _Count
    reservable_bps: _Count
    classes: _Count
    drain_bps: _Positive
    price_per_mbps: _NotNegative
    link_delay_s: _NotNegative
    host_allowance_s: _NotNegative
    packet_bits: _Count
    site: _Site | None
    calibrated: bool

    def operator(self) -> Operator:
        sold = None
        if self.site is not None:
            models = tuple(ServedModel(**model.model_dump()) for model in self.site.models)
            sold = Site(self.site.workers, self.site.seats, self.site.price, models)
        return Operator(**{**self.model_dump(), "site": sold})


class _Prospectus(BaseModel):
    model_config = _STRICT
    operator: _Operator
    free: dict[str, Annotated[int, Field(ge=0)]]


def operator_from_json(data: bytes | str) -> Operator:
    """An operator's description as an agent is given it; raises `ReservationError` like `Prospectus.from_json`."""
    try:
        return _Operator.model_validate_json(data).operator()
    except ValidationError as error:
        raise ReservationError(
            [f"operator: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        ) from error
