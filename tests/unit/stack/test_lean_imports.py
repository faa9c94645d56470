"""What runs no model never imports torch."""

import subprocess
import sys

_IMPORT_ALL = """
import importlib, pkgutil, sys
services = "authz billing cli common control credentials edge fleet ledger messaging router rpc stack storage".split()
found = 0
for service in services:
    package = importlib.import_module(service)
    for module in pkgutil.walk_packages(package.__path__, service + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            found += 1
for name in ("app", "heartbeat", "service", "engines.registry", "engines.synthetic", "engines.upstream.engine"):
    importlib.import_module("inference." + name)
heavy = sorted({"torch", "transformers", "tokenizers", "numpy"} & sys.modules.keys())
print(found, *heavy)
"""


def test_no_service_but_a_worker_with_a_model_imports_torch():
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found, *heavy = done.stdout.split()
    assert int(found) > 150
    assert heavy == []
