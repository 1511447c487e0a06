"""What a reader of a run must be able to see, and what a reader of its folder must be told."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from rich.console import Console

from testbed.errors import TestbedError
from testbed.report.html import load_series, render, write_report
from testbed.report.junit import junit_xml
from testbed.report.plots import time_plot
from testbed.report.record import (
    ExpectationRecord,
    FaultRecord,
    GateRecord,
    HeldOutRecord,
    ImpairmentRecord,
    read_record,
    write_record,
)
from testbed.report.tenant_record import OfferedRecord, PartDelay, RequestsRecord
from testbed.report.terminal import milliseconds, own_time, summary
from testbed.report.timeline import load_on_purpose, load_stalls
from tests.unit.report.conftest import FolderMaker, tenant

STALLED = GateRecord(name="replay", value=0.08, limit=0.03, ok=False, detail="measured p99.9 is not the replayed one")


def text_of(record: object, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(summary(record))  # type: ignore[arg-type]
    return console.export_text()


def test_no_figure_is_cut_on_a_terminal_of_80_columns(run_folder: FolderMaker) -> None:
    longest = tenant(
        name="charlie", n=214_808, lost=118_308, misses=118_309, deadline_s=0.2, bound_s=0.12267, promised_s=0.10253,
        promised_interval_s=(0.1015, 0.1351), ideal_promised_s=0.10172, verdict="UNDETERMINED",
    )  # fmt: skip
    _, record = run_folder(longest, tenant(name="bulk", n=10, lost=0, misses=0, deadline_s=None, verdict="NONE"))
    narrow, wide = text_of(record, width=80), text_of(record)
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    figures = ("200 at 0.001", "122.67", "102.53", "101.50 .. 135.10", "101.72", "214,808", "118,308", "118,309")
    for figure in (*figures, "UNDETERMINED"):
        assert narrow.count(figure) == wide.count(figure) == 1
    # Where there is room everything about a tenant stands in one line.
    assert all(figure in next(line for line in wide.splitlines() if "charlie" in line) for figure in figures)


def test_a_record_read_back_is_the_record_written(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant())
    assert write_record(folder, record).stat().st_mode & 0o777 == 0o600
    assert read_record(folder) == record


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda data: data.update(schema_version=99), "schema version 99, this testbed reads 1"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data["tenants"][0].pop("misses"), "tenants.0.misses"),
    ],
)
def test_a_record_of_another_shape_is_refused_by_name(run_folder: FolderMaker, edit: object, said: str) -> None:
    folder, record = run_folder(tenant())
    path = write_record(folder, record)
    data = json.loads(path.read_text())
    edit(data)  # type: ignore[operator]
    path.write_text(json.dumps(data))
    with pytest.raises(TestbedError, match=said):
        read_record(folder)


def test_a_cut_record_and_an_empty_folder_are_told_apart(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant())
    with pytest.raises(TestbedError, match=r"no run\.json here"):
        read_record(folder)
    path = write_record(folder, record)
    path.write_text(path.read_text()[:100])
    with pytest.raises(TestbedError, match="not JSON"):
        read_record(folder)


def test_a_record_that_is_no_text_is_refused_by_name(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant())
    write_record(folder, record).write_bytes(b"\xff\xfe{}")
    with pytest.raises(TestbedError, match="not JSON"):
        read_record(folder)


@pytest.fixture
def _nobody() -> Iterator[None]:
    """Runs the test as a user without privileges."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def test_the_folder_of_another_user_is_refused_with_the_way_to_read_it(
    run_folder: FolderMaker, request: pytest.FixtureRequest
) -> None:
    folder, record = run_folder(tenant())
    write_record(folder, record)
    folder.chmod(0)
    request.getfixturevalue("_nobody")
    with pytest.raises(TestbedError, match=r"cannot be read .*chown"):
        read_record(folder)


