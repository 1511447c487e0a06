from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NetworkDemand(_message.Message):
    __slots__ = ("client", "server", "rate_bps", "meter_rate_bps", "burst_bits", "queue_bits", "largest_packet_bits")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    RATE_BPS_FIELD_NUMBER: _ClassVar[int]
    METER_RATE_BPS_FIELD_NUMBER: _ClassVar[int]
    BURST_BITS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_BITS_FIELD_NUMBER: _ClassVar[int]
    LARGEST_PACKET_BITS_FIELD_NUMBER: _ClassVar[int]
    client: str
    server: str
    rate_bps: int
    meter_rate_bps: int
    burst_bits: int
    queue_bits: int
    largest_packet_bits: int
    def __init__(self, client: _Optional[str] = ..., server: _Optional[str] = ..., rate_bps: _Optional[int] = ..., meter_rate_bps: _Optional[int] = ..., burst_bits: _Optional[int] = ..., queue_bits: _Optional[int] = ..., largest_packet_bits: _Optional[int] = ...) -> None: ...

class ComputeDemand(_message.Message):
    __slots__ = ("model", "share_ppm", "largest_request_bits", "meter_rate_bps", "burst_bits")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SHARE_PPM_FIELD_NUMBER: _ClassVar[int]
    LARGEST_REQUEST_BITS_FIELD_NUMBER: _ClassVar[int]
    METER_RATE_BPS_FIELD_NUMBER: _ClassVar[int]
    BURST_BITS_FIELD_NUMBER: _ClassVar[int]
    model: str
    share_ppm: int
    largest_request_bits: int
    meter_rate_bps: int
    burst_bits: int
    def __init__(self, model: _Optional[str] = ..., share_ppm: _Optional[int] = ..., largest_request_bits: _Optional[int] = ..., meter_rate_bps: _Optional[int] = ..., burst_bits: _Optional[int] = ...) -> None: ...

class Demand(_message.Message):
    __slots__ = ("tenant", "network", "compute", "replaces")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    network: NetworkDemand
    compute: ComputeDemand
    replaces: str
    def __init__(self, tenant: _Optional[str] = ..., network: _Optional[_Union[NetworkDemand, _Mapping]] = ..., compute: _Optional[_Union[ComputeDemand, _Mapping]] = ..., replaces: _Optional[str] = ...) -> None: ...

class OfferRequest(_message.Message):
    __slots__ = ("request_id", "demands")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEMANDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    demands: _containers.RepeatedCompositeFieldContainer[Demand]
    def __init__(self, request_id: _Optional[str] = ..., demands: _Optional[_Iterable[_Union[Demand, _Mapping]]] = ...) -> None: ...

class Offered(_message.Message):
    __slots__ = ("tenant", "reservation", "envelopes", "price_micro", "refused")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    PRICE_MICRO_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    reservation: str
    envelopes: _containers.RepeatedScalarFieldContainer[bytes]
    price_micro: int
    refused: str
    def __init__(self, tenant: _Optional[str] = ..., reservation: _Optional[str] = ..., envelopes: _Optional[_Iterable[bytes]] = ..., price_micro: _Optional[int] = ..., refused: _Optional[str] = ...) -> None: ...

class OfferAnswer(_message.Message):
    __slots__ = ("offers",)
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    offers: _containers.RepeatedCompositeFieldContainer[Offered]
    def __init__(self, offers: _Optional[_Iterable[_Union[Offered, _Mapping]]] = ...) -> None: ...

class Presented(_message.Message):
    __slots__ = ("reservation", "envelopes")
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    reservation: str
    envelopes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, reservation: _Optional[str] = ..., envelopes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("request_id", "presented", "lease_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PRESENTED_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    presented: _containers.RepeatedCompositeFieldContainer[Presented]
    lease_ms: int
    def __init__(self, request_id: _Optional[str] = ..., presented: _Optional[_Iterable[_Union[Presented, _Mapping]]] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class ChangeRequest(_message.Message):
    __slots__ = ("request_id", "reservations", "lease_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVATIONS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    reservations: _containers.RepeatedScalarFieldContainer[str]
    lease_ms: int
    def __init__(self, request_id: _Optional[str] = ..., reservations: _Optional[_Iterable[str]] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("reservation", "tenant", "state", "number", "expires_s", "refused", "owner")
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    reservation: str
    tenant: str
    state: str
    number: int
    expires_s: float
    refused: str
    owner: str
    def __init__(self, reservation: _Optional[str] = ..., tenant: _Optional[str] = ..., state: _Optional[str] = ..., number: _Optional[int] = ..., expires_s: _Optional[float] = ..., refused: _Optional[str] = ..., owner: _Optional[str] = ...) -> None: ...

class HoldingAnswer(_message.Message):
    __slots__ = ("holdings",)
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    holdings: _containers.RepeatedCompositeFieldContainer[Holding]
    def __init__(self, holdings: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("with_holdings",)
    WITH_HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    with_holdings: bool
    def __init__(self, with_holdings: _Optional[bool] = ...) -> None: ...

class Resource(_message.Message):
    __slots__ = ("name", "capacity", "held")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    name: str
    capacity: int
    held: int
    def __init__(self, name: _Optional[str] = ..., capacity: _Optional[int] = ..., held: _Optional[int] = ...) -> None: ...

class ReportAnswer(_message.Message):
    __slots__ = ("domain", "prospectus", "resources", "holdings")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    PROSPECTUS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    domain: str
    prospectus: bytes
    resources: _containers.RepeatedCompositeFieldContainer[Resource]
    holdings: _containers.RepeatedCompositeFieldContainer[Holding]
    def __init__(self, domain: _Optional[str] = ..., prospectus: _Optional[bytes] = ..., resources: _Optional[_Iterable[_Union[Resource, _Mapping]]] = ..., holdings: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ...) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HealthAnswer(_message.Message):
    __slots__ = ("in_step", "repairs", "expired", "refusals", "last_problem")
    class RefusalsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    IN_STEP_FIELD_NUMBER: _ClassVar[int]
    REPAIRS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    LAST_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    in_step: bool
    repairs: int
    expired: int
    refusals: _containers.ScalarMap[str, int]
    last_problem: str
    def __init__(self, in_step: _Optional[bool] = ..., repairs: _Optional[int] = ..., expired: _Optional[int] = ..., refusals: _Optional[_Mapping[str, int]] = ..., last_problem: _Optional[str] = ...) -> None: ...
