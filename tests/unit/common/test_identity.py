from common.identity import IDENTITY_HEADERS, Identity


def test_what_authz_writes_is_what_is_read() -> None:
    identity = Identity(
        "acc", "key", "res", "m", "default", 100, 30.0, "req", "prj", "key/tokens/day", True, ("admin",)
    )
    assert Identity.from_headers(dict([*identity.to_headers(), ("x-request-id", "req")])) == identity


def test_every_header_is_always_written_so_that_no_client_copy_survives() -> None:
    bare = Identity("acc", "key", "", "", "default", None, None, "req")
    assert tuple(name for name, _ in bare.to_headers()) == IDENTITY_HEADERS
    assert set(IDENTITY_HEADERS) == {
        f"x-uplion-{name}" for name in ("account", "project", "key", "reservation", "model", "tier", "limits", "scopes")
    }
    assert Identity.from_headers(dict([*bare.to_headers(), ("x-request-id", "req")])) == bare