def test_the_page_shows_bound_and_measurement_and_needs_nothing_from_outside(run_folder: FolderMaker) -> None:
    folder, record = run_folder(
        tenant(), tenant(name="bulk", verdict="NONE", bound=None, bound_s=None, deadline_s=None)
    )
    write_record(folder, record)
    page = write_report(folder).read_text()
    assert "79.10" in page
    assert "69.20" in page
    assert page.count("<svg") == 12
    assert "testbed run &#39;demo file.yaml&#39;" in page
    assert not re.search(r"""(src|href)=["']http""", re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL))


def test_the_page_shows_what_was_offered_and_how_late_it_reached_the_wire(run_folder: FolderMaker) -> None:
    burstiness = OfferedRecord(
        arrivals=1234,
        rate_per_s=20.5,
        gap_cv2=3.25,
        dispersion=((0.1, 1.5), (1.0, 17.25), (10.0, None)),
        peak_to_mean=4.5,
        handed_late_p999_s=1.5e-4,
        wire_late_p999_s=4.75e-4,
    )
    folder, record = run_folder(tenant(offered=burstiness))
    write_record(folder, record)
    page = write_report(folder).read_text()
    row = page.split("What was offered")[1].split("</table>")[0]
    shown = (
        "1,234",
        "20.5",
        "3.25",
        "dispersion in windows of",
        "0.1 s",
        "17.2",
        "4.5",
        milliseconds(1.5e-4),
        milliseconds(4.75e-4),
    )
    for text in shown:
        assert text in row
    folder, record = run_folder(tenant())
    write_record(folder, record)
    assert "What was offered" not in write_report(folder).read_text()


def test_the_same_folder_gives_the_same_page(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant())
    write_record(folder, record)
    assert render(folder) == render(folder)


def asked_of(impaired: dict[str, int]) -> RequestsRecord:
    return RequestsRecord(
        model="digits-medium", images=8, compute_share=1.0, answered=19_998, accuracy=0.9811, timeouts=2, rejected=0,
        errors=0, skipped=0, overdue=0, framing_out=1.05, framing_back=1.3, reordered=0, retransmitted_bits=0.0,
        network_s=(0.01, 0.02, 0.03), ideal_network_s=(0.01, 0.02, 0.03), impaired=impaired,
        parts=(
            PartDelay(name="west", mean_s=0.008, p999_s=0.06, tail_mean_s=0.06),
            PartDelay(name="compute", mean_s=0.0012, p999_s=None, tail_mean_s=None),
        ),
        stacks=(PartDelay(name="into the server", mean_s=0.0005, p999_s=None, tail_mean_s=None),),
    )  # fmt: skip


def test_how_often_answers_were_right_and_where_the_time_went_is_on_the_terminal(run_folder: FolderMaker) -> None:
    asked = asked_of({})
    _, record = run_folder(tenant(requests=asked), tenant(name="beta"))
    said = (
        "alpha: 19,998 of 20,000 requests answered by digits-medium, accuracy 0.981; mean ms: west 8.00, compute 1.20 "
        "(into the server 0.50)"
    )
    assert said in text_of(record)
    assert "beta: 20" not in text_of(record)


@pytest.mark.parametrize(("asked", "all_of_them"), [(False, "all packets"), (True, "all requests")])
def test_where_the_time_went_is_said_of_what_the_tenant_sent(
    run_folder: FolderMaker, asked: bool, all_of_them: str
) -> None:
    folder, record = run_folder(tenant(requests=asked_of({}) if asked else None))
    write_record(folder, record)
    drawn = re.findall("all packets|all requests", render(folder))
    assert set(drawn) == {all_of_them}


def test_a_name_cannot_inject_markup(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant(reason="<script>alert(1)</script>"))
    write_record(folder, record)
    assert "<script>" not in render(folder)


@pytest.mark.parametrize("broken", [True, False])
def test_a_broken_bound_is_never_hidden(run_folder: FolderMaker, broken: bool) -> None:
    folder, record = run_folder(tenant(bound_broken=broken, promised_lower_s=0.09))
    write_record(folder, record)
    assert ("bound broken" in render(folder)) is broken
    assert ("BOUND BROKEN" in text_of(record)) is broken
    assert ("BROKEN" in junit_xml(record)) is broken


