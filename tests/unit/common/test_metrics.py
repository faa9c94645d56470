"""Each process exports the metrics of what it runs, and no others."""

import subprocess
import sys

import pytest

_LIST_FAMILIES = """
import importlib, sys
from prometheus_client import REGISTRY
importlib.import_module(sys.argv[1])
print("\\n".join(family.name for family in REGISTRY.collect()))
"""
_OF_PYTHON = ("process_", "python_")


@pytest.mark.parametrize(
    ("service", "prefixes"),
    [
        ("authz", {"uplion_authz_"}),
        ("billing", {"uplion_billing_"}),
        ("control", set()),
        ("fleet", set()),
        ("inference", {"uplion_inference_", "vllm:", "uplion_usage_"}),
        ("router", {"uplion_router_", "gen_ai_server_", "uplion_usage_"}),
    ],
)
def test_a_service_exports_no_metric_of_another(service: str, prefixes: set[str]) -> None:
    listed = subprocess.run(
        [sys.executable, "-c", _LIST_FAMILIES, f"{service}.app"], capture_output=True, text=True, check=True, timeout=60
    )
    families = {name for name in listed.stdout.split() if not name.startswith(_OF_PYTHON)}
    strays = {name for name in families if not name.startswith(tuple(prefixes))}
    assert not strays
    assert {prefix for prefix in prefixes if any(name.startswith(prefix) for name in families)} == prefixes
