"""Random valid scenarios, as the text of a file and as the model it must become."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A scenario file as plain data, valid by construction: half of each link is reserved at most."""
    names = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    domains = [draw(_domain(name)) for name in names]
    domains[-1]["compute"] = True
    sites = [domain["name"] for domain in domains if domain.get("compute")]
    tenant_names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    tenants = [draw(_tenant(name, sites)) for name in tenant_names]
    document: dict[str, Any] = {"name": draw(NAMES), "domains": domains, "tenants": tenants}
    document |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "seed": st.integers(0, 2**32 - 1),
                "warm-up": st.integers(1, 7200).map("{} s".format),
                "duration": st.integers(1, 120).map("{} min".format),
                "datapath": st.sampled_from(["auto", "userspace", "kernel"]),
                "allow-zero-delay": st.booleans(),
            },
        )
    )
    return document


def as_yaml(document: dict[str, Any]) -> str:
    """`document` as YAML: JSON is its flow style."""
    return json.dumps(document, indent=1)


@st.composite
def _domain(draw: st.DrawFn, name: str) -> dict[str, Any]:
    optional = {"link-delay": st.integers(0, 20_000).map("{} us".format), "compute": st.booleans()}
    rate = f"{draw(st.integers(400, 10_000))} Mbit/s"
    return {"name": name, "link-rate": rate, **draw(st.fixed_dictionaries({}, optional=optional))}


@st.composite
def _tenant(draw: st.DrawFn, name: str, sites: list[str]) -> dict[str, Any]:
    mean_kbps = draw(st.integers(100, 40_000))
    tenant: dict[str, Any] = {"name": name, "arrivals": draw(_arrivals(mean_kbps))}
    if draw(st.booleans()):
        tenant["site"] = draw(st.sampled_from(sites))
    if draw(st.booleans()):
        rate_kbps = mean_kbps + draw(st.integers(max(10, mean_kbps // 10), 50_000))
        tenant["reservation"] = {"rate": f"{rate_kbps} kbit/s"}
        if draw(st.booleans()):
            tenant["reservation"] |= {"burst": "1 Mbit", "queue": f"{draw(st.integers(2, 100))} kB"}
        if draw(st.booleans()):
            deadline_ms = draw(st.integers(161, 10_000))
            tenant["promise"] = {"deadline": f"{deadline_ms} ms", "epsilon": draw(st.floats(1e-6, 0.5))}
        if draw(st.booleans()):
            tenant["misbehaviour"] = {"kind": "flood", "offered": f"{2 * rate_kbps} kbit/s"}
    return tenant


@st.composite
def _arrivals(draw: st.DrawFn, mean_kbps: int) -> dict[str, Any]:
    size = f"{draw(st.integers(66, 1514))} B"
    model = draw(st.sampled_from(["poisson", "on-off", "renewal", "mmpp"]))
    if model == "on-off":
        on_us, times = draw(st.integers(100, 100_000)), draw(st.integers(1, 9))
        phases = {"mean-on": f"{on_us} us", "mean-off": f"{times * on_us} us"}
        return {"model": model, "peak": f"{mean_kbps * (times + 1)} kbit/s", **phases, "size": size}
    if model == "mmpp":
        stays = draw(st.lists(st.integers(1, 10_000), min_size=2, max_size=4))
        states = [{"rate": f"{mean_kbps} kbit/s", "stay": f"{stay} ms"} for stay in stays]
        states[0] |= draw(st.fixed_dictionaries({}, optional={"next": st.just([0, *[2.5] * (len(stays) - 1)])}))
        return {"model": model, "states": states, "size": size}
    arrivals = {"model": model, "rate": f"{mean_kbps} kbit/s", "size": size}
    if model == "renewal":
        gap, cv = draw(
            st.sampled_from(
                [("deterministic", 0), ("erlang", 0.5), ("gamma", 0.3), ("gamma", 2), ("hyperexponential", 3)]
            )
        )
        arrivals |= {"gap": gap, "cv": cv}
    return arrivals
