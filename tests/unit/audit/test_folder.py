"""A run folder audited: from the record and the samples alone to verdicts, contracts, causes and counterfactuals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.audit.contracts import ContractVerdict
from testbed.audit.folder import audit_run
from testbed.envelope.descriptor import Stage, Subject
from testbed.envelope.store import issue
from testbed.errors import TestbedError
from testbed.report.record import (
    EnvelopeRecord,
    GateRecord,
    ImpairmentRecord,
    RunRecord,
    WindowRecord,
    read_record,
    write_record,
)
from testbed.report.tenant_record import ConformanceRecord, TenantRecord
from testbed.telemetry import request_samples
from testbed.telemetry.lag import replay
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.samples import TenantSamples, write
from tests.unit.audit import asking
from tests.unit.audit.test_contracts import envelope
from tests.unit.envelope.samples import key

DOMAINS = ("access", "metro", "core")
RATE_BPS, SIZE_BITS = 10_000_000, 8000


def window(seed: int, n: int = 30_000, *, pause_share: float = 0.0) -> TenantSamples:
    """Poisson packets at load .6 through one queue in the first domain, 1 ms more in each, pauses of 30 ms in metro."""
    rng = np.random.default_rng(seed)
    sent = np.cumsum(rng.exponential(SIZE_BITS / RATE_BPS / 0.6, n))
    service = SIZE_BITS / RATE_BPS
    work = np.arange(n) * service
    start = np.maximum.accumulate(sent - work) + work
    border = np.empty((n, 4))
    border[:, 0] = sent + 1e-4
    border[:, 1] = start + 1e-3
    pause = np.where(rng.random(n) < pause_share, 0.03, 0.0)
    border[:, 2] = np.maximum.accumulate(border[:, 1] + 1e-3 + pause)
    border[:, 3] = border[:, 2] + 1e-3
    return TenantSamples(
        tenant="alice",
        number=1,
        domains=DOMAINS,
        window_start_ns=0,
        sequence=np.arange(n),
        intended_s=sent - 1e-5,
        sent_s=sent,
        size_bits=np.full(n, SIZE_BITS, dtype=np.int32),
        border_s=border,
    )


def signed(domain: str, tenant: str, signer: str) -> dict[str, Any]:
    """A promise of no impairment beyond T = 5 ms, for bursts of up to 2 Mbit, as it was signed."""
    promised = replace(envelope(domain, impaired=False), version=2)
    promised = replace(promised, guardrails=replace(promised.guardrails, burst_bits=2_000_000))
    promised = replace(promised, subject=replace(promised.subject, tenant=tenant))
    found: dict[str, Any] = json.loads(issue(promised, [key(signer)]))
    return found


def computing(domain: str, tenant: str) -> dict[str, Any]:
    """A promise to compute each request within 5 ms of its turn, 2 ms each, as it was signed."""
    promised = replace(envelope(domain, impaired=False), version=2)
    rails = replace(
        promised.guardrails,
        reserved_rate_bps=round(asking.SIZE_BITS / 2e-3),
        meter_rate_bps=RATE_BPS,
        largest_packet_bits=asking.SIZE_BITS,
    )
    promised = replace(promised, subject=Subject(tenant, "reserved", "digits", Stage.COMPUTE), guardrails=rails)
    found: dict[str, Any] = json.loads(issue(promised, [key(domain)]))
    return found


def folder(
    path: Path,
    windows: Sequence[TenantSamples | RequestSamples],
    *,
    valid: bool = True,
    nonconforming: int = 0,
    installed_bps: float = RATE_BPS,
    confidence: float = 0.95,
    deadline_s: float = 0.025,
    counted: int | None = None,
) -> Path:
    path.mkdir(exist_ok=True)
    described = []
    for index, samples in enumerate(windows):
        name = f"{index}.parquet"
        if isinstance(samples, TenantSamples):
            write(path / name, samples, replay(samples, installed_bps, [0.0] * len(samples.domains)))
            files = {"samples": {samples.tenant: name}, "requests": {}}
        else:
            request_samples.write(path / name, samples)
            files = {"samples": {}, "requests": {samples.tenant: name}}
        described.append(WindowRecord(index=index, seed=index, duration_s=60, valid=valid, **files))
    tenant, domains = windows[0].tenant, windows[0].domains
    record = RunRecord(
        run_id="made-up",
        name="made up",
        kind="network",
        created="2026-01-01T00:00:00Z",
        testbed_version="0",
        command=(),
        datapath="netdev",
        verdict="PASS",
        scenario={"tenants": [{"name": tenant, "promise": {"confidence": confidence}}]},
        public_keys={d: key(d).public_key.raw.hex() for d in domains},
        gates=(GateRecord(name=f"host allowance, {tenant}", value=0.0, limit=2.5e-4, ok=valid),),
        envelopes=tuple(EnvelopeRecord(domain=d, tenant=tenant, version=2, dsse=signed(d, tenant, d)) for d in domains),
        tenants=(
            TenantRecord(
                name=tenant,
                n=sum(map(len, windows)) if counted is None else counted,
                misses=0,
                lost=0,
                p999_s=None,
                p999_interval_s=None,
                p999_lower_s=None,
                ideal_p999_s=None,
                bound_s=None,
                bound_method=None,
                deadline_s=deadline_s,
                epsilon=0.001,
                verdict="PASS",
                conformance=ConformanceRecord(
                    offered=1, nonconforming=nonconforming, meter_dropped=0, queue_dropped=0, delivered=1
                )
                if isinstance(windows[0], TenantSamples)
                else None,
            ),
        ),
        windows=tuple(described),
    )
    write_record(path, record)
    return path


def test_a_run_that_kept_everything_passes_and_nobody_is_accused(tmp_path: Path) -> None:
    found = audit_run(folder(tmp_path / "run", [window(1), window(2)]))
    (tenant,) = found.tenants
    assert (found.verdict, tenant.verdict, tenant.audit.n) == ("PASS", "PASS", 60_000)
    assert [finding.domain for finding in tenant.contracts] == list(DOMAINS)
    assert all(finding.verdict is not ContractVerdict.BROKEN for finding in tenant.contracts)
    assert tenant.counterfactuals == ()


def test_the_slow_tail_of_a_kept_promise_is_the_tenants_own_burst(tmp_path: Path) -> None:
    (tenant,) = audit_run(folder(tmp_path / "run", [window(1)])).tenants
    assert tenant.audit.attribution is not None
    assert tenant.causes is not None
    assert tenant.audit.attribution.named == "access"
    assert tenant.causes.named == "tenant's own burst"
    assert sum(blame.euler.share for blame in tenant.causes.blame.values()) == pytest.approx(1)


def test_a_domain_that_paused_is_accused_named_and_taken_out(tmp_path: Path) -> None:
    found = audit_run(folder(tmp_path / "run", [window(1, pause_share=0.005), window(2, pause_share=0.005)]))
    (tenant,) = found.tenants
    assert found.verdict == "FAIL"
    assert [finding.verdict is ContractVerdict.BROKEN for finding in tenant.contracts] == [False, True, False]
    assert tenant.causes is not None
    assert tenant.causes.named == "metro"
    (line,) = tenant.counterfactuals
    assert line.domain == "metro"
    assert line.kept_s < 0.02
    assert line.measured_s > 0.03
    document = found.to_dict()["tenants"]["alice"]
    assert any("Had metro kept its envelope" in said for said in document["findings"])
    assert document["contracts"][1]["verdict"] == "BROKEN"


def test_a_few_packets_that_the_host_may_delay_accuse_nobody(tmp_path: Path) -> None:
    samples = window(3)
    border = samples.border_s.copy()
    border[5000:5003, 1:] += 0.02
    (tenant,) = audit_run(folder(tmp_path / "run", [replace(samples, border_s=border)])).tenants
    assert all(finding.verdict is not ContractVerdict.BROKEN for finding in tenant.contracts)


def test_of_an_invalid_run_nothing_is_said_about_domains(tmp_path: Path) -> None:
    found = audit_run(folder(tmp_path / "run", [window(1, pause_share=0.005)], valid=False))
    (tenant,) = found.tenants
    assert (found.verdict, tenant.verdict) == ("INVALID", "INVALID")
    assert tenant.contracts == ()
    assert found.to_dict()["tenants"]["alice"]["findings"][0].startswith("The host could not keep up")


def test_a_tenant_that_broke_its_contract_excuses_every_domain(tmp_path: Path) -> None:
    found = audit_run(folder(tmp_path / "run", [window(1, pause_share=0.005)], nonconforming=9))
    (tenant,) = found.tenants
    assert (found.verdict, tenant.verdict) == ("EXCUSED", "EXCUSED")
    assert tenant.sentences()[0].startswith("The tenant broke its own contract")
    assert all(finding.verdict is ContractVerdict.EXCUSED for finding in tenant.contracts)


def test_lost_packets_count_where_they_were_lost(tmp_path: Path) -> None:
    samples = window(4)
    border = samples.border_s.copy()
    lost = np.random.default_rng(5).choice(len(samples), 300, replace=False)
    border[lost, 2:] = np.nan
    (tenant,) = audit_run(folder(tmp_path / "run", [replace(samples, border_s=border)])).tenants
    assert tenant.audit.unanswered == 300
    losses = {
        finding.domain: next(s.measured for s in finding.statements if s.name == "loss") for finding in tenant.contracts
    }
    assert losses == {"access": 0, "metro": 0.01, "core": 0}
    assert [finding.n for finding in tenant.contracts] == [30_000, 30_000, 29_700]


def test_a_domain_is_measured_against_the_rate_it_signed_not_the_one_it_installed(tmp_path: Path) -> None:
    # The first queue served at 7 Mbit/s and so did the ideal server of the run; 10 Mbit/s were signed for.
    rng = np.random.default_rng(6)
    samples = window(6)
    work = np.arange(len(samples)) * (SIZE_BITS / (0.7 * RATE_BPS))
    border = samples.border_s.copy()
    border[:, 1] = np.maximum.accumulate(border[:, 0] - work) + work + 1e-3
    border[:, 2:] = border[:, 1:2] + 1e-3 * np.arange(1, 3) + rng.uniform(0, 1e-5, (len(samples), 1))
    slow = replace(samples, border_s=border)
    (tenant,) = audit_run(folder(tmp_path / "run", [slow], installed_bps=0.7 * RATE_BPS)).tenants
    assert [finding.verdict is ContractVerdict.BROKEN for finding in tenant.contracts] == [True, False, False]


def test_a_promise_is_judged_at_the_confidence_that_it_states(tmp_path: Path) -> None:
    def upper(confidence: float) -> float:
        (tenant,) = audit_run(folder(tmp_path / str(confidence), [window(7)], confidence=confidence)).tenants
        assert tenant.audit.compliance is not None
        assert tenant.audit.compliance.confidence == confidence
        return tenant.audit.compliance.miss_rate_upper

    assert upper(0.99) > upper(0.9)


def with_idle(path: Path, *, promised: bool, alone: bool = False) -> Path:
    """The same folder of a run, with a tenant of which there is not one sample."""
    record = read_record(path)
    idle = record.tenants[0].model_copy(update={"name": "idle", "n": 0})
    if not promised:
        idle = idle.model_copy(update={"deadline_s": None, "epsilon": None, "verdict": "NONE"})
    write_record(path, record.model_copy(update={"tenants": (idle,) if alone else (*record.tenants, idle)}))
    return path


def test_a_promise_without_a_sample_is_undetermined_and_so_is_its_run(tmp_path: Path) -> None:
    found = audit_run(with_idle(folder(tmp_path / "run", [window(8)]), promised=True))
    idle = found.to_dict()["tenants"]["idle"]
    assert {tenant.tenant: tenant.verdict for tenant in found.tenants} == {"alice": "PASS", "idle": "UNDETERMINED"}
    assert found.verdict == "UNDETERMINED"
    assert (idle["n"], idle["miss_rate_upper"], idle["samples_needed"]) == (0, 1.0, 2995)
    assert idle["quantiles"]["0.999"]["estimate_s"] is None
    assert idle["findings"][0].startswith("There is not one sample of it")
    invalid = audit_run(with_idle(folder(tmp_path / "invalid", [window(8)], valid=False), promised=True, alone=True))
    assert (invalid.verdict, invalid.tenants[0].verdict) == ("INVALID", "INVALID")


def test_a_run_whose_clock_was_set_back_can_be_audited(tmp_path: Path) -> None:
    before = window(8)
    later = np.arange(len(before)) >= len(before) // 2
    after = replace(before, border_s=before.border_s - np.where(later, 1.0, 0.0)[:, None])
    found = audit_run(folder(tmp_path / "run", [after], valid=False))
    assert (found.verdict, [tenant.verdict for tenant in found.tenants]) == ("INVALID", ["INVALID"])


def test_a_run_that_promised_nothing_has_no_verdict(tmp_path: Path) -> None:
    found = audit_run(with_idle(folder(tmp_path / "run", [window(8)]), promised=False, alone=True))
    assert (found.verdict, found.tenants) == ("NONE", ())


def test_what_was_seen_of_packets_that_never_arrived_blames_nobody(tmp_path: Path) -> None:
    # Half a second in access before metro lost them: no latency, so no share of anybody's.
    samples = window(4)
    border = samples.border_s.copy()
    lost = np.random.default_rng(5).choice(len(samples), 300, replace=False)
    border[lost, 1] += 0.5
    border[lost, 2:] = np.nan
    (tenant,) = audit_run(folder(tmp_path / "run", [replace(samples, border_s=border)])).tenants
    assert tenant.audit.attribution is not None
    assert tenant.causes is not None
    assert (tenant.audit.attribution.left_out, tenant.causes.left_out) == (300, 300)
    assert tenant.audit.attribution.cvar_s < 0.1
    blames = [said for said in tenant.sentences() if "by Euler" in said]
    assert len(blames) == 2
    assert all(said.endswith("300 never answered are left out of this.") for said in blames)


def test_what_the_host_does_in_every_domain_accuses_none(tmp_path: Path) -> None:
    # Pauses of the host, 30 ms in 2 % of the packets wherever they are, far more often than its gate's share.
    samples = window(9)
    rng = np.random.default_rng(9)
    border = samples.border_s.copy()
    for d in (1, 2, 3):
        pause = np.where(rng.random(len(samples)) < 0.02, 0.03, 0.0)
        border[:, d] = np.maximum.accumulate(np.maximum(border[:, d], border[:, d - 1]) + pause)
    (tenant,) = audit_run(folder(tmp_path / "run", [replace(samples, border_s=border)])).tenants
    assert all(finding.verdict is not ContractVerdict.BROKEN for finding in tenant.contracts)


def test_requests_are_judged_on_the_whole_way_and_every_kind_of_failure_is_a_miss(tmp_path: Path) -> None:
    seen = asking.failed(asking.window(1), timeout=5, rejected=4, error=3, skipped=2, to_come=50)
    found = audit_run(folder(tmp_path / "run", [seen], deadline_s=0.04))
    (tenant,) = found.tenants
    assert tenant.audit.compliance is not None
    assert (tenant.audit.n, tenant.audit.unanswered, tenant.audit.compliance.misses) == (19_950, 14, 14)
    assert (tenant.verdict, found.verdict) == ("UNDETERMINED", "UNDETERMINED")
    assert tenant.endings is not None
    assert (tenant.endings.accuracy, tenant.endings.timeouts) == (0.75, 5)
    document = found.to_dict()["tenants"]["vision"]
    assert document["requests"]["accuracy"] == 0.75
    assert any("75.00% of the images were classified rightly" in said for said in document["findings"])
    late = audit_run(folder(tmp_path / "late", [seen], deadline_s=0.008))
    assert late.verdict == "FAIL"


@pytest.mark.parametrize(
    ("injected", "place", "cause"),
    [
        ({"pause_share": 0.01}, "east", "east"),
        ({"slow_share": 0.01}, "server queue", "inference queueing"),
        ({"slow_share": 0.01, "shared": False}, "compute", "compute"),
        ({}, "west", "tenant's own burst"),
    ],
    ids=["pauses in a domain", "computations others wait for", "slow computations", "nothing but its own bursts"],
)
def test_what_made_requests_slow_is_named_by_place_and_by_cause(
    tmp_path: Path, injected: dict[str, float], place: str, cause: str
) -> None:
    windows = [asking.window(seed, **injected) for seed in (1, 2)]
    (tenant,) = audit_run(folder(tmp_path / "run", windows)).tenants
    assert tenant.audit.attribution is not None
    assert tenant.causes is not None
    assert tenant.audit.attribution.named == place
    assert tenant.causes.named == cause
    assert set(tenant.audit.attribution.blame) == {
        "client wait", "west", "east", "server queue", "compute", "network back", "residual",
    }  # fmt: skip
    broken = [finding.domain for finding in tenant.contracts if finding.verdict is ContractVerdict.BROKEN]
    assert broken == (["east"] if cause == "east" else [])


def test_a_request_tenant_beyond_its_bucket_excuses_every_domain_and_that_is_shown(tmp_path: Path) -> None:
    seen = asking.window(1, 4000, pause_share=0.01)
    flood = replace(seen, out_bits=3 * seen.out_bits)
    found = audit_run(folder(tmp_path / "run", [flood]))
    (tenant,) = found.tenants
    assert tenant.verdict == "EXCUSED"
    assert {finding.verdict for finding in tenant.contracts} == {ContractVerdict.EXCUSED}
    count = tenant.contracts[0].nonconforming
    assert count > 0
    assert any(f"vision sent {count} requests beyond its token bucket" in said for said in tenant.sentences())
    assert found.to_dict()["tenants"]["vision"]["contracts"][0]["nonconforming"] == count


def with_server(path: Path) -> Path:
    """The same folder of a run in which the last domain has signed for its server too."""
    record = read_record(path)
    computes = EnvelopeRecord(domain="east", tenant="vision", version=2, dsse=computing("east", "vision"))
    write_record(path, record.model_copy(update={"envelopes": (*record.envelopes, computes)}))
    return path


def test_a_server_is_held_to_the_envelope_of_its_compute_stage(tmp_path: Path) -> None:
    def verdict(name: str, **injected: float) -> ContractVerdict:
        path = with_server(folder(tmp_path / name, [asking.window(seed, **injected) for seed in (1, 2)]))
        (tenant,) = audit_run(path).tenants
        *network, server = tenant.contracts
        assert (server.domain, server.stage) == ("east", Stage.COMPUTE)
        assert all(finding.verdict is not ContractVerdict.BROKEN for finding in network)
        assert "he server of east" in server.reason
        return server.verdict

    assert verdict("kept") is not ContractVerdict.BROKEN
    assert verdict("slow", slow_share=0.02) is ContractVerdict.BROKEN


def test_what_was_done_to_a_server_on_purpose_is_said_with_what_it_cost(tmp_path: Path) -> None:
    samples = asking.failed(asking.window(3), error=20)
    path = folder(tmp_path / "run", [samples])
    record = read_record(path)
    # Every hundredth request failed, the first twenty of them: number 100 to 2,000.
    end_s = float(samples.intended_s[2_050])
    crash = ImpairmentRecord(
        server="h1", tenants=("vision",), kind="crash", amount=0.0, seed=7, begin_s=end_s, end_s=None
    )
    slow = ImpairmentRecord(
        server="h1", tenants=("vision",), kind="slow-down", amount=3.0, seed=7, begin_s=-1.0, end_s=end_s
    )
    other = crash.model_copy(update={"server": "h2", "tenants": ("beta",)})
    (seen,) = record.windows
    write_record(
        path, record.model_copy(update={"windows": (seen.model_copy(update={"impairments": (slow, crash, other)}),)})
    )
    (tenant,) = audit_run(path).tenants
    slowed, crashed = tenant.impairments
    assert slowed == (
        f"Its server was made worse on purpose in window 0, slow down by 3 times from -1.00 s to {end_s:.2f} s: of "
        "2,050 requests due meanwhile 20 were never answered."
    )
    assert f"crash from {end_s:.2f} s to the end: of 17,950 requests due meanwhile 0 were" in crashed
    assert set(tenant.impairments) <= set(tenant.sentences())


def test_requests_that_a_server_refuses_are_the_errors_of_the_last_domain(tmp_path: Path) -> None:
    seen = asking.failed(asking.window(1), rejected=4, error=3, timeout=5)
    (tenant,) = audit_run(folder(tmp_path / "run", [seen])).tenants
    assert [finding.verdict for finding in tenant.contracts] == [ContractVerdict.UNDETERMINED, ContractVerdict.BROKEN]
    assert "error: " in tenant.contracts[1].reason


@pytest.mark.parametrize(
    ("endings", "verdict", "said"),
    [
        ({"rejected": 4}, ContractVerdict.BROKEN, "the server of east broke its envelope for vision: error: 0.0002"),
        ({"error": 1}, ContractVerdict.BROKEN, "error: 5e-05 of the requests, at most 0 promised"),
        ({"timeout": 9, "skipped": 3}, ContractVerdict.UNDETERMINED, "but 19988 requests cannot certify"),
    ],
    ids=["refused", "failed", "without an answer, which proves nothing about who lost them"],
)
def test_a_server_that_signed_answers_for_its_own_errors_and_no_network_for_them(
    tmp_path: Path, endings: dict[str, int], verdict: ContractVerdict, said: str
) -> None:
    path = with_server(folder(tmp_path / "run", [asking.failed(asking.window(1), **endings)]))
    (tenant,) = audit_run(path).tenants
    *network, server = tenant.contracts
    assert server.verdict is verdict
    assert said.lower() in server.reason.lower()
    assert {finding.verdict for finding in network} == {ContractVerdict.UNDETERMINED}


def test_requests_that_never_crossed_are_no_loss_of_a_domain_for_tcp_sends_again(tmp_path: Path) -> None:
    seen = asking.failed(asking.window(1), timeout=20)
    out = seen.out_s.copy()
    out[seen.status != 0, 1:] = np.nan
    (tenant,) = audit_run(folder(tmp_path / "run", [replace(seen, out_s=out)])).tenants
    losses = [said for finding in tenant.contracts for said in finding.statements if said.name == "loss"]
    assert [(said.measured, said.promised) for said in losses] == [(0.0, losses[0].promised)] * 2
    assert {finding.verdict for finding in tenant.contracts} == {ContractVerdict.UNDETERMINED}


def test_a_path_of_eight_domains_has_a_blame_and_causes(tmp_path: Path) -> None:
    samples = window(10, pause_share=0.01)
    border = np.concatenate([samples.border_s, samples.border_s[:, -1:] + 1e-3 * np.arange(1, 6)], axis=1)
    long = replace(samples, domains=(*DOMAINS, "four", "five", "six", "seven", "eight"), border_s=border)
    (tenant,) = audit_run(folder(tmp_path / "run", [long])).tenants
    assert tenant.causes is not None
    assert tenant.causes.named == "metro"
    assert sum(blame.shapley.share for blame in tenant.causes.blame.values()) == pytest.approx(1)


def test_a_simulation_that_recorded_only_its_first_packets_says_so(tmp_path: Path) -> None:
    (tenant,) = audit_run(folder(tmp_path / "run", [window(11)], counted=1_000_000)).tenants
    assert (tenant.audit.n, tenant.counted) == (30_000, 1_000_000)
    assert tenant.sentences()[0].startswith("The first 30,000 of 1,000,000 packets were recorded and are judged here")


@pytest.mark.parametrize(
    ("dsse", "said"),
    [
        (signed("metro", "alice", "mallory"), "signature by key"),
        (signed("core", "alice", "metro"), "found the promise of core to alice"),
        (signed("metro", "bob", "metro"), "found the promise of metro to bob"),
        ({}, "expected an object of payload"),
    ],
    ids=["signed by somebody else", "another domain's", "another tenant's", "not signed"],
)
def test_no_domain_is_held_to_what_it_did_not_sign(tmp_path: Path, dsse: dict[str, Any], said: str) -> None:
    path = folder(tmp_path / "run", [window(1, 1000)])
    record = read_record(path)
    access, metro, core = record.envelopes
    forged = metro.model_copy(update={"dsse": dsse})
    write_record(path, record.model_copy(update={"envelopes": (access, forged, core)}))
    with pytest.raises(TestbedError, match=f"envelope of metro for alice: .*{said}"):
        audit_run(path)
