"""A domain signs what it measured, and the bound of what was signed pays for it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from testbed.envelope.calibration import Calibration, calibrate
from testbed.envelope.descriptor import Envelope, Stage
from testbed.envelope.store import verify
from testbed.errors import ReservationError
from testbed.management.calibrations import Calibrations
from testbed.management.orchestrator import Orchestrator, Outcome
from testbed.scenario.federation import Intent

from .federation_lab import Lab, intent

MEASURED = "core"
ASKED = intent("t1", epsilon=0.05, deadline_s=0.6)
"""In so little hurry that its contract asks for more than its deadline does: its bound leaves room."""
HURRIED = intent("t1", epsilon=0.02, deadline_s=0.25)
"""Reserves no more than its deadline needs."""


def measured(rate_bps: int, mean_s: float, *, n: int = 60_000) -> Calibration:
    """What independent excesses support, most of them zero."""
    rng = np.random.default_rng(7)
    excess_s = np.where(rng.random(n) < 0.01, rng.exponential(mean_s, n), 0.0)
    return calibrate(excess_s, rate_bps=rate_bps, lag_s=rng.exponential(1e-3, n))


def network_envelopes(lab: Lab, outcome: Outcome) -> dict[str, Envelope]:
    sealed: Sequence[bytes] = [data for datas in outcome.envelopes.values() for data in datas]
    found = [verify(data, lab.root.trust, time.time()) for data in sealed]
    return {one.domain: one for one in found if one.subject.stage is Stage.NETWORK}


def server_envelope(lab: Lab, outcome: Outcome) -> Envelope:
    sealed = [data for datas in outcome.envelopes.values() for data in datas]
    found = [verify(data, lab.root.trust, time.time()) for data in sealed]
    (server,) = [one for one in found if one.subject.stage is Stage.COMPUTE]
    return server


def admitted(orchestrator: Orchestrator, asked: Intent = ASKED) -> tuple[Outcome, int]:
    (outcome,) = orchestrator.admit([asked])
    assert outcome.transfer is not None
    return outcome, outcome.transfer.rates_bps[MEASURED]


def test_what_a_domain_measured_is_signed_and_is_in_the_bound(lab: Lab) -> None:
    lab.start()
    with lab.orchestrator() as orchestrator:
        before, rate_bps = admitted(orchestrator)
        found = measured(rate_bps, 0.5e-3)
        Calibrations(lab.seats[MEASURED].folder / "calibrations.json").write({("t1", rate_bps): found})
        after = orchestrator.renegotiate(ASKED)
    assert after.transfer is not None
    signed = network_envelopes(lab, after)
    assert (signed[MEASURED].stochastic, signed[MEASURED].evidence) == (found.stochastic, found.evidence)
    assert all(one.stochastic is None for name, one in signed.items() if name != MEASURED)
    assert after.decision.bound_s is not None
    assert before.decision.bound_s is not None
    assert after.decision.bound_s > before.decision.bound_s
    assert before.transfer is not None
    assert after.transfer.rates_bps == before.transfer.rates_bps
    lab.require_in_step()


def test_a_tenant_whom_the_tails_would_refuse_keeps_what_it_has(lab: Lab) -> None:
    lab.start()
    with lab.orchestrator() as orchestrator:
        before, rate_bps = admitted(orchestrator, HURRIED)
        found = measured(rate_bps, 0.2)
        Calibrations(lab.seats[MEASURED].folder / "calibrations.json").write({("t1", rate_bps): found})
        after = orchestrator.renegotiate(HURRIED)
        assert not after.admitted
        assert after.decision.refusal is not None
        assert "does not keep the promise" in after.decision.refusal.because
        assert before.transfer is not None
        assert [one.transfer for one in orchestrator.held()] == [before.transfer.transfer]
    lab.require_in_step()


def test_what_a_server_measured_is_signed_and_is_in_the_bound(lab: Lab) -> None:
    lab.start()
    with lab.orchestrator() as orchestrator:
        before, rate_bps = admitted(orchestrator)
        declared = server_envelope(lab, before)
        served_bps = declared.guardrails.reserved_rate_bps
        found = measured(min(rate_bps, served_bps), 0.5e-3)
        calibrations = Calibrations(lab.seats[MEASURED].folder / "calibrations.json")
        calibrations.write({}, {("t1", served_bps + 1): found})
        assert server_envelope(lab, orchestrator.renegotiate(ASKED)).stochastic is None
        calibrations.write({}, {("t1", served_bps): found})
        after = orchestrator.renegotiate(ASKED)
        faster = replace(found.stochastic.tail, rate_bps=served_bps) if found.stochastic else None
        assert faster is not None
        assert found.stochastic is not None
        quick = replace(found, stochastic=replace(found.stochastic, tail=replace(faster, rate_bps=rate_bps * 2)))
        calibrations.write({}, {("t1", served_bps): quick})
        refused = orchestrator.renegotiate(ASKED)
    signed = server_envelope(lab, after)
    assert (signed.stochastic, signed.evidence) == (found.stochastic, found.evidence)
    assert signed.guardrails == declared.guardrails
    assert after.decision.bound_s is not None
    assert before.decision.bound_s is not None
    assert after.decision.bound_s > before.decision.bound_s
    assert refused.decision.refusal is not None
    lab.require_in_step()


@pytest.mark.parametrize("key", [("t1", 1), ("t2", 0)])
def test_a_calibration_of_another_rate_or_tenant_is_not_used(key: tuple[str, int], lab: Lab) -> None:
    lab.start()
    with lab.orchestrator() as orchestrator:
        _, rate_bps = admitted(orchestrator)
        tenant, more_bps = key
        supported = {(tenant, rate_bps + more_bps): measured(rate_bps, 1e-3)}
        Calibrations(lab.seats[MEASURED].folder / "calibrations.json").write(supported)
        after = orchestrator.renegotiate(ASKED)
    assert all(one.stochastic is one.evidence is None for one in network_envelopes(lab, after).values())


@pytest.mark.parametrize("content", ["", "[]", '{"t1": 3}', '{"t1": {"rate_bps": RATE}}'])
def test_a_file_of_calibrations_that_is_none_is_named_and_nothing_is_signed(content: str, lab: Lab) -> None:
    lab.start()
    with lab.orchestrator() as orchestrator:
        _, rate_bps = admitted(orchestrator)
        path = lab.seats[MEASURED].folder / "calibrations.json"
        path.write_text(content.replace("RATE", str(rate_bps)), encoding="utf-8")
        after = orchestrator.renegotiate(ASKED)
    assert after.decision.refusal is not None
    assert "found no calibration of t1" in after.decision.refusal.because
    with pytest.raises(ReservationError, match="measure again"):
        Calibrations(path).of("t1", rate_bps)


def test_a_domain_that_measured_nothing_has_nothing_to_say(lab: Lab) -> None:
    assert Calibrations().of("t1", 1) is None
    assert Calibrations(lab.folder / "none.json").of("t1", 1) is None
    with pytest.raises(ValueError, match="no file"):
        Calibrations().write({})
    Calibrations(lab.folder / "some.json").write({("t1", 5): measured(5_000_000, 1e-3)})
    assert set(json.loads((lab.folder / "some.json").read_text())) == {"t1"}
