"""What a Valkey URL may say."""

import pytest

from storage.valkey import Valkey


@pytest.mark.parametrize("url", ["http://host", "redis://", "host:6379", "unix:///run/valkey"])
def test_a_url_that_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="redis://"):
        Valkey(url, call_seconds=1.0)


def test_the_url_carries_user_password_database_and_tls() -> None:
    address = Valkey("rediss://me:p%40ss@host:7000/3", call_seconds=1.0)._address
    assert (address.host, address.port, address.tls) == ("host", 7000, True)
    assert address.greeting == (("AUTH", "me", "p@ss"), ("SELECT", "3"))
    assert Valkey("valkey://host", call_seconds=1.0)._address.greeting == ()