@pytest.mark.parametrize(("held_s", "late"), [(0.09, True), (None, False)])
def test_a_bound_that_is_broken_by_what_never_arrived_is_below_no_percentile(
    run_folder: FolderMaker, held_s: float | None, late: bool
) -> None:
    folder, record = run_folder(
        tenant(bound_broken=True, bound_s=0.06, bound_held_s=held_s, promised_lower_s=None, epsilon=0.02)
    )
    write_record(folder, record)
    for said in (render(folder), text_of(record), junit_xml(record)):
        words = " ".join(said.split())
        assert ("lower confidence limit" in words) is late
        assert ("ore than 0.02" in words and "never arrived" in words) is not late


def test_an_invalid_run_says_that_it_says_nothing(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant(verdict="INVALID"), gates=(STALLED,), verdict="INVALID")
    write_record(folder, record)
    assert "says nothing about the theory" in render(folder)
    text = text_of(record)
    assert "INVALID" in text
    assert "replay" in text
    assert "0 of 1 fidelity gates hold" in text


def test_a_gate_that_nobody_could_count_for_is_read_back_and_shown_as_beyond_its_limit(run_folder: FolderMaker) -> None:
    uncounted = GateRecord(name="stalled share", value=math.inf, limit=0.05, ok=False, detail="more than was recorded")
    folder, record = run_folder(tenant(verdict="INVALID"), gates=(uncounted,), verdict="INVALID")
    write_record(folder, record)
    back = read_record(folder)
    assert back.gates == (uncounted,)
    for shown in (render(folder), text_of(back), junit_xml(back)):
        assert re.search(r"stalled share.*inf", shown, re.DOTALL)


def test_a_gates_limit_has_the_unit_of_its_value(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant(), gates=(STALLED.model_copy(update={"unit": "s"}),))
    write_record(folder, record)
    assert re.search(r"0\.08 s.*0\.03 s", text_of(record))
    assert "0.08 s against a limit of 0.03 s: " in junit_xml(record)
    assert re.search(r"<td>0\.08 s</td><td>0\.03 s</td>", render(folder))


def test_junit_counts_promises_bounds_and_gates_apart(run_folder: FolderMaker) -> None:
    _, record = run_folder(
        tenant(),
        tenant(name="beta", verdict="FAIL", reason="too slow"),
        tenant(name="gamma", verdict="UNDETERMINED", reason="too few"),
        gates=(STALLED, GateRecord(name="steal", value=0.0, limit=0.01, ok=True)),
    )
    suites = {suite.get("name"): suite for suite in ET.fromstring(junit_xml(record).encode())}
    promises, fidelity = suites["promises"], suites["fidelity"]
    assert (promises.get("tests"), promises.get("failures"), promises.get("skipped")) == ("6", "1", "1")
    assert (fidelity.get("tests"), fidelity.get("failures")) == ("2", "1")


@pytest.mark.parametrize("said", [(), ("metro: excess: 0.02 exceed 4 ms",)], ids=["kept", "contradicted"])
def test_what_a_window_says_of_tails_signed_before_it_is_shown(run_folder: FolderMaker, said: tuple[str, ...]) -> None:
    folder, record = run_folder(tenant())
    held = HeldOutRecord(domain="metro", tenant="alpha", n=12_345, contradictions=said)
    windows = tuple(window.model_copy(update={"held_out": (held,)}) for window in record.windows)
    write_record(folder, record.model_copy(update={"windows": windows}))
    back = read_record(folder)
    expected = said or ("12,345 packets contradict nothing",)
    assert f"metro's tail for alpha in window {windows[0].index}" in text_of(back)
    assert expected[0] in text_of(back)
    page = render(folder)
    assert "12,345" in page
    assert (said[0] if said else "in nothing") in page


