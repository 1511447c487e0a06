"""From a plan to the scenario that a network is built and judged by: who is where, what was reserved and promised.

A `Market` says what operators sell and tenants want, a plan who serves whom; a `Scenario` says what a run needs.
Pure: nothing is offered, reserved or built here. What a run cannot emulate is refused before anything is begun.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from testbed.errors import ScenarioError
from testbed.management import market
from testbed.management.planner import Decision, plan
from testbed.scenario.definition import MOST_DOMAINS
from testbed.scenario.federation import Intent, Market
from testbed.scenario.model import Domain, DrawnSize, Promise, Requests, Reservation, Scenario, Tenant
from testbed.scenario.slow_down import require_kept, slowed_market
from testbed.scenario.tenant_fields import MODELS

IN_FLIGHT = 10_000
"""Most requests of a tenant that may be unanswered: more than any deadline lets come together."""


def scenario_of(sold: Market, decisions: Sequence[Decision], *, workers: int) -> Scenario:
    """What is to be emulated: every operator, and every tenant that was admitted.

    Args:
        sold: The federation.
        decisions: One for each intent, in their order.
        workers: Of each inference server of a run.

    Raises:
        ScenarioError: Nobody was admitted, or something cannot be emulated; everything of that kind is named.
    """
    problems = list(_problems(sold, workers))
    if problems:
        raise ScenarioError(problems)
    domains = tuple(
        Domain(one.name, one.link_rate_bps, one.link_delay_s, compute=one.site is not None, segment=one.segment)
        for segment in sold.segments
        for one in sold.operators
        if one.segment == segment
    )
    tenants = tuple(
        _tenant(intent, decision)
        for intent, decision in zip(sold.intents, decisions, strict=True)
        if decision.purchases
    )
    if not tenants:
        raise ScenarioError(
            f"federation {sold.name}: found no intent that can be reserved for, expected at least one; "
            "`testbed plan` says what stands in the way"
        )
    return Scenario(
        name=sold.name,
        domains=domains,
        tenants=tenants,
        seed=sold.seed,
        warmup_s=sold.warmup_s,
        duration_s=sold.duration_s,
        cooldown_s=sold.cooldown_s,
        datapath=sold.datapath,
        allow_zero_delay=sold.allow_zero_delay,
        source=sold.source,
        faults=sold.faults,
        slow_down=sold.slow_down,
    )


def slowed_scenario_of(sold: Market, factor: float, *, workers: int) -> tuple[Market, Scenario]:
    """A federation slowed down, and what is to be emulated of it: what is planned of it as it is, at slower rates.

    Args:
        sold: As it was written.
        factor: How many times slower.
        workers: Of each inference server of a run.

    Raises:
        ScenarioError: As `scenario_of`; no such factor; or the plan of the slower rates is another one.
    """
    before = plan(sold)
    written = scenario_of(sold, before, workers=workers)
    slow = slowed_market(sold, factor)
    after = plan(slow)
    if problems := [p for one, other in zip(before, after, strict=True) if (p := _otherwise(one, other, factor))]:
        raise ScenarioError(problems)
    scenario = scenario_of(slow, after, workers=workers)
    require_kept(written, scenario, factor)
    return slow, scenario


def _otherwise(before: Decision, after: Decision, factor: float) -> str:
    """How an intent is decided otherwise once it is slowed down; empty if it is not."""
    planned, again = ("refused" if one.route is None else str(one.route) for one in (before, after))
    if planned == again:
        return ""
    because = "" if after.refusal is None else f" because of {after.refusal.because}"
    return (
        f"intent {before.tenant}: found {again}{because}, slowed down {factor:g} times, expected {planned}, which is "
        "the plan of the file as it is; slow down less"
    )


def _tenant(intent: Intent, decision: Decision) -> Tenant:
    first, last = decision.purchases[0], decision.purchases[-1]
    route = decision.route
    if route is None:
        raise ScenarioError(f"tenant {intent.tenant}: reservations without a route")
    return Tenant(
        name=intent.tenant,
        arrivals=intent.arrivals,
        site=route.where,
        reservation=Reservation(first.rate_bps, first.meter_rate_bps, first.burst_bits, first.queue_bits),
        promise=Promise(intent.deadline_s, intent.epsilon),
        requests=Requests(
            model=route.model.name,
            images=1,
            size=DrawnSize((intent.arrivals.size_bits,)),
            in_flight=IN_FLIGHT,
            timeout_s=intent.deadline_s,
            compute_share=last.share_ppm / market.WHOLE_PPM,
        ),
        way=route.domains,
    )


def _problems(sold: Market, workers: int) -> Iterator[str]:
    if len(sold.operators) > MOST_DOMAINS:
        yield (
            f"federation {sold.name}: found {len(sold.operators)} operators, expected at most {MOST_DOMAINS}, which is "
            "what one host emulates; leave some out, or only plan"
        )
    if sold.rule == "none":
        yield (
            f"federation {sold.name}: found the rule none, under which nothing is reserved, expected another one to "
            "run; choose peak, deterministic or stochastic, or only plan"
        )
    for operator in sold.operators:
        if operator.site is None:
            continue
        if operator.site.workers != workers:
            yield (
                f"operator {operator.name}: found a server of {operator.site.workers} workers, expected {workers}, "
                "which is what a host that emulates all of them can spare; change workers, or only plan"
            )
        strange = sorted({model.name for model in operator.site.models} - set(MODELS))
        if strange:
            yield (
                f"operator {operator.name}: found the models {', '.join(strange)}, expected some of "
                f"{', '.join(MODELS)}, which ship with the server; choose these, or only plan"
            )
