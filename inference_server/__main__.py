"""`python -m inference_server`: one server as a process, from its command line to a signal.

It prints one line of JSON when it is ready; SIGTERM or SIGINT drain it. Exit code 0 after a drain, 2 where it could not
begin, with one line that says why; 128 and the signal's number, with one line, where that came before it was ready.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from grpc._cython.cygrpc import ExecuteBatchError

from inference_server.errors import InferenceError, ModelError
from inference_server.impairments import read
from inference_server.scheduler import Batching
from inference_server.security import Security
from inference_server.server import CALLS, CAPPED_CALLS, InferenceServer, Settings

_MOST = (1 << 31) - 1
"""The largest number that gRPC takes as an option."""
_ANY = 0


class _HangUps(logging.Filter):
    """Keeps silent about clients that hung up while their answer was written, which gRPC reports with a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.exc_info is None or not isinstance(record.exc_info[1], ExecuteBatchError)


class _EndedError(Exception):
    """A signal came before the server was ready."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"{number.name} while models were loaded: ended before it was ready")
        self.code = 128 + number


async def serve(settings: Settings) -> None:
    """Serve until a signal.

    Raises:
        ModelError: A model cannot be loaded.
        OSError: The address cannot be used.
        ValueError: Settings that contradict themselves.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[signal.Signals] = loop.create_future()

    def end(number: signal.Signals) -> None:
        if not ended.done():
            ended.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    server = InferenceServer(settings)
    entering = asyncio.create_task(server.__aenter__())
    either: set[asyncio.Future[Any]] = {entering, ended}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not entering.done():
        entering.cancel()
        await asyncio.wait({entering})
        raise _EndedError(ended.result())
    await entering
    try:
        print(json.dumps(_ready(settings, server)), flush=True)
        await ended
    finally:
        await server.__aexit__(None, None, None)


