"""Settings of every test, and the real servers of tests/kit/servers.py."""

import os

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.kit")

from tests.kit.servers import (  # noqa: E402  # its assertions are rewritten first
    nats_url,
    postgres_database,
    postgres_url,
    redis_url,
    start_module_server,
    start_server,
)

__all__ = ["nats_url", "postgres_database", "postgres_url", "redis_url", "start_module_server", "start_server"]

# Otherwise gRPC starts threads in every forked child, which then may not enter the namespace that Postgres needs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# An example may take its time: what is slow here is the machine.
hypothesis.settings.register_profile("uplion", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("uplion")