def test_windows_lie_one_after_the_other_and_stalls_at_their_moments(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant())
    (window,) = record.windows
    first = window.model_copy(update={"stalls": ((12.5, 0.004),)})
    second = window.model_copy(update={"index": 1, "stalls": ((3.0, 0.007), (59.0, 0.002))})
    twice = record.model_copy(update={"windows": (first, second)})
    np.testing.assert_allclose(load_stalls(twice), [(12.5, 0.004), (63.0, 0.007), (119.0, 0.002)])
    series = load_series(folder, twice, "alpha")
    half = series.time_s.size // 2
    np.testing.assert_allclose(series.time_s[half:], series.time_s[:half] + 60.0)
    nothing = load_on_purpose(record)
    assert time_plot(tenant(), series, load_stalls(twice), nothing).count("a core away") == 1
    assert "a core away" not in time_plot(tenant(), series, load_stalls(record), nothing)


def test_every_figure_marks_the_stalls_of_the_host_or_is_named_beside_them(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant())
    write_record(folder, record)
    assert "core of the host" not in render(folder)
    assert "a core away" not in render(folder)
    (window,) = record.windows
    stalled = window.model_copy(update={"stalls": ((2.0, 0.006), (2.003, 0.009), (7.5, 0.003))})
    write_record(folder, record.model_copy(update={"windows": (stalled,)}))
    page = render(folder)
    said = "A core of the host was away 2 times, 15.0 ms in all, 12.0 ms at the longest"
    for part in page.split("<h2>Tenants</h2>")[1].split("<h2>Audit</h2>"):
        assert said in part
    titles = {title for title, svg in _figures(page) if "a core away" in svg}
    assert titles == {
        "Latency distribution of tenant alpha",
        "Latency of tenant alpha over the run",
        "Quantiles of alpha against its promise",
    }


@pytest.mark.parametrize(("lost", "drawn"), [(999, True), (1000, False), (1200, False)])
def test_quantiles_that_no_packet_has_are_not_drawn_and_the_page_says_why(
    run_folder: FolderMaker, lost: int, drawn: bool
) -> None:
    folder, record = run_folder(tenant(n=2000, lost=lost))
    write_record(folder, record)
    page = render(folder)
    titles = {title for title, _ in _figures(page)}
    assert ("Quantiles of alpha against its promise" in titles) == drawn
    said = f"Quantiles are not drawn: {lost:,} of 2,000 packets were lost or never answered, so that no quantile above"
    assert (said in page) != drawn
    assert "Mean excess of alpha" in titles


def test_what_was_broken_on_purpose_is_marked_where_time_is_on_the_axis(run_folder: FolderMaker) -> None:
    cut = FaultRecord(name="cut", kind="link-down", window=1, what="link down", begin_s=0.4, end_s=0.9)
    folder, record = run_folder(tenant())
    (window,) = record.windows
    twice = record.model_copy(
        update={"windows": (window, window.model_copy(update={"index": 1})), "faults": (cut, cut)}
    )
    np.testing.assert_allclose(load_on_purpose(twice), [(60.4, 60.9)] * 2)
    write_record(folder, twice)
    (drawn,) = (svg for title, svg in _figures(render(folder)) if "over the run" in title)
    assert drawn.count("broken on purpose") == 1


def test_what_a_server_was_made_to_suffer_is_shown_as_what_it_was(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant(requests=asked_of({"slow-down": 1_240, "wrong-answers": 3})))
    (window,) = record.windows
    suffered = (
        ImpairmentRecord(
            server="h4", tenants=("alpha",), kind="slow-down", amount=3.0, seed=77, begin_s=2.0, end_s=5.5
        ),
        ImpairmentRecord(server="h4", tenants=("alpha",), kind="crash", amount=0.0, seed=77, begin_s=50.0, end_s=None),
    )
    record = record.model_copy(update={"windows": (window.model_copy(update={"impairments": suffered}),)})
    write_record(folder, record)
    assert read_record(folder) == record
    np.testing.assert_allclose(load_on_purpose(record), [(2.0, 5.5), (50.0, 60.0)])
    text, page = text_of(record), render(folder)
    assert "h4: slow down by 3 times on purpose in window 0, 2.00 s to 5.50 s" in text
    assert "h4: crash on purpose in window 0, 50.00 s to the end" in text
    assert "alpha: answers impaired on purpose: 1,240 by slow-down, 3 by wrong-answers" in text
    for words in ("Servers made worse on purpose", "slow down by 3 times", "2.00 .. 5.50", "50.00 .. the end", "77"):
        assert words in page
    assert "impaired on purpose: 1,240 by slow-down, 3 by wrong-answers." in page
    (drawn,) = (svg for title, svg in _figures(page) if "over the run" in title)
    assert "broken on purpose" in drawn
    folder, record = run_folder(tenant())
    write_record(folder, record)
    assert "on purpose" not in render(folder)


