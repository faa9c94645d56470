"""Native gRPC on the same port, and the admin listener: each routes its own and nothing else."""

from typing import Any

import grpc
import pytest
from uplion.control.v1 import key_pb2, key_service_pb2

from credentials.api_keys import TEST_KEY

NATIVE = "/uplion.inference.v1.InferenceService/"


def refusal(channel: Any, method: str, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as found:
        channel.unary_unary(method)(b"", timeout=60, **options)
    return found.value


def test_native_calls_pass_untouched_with_identity(edge: Any) -> None:
    edge.backend.frames = lambda: iter([b"raw answer"])
    with edge.channel() as channel:
        metadata = (("x-uplion-model", "org/m"), ("authorization", f"Bearer {TEST_KEY}"), ("x-uplion-account", "evil"))
        answer, call = channel.unary_unary(f"{NATIVE}Chat").with_call(b"raw request", metadata=metadata, timeout=60)
    assert answer == b"raw answer"
    seen = edge.backend.calls[-1]
    assert (seen.method, seen.payload) == (f"{NATIVE}Chat", b"raw request")
    assert seen.all("x-uplion-account") == ["from-authz-account"]
    assert seen.all("x-uplion-model") == ["org/m"]
    assert seen.all("authorization") == []
    http = edge.authz.checks[-1].attributes.request.http
    assert (http.path, http.headers["authorization"], http.headers["x-uplion-model"]) == (
        f"{NATIVE}Chat",
        f"Bearer {TEST_KEY}",
        "org/m",
    )
    assert int(http.headers["content-length"]) == len(b"raw request") + 5
    assert dict(call.initial_metadata())["x-request-id"] == seen.all("x-request-id")[0]


def test_native_streams_and_their_errors_pass(edge: Any) -> None:
    edge.backend.frames = lambda: iter([b"1", b"2"])
    edge.backend.abort = (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
    with edge.channel() as channel:
        call = channel.unary_stream(f"{NATIVE}ChatStream")(b"", timeout=60)
        found = [next(call), next(call)]
        with pytest.raises(grpc.RpcError) as error:
            next(call)
    assert found == [b"1", b"2"]
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/uplion.openai.v1.OpenAIService/CreateChatCompletion",
        "/uplion.control.v1.KeyService/CreateKey",
        "/uplion.dispatch.v1.WorkerService/Run",
        "/envoy.service.auth.v3.Authorization/Check",
        "/v1/chat/completions",
        "/nope",
    ],
)
def test_nothing_else_is_reachable_by_grpc(edge: Any, method: str) -> None:
    with edge.channel() as channel:
        error = refusal(channel, method)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not (error.details() or "").startswith("{")
    assert edge.authz.checks == []
    assert edge.backend.calls == []


def test_an_authz_outage_is_unavailable_to_grpc(edge: Any) -> None:
    def fails(*_: object) -> Any:
        raise RuntimeError("canary")

    edge.authz.answer = fails
    with edge.channel() as channel:
        error = refusal(channel, f"{NATIVE}Chat")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "Keys cannot be checked at the moment. Try again shortly."


@pytest.mark.parametrize("deadline", [0.5])
def test_a_native_deadline_is_honoured(edge: Any, deadline: float) -> None:
    import time

    def late() -> Any:
        time.sleep(2)
        yield b""

    edge.backend.frames = late
    with edge.channel() as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(f"{NATIVE}Chat")(b"", timeout=deadline)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_native_request_over_the_limit_is_refused(edge: Any) -> None:
    with edge.channel() as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(f"{NATIVE}Chat")(b"x" * (2 << 20), timeout=60)
    assert error.value.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
    assert edge.backend.calls == []


def test_the_admin_api_is_transcoded_with_the_names_of_the_proto(edge: Any) -> None:
    answer = key_service_pb2.DESCRIPTOR.message_types_by_name  # every rpc has its own response
    assert "CreateKeyResponse" in answer or hasattr(key_pb2, "CreateKeyResponse")
    response = key_pb2.CreateKeyResponse()
    response.key.id = "k1"
    edge.backend.frames = lambda: iter([response.SerializeToString()])
    reply = edge.request("POST", "/admin/v1/keys", b'{"account":"a","name":"n"}', port=edge.admin)
    assert reply.status == 200
    call = edge.backend.calls[-1]
    assert call.method == "/uplion.control.v1.KeyService/CreateKey"
    assert call.body == b'{"account":"a","name":"n"}'
    assert call.all("x-envoy-original-path") == ["/admin/v1/keys"]
    assert call.all("x-uplion-account") == ["from-authz-account"]
    assert edge.authz.listeners == ["admin"]
    assert b'"create_time"' in reply.body or b'"last_four"' in reply.body or b'"scopes"' in reply.body


