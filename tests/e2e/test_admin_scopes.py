"""S2: every method and every route of the admin API, through Envoy, authz and control, with the wrong keys."""

import re
from collections.abc import Iterator
from typing import Any

import grpc
import httpx2
import pytest
from google.api import annotations_pb2
from google.protobuf.json_format import MessageToDict

from tests.kit.admin_methods import Method, aimed, every_method
from tests.kit.platform import Platform

ADMIN_SCOPES = ("--scope", "admin:read", "--scope", "admin:write")


@pytest.fixture(scope="module")
def tenants(platform: Platform) -> dict[str, dict[str, str]]:
    """Two accounts, each with a project, an admin's key, and an inference key of that project."""
    made = {}
    for name in ("a", "b"):
        account = platform.cli("accounts", "create", name)["id"]
        project = platform.cli("projects", "create", name, "--account", account)["id"]
        key = platform.cli("keys", "create", "--project", project)
        admin = platform.cli("keys", "create", "--account", account, *ADMIN_SCOPES)
        made[name] = {
            "account": account,
            "project": project,
            "key": key["id"],
            "request_id": "none",
            "inference_key": key["key"],
            "admin_key": admin["key"],
        }
    return made


@pytest.fixture(scope="module")
def channel(platform: Platform) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(platform.facts["admin_address"]) as opened:
        yield opened


def call(channel: grpc.Channel, method: Method, request: Any, key: str) -> grpc.StatusCode:
    make = channel.unary_stream if method.streams else channel.unary_unary
    stub = make(method.path, request_serializer=method.request.SerializeToString, response_deserializer=bytes)
    try:
        answer = stub(request, metadata=(("authorization", f"Bearer {key}"),), timeout=60)
        list(answer) if method.streams else answer
    except grpc.RpcError as problem:
        return problem.code()
    return grpc.StatusCode.OK


def route(method: Method, request: Any) -> tuple[str, str, dict[str, Any]]:
    """The HTTP verb, path and JSON body or query of a call, as the contract's annotation has them."""
    rule = method.descriptor.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    values = MessageToDict(request, preserving_proto_field_name=True)
    path = re.sub(r"{(\w+)}", lambda found: str(values.pop(found[1])), getattr(rule, verb))
    return verb.upper(), path, values


def test_an_inference_key_opens_no_admin_method(tenants: Any, channel: grpc.Channel) -> None:
    for method in every_method():
        request = aimed(method, tenants["b"])
        for name in ("a", "b"):
            code = call(channel, method, request, tenants[name]["inference_key"])
            assert code is grpc.StatusCode.PERMISSION_DENIED, method


def test_an_accounts_admin_does_not_reach_another_account(tenants: Any, channel: grpc.Channel) -> None:
    for method in every_method():
        request = aimed(method, tenants["b"])
        code = call(channel, method, request, tenants["a"]["admin_key"])
        if request.ByteSize():  # else it names nothing, and lists the caller's own
            assert code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND), (method, code)


def test_nor_does_it_over_http(platform: Platform, tenants: Any) -> None:
    address = f"http://{platform.facts['admin_address']}"
    with httpx2.Client(base_url=address, timeout=60) as client:
        for method in every_method():
            verb, path, values = route(method, request := aimed(method, tenants["b"]))
            body: dict[str, Any] = {"params": values} if verb in ("GET", "DELETE") else {"json": values}
            for name, expected in (("admin_key", {403, 404}), ("inference_key", {403})):
                headers = {"authorization": f"Bearer {tenants['a'][name]}"}
                answer = client.request(verb, path, headers=headers, **body)
                if request.ByteSize() or name == "inference_key":
                    assert answer.status_code in expected, (method, answer.text)


def test_a_key_is_managed_over_http_by_its_accounts_admin(platform: Platform, tenants: Any) -> None:
    """The JSON that docs/identity.md shows: a mask empties a list."""
    headers = {"authorization": f"Bearer {tenants['a']['admin_key']}"}
    with httpx2.Client(base_url=f"http://{platform.facts['admin_address']}", headers=headers, timeout=60) as client:
        limit = {"measure": "LIMIT_MEASURE_TOKENS", "period": "LIMIT_PERIOD_DAY", "amount": "1000"}
        made = client.post("/admin/v1/keys", json={"name": "n", "limits": [limit], "models": ["a-*"]}).json()
        path = f"/admin/v1/keys/{made['key']['id']}"
        assert made["key"]["account"] == tenants["a"]["account"]
        changed = client.patch(path, json={"name": "m", "updateMask": "name,limits"}).json()["key"]
        assert (changed["name"], changed.get("limits", []), changed["models"]) == ("m", [], ["a-*"])
        rotated = client.post(f"{path}:rotate", json={"overlap": "3600s"}).json()
        assert rotated["replaced"]["successor"] == rotated["key"]["id"]
        assert client.post(f"{path}:revoke").status_code == 200
        assert client.delete(path).status_code == 200
        assert client.get(path).status_code == 404
        listed = client.get("/admin/v1/keys", params={"pageSize": 1000}).json()["keys"]
        assert rotated["key"]["id"] in [key["id"] for key in listed]
        assert {key["account"] for key in listed} == {tenants["a"]["account"]}
