"""One platform for all the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.integration.security.platform import Platform, start


@pytest.fixture(scope="session")
def platform(
    postgres_url: str, redis_url: str, nats_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    found = start(
        postgres_url, redis_url, nats_url, tmp_path_factory.mktemp("platform"), tmp_path_factory.getbasetemp()
    )
    yield found
    found.stop()
