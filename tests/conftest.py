"""Settings of every test; the fixtures and options that all of them have are in tests/kit."""

import os

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.kit")
pytest_plugins = ["tests.kit.plugins.merge_gate", "tests.kit.plugins.seeds", "tests.kit.plugins.servers"]

# Otherwise gRPC starts threads in every forked child, which then may not enter the namespace that Postgres needs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

hypothesis.settings.register_profile(
    "uplion",
    deadline=None,  # an example may take its time: what is slow here is the machine
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,  # what repeats an example that failed
)
hypothesis.settings.load_profile("uplion")