def main(arguments: list[str] | None = None) -> int:
    """Parse, serve, and say why where that is impossible."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger(ExecuteBatchError.__module__).addFilter(_HangUps())
    try:
        asyncio.run(serve(_settings(arguments)))
    except _EndedError as error:
        print(f"inference_server: {error}", file=sys.stderr)
        return error.code
    except (InferenceError, ModelError, OSError, ValueError) as error:
        print(f"inference_server: {error}", file=sys.stderr)
        return 2
    return 0


def _process() -> NoReturn:
    """`main`, and the end of its process."""
    code = main()
    if code > 128:
        # A thread still loads. PyTorch may abort where the interpreter goes away under it, so it is not taken apart.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _ready(settings: Settings, server: InferenceServer) -> dict[str, object]:
    """The line that says where a server that is ready listens."""
    ready: dict[str, object] = {
        "ready": True,
        "listen": f"{settings.listen.rpartition(':')[0]}:{server.port}",
        "models": sorted(server.service.models),
        "device": str(server.device),
    }
    if server.metrics is not None:
        ready["metrics"] = f"{(settings.metrics or '').rpartition(':')[0]}:{server.metrics.port}"
    return ready


def _settings(arguments: list[str] | None) -> Settings:
    parser = argparse.ArgumentParser(prog="python -m inference_server", description="Serve PyTorch models over gRPC.")
    default = Settings()
    parser.add_argument("--listen", default=default.listen, type=_address, help="HOST:PORT; port 0 picks one")
    parser.add_argument("--models", type=lambda text: text.split(","), help="NAME,...: serve only these")
    parser.add_argument("--repository", type=Path, help="folder of your own models, see docs/inference.md")
    parser.add_argument(
        "--share",
        action="append",
        default=[],
        type=_share,
        metavar="TENANT=FRACTION[:LIMIT]",
        help="guarantee, and most waiting; repeatable",
    )
    parser.add_argument(
        "--capped-shares",
        action="store_true",
        help="give no share more than it was guaranteed, so that nobody's load is felt by others",
    )
    parser.add_argument("--queue-limit", type=_count, default=default.queue_limit, help="most waiting for each tenant")
    parser.add_argument("--workers", type=_count, default=default.workers, help="threads that compute")
    parser.add_argument("--threads", type=_count, default=default.threads, help="CPU threads in each computation")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: CUDA where there is one")
    parser.add_argument("--max-message-bytes", type=_count, default=default.message_bytes, help="largest request")
    parser.add_argument("--max-rows", type=_count, default=default.max_rows, help="most rows of a request")
    parser.add_argument(
        "--drain-s", type=_duration, default=default.drain_s, help="how long the end waits for requests"
    )
    parser.add_argument("--batch-rows", type=_count, default=1, help="most rows computed together; 1 for no batching")
    parser.add_argument("--batch-delay-ms", type=_duration, default=0.0, help="how long a batch that is not full waits")
    parser.add_argument("--tls-certificate", type=Path, metavar="PEM", help="serve over TLS with this certificate")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="and its private key")
    parser.add_argument(
        "--tls-client-authority", type=Path, metavar="PEM", help="clients must show a certificate of it"
    )
    parser.add_argument("--metrics", type=_address, metavar="HOST:PORT", help="serve a page for Prometheus there")
    parser.add_argument("--impair", type=Path, metavar="JSON", help="impairments, their times from the ready line")
    parser.add_argument("--impairment-record", type=Path, metavar="FILE", help="append what begins and ends")
    parser.add_argument("--allow-impairments", action="store_true", help="let clients ask for impairments")
    parser.add_argument("--impairment-socket", type=Path, metavar="FILE", help="let who may open it ask for them")
    parser.add_argument(
        "--calls-per-connection",
        type=_calls,
        metavar="N|any",
        help=f"most that one connection has here; default: {CALLS} where there are shares, {CAPPED_CALLS} where these "
        "are capped, else any",
    )
    options = parser.parse_args(arguments)
    tenants = [tenant for tenant, _, _ in options.share]
    if twice := sorted({tenant for tenant in tenants if tenants.count(tenant) > 1}):
        parser.error(f"--share: found several of {twice}, expected one of each tenant")
    if options.capped_shares and not options.share:
        parser.error("--capped-shares needs --share")
    if options.calls_per_connection is None and options.share:
        options.calls_per_connection = CAPPED_CALLS if options.capped_shares else CALLS
    if (options.tls_certificate is None) != (options.tls_key is None):
        parser.error("--tls-certificate and --tls-key are needed together")
    if options.tls_client_authority is not None and options.tls_certificate is None:
        parser.error("--tls-client-authority needs --tls-certificate and --tls-key")
    return Settings(
        listen=options.listen,
        models=options.models,
        folder=options.repository,
        shares={tenant: fraction for tenant, fraction, _ in options.share},
        queue_limits={tenant: limit for tenant, _, limit in options.share if limit is not None},
        queue_limit=options.queue_limit,
        capped=options.capped_shares,
        workers=options.workers,
        threads=options.threads,
        device=options.device,
        message_bytes=options.max_message_bytes,
        max_rows=options.max_rows,
        drain_s=options.drain_s,
        batching=Batching(options.batch_rows, options.batch_delay_ms / 1e3),
        security=options.tls_certificate
        and Security(options.tls_certificate, options.tls_key, options.tls_client_authority),
        metrics=options.metrics,
        impair=options.impair and read(options.impair),
        impairment_record=options.impairment_record,
        allow_impairments=options.allow_impairments,
        impairment_socket=options.impairment_socket,
        calls=options.calls_per_connection or None,
    )


def _address(text: str) -> str:
    host, separator, port = text.rpartition(":")
    if not host or not separator or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected HOST:PORT")
    return text


def _share(text: str) -> tuple[str, float, int | None]:
    tenant, separator, amount = text.rpartition("=")
    fraction, limited, limit = amount.partition(":")
    try:
        value = float(fraction)
    except ValueError:
        value = -1.0
    if not tenant or not separator or not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected TENANT=FRACTION[:LIMIT] with a fraction above 0, at most 1"
        )
    return tenant, value, _count(limit) if limited else None


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least 1, at most {_MOST}")
    return int(text)


def _calls(text: str) -> int:
    return _ANY if text == "any" else _count(text)


def _duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of at least 0")
    return value


if __name__ == "__main__":
    _process()
