"""From what was tried to the tier a host reaches, and from what failed to what to do."""

from __future__ import annotations

import json
import subprocess
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from testbed.doctor import diagnose as diagnosing
from testbed.doctor import host
from testbed.doctor.diagnose import PROBES, Probe, attempt, diagnose
from testbed.doctor.findings import Check, Diagnosis, Tier
from testbed.doctor.host import LONGEST_STALL_S, ProbeError, slow_down
from testbed.errors import PreflightError

NAMES = tuple(probe.name for probe in PROBES)
KERNEL_ONLY = {"kernel-datapath", "kernel-meter", "kernel-queue", "kernel-tcp", "netem"}
USERSPACE_ONLY = {"tun", "descriptors", "userspace-datapath", "userspace-meter", "userspace-queue", "userspace-tcp"}
QUALITY = {"clock", "stalls"}


def diagnosis_without(*failing: str) -> Diagnosis:
    return Diagnosis.of([Check(name, ok=name not in failing, detail="seen") for name in NAMES])


@pytest.mark.parametrize(
    ("failing", "tier"),
    [
        pytest.param((), Tier.KERNEL, id="everything works"),
        pytest.param(tuple(USERSPACE_ONLY), Tier.KERNEL, id="no userspace datapath beside the kernel's"),
        pytest.param(tuple(KERNEL_ONLY), Tier.USERSPACE, id="no kernel datapath"),
        pytest.param(("netem",), Tier.USERSPACE, id="a kernel datapath without netem"),
        pytest.param(tuple(QUALITY), Tier.KERNEL, id="a noisy host"),
        pytest.param(("privileges",), Tier.NONE, id="no privileges"),
        pytest.param(("namespaces",), Tier.NONE, id="no namespaces"),
        pytest.param(("netem", "tun"), Tier.NONE, id="neither datapath complete"),
    ],
)
def test_the_tier_is_the_highest_of_which_everything_works(failing: tuple[str, ...], tier: Tier) -> None:
    assert diagnosis_without(*failing).tier is tier


@pytest.mark.parametrize("name", sorted(set(NAMES) - QUALITY))
def test_every_check_that_is_not_about_quality_is_needed_by_some_tier(name: str) -> None:
    others = USERSPACE_ONLY if name in KERNEL_ONLY else KERNEL_ONLY
    assert diagnosis_without(*others, name).tier is Tier.NONE


def test_what_keeps_a_host_from_a_tier_is_named() -> None:
    diagnosis = diagnosis_without("netem", "kernel-meter", "stalls")
    assert diagnosis.missing(Tier.KERNEL) == ("kernel-meter", "netem")
    assert diagnosis.missing(Tier.USERSPACE) == ()
    assert diagnosis.missing(Tier.NONE) == ()


def test_the_json_form_has_the_promised_keys() -> None:
    data = json.loads(json.dumps(diagnosis_without("netem").to_dict()))
    assert set(data) == {"tier", "checks"}
    assert data["tier"] == "userspace"
    assert all(set(check) == {"name", "ok", "detail", "remedy"} for check in data["checks"])


@pytest.mark.parametrize(
    "error",
    [
        ProbeError("seen instead"),
        PreflightError(["first line", "second line"]),
        PermissionError(1, "Operation not permitted"),
        subprocess.TimeoutExpired("tool", 1),
    ],
)
def test_whatever_keeps_a_probe_from_working_is_its_finding_in_one_line(error: Exception) -> None:
    def fail() -> str:
        raise error

    check = attempt(Probe("thing", fail, "do this"))
    assert not check.ok
    assert check.remedy == "do this"
    assert check.detail
    assert "\n" not in check.detail


def test_an_error_of_the_doctor_itself_is_not_a_finding_about_the_host() -> None:
    def fail() -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attempt(Probe("thing", fail, "do this"))


def test_a_probe_is_not_tried_without_what_it_needs_and_names_the_first_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def probe(name: str, *needs: str, works: bool = True) -> Probe:
        def run() -> str:
            tried.append(name)
            if not works:
                raise ProbeError("broken")
            return "fine"

        return Probe(name, run, f"mend {name}", needs)

    chain = (probe("a", works=False), probe("b", "a"), probe("c", "b"), probe("d"))
    monkeypatch.setattr(diagnosing, "PROBES", chain)
    seen: list[Check] = []
    diagnosis = diagnose(seen.append)
    assert tried == ["a", "d"]
    assert [check.ok for check in diagnosis.checks] == [False, False, False, True]
    assert [check.remedy for check in diagnosis.checks] == ["mend a", "mend a", "mend a", None]
    assert tuple(seen) == diagnosis.checks


def test_every_need_is_tried_before_the_probe_that_has_it() -> None:
    for position, probe in enumerate(PROBES):
        assert set(probe.needs) <= set(NAMES[:position])
    assert len(set(NAMES)) == len(NAMES)


def test_a_finding_that_knows_its_own_remedy_says_that_one() -> None:
    def late() -> str:
        raise ProbeError("20 ms late", remedy="wait")

    assert attempt(Probe("stalls", late, "use another host")).remedy == "wait"


@pytest.mark.parametrize(("stall_s", "factor"), [(5.1e-3, 2), (10e-3, 2), (23e-3, 5)])
def test_the_factor_suggested_makes_the_stall_harmless_and_is_the_smallest(stall_s: float, factor: int) -> None:
    assert slow_down(stall_s) == factor
    assert stall_s / factor <= LONGEST_STALL_S < stall_s / (factor - 1)


@pytest.mark.parametrize(
    ("stall_s", "instead"),
    [(23e-3, "or testbed run --slow-down 5"), (5.1, "or expect INVALID runs: no --slow-down is large enough")],
)
def test_what_to_do_about_stalls_is_something_that_can_be_done(
    monkeypatch: pytest.MonkeyPatch, stall_s: float, instead: str
) -> None:
    seen = SimpleNamespace(core=0, ticks=1000, longest_s=stall_s)
    monkeypatch.setattr(host.sandbox, "opened", lambda: nullcontext(MagicMock()))
    monkeypatch.setattr(host.stalls, "start", lambda *_: SimpleNamespace(finish=lambda: [seen]))
    monkeypatch.setattr(host, "STALL_WINDOW_S", 0.0)
    with pytest.raises(ProbeError, match=r"at most 5 ms are harmless") as caught:
        host.stall()
    assert (caught.value.remedy or "").endswith(instead)
