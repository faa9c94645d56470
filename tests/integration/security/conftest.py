"""One platform for all the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.kit.gateway import Gateway, start
from tests.kit.issuer import running_issuer


@pytest.fixture(scope="session")
def platform(
    postgres_url: str, redis_url: str, nats_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder, cache = tmp_path_factory.mktemp("platform"), tmp_path_factory.getbasetemp()
    with running_issuer() as issuer:
        found = start(postgres_url, redis_url, nats_url, issuer, folder, cache)
        yield found
        found.stop()
