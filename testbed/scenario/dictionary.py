"""A scenario as a JSON-ready dictionary and back, for run folders and for the wire.

The keys are the model's attributes with their units in their names, so the form holds SI numbers and no text that needs
parsing; it is not the format of scenario files. Unknown and missing keys are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from testbed.errors import ScenarioError
from testbed.scenario.faults import Fault, FaultKind
from testbed.scenario.model import (
    Arrivals,
    Datapath,
    Domain,
    DrawnSize,
    ExcessLatency,
    Interval,
    Misbehaviour,
    MmppArrivals,
    ModelSize,
    OnOffArrivals,
    PoissonArrivals,
    Promise,
    RenewalArrivals,
    Requests,
    RequestSize,
    Reservation,
    Scenario,
    Tenant,
    TokenSize,
    TraceArrivals,
    Work,
)

_T = TypeVar("_T")
_MODELS: dict[str, type[Arrivals]] = {
    "poisson": PoissonArrivals,
    "on-off": OnOffArrivals,
    "renewal": RenewalArrivals,
    "mmpp": MmppArrivals,
    "trace": TraceArrivals,
}
_MODEL_NAMES = {kind: name for name, kind in _MODELS.items()}
_SIZES: dict[str, type[RequestSize]] = {"model": ModelSize, "drawn": DrawnSize, "tokens": TokenSize}
_SIZE_NAMES = {kind: name for name, kind in _SIZES.items()}


def to_dict(scenario: Scenario) -> dict[str, Any]:
    """`scenario` as JSON-ready data."""
    written = {
        **asdict(scenario),
        "domains": [_domain_to_dict(domain) for domain in scenario.domains],
        "tenants": [_tenant_to_dict(tenant) for tenant in scenario.tenants],
        "datapath": scenario.datapath.value,
        "source": None if scenario.source is None else str(scenario.source),
    }
    if scenario.faults:
        written["faults"] = [{**asdict(fault), "kind": fault.kind.value} for fault in scenario.faults]
    else:
        # Folders of runs in which nothing was broken stay as they were before there were others.
        del written["faults"]
    return written


def from_dict(data: Mapping[str, Any]) -> Scenario:
    """Inverse of `to_dict`.

    Raises:
        ScenarioError: A key is unknown or missing, or a value is of the wrong shape.
    """
    try:
        return _build(
            Scenario,
            {
                "slow_down": 1.0,
                **data,
                "domains": tuple(_domain_from_dict(domain) for domain in _list(data, "domains")),
                "tenants": tuple(_tenant_from_dict(tenant) for tenant in _list(data, "tenants")),
                "datapath": Datapath(data.get("datapath", "auto")),
                "source": None if data.get("source") is None else Path(data["source"]),
                "faults": tuple(_fault_from_dict(fault) for fault in data.get("faults", ())),
            },
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ScenarioError(f"scenario data: {error}; expected what to_dict() writes") from error


_USUAL_DOMAIN: Mapping[str, Any] = {"segment": None, "shared_queue_bits": None, "excess": None, "loss": 0.0}
"""Of domains in a row, each with a queue a tenant and nothing done to packets; folders of such stay without it."""


def _domain_to_dict(domain: Domain) -> dict[str, Any]:
    return {
        key: value for key, value in asdict(domain).items() if key not in _USUAL_DOMAIN or value != _USUAL_DOMAIN[key]
    }


def _domain_from_dict(data: Mapping[str, Any]) -> Domain:
    return _build(Domain, {**_USUAL_DOMAIN, **data, "excess": _optional(ExcessLatency, data.get("excess"))})


def _tenant_to_dict(tenant: Tenant) -> dict[str, Any]:
    arrivals = {"model": _MODEL_NAMES[type(tenant.arrivals)], **asdict(tenant.arrivals)}
    if isinstance(tenant.arrivals, TraceArrivals):
        arrivals["path"] = str(tenant.arrivals.path)
        if tenant.arrivals.start_s == 0.0 and tenant.arrivals.span_s is None:
            # Folders of whole traces stay as they were before there were stretches.
            del arrivals["start_s"], arrivals["span_s"]
    written = {**asdict(tenant), "arrivals": arrivals}
    if tenant.requests is None:
        # Folders of tenants that send packets stay as they were before there were others.
        del written["requests"]
    else:
        if tenant.requests.token_scale == 1.0:
            # Folders of a time when no model generated text stay as they were.
            del written["requests"]["token_scale"]
        if tenant.requests.work is None:
            # Folders of runs that measured it, and of a time when nothing else was done, stay as they were.
            del written["requests"]["work"]
        written["requests"]["size"] = {"kind": _SIZE_NAMES[type(tenant.requests.size)], **asdict(tenant.requests.size)}
    for key in ("way", "present_s"):
        if written[key] is None:
            del written[key]
    if tenant.misbehaviour is not None and tenant.misbehaviour.strength is None:
        del written["misbehaviour"]["strength"]
    return written


def _fault_from_dict(data: Mapping[str, Any]) -> Fault:
    return _build(Fault, {**data, "kind": FaultKind(data.get("kind", "")), "fails": tuple(data.get("fails", ()))})


def _tenant_from_dict(data: Mapping[str, Any]) -> Tenant:
    return _build(
        Tenant,
        {
            **data,
            "arrivals": _arrivals_from_dict(data.get("arrivals", {})),
            "reservation": _optional(Reservation, data.get("reservation")),
            "promise": _optional(Promise, data.get("promise")),
            "misbehaviour": _misbehaviour_from_dict(data.get("misbehaviour")),
            "requests": _requests_from_dict(data["requests"]) if data.get("requests") is not None else None,
            "way": tuple(data["way"]) if data.get("way") is not None else None,
            "present_s": _present_from_list(data.get("present_s")),
        },
    )


def _misbehaviour_from_dict(data: Mapping[str, Any] | None) -> Misbehaviour | None:
    return None if data is None else _build(Misbehaviour, {"strength": None, **data})


def _present_from_list(data: Any) -> tuple[Interval, ...] | None:
    return None if data is None else tuple((float(begin), float(end)) for begin, end in data)


def _requests_from_dict(data: Mapping[str, Any]) -> Requests:
    size = dict(data.get("size", {}))
    name = size.pop("kind", None)
    if name not in _SIZES:
        raise ScenarioError(f"scenario data: found request sizes of kind {name!r}; expected one of {', '.join(_SIZES)}")
    parameters = {key: tuple(value) for key, value in size.items()}
    work = _optional(Work, data.get("work"))
    return _build(Requests, {"token_scale": 1.0, **data, "size": _build(_SIZES[name], parameters), "work": work})


def _arrivals_from_dict(data: Mapping[str, Any]) -> Arrivals:
    parameters = dict(data)
    name = parameters.pop("model", None)
    if name not in _MODELS:
        raise ScenarioError(f"scenario data: found the arrival model {name!r}; expected one of {', '.join(_MODELS)}")
    if name == "trace" and "path" in parameters:
        parameters = {"start_s": 0.0, "span_s": None, **parameters, "path": Path(parameters["path"])}
    if name == "mmpp":
        parameters["rates_per_s"] = tuple(parameters.get("rates_per_s", ()))
        parameters["switch_per_s"] = tuple(tuple(row) for row in parameters.get("switch_per_s", ()))
    return _build(_MODELS[name], parameters)


def _list(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    items = data.get(key)
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise ScenarioError(f"scenario data: {key}: found no list of mappings; expected what to_dict() writes")
    return items


def _optional(kind: type[_T], data: Mapping[str, Any] | None) -> _T | None:
    return None if data is None else _build(kind, data)


def _build(kind: type[_T], data: Mapping[str, Any]) -> _T:
    wanted = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if set(data) != wanted:
        unknown, missing = sorted(set(data) - wanted), sorted(wanted - set(data))
        raise ScenarioError(
            f"scenario data: {kind.__name__}: found unknown keys {unknown} and missing keys {missing}; expected what "
            "to_dict() writes"
        )
    return kind(**data)
