"""The admin API's OpenAPI document: it is one, and calls that are made from it answer what it says."""

import copy
import json
from importlib.resources import files
from typing import Any

import httpx2
import pytest
from openapi_schema_validator import OAS31Validator, oas31_format_checker
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.kit.platform import Platform


class Client:
    """Calls operations as a document describes them, and compares what they answer with it."""

    def __init__(self, http: httpx2.Client, document: dict[str, Any]) -> None:
        self.http = http
        self.document = strict(document)

    def operation(self, name: str) -> tuple[str, str, dict[str, Any]]:
        for path, item in self.document["paths"].items():
            for verb, operation in item.items():
                if operation["operationId"] == name:
                    return verb, path, operation
        raise AssertionError(f"no operation {name}")

    def call(self, name: str, status: int = 200, /, **values: Any) -> Any:
        """Each value where the operation has it: in the path, the query or the body."""
        verb, path, operation = self.operation(name)
        places = {each["name"]: each["in"] for each in operation.get("parameters", ())}
        query = {each: value for each, value in values.items() if places.get(each) == "query"}
        body = {each: value for each, value in values.items() if each not in places}
        for each, value in values.items():
            if places.get(each) == "path":
                path = path.replace(f"{{{each}}}", str(value))
        if "requestBody" in operation:
            self.validate(body, operation["requestBody"]["content"]["application/json"]["schema"])
            answer = self.http.request(verb, path, params=query, json=body)
        else:
            assert not body, f"{name} has no such fields: {body}"
            answer = self.http.request(verb, path, params=query)
        assert answer.status_code == status, answer.text
        response = operation["responses"][str(status)]
        if "$ref" in response:
            response = self.document["components"]["responses"][response["$ref"].rpartition("/")[2]]
        found = answer.json()
        self.validate(found, response["content"]["application/json"]["schema"])
        return found

    def validate(self, value: Any, schema: dict[str, Any]) -> None:
        whole = schema | {"components": self.document["components"]}  # what references lead to
        OAS31Validator(whole, format_checker=oas31_format_checker).validate(value)


def strict(document: dict[str, Any]) -> dict[str, Any]:
    """The same, but that no object may hold a field that the document does not name."""
    document = copy.deepcopy(document)
    for schema in document["components"]["schemas"].values():
        if schema["type"] == "object":
            schema["additionalProperties"] = False
    return document


def http_client(platform: Platform, key: str) -> httpx2.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=f"http://{platform.facts['admin_address']}", headers=headers, timeout=60)


@pytest.fixture(scope="module")
def document(platform: Platform) -> Any:
    """As an account's admin gets it, who may only read."""
    key = platform.cli("keys", "create", "--scope", "admin:read")["key"]
    with http_client(platform, key) as client:
        answer = client.get("/admin/v1/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


def test_what_is_served_is_the_generated_document_and_a_valid_one(document: Any) -> None:
    assert document == json.loads(files("uplion.control.v1").joinpath("openapi.json").read_text(encoding="utf-8"))
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_is_for_admin_keys(platform: Platform) -> None:
    for key, status in ((platform.facts["api_key"], 403), ("no-key", 401)):
        with http_client(platform, key) as client:
            assert client.get("/admin/v1/openapi.json").status_code == status


def test_calls_made_from_the_document_answer_what_it_says(platform: Platform, document: Any) -> None:
    admin_key = json.loads((platform.state / "keys.json").read_text())["admin_key"]
    with http_client(platform, admin_key) as http:
        api = Client(http, document)
        account = api.call("CreateAccount", name="From the document", labels={"team": "a"})["account"]
        assert account["state"] == "RESOURCE_STATE_ACTIVE"
        project = api.call("CreateProject", name="p", account=account["id"])["project"]
        limits = [{"measure": "LIMIT_MEASURE_TOKENS", "period": "LIMIT_PERIOD_DAY", "amount": "9007199254740991"}]
        made = api.call("CreateKey", project=project["id"], limits=limits, expire_time="2100-01-01T00:00:00Z")
        key = made["key"]
        assert key["limits"][0]["amount"] == "9007199254740991"
        assert api.call("GetKey", id=key["id"])["key"] == key
        assert api.call("ListKeys", account=account["id"], page_size=1)["keys"] == [key]
        assert api.call("UpdateKey", id=key["id"], update_mask="limits")["key"]["limits"] == []
        assert api.call("RotateKey", id=key["id"], overlap="3600s")["replaced"]["id"] == key["id"]
        assert api.call("RevokeKey", id=key["id"])["key"]["state"] == "RESOURCE_STATE_REVOKED"
        assert api.call("DeleteKey", id=key["id"]) == {}
        assert api.call("GetKey", 404, id=key["id"])["error"]["code"] == "not_found"
        assert api.call("UpdateProject", 400, id=project["id"])["error"]["message"].startswith("update_mask: ")
        rates = {"input_per_million_tokens": "0.5", "output_per_million_tokens": "1"}
        api.call("CreatePrice", model="from-the-document", currency="EUR", rates=rates)
        assert api.call("ListPrices", model="from-the-document", current=True)["prices"][0]["in_force"] is True
        assert [model["phase"] for model in api.call("ListModels")["models"]]
        rows = api.call(
            "QueryUsage", account=account["id"], start_time="2026-01-01T00:00:00Z", order="USAGE_ORDER_COST"
        )["rows"]
        assert [row["requests"] for row in rows] == ["0"]
        assert api.call("GetStatement", account=account["id"], month="2026-11")["statement"]["lines"] == []
        for name in ("ListAccounts", "ListProjects", "ListAlerts", "ListLedgerKeys", "QueryMargin"):
            api.call(name)
        assert api.call("EraseAccount", id=account["id"])["account"]["name"] == "erased"
