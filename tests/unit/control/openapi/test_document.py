"""The OpenAPI document beside the contract it is made from."""

import json
from importlib.resources import files

import pytest

from common import admin_api

DOCUMENT = json.loads(files("uplion.control.v1").joinpath("openapi.json").read_text(encoding="utf-8"))
OPERATIONS = {operation["operationId"]: operation for item in DOCUMENT["paths"].values() for operation in item.values()}
SCHEMAS = DOCUMENT["components"]["schemas"]


def test_every_method_is_an_operation_with_its_scope():
    scopes = {rpc.rpartition("/")[2]: scope for rpc, scope in admin_api.scopes().items()}
    assert {name: each["security"][0]["bearer"] for name, each in OPERATIONS.items()} == {
        name: [scope] for name, scope in scopes.items()
    }


def test_everything_is_described():
    for name, operation in OPERATIONS.items():
        assert operation["description"], name
        assert all(parameter["description"] for parameter in operation.get("parameters", ())), name
    for name, schema in SCHEMAS.items():
        for field, content in schema.get("properties", {}).items():
            assert content.get("description") or name == "Error", (name, field)


@pytest.mark.parametrize(
    ("message", "required"),
    [
        ("CreatePriceRequest", ["model", "currency", "rates"]),
        ("UpdateKeyRequest", None),
        ("ListLedgerKeysResponse", ["keys"]),  # a list is there also when it is empty
        ("ChainHead", ["link", "digest"]),  # in answers alone: what has no presence is always there
        ("Limit", ["measure"]),  # in requests too: what they must hold
    ],
)
def test_what_must_be_there(message, required):
    assert SCHEMAS[message].get("required") == required


def test_what_stands_in_the_path_is_not_asked_for_in_the_body():
    assert "id" not in SCHEMAS["UpdateKeyRequest"]["properties"]
    assert [each["name"] for each in OPERATIONS["UpdateKey"]["parameters"] if each["in"] == "path"] == ["id"]


def test_numbers_that_javascript_would_round_are_text():
    assert SCHEMAS["Limit"]["properties"]["amount"]["type"] == "string"
