"""Manifests as the admin API reads them."""

from typing import Any

import msgspec
import pytest
from google.protobuf.struct_pb2 import Struct

from common.errors import UplionError
from control.services.model_service import read_manifest


def test_a_manifests_whole_numbers_are_integers_again():
    value = Struct()
    value.update(
        {
            "apiVersion": "model.youxam.com/v1alpha1",
            "kind": "AIModel",
            "metadata": {"name": "x", "creationTimestamp": None},
            "spec": {"type": "local", "model": "m", "replicas": 3, "synthetic": {"tokensPerSecond": 2.5}},
        }
    )
    model = read_manifest(value)
    assert (model.spec.replicas, model.spec.synthetic.tokensPerSecond) == (3, 2.5)
    assert msgspec.json.decode(model.to_json())["spec"]["replicas"] == 3
    for broken in (float("nan"), float("inf")):
        spec: Any = value["spec"]
        spec["replicas"] = broken
        with pytest.raises(UplionError):
            read_manifest(value)