def _figures(page: str) -> list[tuple[str, str]]:
    """Every figure of a page, by its title."""
    drawn = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    return [(re.findall(r"<dc:title>(.*?)</dc:title>", svg)[0], svg) for svg in drawn]


def test_a_slowed_run_also_shows_its_figures_in_the_scenarios_own_time(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant(), slow_down=4.0, slow_down_notes=("timers stay",))
    write_record(folder, record)
    line = "alpha: promise 30.00, bound 19.78, measured 17.30"
    assert [text.strip() for text in own_time(record)] == [
        "slowed down 4 times; in the scenario's own time, in ms:",
        line,
    ]
    page = render(folder)
    assert "Slowed down 4 times" in page
    assert "timers stay" in page
    assert "<td>30.00</td><td>19.78</td><td>17.30</td>" in "".join(page.split("\n"))


def test_a_run_at_full_speed_says_nothing_of_another_time(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant())
    write_record(folder, record)
    assert not list(own_time(record))
    assert "Slowed down" not in render(folder)


@pytest.mark.parametrize("met", [True, False])
def test_what_was_broken_on_purpose_stands_beside_what_was_expected_of_it(run_folder: FolderMaker, met: bool) -> None:
    fails = ExpectationRecord(tenant="alpha", expected="fails: more than 0.02 miss", found="71 of 80 missed", met=met)
    back = ExpectationRecord(tenant="alpha", expected="recovers within 1 s", found="after 0.1 s", met=True, seconds=0.1)
    cut = FaultRecord(
        name="cut", kind="link-down", window=1, what="link down, domain east", begin_s=0.4, end_s=0.9,
        expectations=(fails, back),
    )  # fmt: skip
    folder, record = run_folder(tenant(), faults=(cut,))
    write_record(folder, record)
    assert read_record(folder) == record
    for shown in (text_of(record), render(folder)):
        for words in ("cut", "link down, domain east", "0.40 .. 0.90", "71 of 80 missed", "recovers within 1 s"):
            assert words in shown
    suites = {suite.get("name"): suite for suite in ET.fromstring(junit_xml(record).encode())}
    assert suites["faults"].get("failures") == ("0" if met else "1")


def test_a_gate_that_a_fault_explains_is_shown_as_such_and_breaks_nothing(run_folder: FolderMaker) -> None:
    explained = STALLED.model_copy(update={"excused_by": "cut"})
    folder, record = run_folder(tenant(), gates=(explained,))
    write_record(folder, record)
    assert explained.holds
    assert not STALLED.holds
    assert "1 of 1 fidelity gates hold" in text_of(record)
    assert "no, by the fault cut" in render(folder)
    suites = {suite.get("name"): suite for suite in ET.fromstring(junit_xml(record).encode())}
    assert (suites["fidelity"].get("failures"), suites["fidelity"].get("skipped")) == ("0", "1")


def test_who_has_no_bound_is_told_why_on_the_terminal_and_the_page(run_folder: FolderMaker) -> None:
    folder, record = run_folder(tenant(bound=None, bound_s=None, unbound="its queue may be full"))
    assert "no bound: alpha: its queue may be full" in text_of(record)
    write_record(folder, record)
    assert "No bound: its queue may be full." in write_report(folder).read_text(encoding="utf-8")
