"""The verbs of `testbed envelope`, with the exit codes and reasons that scripts rely on."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from testbed.cli.envelope import app
from testbed.envelope import Envelope, EnvelopeStore, Role, Root, SigningKey, Validity, strict_json
from testbed.envelope.dsse import seal
from testbed.envelope.trust import PAYLOAD_TYPE

from .samples import NOW_S, envelope, guardrails, key, root

EAST = envelope()
WEST = envelope(domain="west", guardrails=guardrails(burst_bits=10**7))


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    """Keys and a root for east and west, and one accepted envelope of each."""
    folder = tmp_path / "federation"
    made = command("keygen", folder, "--domain", "east", "--domain", "west", "--days", 10_000)
    assert made.exit_code == 0, made.output
    for promise in (EAST, WEST):
        sign(folder, promise, promise.domain, f"{promise.domain}.json")
    return folder


def sign(folder: Path, promise: Envelope | dict[str, Any], signer: str, out: str) -> Result:
    draft = folder / f"draft-{out}"
    draft.write_text(json.dumps(promise if isinstance(promise, dict) else promise.to_dict(), indent=2))
    return command("issue", draft, "--key", folder / f"{signer}.key", "--out", folder / out)


def verify(folder: Path, name: str, *more: object, now: object = NOW_S) -> Result:
    return command("verify", folder / name, "--root", folder / "root.json", "--now", now, *more)


def test_an_issued_envelope_is_accepted(federation: Path) -> None:
    result = verify(federation, "east.json")
    assert result.exit_code == 0
    assert result.stdout.startswith("accepted: east for alice/reserved/packet-forwarding/network, offer 7")


@pytest.mark.parametrize("now", ["2027-01-15T08:00:00Z", "2027-01-15T09:00:00+01:00", str(NOW_S)])
def test_the_moment_may_be_given_as_seconds_or_as_iso_8601(federation: Path, now: str) -> None:
    assert verify(federation, "east.json", now=now).exit_code == 0


def test_private_keys_are_their_owners_alone(federation: Path) -> None:
    for path in federation.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {path.name for path in federation.glob("*.key")} == {"east.key", "west.key", "root-1.key"}


def test_without_names_the_folder_names_the_domain(tmp_path: Path) -> None:
    made = command("keygen", tmp_path / "north", "--json")
    assert json.loads(made.stdout)["domain_keys"] == {"north": str(tmp_path / "north" / "north.key")}


def tampered(folder: Path) -> None:
    data = (folder / "east.json").read_bytes()
    (folder / "case.json").write_bytes(data.replace(b'"sig":"', b'"sig":"AAAA', 1).replace(b'=="}]', b'"}]', 1))


def edited(folder: Path) -> None:
    (folder / "case.json").write_bytes((folder / "east.json").read_bytes() + b"\n")


def changed_payload(folder: Path) -> None:
    document = json.loads((folder / "east.json").read_bytes())
    document["payload"] = json.loads((folder / "west.json").read_bytes())["payload"]
    (folder / "case.json").write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))


def by_another_domain(folder: Path) -> None:
    assert sign(folder, WEST, "east", "case.json").exit_code == 0


def by_a_stranger(folder: Path) -> None:
    SigningKey.generate().save(folder / "stranger.key")
    assert sign(folder, EAST, "stranger", "case.json").exit_code == 0


def ended(folder: Path) -> None:
    assert sign(folder, envelope(validity=Validity(1, 2)), "east", "case.json").exit_code == 0


def not_yet(folder: Path) -> None:
    assert sign(folder, envelope(validity=Validity(NOW_S + 1, NOW_S + 2)), "east", "case.json").exit_code == 0


def huge(folder: Path) -> None:
    (folder / "case.json").write_bytes(b" " * 10**6)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (edited, "malformed"),
        (huge, "malformed"),
        (tampered, "malformed"),
        (changed_payload, "bad-signature"),
        (by_another_domain, "wrong-domain"),
        (by_a_stranger, "untrusted-key"),
        (ended, "expired"),
        (not_yet, "not-yet-valid"),
    ],
)
def test_a_refusal_ends_with_1_and_names_its_reason_on_standard_error(
    federation: Path, prepare: Any, reason: str
) -> None:
    prepare(federation)
    result = verify(federation, "case.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"refused: {reason}: ")


def test_with_a_memory_older_equal_and_repeated_offers_are_refused(federation: Path) -> None:
    memory = ("--memory", federation / "memory.json")
    assert verify(federation, "east.json", *memory).exit_code == 0
    cases = {
        "replay": EAST,
        "rollback": envelope(version=6),
        "equal-version": envelope(guardrails=guardrails(burst_bits=300_000)),
    }
    for reason, promise in cases.items():
        sign(federation, promise, "east", "case.json")
        assert verify(federation, "case.json", *memory).stderr.startswith(f"refused: {reason}: ")
    sign(federation, envelope(version=8), "east", "case.json")
    assert verify(federation, "case.json", *memory).exit_code == 0
    assert verify(federation, "east.json", *memory).stderr.startswith("refused: rollback: ")


def replace_key(folder: Path, domain: str, number: int, name: str) -> Path:
    """The next root, in which a domain has a new key and no other."""
    SigningKey.generate().save(folder / f"{name}.key")
    SigningKey.load(folder / f"{name}.key").public_key.save(folder / f"{name}.pub")
    chain = [folder / "root.json", *(folder / f"root-{n}.json" for n in range(2, number))]
    roots = [item for path in chain for item in ("--root", path)]
    key = ("--key", folder / "root-1.key", "--domain", f"{domain}={folder / name}.pub", "--days", 10_000)
    made = command("rotate", *roots, *key, "--out", folder / f"root-{number}.json")
    assert made.exit_code == 0, made.stderr
    return folder / f"root-{number}.json"


def test_a_memory_forgets_what_a_withdrawn_key_had_accepted_and_nothing_else(federation: Path) -> None:
    memory = ("--memory", federation / "memory.json")
    for promise in (envelope(version=2**53 - 1), WEST):
        sign(federation, promise, promise.domain, "case.json")
        assert verify(federation, "case.json", *memory).exit_code == 0
    later = ("--root", replace_key(federation, "east", 2, "east-2"), *memory)
    sign(federation, EAST, "east-2", "case.json")
    assert verify(federation, "case.json", *later).exit_code == 0
    assert verify(federation, "case.json", *later).stderr.startswith("refused: replay: ")
    assert verify(federation, "west.json", *later).stderr.startswith("refused: replay: ")


def test_a_memory_that_followed_a_root_refuses_the_one_before_it(federation: Path) -> None:
    memory = ("--memory", federation / "memory.json")
    successor = replace_key(federation, "west", 2, "west-2")
    # The envelope is refused, by a key withdrawn; the root was followed all the same.
    refused = verify(federation, "west.json", "--root", successor, *memory)
    assert refused.stderr.startswith("refused: untrusted-key: ")
    alone = verify(federation, "east.json", *memory)
    assert alone.exit_code == 1
    assert alone.stderr.startswith("refused: root-version: root 1 of federation: root 2 was followed before")
    assert verify(federation, "east.json", "--root", successor, *memory).exit_code == 0


def test_a_memory_refuses_a_second_root_of_the_same_number(federation: Path) -> None:
    memory = ("--memory", federation / "memory.json")
    replace_key(federation, "west", 2, "west-2").rename(federation / "first.json")
    replace_key(federation, "west", 2, "west-3")
    assert verify(federation, "east.json", "--root", federation / "first.json", *memory).exit_code == 0
    second = verify(federation, "east.json", "--root", federation / "root-2.json", *memory)
    assert second.stderr.startswith("refused: root-version: root 2 of federation: another root of this number")


def test_a_memory_of_another_federation_is_refused(federation: Path, tmp_path: Path) -> None:
    store = EnvelopeStore(root())
    (tmp_path / "memory.json").write_bytes(strict_json.dumps(store.remember()))
    refused = verify(federation, "east.json", "--memory", tmp_path / "memory.json")
    assert refused.stderr.startswith("refused: root-version: memory of example: found a root of federation")


OFFER = {"domain": "east", "tenant": "alice", "version": 7, "digests": {"s": "ab" * 32}, "key_ids": ["ab" * 32]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5", "memory: found int"),
        ("[]", "memory: found list"),
        ("", "memory.json"),
        ("{}", "missing members ['offers', 'root']"),
        ({"offers": 5}, "memory.offers: found int"),
        ({"offers": [5]}, "remembered offer: found int"),
        ({"offers": [{**OFFER, "version": "7"}]}, "remembered offer.version: found '7'"),
        ({"offers": [{**OFFER, "digests": [1]}]}, "remembered offer.digests: found list"),
        ({"offers": [{**OFFER, "digests": {"s": 5}}]}, "remembered offer.s: found 5"),
        ({"offers": [{**OFFER, "key_ids": [5]}]}, "remembered offer.key_ids: found 5"),
        ({"root": 5}, "memory.root: found int"),
        ({"root": {"federation": "federation", "version": -1, "digest": "ab" * 32}}, "memory.root.version: found -1"),
    ],
)
def test_a_memory_that_is_none_is_one_clear_refusal(federation: Path, text: str | dict[str, Any], said: str) -> None:
    known = EnvelopeStore(Root.first((federation / "root.json").read_bytes())).remember()
    memory = federation / "memory.json"
    memory.write_bytes(text.encode() if isinstance(text, str) else strict_json.dumps({**known, **text}))
    refused = verify(federation, "east.json", "--memory", memory)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("refused: malformed: ")
    assert said in refused.stderr


def test_a_memory_has_room_for_a_thousand_tenants_of_five_domains(federation: Path) -> None:
    known = EnvelopeStore(Root.first((federation / "root.json").read_bytes())).remember()
    subjects = [f"t{{}}/reserved/{service}/{stage}" for service, stage in (("forwarding", "network"), ("m", "compute"))]
    offers = [
        {**OFFER, "domain": f"d{d}", "tenant": f"t{t}", "digests": {s.format(t): "ab" * 32 for s in subjects}}
        for d in range(5)
        for t in range(1000)
    ]
    memory = federation / "memory.json"
    memory.write_bytes(strict_json.dumps({**known, "offers": offers}))
    result = verify(federation, "east.json", "--memory", memory)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("issue", "draft-east.json", "--key", "east.key", "--out", "no/such/x"),
        ("verify", "east.json", "--root", "root.json", "--now", NOW_S, "--memory", "no/such/m"),
        ("cosign", "east.json", "--key", "east.key", "--out", "no/such/x"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_clear_error(
    federation: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...]
) -> None:
    monkeypatch.chdir(federation)
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("no/such/")
    assert result.stderr.endswith(": No such file or directory; name a file that can be written\n")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("now", ["nan", "inf", "-inf", "NaN", "1e999"])
def test_a_moment_that_is_no_number_is_a_wrong_command(federation: Path, now: str) -> None:
    assert verify(federation, "east.json", now=now).exit_code == 2


def test_a_chain_of_roots_is_followed_and_a_gap_is_refused(federation: Path) -> None:
    first = Root.first((federation / "root.json").read_bytes())
    keeper = SigningKey.load(federation / "root-1.key")
    new = SigningKey.generate()
    new.save(federation / "new.key")

    def successor(version: int) -> Path:
        keys = {**first.keys, new.key_id: new.public_key}
        old = next(iter(first.domains["east"].key_ids))
        del keys[old]
        domains = {**first.domains, "east": Role(frozenset({new.key_id}), 1)}
        candidate = Root(first.federation, version, first.not_after_s, keys, first.root, domains)
        path = federation / f"root-{version}.json"
        path.write_bytes(candidate.sign([keeper]))
        return path

    sign(federation, EAST, "new", "new.json")
    assert verify(federation, "new.json").stderr.startswith("refused: untrusted-key: ")
    assert verify(federation, "new.json", "--root", successor(2)).exit_code == 0
    assert verify(federation, "east.json", "--root", successor(2)).stderr.startswith("refused: untrusted-key: ")
    assert verify(federation, "new.json", "--root", successor(3)).stderr.startswith("refused: root-version: ")


def test_a_key_is_replaced_by_keepers_who_never_meet(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    command("keygen", old, "--domain", "east", "--domain", "west", "--root-keys", 3, "--threshold", 2)
    command("keygen", new, "--domain", "east", "--domain", "north")
    drafted = command(
        *("rotate", "--root", old / "root.json", "--key", old / "root-1.key", "--out", old / "next.json"),
        *("--domain", f"east={new / 'east.pub'}", "--domain", f"north={new / 'north.pub'}", "--remove", "west"),
    )
    assert drafted.exit_code == 0, drafted.output
    (old / "east.key").replace(old / "former.key")
    (new / "east.key").replace(old / "east.key")
    sign(old, EAST, "east", "new.json")
    sign(old, EAST, "former", "former.json")
    assert verify(old, "new.json", "--root", old / "next.json").stderr.startswith("refused: below-threshold: ")
    cosigned = command("cosign", old / "next.json", "--key", old / "root-3.key", "--out", old / "next.json")
    assert cosigned.exit_code == 0, cosigned.output
    assert verify(old, "new.json", "--root", old / "next.json").exit_code == 0
    assert verify(old, "former.json", "--root", old / "next.json").stderr.startswith("refused: untrusted-key: ")
    after = Root.first((old / "root.json").read_bytes()).successor((old / "next.json").read_bytes())
    assert (after.version, sorted(after.domains), after.root.threshold) == (2, ["east", "north"], 2)


def test_the_keepers_of_the_root_are_replaced(federation: Path, tmp_path: Path) -> None:
    command("keygen", tmp_path / "new", "--root-keys", 2)
    arguments = ["rotate", "--root", federation / "root.json", "--out", federation / "next.json", "--threshold", 2]
    for name in ("root-1", "root-2"):
        arguments += ["--root-key", tmp_path / "new" / f"{name}.pub", "--key", tmp_path / "new" / f"{name}.key"]
    assert command(*arguments).exit_code == 0
    both = ("--root", federation / "next.json")
    assert verify(federation, "east.json", *both).stderr.startswith(
        "refused: below-threshold: root 2, by the keys of root 1"
    )
    command("cosign", federation / "next.json", "--key", federation / "root-1.key", "--out", federation / "next.json")
    assert verify(federation, "east.json", *both).exit_code == 0


def test_two_holders_of_a_domain_sign_one_envelope_one_after_the_other(federation: Path) -> None:
    command("cosign", federation / "east.json", "--key", federation / "west.key", "--out", federation / "both.json")
    assert verify(federation, "both.json").stderr.startswith("refused: wrong-domain: ")
    again = command("cosign", federation / "east.json", "--key", federation / "east.key")
    assert again.stdout_bytes == (federation / "east.json").read_bytes()


def test_what_is_neither_envelope_nor_root_is_not_cosigned(federation: Path) -> None:
    signer = SigningKey.load(federation / "east.key")
    (federation / "other.json").write_bytes(seal("application/vnd.other+json", {"a": 1}, [signer]))
    (federation / "empty.json").write_bytes(seal(PAYLOAD_TYPE, {"a": 1}, [signer]))
    for name in ("other.json", "empty.json"):
        result = command("cosign", federation / name, "--key", federation / "east.key")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("refused: malformed: ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--remove", "north"), "['north'] are no domains of it"),
        (("--remove", "east", "--threshold", "2"), "role.threshold"),
        (("--domain", "north=east.pub"), "one key has two roles"),
    ],
)
def test_a_root_that_would_contradict_itself_is_not_signed(
    federation: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], named: str
) -> None:
    monkeypatch.chdir(federation)
    result = command("rotate", "--root", "root.json", "--key", "root-1.key", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert named in result.stderr


def test_a_malformed_document_is_named_by_its_file_among_several(federation: Path) -> None:
    damaged = federation / "damaged.json"
    damaged.write_text("not JSON", encoding="utf-8")
    root, east = federation / "root.json", federation / "east.json"
    for arguments in (
        ("verify", east, "--root", root, "--root", damaged),
        ("verify", damaged, "--root", root),
        ("compose", east, damaged),
        ("compose", damaged, east, "--root", root),
        ("cosign", damaged, "--key", federation / "east.key"),
        ("issue", damaged, "--key", federation / "east.key"),
    ):
        result = command(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"refused: malformed: {damaged}: ")
        assert result.stderr.count(str(damaged)) == 1


@pytest.mark.parametrize("text", ["east", "=east.pub", "east="])
def test_a_domain_key_without_name_or_file_is_a_wrong_command(federation: Path, text: str) -> None:
    arguments = ("--root", federation / "root.json", "--key", federation / "root-1.key")
    assert command("rotate", *arguments, "--domain", text).exit_code == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 7.5}, "found 7.5"),
        ({"colour": "blue"}, "unknown members ['colour']"),
        ({"domain": "a b"}, "envelope.domain"),
    ],
)
def test_a_draft_that_is_no_envelope_is_not_signed(federation: Path, change: dict[str, Any], named: str) -> None:
    result = sign(federation, {**EAST.to_dict(), **change}, "east", "case.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("refused: malformed: ")
    assert named in result.stderr
    assert not (federation / "case.json").exists()


def test_without_a_place_to_write_the_signed_envelope_goes_to_standard_output(federation: Path) -> None:
    result = command("issue", federation / "draft-east.json", "--key", federation / "east.key")
    assert result.stdout_bytes == (federation / "east.json").read_bytes()


def test_a_root_is_never_overwritten_even_when_its_keys_are_elsewhere(federation: Path) -> None:
    before = (federation / "root.json").read_bytes()
    for path in (*federation.glob("*.key"), *federation.glob("*.pub")):
        path.unlink()
    assert command("keygen", federation, "--domain", "east").exit_code == 1
    assert (federation / "root.json").read_bytes() == before
    assert not list(federation.glob("*.key"))


def test_nothing_is_accepted_under_a_root_that_has_ended(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_bytes(root(not_after_s=NOW_S - 1).sign([key("r1"), key("r2")]))
    key("east").save(tmp_path / "east.key")
    sign(tmp_path, EAST, "east", "east.json")
    assert verify(tmp_path, "east.json").stderr.startswith("refused: expired: root 1 of example")


def test_a_huge_file_is_refused_unread(federation: Path) -> None:
    huge(federation)
    assert "16385 bytes, expected at most 16384" in verify(federation, "case.json").stderr


def test_keys_are_never_overwritten(federation: Path) -> None:
    before = (federation / "east.key").read_bytes()
    result = command("keygen", federation, "--domain", "east")
    assert (result.exit_code, result.stderr[:18]) == (1, "refused: bad-key: ")
    assert (federation / "east.key").read_bytes() == before


@pytest.mark.parametrize("name", ["a/b", "root-1", "..", "a b"])
def test_names_that_are_no_file_of_their_own_make_no_key(tmp_path: Path, name: str) -> None:
    result = command("keygen", tmp_path / "federation", "--domain", name)
    assert result.exit_code == 1
    assert not list(tmp_path.rglob("*.key"))


def test_show_says_that_it_verified_nothing_unless_it_did(federation: Path) -> None:
    plain = command("show", federation / "east.json")
    assert plain.exit_code == 0
    assert "not verified" in plain.stderr
    assert "serves like a queue of 10 Mb/s and 1.5 ms (0.5 ms of it for the host)," in plain.stdout
    checked = command("show", federation / "east.json", "--root", federation / "root.json", "--now", NOW_S, "--json")
    assert checked.stderr == ""
    assert Envelope.from_dict(json.loads(checked.stdout)) == EAST


def test_compose_adds_up_a_path_of_verified_envelopes(federation: Path) -> None:
    arguments = ("compose", federation / "east.json", federation / "west.json", "--root", federation / "root.json")
    answer = json.loads(command(*arguments, "--now", NOW_S, "--json").stdout)
    assert answer["guardrails"]["latency_ns"] == 3_000_000
    assert [source["domain"] for source in answer["sources"]] == ["east", "west"]
    assert answer["excess_s"]["union"] <= answer["excess_s"]["sample-path"]
    text = command(*arguments, "--now", NOW_S).stdout
    assert "from end to end, east" in text


def test_compose_refuses_what_does_not_belong_together(federation: Path) -> None:
    result = command("compose", federation / "east.json", federation / "east.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("refused: mix-and-match: ")


@pytest.mark.parametrize(
    "arguments",
    [("verify", "missing.json", "--root", "missing.json"), ("verify", "pyproject.toml"), ("issue", "pyproject.toml")],
)
def test_a_wrong_command_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert command(*arguments).exit_code == 2


def test_a_time_without_an_offset_is_a_wrong_command(federation: Path) -> None:
    assert verify(federation, "east.json", now="2027-01-15T08:00:00").exit_code == 2
