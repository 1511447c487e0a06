"""One agent as a process: what it does for members of its federation, and whom it refuses."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from testbed.envelope.keys import SigningKey
from testbed.envelope.store import issue, verify
from testbed.errors import ReservationError
from testbed.management import identity, service
from testbed.management.calls import AgentClient, UnreachableError, method
from testbed.management.entry import ForeignReservationError, ReusedRequestError, WrongStateError
from testbed.management.generated import management_pb2 as wire
from testbed.management.identity import Gate, IdentityError, anchors, authority, credentials
from testbed.management.installer import ControllerError

from .federation_lab import FEDERATION, Lab, make_root

DEADLINE_S = 60.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s in vain for: {what}"
        time.sleep(0.01)


def demand(tenant: str = "t1", rate_bps: int = 10_000_000, model: str = "medium", replaces: str = "") -> wire.Demand:
    number = int(tenant.removeprefix("t"))
    asked = wire.Demand(
        tenant=tenant,
        replaces=replaces,
        network=wire.NetworkDemand(
            client=f"10.1.0.{number}", server="10.2.0.1", rate_bps=rate_bps, meter_rate_bps=5_000_000,
            burst_bits=400_000, queue_bits=800_000, largest_packet_bits=12_112,
        ),
    )  # fmt: skip
    if model:
        asked.compute.CopyFrom(
            wire.ComputeDemand(
                model=model,
                share_ppm=100_000,
                largest_request_bits=70_000,
                meter_rate_bps=5_000_000,
                burst_bits=400_000,
            )
        )
    return asked


def presented(offered: wire.Offered) -> wire.Presented:
    return wire.Presented(reservation=offered.reservation, envelopes=offered.envelopes)


def hold(client: AgentClient, tenant: str = "t1", **asked: object) -> wire.Offered:
    (offered,) = client.offer([demand(tenant, **asked)])  # type: ignore[arg-type]
    assert not offered.refused
    (held,) = client.prepare([presented(offered)])
    assert held.state == "prepared", held.refused
    return offered


@pytest.fixture
def core(lab: Lab) -> Lab:
    """A lab of which only `core` runs."""
    seat = lab.seats["core"]
    seat.start_controller()
    seat.start_agent()
    return lab


def test_an_offer_is_signed_for_network_and_compute_under_one_number(core: Lab) -> None:
    with core.client("core") as client:
        (offered,) = client.offer([demand()])
    network, compute = (verify(data, core.root.trust, time.time()) for data in offered.envelopes)
    assert (network.domain, network.guardrails.reserved_rate_bps) == ("core", 10_000_000)
    # A tenth of four workers, 2 ms a request of 70,000 bits.
    assert compute.guardrails.reserved_rate_bps == int(0.1 * 4 * 70_000 / 0.002)
    # Three quarters of a request ahead on the own share, its own, and one of 4 ms of each of 15 others on 4 workers.
    assert compute.guardrails.latency_s == pytest.approx(0.75 * 0.002 + 0.002 + 15 * 0.004 / 4)
    assert network.version == compute.version
    # 10 Mbit/s at 0.01, a tenth of a server at 5.
    assert offered.price_micro == 600_000


def test_a_burst_that_no_meter_holds_is_refused_with_one_that_it_does(core: Lab) -> None:
    asked = demand()
    asked.network.burst_bits = 400_001
    with core.client("core") as client:
        (offered,) = client.offer([asked])
    assert "found a burst of 400001 bits, expected whole kbit" in offered.refused
    assert "ask for 401000" in offered.refused


def test_a_committed_reservation_is_on_the_switch_and_a_released_one_is_not(core: Lab) -> None:
    with core.client("core") as client:
        offered = hold(client)
        assert core.seats["core"].installed() == {}
        (held,) = client.commit([offered.reservation])
        assert held.state == "committed"
        assert core.seats["core"].installed() == {"t1": (1, 10_000_000)}
        client.release([offered.reservation])
        assert core.seats["core"].installed() == {}
        assert core.seats["core"].held() == 0


def test_what_the_switch_refuses_stays_prepared_and_can_be_given_up(core: Lab) -> None:
    broken = core.seats["core"].switch.with_suffix(".broken")
    with core.client("core") as client:
        offered = hold(client)
        broken.write_text("meter 1 of d1i: refused by the switch")
        with pytest.raises(ControllerError, match="core: meter 1 of d1i: refused"):
            client.commit([offered.reservation])
        broken.unlink()
        (mine,) = client.report(with_holdings=True).holdings
        assert mine.state == "prepared"
        client.abort([offered.reservation])
    assert core.seats["core"].held() == 0


def test_every_call_again_with_its_id_gets_the_same_answer_and_changes_nothing(core: Lab) -> None:
    with core.client("core") as client:
        first = client.offer([demand()], request_id="offer")
        assert client.offer([demand()], request_id="offer") == first
        shown = [presented(first[0])]
        assert client.prepare(shown, request_id="prepare") == client.prepare(shown, request_id="prepare")
        held = [first[0].reservation]
        assert client.commit(held, request_id="commit") == client.commit(held, request_id="commit")
        assert client.renew(held, 9_000_000, request_id="renew") == client.renew(held, 9_000_000, request_id="renew")
        assert client.release(held, request_id="release") == client.release(held, request_id="release")
        assert client.abort(["core/t9/9"], request_id="abort") == client.abort(["core/t9/9"], request_id="abort")
        with pytest.raises(ReusedRequestError):
            client.commit(["another"], request_id="commit")
        assert len(client.report(with_holdings=True).holdings) == 1


def test_a_call_without_a_request_id_is_refused(core: Lab) -> None:
    with core.credentials().channel(f"127.0.0.1:{core.seats['core'].port}", "core") as channel:
        call = channel.unary_unary(method("Commit"), request_serializer=wire.ChangeRequest.SerializeToString)
        with pytest.raises(grpc.RpcError, match="found no request id"):
            call(wire.ChangeRequest(reservations=["a"]), timeout=20)


def test_bytes_that_are_no_request_are_the_callers_mistake(core: Lab) -> None:
    target = f"127.0.0.1:{core.seats['core'].port}"
    with core.credentials().channel(target, "core") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method("Commit"))(b"\xff\xff", timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_reservation_belongs_to_who_asked_for_it(core: Lab) -> None:
    with core.client("core") as broker, core.client("core", core.credentials("access")) as other:
        offered = hold(broker)
        for change in (other.commit, other.abort, other.release):
            with pytest.raises(ForeignReservationError, match="belongs to broker"):
                change([offered.reservation])
        (refused,) = other.prepare([presented(offered)])
        assert "belongs to broker" in refused.refused
        assert not other.report(with_holdings=True).holdings


def test_a_lease_that_ends_is_taken_off_the_switch(watchful: Lab) -> None:
    seat = watchful.seats["core"]
    seat.start_controller()
    seat.start_agent()
    with watchful.client("core") as client:
        offered = hold(client)
        client.commit([offered.reservation], lease_ms=600)
        wait_for(lambda: seat.installed() == {}, "the lease's end on the switch")
        assert seat.held() == 0
        with pytest.raises(WrongStateError):
            client.renew([offered.reservation], 1000)


def test_what_changes_on_the_switch_behind_the_agents_back_is_repaired_and_counted(watchful: Lab) -> None:
    seat = watchful.seats["core"]
    seat.start_controller()
    seat.start_agent()
    with watchful.client("core") as client:
        client.commit([hold(client).reservation])
        wanted = seat.installed()
        # All at once: a controller that reads meanwhile finds the old rules or none, and never half a file.
        emptied = seat.switch.with_suffix(".emptied")
        emptied.write_text("{}")
        emptied.replace(seat.switch)
        wait_for(lambda: seat.installed() == wanted, "the repair")
        wait_for(lambda: client.health().repairs >= 1, "the count of repairs")


def test_a_domain_sells_no_more_than_it_has_and_says_what_is_left(core: Lab) -> None:
    with core.client("core") as client:
        hold(client, "t1", rate_bps=60_000_000)
        (offered,) = client.offer([demand("t2", rate_bps=50_000_000)])
        (held,) = client.prepare([presented(offered)])
        assert "wants 50000000 of network with 40000000 of 100000000 free" in held.refused
        assert core.seats["core"].held() == 60_000_000


def test_an_envelope_that_one_domain_signed_for_another_is_refused_and_logged(core: Lab) -> None:
    with core.client("core") as client:
        (offered,) = client.offer([demand(model="")])
        genuine = verify(offered.envelopes[0], core.root.trust, time.time())
        forged = issue(genuine, [core.keys["access"]])
        (held,) = client.prepare([wire.Presented(reservation=offered.reservation, envelopes=[forged])])
        assert held.refused.startswith("wrong-domain: domain 'core': signed by a key of ['access']")
        assert client.health().refusals["wrong-domain"] == 1
    assert "wrong-domain" in core.seats["core"].log
    assert core.seats["core"].held() == 0


@pytest.mark.parametrize("change", ["cheaper", "another tenant's", "tampered"])
def test_only_the_very_envelope_that_was_offered_is_held(core: Lab, change: str) -> None:
    with core.client("core") as client:
        (offered,) = client.offer([demand(model="")])
        envelopes = {
            "cheaper": client.offer([demand(model="", rate_bps=20_000_000)])[0].envelopes[0],
            "another tenant's": client.offer([demand("t2", model="")])[0].envelopes[0],
            "tampered": offered.envelopes[0].replace(b'"payload":"', b'"payload":"A', 1),
        }
        (held,) = client.prepare([wire.Presented(reservation=offered.reservation, envelopes=[envelopes[change]])])
        assert held.refused
        assert not held.state
    assert core.seats["core"].held() == 0


def test_a_replacement_changes_the_rule_in_its_seat_and_nobody_elses(core: Lab) -> None:
    with core.client("core") as client:
        mine, other = hold(client, "t1"), hold(client, "t2")
        client.commit([mine.reservation, other.reservation])
        more = hold(client, "t1", rate_bps=20_000_000, replaces=mine.reservation)
        assert core.seats["core"].installed()["t1"] == (1, 10_000_000)
        client.commit([more.reservation])
        assert core.seats["core"].installed() == {"t1": (1, 20_000_000), "t2": (2, 10_000_000)}
        assert core.seats["core"].held() == 30_000_000


def settings_of(core: Lab, **changed: object) -> None:
    path = core.seats["core"].folder / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_an_agent_follows_a_chain_of_roots_and_holds_nothing_under_one_that_has_ended(lab: Lab) -> None:
    seat, files = lab.seats["core"], [lab.folder / f"root-{number}.json" for number in (1, 2)]
    files[0].write_bytes((lab.folder / "root.json").read_bytes())
    files[1].write_bytes(lab.root.rotated(not_after_s=int(time.time()) - 1).sign([lab.root_key]))
    seat.start_controller()
    settings_of(lab, root=[str(files[0])])
    seat.start_agent()
    with lab.client("core") as client:
        offered = hold(client)
        client.release([offered.reservation])
    seat.end_agent()
    settings_of(lab, root=[str(path) for path in files])
    seat.start_agent()
    with lab.client("core") as client:
        (offered,) = client.offer([demand("t2")])
        (held,) = client.prepare([presented(offered)])
        assert held.refused.startswith("expired: root 2 of lab: valid until ")
    assert seat.held() == 0


def test_an_agent_with_a_broken_chain_of_roots_says_so_and_does_not_start(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")  # what main sets for its process would be every later test's
    settings = lab.seats["core"].folder / "settings.json"
    for root, said in (([str(lab.folder / "root.json")] * 2, "root version: found 1, expected 2"), ([], "root: ")):
        settings_of(lab, root=root)
        assert service.main([str(settings)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("never", [0, -1, 1e10])
def test_an_agent_is_not_told_to_look_at_its_switches_without_a_pause_or_later_than_any_clock_counts(
    lab: Lab, never: float
) -> None:
    settings_of(lab, look_every_s=never)
    with pytest.raises(ReservationError, match=r"settings\.json: look_every_s: Input should be (greater|less) than"):
        service.Settings.read(lab.seats["core"].folder / "settings.json")


def test_a_demand_for_no_rate_is_refused(core: Lab) -> None:
    with core.client("core") as client:
        (offered,) = client.offer([demand(rate_bps=0)])
    assert "found no rate" in offered.refused


def test_a_plaintext_client_is_refused_and_logged(core: Lab) -> None:
    seat = core.seats["core"]
    with grpc.insecure_channel(f"127.0.0.1:{seat.port}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method("Health"))(b"", timeout=5)
    assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    wait_for(lambda: "WRONG_VERSION_NUMBER" in seat.log, "the log of the refusal")


def test_a_client_with_another_federations_certificate_is_refused_and_logged(core: Lab) -> None:
    seat = core.seats["core"]
    key = SigningKey.generate()
    foreign = credentials("elsewhere", "broker", key, core.credentials().anchors)
    client = AgentClient("core", f"127.0.0.1:{seat.port}", foreign, timeout_s=5, attempts=1)
    with client, pytest.raises((UnreachableError, IdentityError)):
        client.health()
    wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in seat.log, "the log of the refusal")


def test_a_member_that_certifies_itself_under_another_name_is_refused_and_logged(core: Lab) -> None:
    """Its authority is trusted by TLS, so that only the look into the root can tell."""
    forged = _named(core.keys["access"], issuer="access", says="metro-near", anchored=core.credentials().anchors)
    with (
        core.client("core", forged) as client,
        pytest.raises(IdentityError, match="not signed by a key of that domain"),
    ):
        client.health()
    assert "foreign-certificate" in core.seats["core"].log


def test_a_client_does_not_talk_to_another_domain_than_it_means_to(core: Lab) -> None:
    core.seats["access"].port = core.seats["core"].port
    with core.client("access") as client, pytest.raises(UnreachableError):
        client.health()


def _named(key: SigningKey, *, issuer: str, says: str, anchored: bytes) -> identity.Credentials:
    genuine = credentials(FEDERATION, issuer, key, anchored)
    leaf = x509.load_pem_x509_certificate(genuine.certificate)
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(leaf.issuer)
        .serial_number(1)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
        .public_key(leaf.public_key())
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{identity.SCHEME}://{FEDERATION}/{says}")]),
            critical=False,
        )
    )
    pem = key.certify(builder).public_bytes(serialization.Encoding.PEM)
    return identity.Credentials(says, FEDERATION, pem, genuine.key, anchored)


@pytest.mark.parametrize(
    ("issuer", "says", "federation", "said"),
    [
        ("east", "east", "lab", None),
        ("east", "west", "lab", "not signed by a key of that domain"),
        ("east", "north", "lab", "no domain of lab"),
        ("east", "east", "elsewhere", "expected one that begins with"),
    ],
)
def test_a_certificate_speaks_for_the_domain_whose_key_signed_it(
    issuer: str, says: str, federation: str, said: str | None
) -> None:
    keys = {name: SigningKey.generate() for name in ("east", "west")}
    gate = Gate(make_root(SigningKey.generate(), keys))
    shown = credentials(federation, says, keys[issuer], b"").certificate
    if said is None:
        assert gate.identify(shown) == says
        return
    with pytest.raises(IdentityError, match=said):
        gate.identify(shown)


def test_a_certificate_that_is_over_or_no_certificate_is_refused() -> None:
    keys = {"east": SigningKey.generate()}
    gate = Gate(make_root(SigningKey.generate(), keys))
    shown = credentials("lab", "east", keys["east"], b"").certificate
    with pytest.raises(IdentityError, match="must renew it"):
        gate.identify(shown, dt.datetime.now(dt.UTC) + dt.timedelta(days=91))
    with pytest.raises(IdentityError, match="are none"):
        gate.identify(b"junk")


def test_an_authority_whose_key_the_root_does_not_know_is_no_anchor() -> None:
    keys = {"east": SigningKey.generate()}
    root = make_root(SigningKey.generate(), keys)
    assert anchors(root, [authority("lab", "east", keys["east"])])
    with pytest.raises(IdentityError, match="none of a domain of lab"):
        anchors(root, [authority("lab", "east", SigningKey.generate())])


def test_offers_say_why_there_is_none(core: Lab) -> None:
    with core.client("core") as client:
        answers = client.offer(
            [demand(model="huge"), demand("t2", rate_bps=200_000_000), demand("t3", rate_bps=4_000_000)]
        )
    assert "found no model huge, expected one of medium, large" in answers[0].refused
    assert "100000000 are sold altogether" in answers[1].refused
    assert "lower the meter or reserve more" in answers[2].refused


def test_errors_arrive_as_the_kind_they_were(core: Lab) -> None:
    with core.client("core") as client:
        with pytest.raises(ReservationError, match="unknown here"):
            client.commit(["core/t1/77"])
        assert client.health().refusals == {"UnknownReservationError": 1}
