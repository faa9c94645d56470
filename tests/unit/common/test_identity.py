from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from common.identity import IDENTITY_HEADERS, Identity


def test_what_authz_writes_is_what_is_read() -> None:
    identity = Identity(
        "acc", "key", "res", "m", "default", 100, 30.0, "req", "prj", "key/tokens/day", True, ("admin",)
    )
    identity = replace(identity, slots_scarce=True, models=("a,b;c=d *", "é?", "%2c"))
    assert Identity.from_headers(dict([*identity.to_headers(), ("x-request-id", "req")])) == identity


def test_every_header_is_always_written_so_that_no_client_copy_survives() -> None:
    bare = Identity("acc", "key", "", "", "default", None, None, "req")
    assert tuple(name for name, _ in bare.to_headers()) == IDENTITY_HEADERS
    assert set(IDENTITY_HEADERS) == {
        f"x-uplion-{name}" for name in ("account", "project", "key", "reservation", "model", "tier", "limits", "scopes")
    }
    assert Identity.from_headers(dict([*bare.to_headers(), ("x-request-id", "req")])) == bare


def test_a_caller_with_a_list_of_models_may_use_what_it_matches_whole() -> None:
    identity = Identity("acc", "key", "", "", "default", None, None, "req", models=("org/*", "small-?"))
    assert [name for name in ("org/a.b", "small-1", "small-12", "xorg/a", "org") if identity.may_use(name)] == [
        "org/a.b",
        "small-1",
    ]
    assert replace(identity, models=()).may_use("anything")


@given(st.text(min_size=1), st.lists(st.text(min_size=1)))
def test_names_that_hold_anything_pass_as_ascii_and_add_nothing(rule: str, models: list[str]) -> None:
    """A rule's name ends in a model's, as a limit names it."""
    names: Any = {"capped_by": rule, "models": tuple(models)}
    identity = replace(Identity("acc", "key", "", "", "default", 1, None, "req"), **names)
    headers = dict([*identity.to_headers(), ("x-request-id", "req")])
    assert all(value.isascii() and (value.isprintable() or not value) for value in headers.values())
    assert Identity.from_headers(headers) == identity
