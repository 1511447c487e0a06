"""Whoever knows nothing but the address learns every call by reflection, and can make it: that is how grpcurl works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_database, descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from inference_server.server import Settings
from tests.unit.inference.serving import LONG_S, serving

DOCUMENT = Path(__file__).parents[3] / "docs" / "inference.md"
COMMAND = re.compile(
    r"^grpcurl -plaintext (?:-H '(?P<header>[^']+)' )?-d '(?P<data>[^']+)'[\s\\]+"
    r"\S+ (?P<service>[\w.]+)/(?P<call>\w+)$",
    re.MULTILINE,
)
METHODS = {
    "inference.GRPCInferenceService": {
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelStreamInfer",
        "ModelConfig", "ModelStatistics", "RepositoryIndex",
    },
    "inference.Impairments": {"Impair"},
    "grpc.health.v1.Health": {"Check", "Watch"},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo"},
}  # fmt: skip


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    """To a server with every service there is, and with shares."""
    settings = Settings(
        listen="127.0.0.1:0",
        models=["digits-small", "text-small"],
        shares={"vision": 1.0},
        device="cpu",
        allow_impairments=True,
    )
    with serving(settings) as running, running.channel() as channel:
        yield channel


def reflected(channel: grpc.Channel, **question: str) -> Any:
    asked = iter([reflection_pb2.ServerReflectionRequest(**question)])
    return next(iter(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked, timeout=LONG_S)))


def described(channel: grpc.Channel, service: str) -> Any:
    """A service, made of the descriptors of one answer and of nothing that this process knows beside them."""
    answer = reflected(channel, file_containing_symbol=service)
    database = descriptor_database.DescriptorDatabase()
    for file in answer.file_descriptor_response.file_descriptor_proto:
        database.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
    return descriptor_pool.DescriptorPool(database).FindServiceByName(service)


def test_every_service_is_listed(channel: grpc.Channel) -> None:
    listed = {service.name for service in reflected(channel, list_services="").list_services_response.service}
    assert listed == METHODS.keys()


@pytest.mark.parametrize("service", METHODS)
def test_a_listed_service_is_described_with_all_that_its_messages_need(channel: grpc.Channel, service: str) -> None:
    found = described(channel, service).methods_by_name
    assert METHODS[service] <= set(found)
    for method in found.values():
        for kind in (method.input_type, method.output_type):
            assert message_factory.GetMessageClass(kind).DESCRIPTOR.full_name == kind.full_name


def test_only_the_stream_of_inferences_streams(channel: grpc.Channel) -> None:
    found = described(channel, "inference.GRPCInferenceService").methods_by_name
    assert set(found) == METHODS["inference.GRPCInferenceService"]
    streaming = {name: (method.client_streaming, method.server_streaming) for name, method in found.items()}
    assert {name for name, either in streaming.items() if any(either)} == {"ModelStreamInfer"}
    assert streaming["ModelStreamInfer"] == (True, True)


def test_what_there_is_not_is_not_found(channel: grpc.Channel) -> None:
    answer = reflected(channel, file_containing_symbol="inference.Nothing")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def documented() -> dict[str, re.Match[str]]:
    return {command["call"]: command for command in COMMAND.finditer(DOCUMENT.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("name", ["ModelConfig", "ModelInfer"])
def test_the_documents_commands_are_answered(channel: grpc.Channel, name: str) -> None:
    """As grpcurl makes of them: JSON, the reflected descriptors, one call."""
    command = documented()[name]
    method = described(channel, command["service"]).methods_by_name[name]
    call = channel.unary_unary(
        f"/{command['service']}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    asked = json_format.Parse(command["data"], message_factory.GetMessageClass(method.input_type)())
    header = [tuple(command["header"].split(": "))] if command["header"] else None
    answer = json_format.MessageToDict(call(asked, timeout=LONG_S, metadata=header))
    if name == "ModelConfig":
        assert answer["config"]["name"] == "digits-small"
    else:
        (output,) = answer["outputs"]
        assert (output["name"], output["shape"]) == ("generated", ["5"])
        assert len(output["contents"]["uintContents"]) == 5
