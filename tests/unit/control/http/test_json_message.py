"""JSON as a message, in every form that proto JSON has; what is refused is tried over HTTP, on every method."""

import json
from typing import Any

import pytest
from uplion.control.v1.key_pb2 import CreateKeyRequest, UpdateKeyRequest
from uplion.control.v1.limit_pb2 import LimitMeasure
from uplion.control.v1.model_pb2 import ApplyModelRequest

from common.errors import UplionError
from control.http import json_message, json_text


def read(kind, text):
    value: Any = json_text.read(text.encode() if isinstance(text, str) else text)
    return json_message.message(kind.DESCRIPTOR, value)


def test_names_go_by_either_case():
    for name in ("expire_time", "expireTime"):
        assert read(CreateKeyRequest, json.dumps({name: "2099-01-01T00:00:00Z"})).expire_time.seconds == 4070908800


@pytest.mark.parametrize("amount", [1000, "1000", 1000.0])
def test_integers_are_numbers_or_text(amount):
    limit = {"measure": "LIMIT_MEASURE_TOKENS", "amount": amount}
    assert read(CreateKeyRequest, json.dumps({"limits": [limit]})).limits[0].amount == 1000


def test_enums_are_names_or_numbers():
    for value in ("LIMIT_MEASURE_COST", 3):
        made = read(CreateKeyRequest, json.dumps({"limits": [{"measure": value}]}))
        assert made.limits[0].measure == LimitMeasure.LIMIT_MEASURE_COST


@pytest.mark.parametrize("mask", ["name,expire_time", "name,expireTime"])
def test_a_mask_names_fields_by_either_case(mask):
    assert list(read(UpdateKeyRequest, json.dumps({"updateMask": mask})).update_mask.paths) == ["name", "expire_time"]


def test_a_manifest_may_hold_anything_that_is_json():
    manifest: Any = {"a": None, "b": [1, 2.5, True, "\u00f6\U0001f600"], "c": {"d": {}}}
    assert dict(read(ApplyModelRequest, json.dumps({"manifest": manifest})).manifest)["b"][3] == "\u00f6\U0001f600"


def test_a_byte_order_mark_is_none_of_the_text():
    assert read(CreateKeyRequest, b'\xef\xbb\xbf{"name": "n"}').name == "n"


@pytest.mark.parametrize(
    ("kind", "text", "param"),
    [
        (CreateKeyRequest, '{"limits": [{}, {"amont": 1}]}', "limits[1].amont"),
        (CreateKeyRequest, '{"labels": {"a": 1}}', "labels.a"),
        (CreateKeyRequest, '{"labels": {"a": "1", "a": "2"}}', "labels.a"),
        (ApplyModelRequest, '{"manifest": {"a": {"b": 1, "b": 2}}}', "manifest.a.b"),
        (ApplyModelRequest, json.dumps({"manifest": {"a": list(range(11_000))}}), "manifest.a[9999]"),
        (CreateKeyRequest, json.dumps({"labels": {str(number): "" for number in range(1001)}}), "labels"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(kind, text, param):
    with pytest.raises(UplionError) as refused:
        read(kind, text)
    assert refused.value.param == param
