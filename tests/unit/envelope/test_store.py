"""Attacks on a reader with a memory, each refused by its name."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from testbed.envelope import Envelope, EnvelopeStore, Root, Stage, Subject, Validity, issue, strict_json, verify
from testbed.envelope.errors import (
    EqualVersionError,
    ExpiredError,
    MixAndMatchError,
    NotYetValidError,
    RefusedError,
    ReplayError,
    RollbackError,
    UntrustedKeyError,
)

from .samples import DAY_S, NOW_S, envelope, guardrails, key, root

COMPUTE = Subject("alice", "reserved", "resnet", Stage.COMPUTE)
BOB = Subject("bob", "reserved", "packet-forwarding", Stage.NETWORK)


def signed(promise: Envelope) -> bytes:
    owners = {"east": ["east"], "west": ["west1", "west2"]}[promise.domain]
    return issue(promise, [key(owner) for owner in owners])


def store_with(*promises: Envelope) -> EnvelopeStore:
    store = EnvelopeStore(root())
    for promise in promises:
        store.accept(signed(promise), NOW_S)
    return store


@pytest.mark.parametrize(
    ("attack", "error"),
    [
        pytest.param(envelope(version=6), RollbackError, id="rollback to an older offer"),
        pytest.param(envelope(version=6, subject=COMPUTE), RollbackError, id="rollback for another stage"),
        pytest.param(envelope(), ReplayError, id="replay of the accepted envelope"),
        pytest.param(envelope(guardrails=guardrails(burst_bits=300_000)), EqualVersionError, id="equal version"),
        pytest.param(envelope(version=8, validity=Validity(NOW_S - 2 * DAY_S, NOW_S - 1)), ExpiredError, id="freeze"),
        pytest.param(envelope(version=8), None, id="no attack: the next offer"),
        pytest.param(envelope(subject=COMPUTE), None, id="no attack: the rest of the same offer"),
        pytest.param(envelope(version=1, subject=BOB), None, id="no attack: another tenant's first offer"),
        pytest.param(envelope(version=1, domain="west"), None, id="no attack: another domain's first offer"),
    ],
)
def test_after_one_envelope_was_accepted(attack: Envelope, error: type[RefusedError] | None) -> None:
    store = store_with(envelope())
    if error is None:
        assert store.accept(signed(attack), NOW_S) == attack
    else:
        with pytest.raises(error):
            store.accept(signed(attack), NOW_S)
        assert store.current("east", envelope().subject, NOW_S) == envelope()


@pytest.mark.parametrize(
    ("offered", "error"),
    [
        pytest.param((envelope(), envelope(subject=COMPUTE)), None, id="one domain's offer for both stages"),
        pytest.param((envelope(), envelope(domain="west", version=3)), None, id="two domains' offers"),
        pytest.param((envelope(), envelope(subject=COMPUTE, version=8)), MixAndMatchError, id="stages of two offers"),
        pytest.param((envelope(), envelope(domain="west", subject=BOB)), MixAndMatchError, id="two tenants"),
        pytest.param(
            (envelope(), envelope(domain="west", subject=replace(envelope().subject, tenant_class="gold"))),
            MixAndMatchError,
            id="two classes",
        ),
        pytest.param((envelope(), envelope()), ReplayError, id="one subject twice"),
        pytest.param(
            (envelope(), envelope(domain="west", validity=Validity(1, 2))), ExpiredError, id="one of them has ended"
        ),
    ],
)
def test_an_offer_is_accepted_as_a_whole_or_not_at_all(
    offered: tuple[Envelope, ...], error: type[RefusedError] | None
) -> None:
    store = EnvelopeStore(root())
    data = [signed(promise) for promise in offered]
    if error is None:
        assert store.accept_offer(data, NOW_S) == offered
    else:
        with pytest.raises(error):
            store.accept_offer(data, NOW_S)
        assert store.remember()["offers"] == []


def test_a_later_offer_supersedes_everything_offered_before_to_the_tenant() -> None:
    store = store_with(envelope(), envelope(subject=COMPUTE), envelope(subject=BOB), envelope(version=8))
    assert store.current("east", COMPUTE, NOW_S) is None
    assert store.current("east", envelope().subject, NOW_S) == envelope(version=8)
    assert store.current("east", BOB, NOW_S) == envelope(subject=BOB)


@pytest.mark.parametrize("moment", [NOW_S - DAY_S - 1, NOW_S + DAY_S + 1])
def test_an_accepted_envelope_is_not_current_outside_its_validity(moment: int) -> None:
    assert store_with(envelope()).current("east", envelope().subject, moment) is None


def test_memory_survives_a_restart_and_refuses_the_same_attacks() -> None:
    remembered = strict_json.loads(strict_json.dumps(store_with(envelope()).remember()), "memory")
    store = EnvelopeStore(root(), remembered)
    for attack, error in (
        (envelope(version=6), RollbackError),
        (envelope(), ReplayError),
        (envelope(guardrails=guardrails(burst_bits=300_000)), EqualVersionError),
    ):
        with pytest.raises(error):
            store.accept(signed(attack), NOW_S)


def test_at_a_moment_that_is_no_number_nothing_is_accepted() -> None:
    data, moment = signed(envelope()), float("nan")
    with pytest.raises(NotYetValidError):
        verify(data, root().trust, moment)
    with pytest.raises(ExpiredError, match="root"):
        root().require_current(moment)
    with pytest.raises(RefusedError):
        EnvelopeStore(root()).accept(data, moment)
    assert store_with(envelope()).current("east", envelope().subject, moment) is None


def test_of_two_offers_remembered_the_later_one_counts() -> None:
    store = store_with(envelope(version=9))
    store.recall(store_with(envelope()).remember())
    with pytest.raises(RollbackError):
        store.accept(signed(envelope(version=8)), NOW_S)


def test_nothing_is_accepted_under_a_root_that_has_ended() -> None:
    store = EnvelopeStore(root(not_after_s=NOW_S - 1))
    with pytest.raises(ExpiredError, match="root"):
        store.accept(signed(envelope()), NOW_S)


def rotated(east: str) -> Root:
    return root(2, domains={"east": ((east,), 1), "west": (("west1", "west2", "west3"), 2)})


def test_a_withdrawn_key_takes_its_promises_and_its_version_numbers_along() -> None:
    fast_forward = envelope(version=2**53 - 1)
    store = store_with(fast_forward, envelope(domain="west"))
    store.follow(rotated("east2").sign([key("r1"), key("r2")]))
    assert store.current("east", envelope().subject, NOW_S) is None
    assert store.current("west", envelope().subject, NOW_S) is not None
    with pytest.raises(UntrustedKeyError):
        store.accept(signed(fast_forward), NOW_S)
    assert store.accept(issue(envelope(), [key("east2")]), NOW_S) == envelope()


def test_a_key_added_beside_the_old_one_changes_nothing_accepted() -> None:
    store = store_with(envelope())
    store.follow(
        root(2, domains={"east": (("east", "east2"), 1), "west": (("west1", "west2", "west3"), 2)}).sign(
            [key("r1"), key("r2")]
        )
    )
    assert store.root.version == 2
    assert store.current("east", envelope().subject, NOW_S) == envelope()
    with pytest.raises(ReplayError):
        store.accept(issue(envelope(), [key("east2")]), NOW_S)


def test_of_many_threads_that_present_one_envelope_exactly_one_is_told_it_is_new() -> None:
    store, data = EnvelopeStore(root()), signed(envelope())
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def present() -> None:
        start.wait()
        try:
            store.accept(data, NOW_S)
            outcomes.append("new")
        except ReplayError:
            outcomes.append("replay")

    threads = [threading.Thread(target=present) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["new"] + ["replay"] * 7
