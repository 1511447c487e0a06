"""The log of findings: every way to tamper with it is found, and a crash is not taken for one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.audit.ledger import GENESIS, HEAD_TYPE, Head, LedgerError, append, head_path, verify
from testbed.envelope.dsse import seal
from testbed.envelope.keys import SigningKey

KEY = SigningKey.generate()
KEYS = {KEY.key_id: KEY.public_key}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "findings.log"
    for number in range(5):
        append(path, {"number": number}, KEY)
    return path


def lines(log: Path) -> list[bytes]:
    return log.read_bytes().splitlines()


def rewrite(log: Path, changed: list[bytes]) -> None:
    log.write_bytes(b"".join(line + b"\n" for line in changed))


def test_an_untouched_log_is_intact_and_gives_its_findings_back(log: Path) -> None:
    report = verify(log, KEYS)
    assert report.intact
    assert [finding["number"] for finding in report.findings] == [0, 1, 2, 3, 4]
    assert report.head.entries == 5
    assert report.unsealed == 0


def edit(found: list[bytes]) -> list[bytes]:
    return [*found[:2], found[2].replace(b'"payload":"', b'"payload":"A', 1), *found[3:]]


def forge(found: list[bytes]) -> list[bytes]:
    return [*found[:2], found[2].replace(KEY.key_id.encode(), b"0" * 64), *found[3:]]


TAMPERING: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "an edited line": (edit, "line 3"),
    "a line by a key that nobody trusts": (forge, "line 3: signature by key 0000"),
    "a deleted line": (lambda found: found[:2] + found[3:], "line 3: it is entry 3"),
    "a deleted first line": (lambda found: found[1:], "line 1: it is entry 1"),
    "two lines exchanged": (lambda found: [found[0], found[2], found[1], *found[3:]], "line 2: it is entry 2"),
    "a line repeated": (lambda found: [*found[:3], found[2], *found[3:]], "line 4: it is entry 2"),
    "a log cut off at the end": (lambda found: found[:3], "the signed head names 5 entries"),
    "an emptied log": (lambda found: found[:0], "the signed head names 5 entries"),
    "a line that is no entry": (lambda found: [*found, b"{}"], "line 6"),
}


@pytest.mark.parametrize(("tamper", "message"), TAMPERING.values(), ids=TAMPERING.keys())
def test_tampering_is_detected(log: Path, tamper: Callable[[list[bytes]], list[bytes]], message: str) -> None:
    rewrite(log, tamper(lines(log)))
    report = verify(log, KEYS)
    assert not report.intact
    assert any(message in problem for problem in report.problems)


UNSIGNED = {name: case for name, case in TAMPERING.items() if "nobody trusts" not in name}


@pytest.mark.parametrize(("tamper", "message"), UNSIGNED.values(), ids=UNSIGNED.keys())
def test_tampering_with_the_chain_is_detected_without_a_key(
    log: Path, tamper: Callable[[list[bytes]], list[bytes]], message: str
) -> None:
    rewrite(log, tamper(lines(log)))
    assert any(message in problem for problem in verify(log, None).problems)


def test_a_line_by_another_key_breaks_the_chain_without_a_key_too(log: Path) -> None:
    rewrite(log, forge(lines(log)))
    assert any("line 4: it is entry 3 and follows" in problem for problem in verify(log, None).problems)


def test_without_a_key_it_is_said_who_claims_to_have_signed_and_that_nobody_checked(log: Path, tmp_path: Path) -> None:
    report, checked = verify(log, None), verify(log, KEYS)
    assert (report.intact, report.signatures_checked, report.signers) == (True, False, {KEY.key_id})
    assert (checked.intact, checked.signatures_checked, checked.signers) == (True, True, {KEY.key_id})
    # A log written anew from beginning to end is what only signatures give away.
    other, forged = SigningKey.generate(), tmp_path / "forged.log"
    append(forged, {"number": 0}, other)
    assert verify(forged, None).intact
    assert not verify(forged, KEYS).intact


def test_a_log_from_elsewhere_in_its_place_is_detected(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    for number in range(5):
        append(other, {"number": number + 1}, KEY)
    log.write_bytes(other.read_bytes())
    assert any("the signed head" in problem for problem in verify(log, KEYS).problems)


def test_a_line_from_another_log_of_the_same_signer_is_detected(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    for number in range(5):
        append(other, {"number": number + 1}, KEY)
    rewrite(log, [*lines(log)[:2], lines(other)[2], *lines(log)[3:]])
    assert any("line 3: it is entry 2 and follows" in problem for problem in verify(log, KEYS).problems)


def test_a_log_without_its_head_is_not_intact(log: Path) -> None:
    head_path(log).unlink()
    assert any("without its signed head" in problem for problem in verify(log, KEYS).problems)


def test_a_forged_head_is_refused(log: Path) -> None:
    rewrite(log, lines(log)[:4])
    last = hashlib.sha256(lines(log)[-1]).hexdigest()
    head = {"schema": 1, "entries": 4, "last": last}
    head_path(log).write_bytes(seal(HEAD_TYPE, head, [SigningKey.generate()]))
    assert any("expected one of 1 trusted keys" in problem for problem in verify(log, KEYS).problems)
    head_path(log).write_bytes(seal(HEAD_TYPE, head, [KEY]))
    assert verify(log, KEYS).intact


def test_cutting_the_log_and_its_head_is_found_by_who_remembers(tmp_path: Path) -> None:
    log = tmp_path / "findings.log"
    append(log, {"number": 0}, KEY)
    early, early_head = log.read_bytes(), head_path(log).read_bytes()
    remembered = append(log, {"number": 1}, KEY)
    assert verify(log, KEYS, remembered).intact
    log.write_bytes(early)
    head_path(log).write_bytes(early_head)
    assert verify(log, KEYS).intact
    assert any("the remembered head names 2" in problem for problem in verify(log, KEYS, remembered).problems)


def test_a_crash_between_line_and_head_leaves_an_unsealed_entry_that_the_next_one_seals(log: Path) -> None:
    old_head = head_path(log).read_bytes()
    append(log, {"number": 5}, KEY)
    head_path(log).write_bytes(old_head)
    report = verify(log, KEYS)
    assert report.intact
    assert report.unsealed == 1
    append(log, {"number": 6}, KEY)
    assert verify(log, KEYS).unsealed == 0
    assert verify(log, KEYS).head.entries == 7


def test_half_a_line_is_told_from_an_entry_and_stops_appending(log: Path) -> None:
    with log.open("ab") as file:
        file.write(lines(log)[0][:50])
    assert any("line 6: it has no line break" in problem for problem in verify(log, KEYS).problems)
    with pytest.raises(LedgerError, match="its last line has no end"):
        append(log, {"number": 5}, KEY)


def test_nothing_is_added_to_a_log_that_was_cut_off(log: Path) -> None:
    rewrite(log, lines(log)[:3])
    with pytest.raises(LedgerError, match="nothing is added"):
        append(log, {"number": 5}, KEY)
    assert len(lines(log)) == 3


def test_a_new_log_starts_from_nothing(tmp_path: Path) -> None:
    log = tmp_path / "findings.log"
    assert append(log, {"number": 0}, KEY).entries == 1
    assert verify(log, KEYS, Head(0, GENESIS)).intact


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"none\.log"):
        verify(tmp_path / "none.log", KEYS)
