"""`grpc.health.v1` over the library's own bookkeeping; bytes that are no request are the client's mistake.

The library's handlers let gRPC read the message, which answers UNKNOWN where it cannot.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from inference_server.errors import InvalidRequestError
from inference_server.messages import parsed

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def health_handler(servicer: health.aio.HealthServicer) -> grpc.GenericRpcHandler:
    """The calls `Check` and `Watch`, to be added to a server."""
    serialised = HealthCheckResponse.SerializeToString
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Check": grpc.unary_unary_rpc_method_handler(_reading(servicer.Check), response_serializer=serialised),
        "Watch": grpc.unary_stream_rpc_method_handler(_reading(servicer.Watch), response_serializer=serialised),
    }
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers)


def _reading(call: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[bytes, Context], Awaitable[Any]]:
    async def answered(message: bytes, context: Context) -> Any:
        try:
            request = parsed(message, HealthCheckRequest())
        except InvalidRequestError as error:
            await context.abort(error.code, str(error))
        return await call(request, context)

    return answered
