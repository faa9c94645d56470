"""The catalogue of operations against the contract that it describes."""

import json
import re
import subprocess
import sys

import pytest
from google.api import annotations_pb2
from uplion.inference.v1 import inference_service_pb2
from uplion.openai.v1 import openai_service_pb2

from common import operations
from common.operations import BY_RPC, OPERATIONS, BodyFacts, Dialect, Kind, Operation

_SERVICES = (
    openai_service_pb2.DESCRIPTOR.services_by_name["OpenAIService"],
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"],
)


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/chat/completions", Kind.GENERATION),
        ("POST", "/v1/chat/completions?api-version=1", Kind.GENERATION),
        ("POST", "/v1/embeddings", Kind.EMBEDDING),
        ("POST", "/uplion.inference.v1.InferenceService/ChatStream", Kind.GENERATION),
        ("POST", "/uplion.inference.v1.InferenceService/ListModels", Kind.READING),
        ("GET", "/v1/models/a/b", Kind.READING),
    ],
)
def test_what_a_request_costs(method: str, path: str, kind: Kind) -> None:
    found = operations.find(method, path)
    assert found is not None
    assert found.kind is kind


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", "/v1/chat/completions"), ("POST", "/admin/v1/keys"), ("POST", "/v1/models/a"), ("GET", ""), ("", "")],
        ("POST", "/uplion.inference.v1.InferenceService/Chat/"),
        ("POST", "/uplion.openai.v1.OpenAIService/CreateChatCompletion"),
    ],
)
def test_what_is_no_public_operation_is_none(method: str, path: str) -> None:
    assert operations.find(method, path) is None


def test_a_slash_at_the_end_is_what_the_edges_transcoder_makes_of_it() -> None:
    for path in ("/v1/models/", "/v1/models//", "/v1/models/?x=/"):
        found = operations.find("GET", path)
        assert found is not None
        assert found.rpc_name == "ListModels"


def test_every_native_method_that_runs_a_model_is_counted() -> None:
    """A method added to the contract must be given a kind here."""
    service = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
    reading = {
        method.name for method in service.methods if BY_RPC[f"/{service.full_name}/{method.name}"].kind is Kind.READING
    }
    assert reading == {"ListModels"}


def test_every_method_of_the_contract_is_listed_once_and_as_it_is() -> None:
    methods = {f"/{service.full_name}/{method.name}": method for service in _SERVICES for method in service.methods}
    assert sorted(operation.rpc for operation in OPERATIONS) == sorted(methods)
    for operation in OPERATIONS:
        method = methods[operation.rpc]
        if operation.dialect is Dialect.NATIVE:
            assert (operation.method, operation.path) == ("POST", ""), operation
        else:
            rule = method.GetOptions().Extensions[annotations_pb2.http]
            assert operation.path == getattr(rule, operation.method.lower()), operation
        assert (operation.capability is not None) == operation.reserves, operation


@pytest.mark.parametrize(
    ("path", "others", "name"),
    [
        ("/v1/models/{model=**}", ["/v1/models/", "/v1/models/a", "/v1/models/a/b"], "openai/v1/models/*"),
        ("/v1/b/{id}/cancel", ["/v1/b/x/cancel"], "openai/v1/b/*/cancel"),
        ("/v1.0/{id}", ["/v1.0/x"], "openai/v1.0/*"),
    ],
)
def test_a_path_with_variables_is_a_pattern(path: str, others: list[str], name: str) -> None:
    operation = Operation("/p.S/M", Dialect.OPENAI, Kind.READING, path=path)
    assert operation.name == name
    assert all(re.fullmatch(operation.pattern, other) for other in others)
    for other in ("/v1/models", "/v1/b//cancel", "/v1/b/x/y/cancel", "/v1/b/x/cancel/y", "/v1x0/x", "/v1.0/x/y", ""):
        assert not re.fullmatch(operation.pattern, other), other


def test_errors_are_in_the_form_that_the_caller_reads() -> None:
    chat, native = operations.find("POST", "/v1/chat/completions"), BY_RPC["/uplion.inference.v1.InferenceService/Chat"]
    messages = Operation("/p.S/M", Dialect.ANTHROPIC, Kind.GENERATION, path="/v1/messages")
    assert operations.error_dialect(chat, "application/json") is Dialect.OPENAI
    assert operations.error_dialect(messages, "") is Dialect.ANTHROPIC
    assert operations.error_dialect(None, "") is Dialect.OPENAI
    assert operations.error_dialect(native, "application/grpc+proto") is Dialect.NATIVE
    assert operations.error_dialect(native, "application/grpc-web+proto") is Dialect.OPENAI
    assert operations.error_dialect(chat, "Application/gRPC") is Dialect.OPENAI  # Envoy does not take it for gRPC
    assert operations.error_dialect(None, "application/grpc") is Dialect.NATIVE  # the admin API
    assert operations.error_dialect(native, "text/plain") is Dialect.OPENAI


def test_facts_that_a_dialect_lacks_are_not_read() -> None:
    assert BodyFacts().names == ("model",)
    assert BodyFacts(tier="service_tier").read_again == ("model",)
    assert BodyFacts(output_tokens=("max_output_tokens",)).names == ("model", "max_output_tokens")


def test_the_catalogue_needs_neither_grpc_nor_envoy() -> None:
    code = "import common.operations, json, sys; print(json.dumps(sorted(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"grpc", "envoy", "envoy_data_plane"} & set(json.loads(loaded))