def test_admin_paths_queries_and_bodies_reach_control_as_they_are(edge: Any) -> None:
    """Control judges them: what a transcoder does not know, it drops."""
    edge.backend.frames = lambda: iter([b""])
    body = b'{"limit": 1, "name": '
    assert edge.request("POST", "/admin/v1/keys/k1:revoke?data=x&nope=%31", body, port=edge.admin).status == 200
    call = edge.backend.calls[-1]
    assert call.method == "/uplion.control.v1.KeyService/RevokeKey"
    assert call.all("x-envoy-original-path") == ["/admin/v1/keys/k1:revoke?data=x&nope=%31"]
    assert call.body == body
    assert edge.request("GET", "/admin/v1/usage?account=a", port=edge.admin).status == 200
    assert edge.backend.calls[-1].all("x-envoy-original-path") == ["/admin/v1/usage?account=a"]
    assert edge.backend.calls[-1].body == b""


def test_a_client_cannot_name_another_path(edge: Any) -> None:
    edge.backend.frames = lambda: iter([b""])
    headers = {"x-envoy-original-path": "/admin/v1/keys/other:revoke"}
    assert edge.request("POST", "/admin/v1/keys/k1:revoke", b"{}", headers, port=edge.admin).status == 200
    assert edge.backend.calls[-1].all("x-envoy-original-path") == ["/admin/v1/keys/k1:revoke"]
    with edge.channel(edge.admin) as channel:
        metadata = (("authorization", f"Bearer {TEST_KEY}"), *headers.items())
        channel.unary_unary("/uplion.control.v1.KeyService/ListKeys")(b"", timeout=60, metadata=metadata)
    assert edge.backend.calls[-1].all("x-envoy-original-path") == []


def test_another_verb_is_405_and_names_those_that_there_are(edge: Any) -> None:
    for method, path, allowed in (
        ("PUT", "/admin/v1/keys/k1", "DELETE, GET, PATCH"),
        ("PATCH", "/admin/v1/keys/k1:rotate", "POST"),
        ("DELETE", "/admin/v1/keys", "GET, POST"),
    ):
        reply = edge.request(method, path, b"{}", port=edge.admin)
        assert (reply.status, reply.error["code"], reply.headers["allow"]) == (405, "method_not_allowed", allowed)
        assert reply.headers["x-request-id"]
    assert edge.backend.calls == []


def test_admin_errors_are_error_objects(edge: Any) -> None:
    edge.backend.frames = None
    edge.backend.abort = (grpc.StatusCode.ALREADY_EXISTS, "There is a key of this name.")
    reply = edge.request("POST", "/admin/v1/keys", b"{}", port=edge.admin)
    assert (reply.status, reply.error["code"]) == (409, "already_exists")
    assert reply.error["message"] == "There is a key of this name."
    assert reply.error["param"] is None


def test_an_admin_error_names_its_field(edge: Any) -> None:
    edge.backend.frames = None
    edge.backend.trailing = (("x-uplion-param", "limits[0].am%22%C3%B6unt"),)
    edge.backend.abort = (grpc.StatusCode.INVALID_ARGUMENT, "no such field")
    reply = edge.request("POST", "/admin/v1/keys", b"{}", port=edge.admin)
    assert (reply.status, reply.error["param"]) == (400, 'limits[0].am"öunt')
    assert not [name for name in reply.headers if name.startswith("x-uplion-")]


def test_the_admin_listener_takes_native_control_calls(edge: Any) -> None:
    edge.backend.frames = lambda: iter([b"x"])
    with edge.channel(edge.admin) as channel:
        assert channel.unary_unary("/uplion.control.v1.KeyService/ListKeys")(b"", timeout=60) == b"x"
    assert edge.authz.listeners == ["admin"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/", "/admin/v2/keys", "/admin/v1/nope"])
def test_the_admin_listener_serves_nothing_else(edge: Any, path: str) -> None:
    reply = edge.request("GET", path, port=edge.admin)
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert edge.backend.calls == []


def test_the_admin_listener_takes_no_inference_by_grpc(edge: Any) -> None:
    with edge.channel(edge.admin) as channel:
        assert refusal(channel, f"{NATIVE}Chat").code() is grpc.StatusCode.UNIMPLEMENTED
