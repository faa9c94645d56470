import pytest

from common.errors import Reason, UplionError
from common.identity import Identity


def test_what_authz_writes_is_what_the_router_reads() -> None:
    identity = Identity(
        "acc", "key", "res", "m", "default", 100, 30.0, "req", "prj", "key/tokens/day", True, ("admin",)
    )
    assert Identity.from_metadata([*identity.to_headers(), ("x-request-id", "req"), ("te", "trailers")]) == identity


def test_every_header_is_always_written_so_that_no_client_copy_survives() -> None:
    bare = Identity("acc", "key", "", "", "default", None, None, "")
    assert {name for name, _ in bare.to_headers()} == {
        f"x-uplion-{name}" for name in ("account", "project", "key", "reservation", "model", "tier", "limits", "scopes")
    }
    assert Identity.from_metadata(bare.to_headers()) == bare


def test_a_call_that_bypassed_the_gateway_is_refused() -> None:
    with pytest.raises(UplionError) as caught:
        Identity.from_metadata([("x-uplion-account", "acc")])
    assert caught.value.reason is Reason.PERMISSION_DENIED
