"""A proof is good for the call that it was made for, for a minute, and in the one form that it was written in."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.settings import AuthzSettings
from common.identity import IDENTITY_HEADERS, Identity, UnprovenError
from common.settings import SettingsError, load
from control.settings import ControlSettings
from credentials.identity_proof import LIFE_SECONDS, VARIABLE, IdentityProofs
from router.settings import RouterSettings

METHOD = "/uplion.control.v1.KeyService/CreateKey"
OLD, NEW = "old:" + "o" * 32, "new:" + "n" * 64
NOW = 1_800_000_000.5
IDENTITY = Identity("acc", "key", "res", "m", "gold", 100, 30.0, "req", "prj", "key/tokens/day", True, ("admin",))
Headers = dict[str, str]


def proofs(*texts: str, now: float = NOW) -> IdentityProofs:
    keys = dict(text.partition(":")[::2] for text in texts or (OLD,))
    return IdentityProofs({key_id: secret.encode() for key_id, secret in keys.items()}, lambda: now)


def call(identity: Identity = IDENTITY, method: str = METHOD, by: IdentityProofs | None = None) -> Headers:
    headers = identity.to_headers()
    proof = (by or proofs()).make(method, identity.request_id, headers)
    return {**dict(headers), "x-request-id": identity.request_id, "x-uplion-proof": proof}


def refused(metadata: Headers | list[tuple[str, str]], method: str = METHOD, by: IdentityProofs | None = None) -> str:
    given = list(metadata.items()) if isinstance(metadata, dict) else metadata
    with pytest.raises(UnprovenError) as caught:
        (by or proofs()).verify(method, given)
    return str(caught.value)


def test_a_proven_call_is_read_whole() -> None:
    metadata: Any = [("te", "trailers"), *call().items(), ("x-other-bin", b"\xff")]
    assert proofs().verify(METHOD, metadata) == IDENTITY


def test_it_is_hmac_sha_256_over_what_the_docs_say() -> None:
    for text in (OLD, NEW, "long:" + "l" * 100):
        key_id, _, secret = text.partition(":")
        headers = call(by=proofs(text))
        name, expiry, mac = headers["x-uplion-proof"].split(".")
        covered = "\n".join((key_id, expiry, METHOD, "req", *[headers[name] for name in IDENTITY_HEADERS]))
        assert (name, int(expiry)) == (key_id, int(NOW) + LIFE_SECONDS)
        assert mac == hmac.digest(secret.encode(), covered.encode(), hashlib.sha256)[:16].hex()


@pytest.mark.parametrize("name", [*IDENTITY_HEADERS, "x-request-id", "x-uplion-proof"])
def test_no_header_may_be_another_or_missing_or_there_twice(name: str) -> None:
    good = call()
    for other in ("", "evil", good[name] + "x", good[name] + " ", good[name][:-1], good[name].upper() + "é"):
        refused(good | {name: other})
    refused({header: value for header, value in good.items() if header != name})
    refused([*good.items(), (name, good[name])])
    refused([(name, "evil"), *good.items()])


@pytest.mark.parametrize(
    "method", ["/uplion.control.v1.KeyService/GetKey", METHOD.lower(), METHOD + "/", METHOD[1:], "", METHOD + "\n"]
)
def test_another_method_is_refused(method: str) -> None:
    refused(call(), method)
    refused(call(method=method))


def test_a_call_that_none_of_our_methods_serves_gets_no_proof_that_is_good_for_one() -> None:
    refused(call(method=""))


@pytest.mark.parametrize("changes", [{"account": ""}, {"key": ""}, {"request_id": ""}])
def test_a_proof_of_nobody_or_for_no_request_is_none(changes: Any) -> None:
    assert "nobody" in refused(call(replace(IDENTITY, **changes)))


def test_it_ends_after_its_minute() -> None:
    at_last = int(NOW) + LIFE_SECONDS
    assert proofs(now=at_last).verify(METHOD, call().items()) == IDENTITY
    assert "expired" in refused(call(), by=proofs(now=at_last + 0.001))


def _parts(change: Callable[[str, str, str], str]) -> Headers:
    good = call()
    return good | {"x-uplion-proof": change(*good["x-uplion-proof"].split("."))}


@pytest.mark.parametrize(
    "change",
    [
        lambda key, expiry, mac: f"{key}.{expiry}.{mac[:-1]}",
        lambda key, expiry, mac: f"{key}.{expiry}.{mac[:16]}",
        lambda key, expiry, mac: f"{key}.{expiry}.",
        lambda key, expiry, mac: f"{key}.{expiry}",
        lambda key, expiry, mac: f"{key}..{mac}",
        lambda key, expiry, mac: f"{key}.{expiry}.{mac}.",
        lambda key, expiry, mac: f"{key}.{expiry}.{mac}0",
        lambda key, expiry, mac: f"{key}.{expiry}. {mac}",
        lambda key, expiry, mac: f"{key}.{expiry}.{mac.upper()}",
        lambda key, expiry, mac: f"{key}.0{expiry}.{mac}",
        lambda key, expiry, mac: f"{key}.+{expiry}.{mac}",
        lambda key, expiry, mac: f"{key}.{int(expiry) + 1}.{mac}",
        lambda key, expiry, mac: f"{key}.{expiry[:-1]}\N{FULLWIDTH DIGIT ZERO}.{mac}",
        lambda key, expiry, mac: f"{key}.{expiry}.\N{FULLWIDTH DIGIT ZERO}{mac[1:]}",
        lambda key, expiry, mac: f"{key.upper()}.{expiry}.{mac}",
        lambda key, expiry, mac: f".{expiry}.{mac}",
        lambda key, expiry, mac: f"other.{expiry}.{mac}",
        lambda key, expiry, mac: f"{key}.nan.{mac}",
        lambda key, expiry, mac: "..",
        lambda key, expiry, mac: "",
    ],
)
def test_no_other_form_of_it_is_read(change: Callable[[str, str, str], str]) -> None:
    if _parts(change) != call():
        refused(_parts(change))


@given(st.lists(st.text("ab\n.|;", max_size=4), min_size=9, max_size=9), st.data())
def test_no_two_calls_have_one_proof(values: list[str], data: st.DataObject) -> None:
    """Whatever is moved over the border of a field: what holds the separator is no header at all."""
    names = ("x-request-id", *IDENTITY_HEADERS)
    other = data.draw(st.lists(st.text("ab\n.|;", max_size=4), min_size=9, max_size=9).filter(lambda it: it != values))
    proof = proofs().make(METHOD, values[0], list(zip(IDENTITY_HEADERS, values[1:], strict=True)))
    refused({**dict(zip(names, other, strict=True)), "x-uplion-proof": proof})


def test_a_key_is_replaced_without_a_refused_call() -> None:
    both = proofs(OLD, NEW), proofs(NEW, OLD)
    for maker in (proofs(OLD), *both):  # authz before, and while the new one comes first
        for verifier in both:
            assert verifier.verify(METHOD, call(by=maker).items()) == IDENTITY
    assert "not known" in refused(call(by=proofs(OLD)), by=proofs(NEW))  # the old one is gone


@pytest.mark.parametrize("settings", [AuthzSettings, RouterSettings, ControlSettings])
def test_no_service_that_makes_or_verifies_proofs_starts_without_a_key(settings: type) -> None:
    with pytest.raises(SettingsError) as caught:
        load(settings, {"DATABASE_URL": "x", "REDIS_URL": "x", "NATS_URL": "x", "UPLION_PEPPERS": "1:p"})
    (problem,) = caught.value.problems
    assert "PROOF_KEYS is missing: <id>:<secret>" in problem


@pytest.mark.parametrize(
    "texts", [(), ("a",), ("a:",), (":" + "s" * 32,), ("a:" + "s" * 31,), ("a.b:" + "s" * 32,), (OLD, OLD)]
)
def test_what_is_no_key_is_refused_at_the_start_without_telling_a_secret(texts: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as caught:
        IdentityProofs.of(texts)
    assert VARIABLE in str(caught.value)
    assert "sss" not in str(caught.value)
    assert "ooo" not in str(caught.value)
