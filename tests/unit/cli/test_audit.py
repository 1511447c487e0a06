"""`testbed audit` as a shell and its scripts see it: names, exit codes, refusals, logs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from testbed.audit import ledger
from testbed.cli.app import app
from testbed.envelope.keys import SigningKey
from testbed.errors import TestbedError
from testbed.report.html import render
from tests.unit.audit.test_folder import folder, window, with_idle


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["audit", *(str(argument) for argument in arguments)])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twenty thousand requests over two domains; ten were never answered."""
    rng = np.random.default_rng(1)
    north, south = rng.exponential(0.01, 20_000).tolist(), rng.exponential(0.002, 20_000).tolist()
    rows = [
        f"{'' if i % 2000 == 0 else repr(a + b)},{a!r},{b!r}" for i, (a, b) in enumerate(zip(north, south, strict=True))
    ]
    path = tmp_path / "latencies.csv"
    path.write_text("\n".join(["latency_s,domain_north_s,domain_south_s", *rows]) + "\n")
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The auditor's key; its public half lies beside it."""
    signer = SigningKey.generate()
    signer.save(tmp_path / "auditor.key")
    signer.public_key.save(tmp_path / "auditor.pub")
    return tmp_path / "auditor.key"


def test_the_json_has_exactly_the_names_that_others_rely_on(table: Path) -> None:
    ended = command(table, "--deadline", "0.2", "--epsilon", "0.002", "--json")
    found = json.loads(ended.stdout)
    assert list(found) == [
        "verdict", "n", "n_effective", "design_effect", "extremal_index", "misses", "miss_rate_upper", "quantiles",
        "blame",
    ]  # fmt: skip
    assert (found["verdict"], found["n"], found["misses"], ended.exit_code) == ("PASS", 20_000, 10, 0)
    assert list(found["quantiles"]) == ["0.99", "0.999", "0.9999"]
    assert list(found["quantiles"]["0.999"]) == ["estimate_s", "lower_s", "upper_s"]
    assert found["quantiles"]["0.9999"]["upper_s"] is None
    assert set(found["blame"]) == {"north", "south"}
    assert all(list(found["blame"]["north"][method]) == ["share", "lower", "upper"] for method in ("euler", "shapley"))


def test_all_that_is_known_is_one_option_away(table: Path) -> None:
    found = json.loads(command(table, "--deadline", "200ms", "--json", "--full").stdout)
    assert found["named"] == "north"
    assert found["findings"][0].startswith("10 of 20000 samples missed 200 ms")


@pytest.mark.parametrize(
    ("deadline", "epsilon", "verdict", "code"),
    [("200ms", "0.002", "PASS", 0), ("20 ms", "0.001", "FAIL", 1), ("0.2", "0.0005", "UNDETERMINED", 4)],
)
def test_the_exit_code_is_the_verdict(table: Path, deadline: str, epsilon: str, verdict: str, code: int) -> None:
    ended = command(table, "--deadline", deadline, "--epsilon", epsilon)
    assert ended.exit_code == code
    assert f"latencies.csv: {verdict}" in ended.stdout


def test_a_person_reads_a_sentence_for_each_finding_and_then_the_numbers(table: Path) -> None:
    shown = command(table, "--deadline", "200ms").stdout
    assert shown.index("10 of 20000 samples missed") < shown.index("Of the excess") < shown.index("estimate")
    assert "north holds" in shown


