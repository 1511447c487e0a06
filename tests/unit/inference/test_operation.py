"""What operators see: options, TLS and who may call, the page for Prometheus, health as it changes, large messages."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch import nn

from inference_server.__main__ import _settings, main
from inference_server.generated.open_inference_pb2 import Impairment, ImpairRequest
from inference_server.metrics import _Page
from inference_server.protocol import Stamps
from inference_server.security import Security
from inference_server.server import CALLS, CAPPED_CALLS, MESSAGE_BYTES, Settings
from inference_server.statistics import Statistics
from tests.unit.inference.serving import LONG_S, Running, infer, request, serving, special

DAY = dt.timedelta(days=1)


@dataclass
class Identity:
    """A certificate and its key, in memory and in files."""

    name: str
    folder: Path
    signer: Identity | None = None

    def __post_init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if self.signer is None else self.signer.public.subject)
            .public_key(self.private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=self.signer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        signing = self.private if self.signer is None else self.signer.private
        self.public = builder.sign(signing, hashes.SHA256())
        self.certificate.write_bytes(self.public.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            self.private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    @property
    def key(self) -> Path:
        return self.folder / f"{self.name}.key"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identities")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Identity:
    return Identity("authority", folder)


@pytest.fixture(scope="module")
def mutual(folder: Path, authority: Identity) -> Iterator[Running]:
    """A server that lets only clients of the authority call."""
    mine = Identity("server", folder, authority)
    settings = Settings(
        listen="127.0.0.1:0",
        models=["digits-small"],
        device="cpu",
        security=Security(mine.certificate, mine.key, authority.certificate),
    )
    with serving(settings) as running:
        yield running


def secure(running: Running, authority: Identity, client: Identity | None = None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(),
        None if client is None else client.key.read_bytes(),
        None if client is None else client.certificate.read_bytes(),
    )
    return grpc.secure_channel(f"localhost:{running.server.port}", credentials)


def test_a_client_of_the_authority_is_answered_over_mutual_tls(
    mutual: Running, authority: Identity, folder: Path
) -> None:
    with secure(mutual, authority, Identity("friend", folder, authority)) as channel:
        assert infer(channel)(request(), timeout=LONG_S).outputs


def test_clients_without_a_certificate_or_with_a_strangers_are_not_let_in(
    mutual: Running, authority: Identity, folder: Path
) -> None:
    stranger = Identity("stranger", folder, Identity("elsewhere", folder))
    for client in (None, stranger):
        with secure(mutual, authority, client) as channel, pytest.raises(grpc.RpcError) as caught:
            infer(channel)(request(), timeout=LONG_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with mutual.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        infer(channel)(request(), timeout=LONG_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_over_tls_everybody_may_call_who_trusts_the_server(authority: Identity, folder: Path) -> None:
    mine = Identity("open", folder, authority)
    security = Security(mine.certificate, mine.key)
    settings = Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu", security=security)
    with serving(settings) as running:
        with secure(running, authority) as channel:
            assert infer(channel)(request(), timeout=LONG_S).outputs
        with secure(running, Identity("other", folder)) as channel, pytest.raises(grpc.RpcError) as caught:
            infer(channel)(request(), timeout=LONG_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


WRONG_OPTIONS = [
    (["--tls-certificate", "server.pem"], "needed together"),
    (["--tls-client-authority", "server.pem"], "needs --tls-certificate"),
    (["--share", "alpha=0.5:none"], "expected a whole number"),
    (["--share", "alpha=0.5", "--share", "alpha=0.3"], "found several of ['alpha'], expected one of each tenant"),
    (["--max-message-bytes", "3000000000"], "at most 2147483647"),
    (["--calls-per-connection", "5000000000"], "at most 2147483647"),
    (["--calls-per-connection", "0"], "expected a whole number of at least 1"),
    (["--batch-delay-ms", "inf"], "found 'inf', expected a number of at least 0"),
    (["--drain-s", "nan"], "found 'nan', expected a number of at least 0"),
    (["--drain-s", "-1"], "found '-1', expected a number of at least 0"),
    (["--queue-limit", "0"], "expected a whole number of at least 1"),
    (["--capped-shares"], "--capped-shares needs --share"),
]


@pytest.mark.parametrize(
    ("options", "calls"),
    [([], None), (["--share", "alpha=0.5"], CALLS), (["--calls-per-connection", "3"], 3),
     (["--share", "alpha=0.5", "--calls-per-connection", "any"], None),
     (["--share", "alpha=0.5", "--capped-shares"], CAPPED_CALLS),
     (["--share", "alpha=0.5", "--capped-shares", "--calls-per-connection", "3"], 3)],
)  # fmt: skip
def test_connections_have_a_limit_of_calls_where_tenants_have_shares(options: list[str], calls: int | None) -> None:
    assert _settings(options).calls == calls


def test_a_tenant_with_a_capped_share_is_served_at_its_fraction_of_a_server_that_rests() -> None:
    shared = ["--listen", "127.0.0.1:0", "--models", "digits-small", "--device", "cpu", "--share", "alpha=0.01"]
    asked = request()
    asked.parameters["tenant"].string_param = "alpha"
    with serving(_settings([*shared, "--capped-shares"])) as running, running.channel() as channel:
        calls = [infer(channel).future(asked, timeout=LONG_S) for _ in range(4)]
        stamps = [Stamps.read(call.result()) for call in calls]
        work_s = running.server.service.models["digits-small"].cost({"pixels": np.zeros((1, 64), "<f4")})
    starts_ns = sorted(each.started_ns for each in stamps if each is not None)
    assert len(starts_ns) == 4
    # A hundredth of the server has computed one before it begins the next.
    assert starts_ns[-1] - starts_ns[0] >= 3 * 100 * work_s * 1e9


class Threads(nn.Module):
    """Notes who computes, and with how many CPU threads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, int]] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append((threading.current_thread().name.startswith("compute-"), torch.get_num_threads()))
        return pixels[:, :10]


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("threads", [2, 3])
def test_a_computation_has_as_many_cpu_threads_as_were_asked_for(threads: int) -> None:
    network = Threads()
    settings = _settings(
        ["--listen", "127.0.0.1:0", "--models", "digits-small", "--device", "cpu", "--threads", str(threads)]
    )
    with serving(settings) as running, running.channel() as channel:
        heavy = special("heavy", network)
        light = dataclasses.replace(heavy, name="light", steady=True)
        running.server.service.serve([heavy, light])
        network.seen.clear()
        # The light one first: a worker that has just computed takes what is there before it sleeps.
        for name in ("light", "heavy"):
            infer(channel)(request(name), timeout=LONG_S)
    assert network.seen == [(False, threads), (True, threads)]


