"""A scenario in a few lines, in which derived guardrails stand like written ones.

For readers of `testbed validate` and of reports; nothing decides anything by these texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from testbed.scenario.faults import Fault, FaultKind
from testbed.scenario.federation import Intent, Market, Operator
from testbed.scenario.model import (
    Arrivals,
    DrawnSize,
    MmppArrivals,
    ModelSize,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    RequestSize,
    Scenario,
    Tenant,
    TokenSize,
    TraceArrivals,
)
from testbed.scenario.units import RATE, SIZE, TIME, quantity


def lines(scenario: Scenario) -> list[str]:
    """Headline, domains, and a block a tenant, each line without its end."""
    width = max(len(tenant.name) for tenant in scenario.tenants)
    times = f"warm-up {quantity(scenario.warmup_s, TIME)}, window {quantity(scenario.duration_s, TIME)}"
    if scenario.cooldown_s:
        times += f", cool-down {quantity(scenario.cooldown_s, TIME)}"
    described = [
        f"{scenario.name}: {times}, seed {scenario.seed}, datapath {scenario.datapath}",
        "domains: " + " > ".join(_domains(scenario)),
    ]
    for tenant in scenario.tenants:
        first, *others = _tenant(tenant)
        described.append(f"{tenant.name:{width}}  {first}")
        described.extend(f"{'':{width}}  {line}" for line in others)
    return [*described, *(_fault(fault) for fault in scenario.faults)]


def _fault(fault: Fault) -> str:
    spread = f" .. {quantity(fault.at_s + fault.spread_s, TIME)}" if fault.spread_s else ""
    who = f"{', '.join(fault.fails)} must fail" if fault.fails else "nobody may fail"
    said = f"fault {fault.name}: {fault.describe()}, at {quantity(fault.at_s, TIME)}{spread}"
    if fault.kind is FaultKind.DISK_FULL:
        return f"{said} of the last window, which ends the run"
    return f"{said} for {quantity(fault.for_s, TIME)}; {who}, over within {quantity(fault.recovery_s, TIME)}"


def market_lines(sold: Market) -> list[str]:
    """Headline, a line an operator, and a line an intent, each without its end."""
    described = [f"{sold.name}: {len(sold.intents)} intents by the rule {sold.rule}"]
    described += [f"{operator.segment}: {operator.name} {_operator(operator)}" for operator in sold.operators]
    width = max(len(intent.tenant) for intent in sold.intents)
    return [*described, *(f"{intent.tenant:{width}}  {_intent(intent)}" for intent in sold.intents)]


def market_record(sold: Market) -> dict[str, Any]:
    """A federation as JSON-ready data, with the attributes of the model."""
    written = asdict(sold)
    for intent in written["intents"]:
        intent["domains"] = None if intent["domains"] is None else sorted(intent["domains"])
    return {**written, "source": None if sold.source is None else str(sold.source)}


def _operator(operator: Operator) -> str:
    def parts() -> Iterator[str]:
        yield f"{quantity(operator.link_rate_bps, RATE)} ({quantity(operator.reservable_bps, RATE)} reservable)"
        if operator.link_delay_s:
            yield f"+ {quantity(operator.link_delay_s, TIME)}"
        yield f"at {operator.price_per_mbps:g} a Mbit/s"
        if operator.site is not None:
            served = ", ".join(f"{model.name} ({100 * model.accuracy:.3g} %)" for model in operator.site.models)
            yield f"with {served} on {operator.site.workers} workers at {operator.site.price:g}"

    return " ".join(parts())


def _intent(intent: Intent) -> str:
    where = "" if intent.domains is None else f" by way of {', '.join(sorted(intent.domains))} only"
    share = f"{100 * (1 - intent.epsilon):.6g} %"
    return (
        f"wants {intent.task} at {100 * intent.accuracy:.4g} % or better within {quantity(intent.deadline_s, TIME)} "
        f"for {share} of {arrivals_text(intent.arrivals)}, for at most {intent.price:g}{where}"
    )


def arrivals_text(arrivals: Arrivals) -> str:
    """Model, mean rate and packet size."""
    size = quantity(arrivals.size_bits, SIZE)
    match arrivals:
        case PoissonArrivals(rate_per_s=rate, size_bits=bits):
            return f"Poisson {quantity(rate * bits, RATE)}, {size}"
        case OnOffArrivals(peak_bps=peak, mean_on_s=on, mean_off_s=off):
            mean = quantity(peak * on / (on + off), RATE)
            return f"on-off {mean} (peak {quantity(peak, RATE)}), {size}"
        case RenewalArrivals(rate_per_s=rate, gap=gap, cv=cv, size_bits=bits):
            return f"{gap} gaps (cv {cv:g}) {quantity(rate * bits, RATE)}, {size}"
        case MmppArrivals(rates_per_s=rates, size_bits=bits):
            mean, most = (quantity(rate * bits, RATE) for rate in (arrivals.rate_per_s, max(rates)))
            return f"Poisson modulated by {len(rates)} states {mean} (up to {most}), {size}"
        case TraceArrivals():
            return f"trace {arrivals.path.name} at {arrivals.speed_up:g} times its speed, up to {size}"


def _sizes_text(size: RequestSize) -> str:
    match size:
        case ModelSize():
            return "as large as they are"
        case TokenSize():
            return "padded by the trace's tokens"
        case DrawnSize(size_bits=bits):
            return "padded to " + " or ".join(quantity(each, SIZE) for each in bits)


def _domains(scenario: Scenario) -> list[str]:
    return [
        f"{domain.name} {quantity(domain.link_rate_bps, RATE)}"
        + (f" + {quantity(domain.link_delay_s, TIME)}" if domain.link_delay_s else "")
        + (f" (one queue of {quantity(queue, SIZE)})" if (queue := domain.shared_queue_bits) is not None else "")
        + (f" (late: {quantity(late.mean_s, TIME)} at {late.share:.3g})" if (late := domain.excess) is not None else "")
        + (f" (loses {domain.loss:.3g})" if domain.loss else "")
        + (" (compute)" if domain.compute else "")
        for domain in scenario.domains
    ]


def _tenant(tenant: Tenant) -> list[str]:
    described = [f"declares {arrivals_text(tenant.arrivals)}, served at {tenant.site}"]
    asked = tenant.requests
    if asked is not None:
        images = f"{asked.images} image{'s' if asked.images > 1 else ''}"
        subject = images if asked.images else f"text by the trace's tokens ({asked.token_scale:g} B each)"
        what = f"{subject} for {asked.model}, {_sizes_text(asked.size)}"
        described.append(
            f"each asks {what}, with {100 * asked.compute_share:.4g} % of the server and {asked.in_flight:,} in flight"
        )
    reserved = tenant.reservation
    if reserved is None:
        described.append("best effort")
    else:
        rate, meter = quantity(reserved.rate_bps, RATE), quantity(reserved.meter_rate_bps, RATE)
        burst, queue = quantity(reserved.burst_bits, SIZE), quantity(reserved.queue_bits, SIZE)
        described.append(f"reserves {rate}; meter {meter} with a burst of {burst}; queue {queue}")
    if tenant.promise is not None:
        share = f"{100 * (1 - tenant.promise.epsilon):.6g} %"
        what = "packets" if asked is None else "requests"
        described.append(f"is promised {quantity(tenant.promise.deadline_s, TIME)} for {share} of its {what}")
    breach = tenant.misbehaviour
    if breach is not None and breach.offered_bps is not None:
        described.append(f"floods at {quantity(breach.offered_bps, RATE)}")
    elif breach is not None:
        strength = "" if breach.strength is None else f", with strength {breach.strength:g}"
        described.append(f"bursts together with the group {breach.group}{strength}")
    if tenant.present_s is not None:
        stay_s = sum(end - begin for begin, end in tenant.present_s)
        times = "once" if len(tenant.present_s) == 1 else f"{len(tenant.present_s)} times"
        described.append(f"comes {times} and is there for {quantity(stay_s, TIME)} of the window")
    return described