def test_without_a_promise_nothing_is_judged(table: Path) -> None:
    ended = command(table)
    assert (ended.exit_code, "NONE" in ended.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--deadline", "80xs"), "80xs"),
        (("--deadline", "0"), "more than 0 s"),
        (("--deadline", "1", "--epsilon", "1"), "between 0 and 1"),
        (("--epsilon", "0.1"), "--deadline"),
        (("--deadline", "1e-10"), "in whole nanoseconds"),
        (("--deadline", "1e400"), "less than 9,000,000 s"),
        (("--deadline", "1", "--epsilon", "1e-10"), "in whole parts per billion"),
        (("--deadline", "1", "--epsilon", "0.9999999999"), "in whole parts per billion"),
        (("--deadline", "1", "--log", "z.log"), "--sign KEY"),
    ],
)
def test_an_impossible_promise_is_a_wrong_command(table: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = command(table, *arguments)
    assert ended.exit_code == 2
    assert said in ended.stderr


def test_a_bad_file_is_one_error_of_the_project(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("latency_s\n0.1\nNaN\n")
    ended = command(path, "--deadline", "1")
    assert isinstance(ended.exception, TestbedError)
    assert len(ended.exception.problems) == 1
    assert "row 2 has latency_s NaN" in str(ended.exception)


def test_a_run_brings_its_promises_along(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", [window(1, pause_share=0.005)])
    ended = command(run, "--json")
    tenant = json.loads(ended.stdout)["tenants"]["alice"]
    assert ended.exit_code == 1
    assert [finding["verdict"] == "BROKEN" for finding in tenant["contracts"]] == [False, True, False]
    shown = command(run).stdout
    assert "Had metro kept its envelope" in shown
    assert "run made-up: FAIL" in shown
    assert command(run, "--deadline", "1").exit_code == 2
    assert command(folder(tmp_path / "invalid", [window(1)], valid=False)).exit_code == 3


@pytest.mark.parametrize(
    ("flood", "promised", "verdict", "code"),
    [(9, None, "EXCUSED", 0), (0, True, "UNDETERMINED", 4), (0, False, "NONE", 0)],
    ids=["everybody flooded", "a promise without a sample", "no promise"],
)
def test_a_run_that_judged_nothing_did_not_pass(
    tmp_path: Path, flood: int, promised: bool | None, verdict: str, code: int
) -> None:
    run = folder(tmp_path / "run", [window(1)], nonconforming=flood)
    if promised is not None:
        with_idle(run, promised=promised, alone=True)
    page = tmp_path / "page.html"
    ended = command(run, "--html", page)
    assert (ended.exit_code, f"run made-up: {verdict}" in ended.stdout) == (code, True)
    assert f'<span class="badge {verdict}">' in page.read_text()
    assert json.loads(command(run, "--json").stdout)["verdict"] == verdict


PLOTS = ("quantiles against the promise", "mean excess", "threshold stability", "whose the tail is")


def test_a_page_has_the_sentences_the_numbers_and_every_plot(table: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    # Nothing unanswered here, or no tail could be fitted and there would be no thresholds to show.
    answered = [line for line in table.read_text().splitlines() if not line.startswith(",")]
    table.write_text("\n".join(answered) + "\n")
    assert command(table, "--deadline", "200ms", "--html", page).exit_code == 0
    said = page.read_text()
    assert '<span class="badge PASS">PASS</span>' in said
    assert "0 of 19990 samples missed 200 ms" in said
    assert "north holds" in said
    assert all(f">{caption}</figcaption><svg" in said for caption in PLOTS)
    assert "<script" not in said


def test_the_page_of_a_run_is_that_of_its_report(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", [window(1, pause_share=0.005)])
    page = tmp_path / "page.html"
    assert command(run, "--html", page).exit_code == 1
    said = page.read_text()
    assert "Had metro kept its envelope" in said
    assert all(f">{caption}</figcaption><svg" in said for caption in PLOTS)
    section = said[said.index("<h2>Audit</h2>") : said.rindex("</section>")]
    assert section in render(run)


def test_a_page_without_a_folder_is_refused_before_anything_is_judged(table: Path, tmp_path: Path) -> None:
    ended = command(table, "--html", tmp_path / "nowhere" / "page.html")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "found no folder" in ended.stderr


def test_a_page_that_cannot_be_written_is_one_error(table: Path, tmp_path: Path) -> None:
    page = tmp_path / ("page" * 100)
    ended = command(table, "--html", page)
    assert isinstance(ended.exception, TestbedError)
    assert f"{page}: File name too long" in str(ended.exception)


@pytest.mark.parametrize(("mean_s", "code", "said"), [(0.01, 0, "no alarm in 20000 samples"), (0.03, 1, "ALARM at")])
def test_a_stream_is_watched_until_it_refutes_the_promise(tmp_path: Path, mean_s: float, code: int, said: str) -> None:
    path = tmp_path / "stream"
    path.write_text("\n".join(map(repr, np.random.default_rng(3).exponential(mean_s, 20_000).tolist())) + "\n")
    ended = command("watch", path, "--deadline", "80ms", "--epsilon", "0.001")
    assert (ended.exit_code, said in ended.stdout) == (code, True), ended.output
    found = json.loads(command("watch", path, "--deadline", "80ms", "--json").stdout)
    assert (found["alarm"] is None) == (code == 0)
    assert found["samples"] == (20_000 if code == 0 else found["alarm"]["sample"])


def test_a_line_that_was_never_answered_is_a_miss_of_the_stream() -> None:
    lines = ("0.001\n" * 99 + "\n") * 300
    ended = CliRunner().invoke(app, ["audit", "watch", "-", "--deadline", "1"], input=lines)
    assert (ended.exit_code, "ALARM" in ended.stdout) == (1, True)


@pytest.mark.parametrize("line", ["fast", "-1", "nan", "1_0"])
def test_a_line_that_is_no_latency_is_named(line: str) -> None:
    ended = CliRunner().invoke(app, ["audit", "watch", "-", "--deadline", "1"], input=f"0.1\n{line}\n")
    assert isinstance(ended.exception, TestbedError)
    assert f"line 2 is '{line}'" in str(ended.exception)


def tenants_in_turn(path: Path) -> Path:
    """Alice and carol keep 80 ms, bob misses it in 2 %."""
    rng = np.random.default_rng(3)
    rows = [
        f"{tenant},{0.2 if tenant == 'bob' and rng.random() < 0.02 else float(rng.exponential(0.005))!r}"
        for _ in range(5000)
        for tenant in ("alice", "bob", "carol")
    ]
    path.write_text("\n".join(["tenant,latency_s", *rows]) + "\n")
    return path


def test_several_tenants_of_a_stream_are_watched_and_the_alarm_names_whose_it_is(tmp_path: Path) -> None:
    path = tenants_in_turn(tmp_path / "stream.csv")
    asked = ("watch", path, "--promise", "alice=80ms@0.001", "--promise", "bob=0.08@0.001")
    ended = command(*asked)
    assert ended.exit_code == 1
    first, *rest = ended.stdout.splitlines()
    assert first.startswith("ALARM about bob at sample")
    assert first.endswith("This is false with probability at most 0.05.")
    assert rest[0].startswith("alice: no alarm in 5000 samples")
    assert rest[1:] == [
        "false alarms: with probability at most 0.05 about each tenant, 0.1 about any of 2",
        "5000 samples are of tenants to whom nothing is promised",
    ]
    answered = command(*asked, "--json")
    found = json.loads(answered.stdout)
    assert "ALARM about bob" in answered.stderr
    assert found["tenants"]["alice"]["alarm"] is None
    assert found["tenants"]["bob"]["alarm"]["sample"] == found["tenants"]["bob"]["samples"]
    assert (found["false_alarm_rate"], found["family_false_alarm_rate"], found["unwatched"]) == (0.05, 0.1, 5000)


def test_a_stream_is_watched_for_the_promises_of_a_run_unless_told_otherwise(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", [window(1)], deadline_s=0.08)
    path = tenants_in_turn(tmp_path / "stream.csv")
    ended = command("watch", path, "--run", run)
    assert (ended.exit_code, ended.stdout.splitlines()[0][:31]) == (0, "alice: no alarm in 5000 samples")
    assert command("watch", path, "--run", run, "--promise", "alice=1ms@0.001").exit_code == 1
    everybody = command("watch", path, "--run", run, "--deadline", "80ms")
    assert "ALARM about bob" in everybody.stdout
    assert "0.15 about any of 3" in everybody.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to watch for"),
        (("--promise", "alice"), "expected TENANT=TIME@SHARE"),
        (("--promise", "alice=80ms@2"), "between 0 and 1"),
        (("--promise", "alice=80ms@0.5"), "tenant alice: watch"),
        (("--epsilon", "0.01"), "name that too"),
    ],
)
def test_a_watch_for_nothing_or_the_impossible_is_a_wrong_command(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    ended = command("watch", tenants_in_turn(tmp_path / "stream.csv"), *arguments)
    assert ended.exit_code == 2
    assert said in " ".join(ended.stderr.replace("│", " ").split())


def test_a_promise_too_loose_to_watch_is_a_wrong_command() -> None:
    ended = CliRunner().invoke(app, ["audit", "watch", "-", "--deadline", "1", "--epsilon", "0.5"], input="0.1\n")
    assert ended.exit_code == 2


def test_findings_are_signed_verified_and_computed_again(table: Path, key: Path, tmp_path: Path) -> None:
    for deadline in ("200ms", "20ms"):
        command(table, "--deadline", deadline, "--sign", key)
    log, public = tmp_path / "findings.log", key.with_suffix(".pub")
    checked = command("verify", log, "--key", public)
    assert (checked.exit_code, checked.stdout.startswith("intact: 4 findings")) == (0, True)
    again = command("recompute", log, table, "--key", public)
    assert (again.exit_code, again.stdout.count("SAME")) == (0, 4)
    assert "promise to everyone: FAIL" in again.stdout
    assert "tail of everyone: north is named" in again.stdout
    table.write_text(table.read_text().replace("\n,", "\n0.1,", 1))
    other = command("recompute", log, table, "--key", public)
    assert (other.exit_code, other.stdout.count("ELSEWHERE")) == (1, 4)
    assert "no finding of" in other.stderr


def test_a_log_is_verified_without_a_key_and_what_that_leaves_open_is_said(
    table: Path, key: Path, tmp_path: Path
) -> None:
    command(table, "--deadline", "200ms", "--sign", key)
    log = tmp_path / "findings.log"
    checked = command("verify", log)
    assert (checked.exit_code, checked.stdout.splitlines()[0]) == (0, "intact: 2 findings; signatures NOT checked")
    assert f"it says that it is signed by: {SigningKey.load(key).key_id}" in checked.stdout
    assert "not proven: who wrote it" in checked.stdout
    found = json.loads(command("verify", log, "--json").stdout)
    assert (found["intact"], found["signatures_checked"]) == (True, False)
    assert json.loads(command("verify", log, "--key", key.with_suffix(".pub"), "--json").stdout)["signatures_checked"]
    log.write_bytes(log.read_bytes().replace(b'"payload":"', b'"payload":"A', 1))
    assert command("verify", log).exit_code == 1


def test_the_private_key_in_place_of_the_public_one_is_told_plainly(table: Path, key: Path, tmp_path: Path) -> None:
    command(table, "--deadline", "200ms", "--sign", key)
    ended = command("verify", tmp_path / "findings.log", "--key", key)
    assert ended.exit_code == 2
    assert "this is the private key" in " ".join(ended.stderr.replace("│", " ").split())


TAMPERING = {
    "an edit": lambda lines: [lines[0].replace(b"payload", b"payloae", 1), *lines[1:]],
    "a deletion": lambda lines: lines[1:],
    "a reordering": lambda lines: lines[::-1],
    "a truncation": lambda lines: lines[:-1],
}


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING.keys())
def test_a_log_that_was_tampered_with_fails(table: Path, key: Path, tmp_path: Path, tamper: object) -> None:
    for deadline in ("200ms", "20ms"):
        command(table, "--deadline", deadline, "--sign", key)
    log = tmp_path / "findings.log"
    log.write_bytes(b"".join(line + b"\n" for line in tamper(log.read_bytes().splitlines())))  # type: ignore[operator]
    ended = command("verify", log, "--key", key.with_suffix(".pub"), "--json")
    assert ended.exit_code == 1
    assert json.loads(ended.stdout)["intact"] is False
    assert command("recompute", log, table, "--key", key.with_suffix(".pub")).exit_code == 1


def test_a_log_cut_back_together_with_its_head_is_found_by_who_remembers(
    table: Path, key: Path, tmp_path: Path
) -> None:
    log, public = tmp_path / "findings.log", key.with_suffix(".pub")
    command(table, "--deadline", "200ms", "--sign", key)
    early, head = log.read_bytes(), ledger.head_path(log).read_bytes()
    command(table, "--deadline", "20ms", "--sign", key)
    remembered = command("verify", log, "--key", public).stdout.split("head: ")[1].strip()
    log.write_bytes(early)
    ledger.head_path(log).write_bytes(head)
    assert command("verify", log, "--key", public).exit_code == 0
    assert command("verify", log, "--key", public, "--head", remembered).exit_code == 1
    assert command("verify", log, "--key", public, "--head", "two").exit_code == 2


def test_a_key_that_is_none_is_a_wrong_command(table: Path, tmp_path: Path) -> None:
    other = tmp_path / "no.key"
    other.write_text("not a key")
    other.chmod(0o600)
    assert command(table, "--deadline", "1", "--sign", other).exit_code == 2
    assert command("verify", table, "--key", other).exit_code == 2


def test_the_promise_that_is_judged_is_the_one_that_is_signed(table: Path, key: Path, tmp_path: Path) -> None:
    lines = ["latency_s", *["0.001"] * 1000, *["0.0800000004"] * 20]
    table.write_text("\n".join(lines) + "\n")
    # A signed deadline has whole nanoseconds, and at 80.0000000 ms twenty are late that 80.0000004 ms would let pass.
    found = json.loads(command(table, "--deadline", "0.0800000004", "--json", "--full", "--sign", key).stdout)
    log = tmp_path / "findings.log"
    (signed,) = ledger.verify(log, {k.key_id: k for k in [SigningKey.load(key).public_key]}).findings
    assert (found["misses"], signed["misses"], signed["deadline_ns"]) == (20, 20, 80_000_000)
    assert found["deadline_s"] == 0.08


def test_a_log_that_cannot_be_written_is_one_error_before_anything_is_judged(
    table: Path, key: Path, tmp_path: Path
) -> None:
    asked = (table, "--deadline", "1", "--sign", key, "--log")
    ended = command(*asked, tmp_path / "nowhere" / "z.log")
    assert isinstance(ended.exception, TestbedError)
    assert f"there is no folder {tmp_path / 'nowhere'}" in str(ended.exception)
    assert not ended.stdout
    torn = tmp_path / "torn.log"
    torn.write_text("half a line")
    ended = command(*asked, torn)
    assert "its last line has no end" in str(ended.exception)
    assert not ended.stdout


def test_without_a_promise_there_is_nothing_to_sign(table: Path, key: Path, tmp_path: Path) -> None:
    assert command(table, "--sign", key).exit_code == 2
    assert not (tmp_path / "findings.log").exists()