def test_the_documentation_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    documented = (Path(__file__).parents[3] / "docs" / "inference.md").read_text(encoding="utf-8")
    usage = documented[documented.index("python -m inference_server --listen") :].partition("```")[0]
    assert set(re.findall(r"--[a-z-]+", usage)) == options


@pytest.mark.parametrize(("options", "said"), WRONG_OPTIONS)
def test_options_that_make_no_sense_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("the key of another", "expected a certificate and its own key without a password"),
        ("a key with a password", "expected a certificate and its own key without a password"),
        ("a certificate that is none", "expected a certificate and its own key without a password"),
        ("an authority that is none", "none.pem: "),
    ],
)
def test_files_that_cannot_be_used_together_are_named(folder: Path, authority: Identity, what: str, said: str) -> None:
    none, locked = folder / "none.pem", folder / "locked.key"
    none.write_text("-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n")
    locked.write_bytes(
        authority.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    files = {
        "the key of another": (authority.certificate, Identity("another", folder).key, None),
        "a key with a password": (authority.certificate, locked, None),
        "a certificate that is none": (none, authority.key, None),
        "an authority that is none": (authority.certificate, authority.key, none),
    }[what]
    with pytest.raises(ValueError, match=said):
        Security(*files).credentials()


def test_a_socket_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--listen", "127.0.0.1:0", "--impairment-socket", str(tmp_path / "nowhere" / "socket")]
    assert main(options) == 2
    assert capsys.readouterr().err.startswith(f"inference_server: impairment socket {tmp_path}")


def test_swapped_files_are_named(folder: Path, authority: Identity, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tls-certificate", str(authority.key), "--tls-key", str(authority.certificate)]
    assert main(["--listen", "127.0.0.1:0", *options]) == 2
    assert "found no PEM of a private key" in capsys.readouterr().err


def metrics(running: Running) -> str:
    """The page for Prometheus."""
    assert running.server.metrics is not None
    url = f"http://127.0.0.1:{running.server.metrics.port}/metrics"
    with urllib.request.urlopen(url, timeout=LONG_S) as answer:
        return str(answer.read().decode())


def test_the_page_for_prometheus_counts_requests_by_model_tenant_and_status() -> None:
    settings = Settings(
        listen="127.0.0.1:0", models=["digits-small"], shares={"alpha": 0.5}, device="cpu", metrics="127.0.0.1:0"
    )
    with serving(settings) as running, running.channel() as channel:
        named = request(pixels=np.zeros((2, 64)))
        named.parameters["tenant"].string_param = "alpha"
        infer(channel)(named, timeout=LONG_S)
        for wrong in (request(pixels=np.zeros((1, 63))), request("digits-huge")):
            with pytest.raises(grpc.RpcError):
                infer(channel)(wrong, timeout=LONG_S)
        page = metrics(running)
    for line in (
        'inference_requests_total{model="digits-small",status="OK",tenant="alpha"} 1.0',
        'inference_requests_total{model="digits-small",status="INVALID_ARGUMENT",tenant=""} 1.0',
        'inference_requests_total{model="",status="NOT_FOUND",tenant=""} 1.0',
        'inference_queue_requests{tenant="alpha"} 0.0',
        'inference_rows_total{model="digits-small"} 2.0',
        'inference_executions_total{model="digits-small",rows="2"} 1.0',
        'inference_compute_seconds_bucket{le="+Inf",model="digits-small",tenant="alpha"} 1.0',
        'inference_server_seconds_count{model="digits-small",tenant="alpha"} 1.0',
    ):
        assert line in page.splitlines(), page
    assert "process_resident_memory_bytes" in page


def test_the_page_for_prometheus_counts_impaired_requests_by_what_touched_them() -> None:
    plan = ImpairRequest(
        impairments=[
            Impairment(kind="wrong-answers", to_s=1e6, rate=1.0),
            Impairment(kind="slow-down", from_s=1e5, to_s=1e6, factor=2.0),
        ]
    )
    settings = Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu", metrics="127.0.0.1:0", impair=plan)
    with serving(settings) as running, running.channel() as channel:
        assert "inference_impaired_requests_total{" not in metrics(running)
        for _ in range(2):
            infer(channel)(request(), timeout=LONG_S)
        page = metrics(running).splitlines()
    counted = [line for line in page if line.startswith("inference_impaired_requests_total")]
    assert counted == ['inference_impaired_requests_total{kind="wrong-answers"} 2.0']


def test_nobody_who_counts_waits_while_the_page_for_prometheus_is_written() -> None:
    statistics = Statistics()
    statistics.touched("pause", 1)
    locked = {metric.name: statistics._lock.locked() for metric in _Page(statistics, lambda: {"": 0}).collect()}
    assert locked.keys() >= {"inference_requests", "inference_rows", "inference_impaired_requests"}
    assert not any(locked.values())


def test_who_watches_health_sees_it_end() -> None:
    with serving(Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu")) as running:
        with running.channel() as channel:
            asked = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
            watched = health_pb2_grpc.HealthStub(channel).Watch(asked, timeout=LONG_S)
            seen = [next(watched).status]
            running.loop.call_soon_threadsafe(running.end.set)
            seen.append(next(watched).status)
            watched.cancel()
        assert seen == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


def test_a_large_message_is_answered() -> None:
    rows = MESSAGE_BYTES // 256 - 16
    settings = Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu", max_rows=rows)
    with serving(settings) as running, running.channel() as channel:
        answer = infer(channel)(request(pixels=np.zeros((rows, 64))), timeout=LONG_S)
    assert list(answer.outputs[0].shape) == [rows, 10]
