"""The issuers file: what it may say, and that every problem is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from authz.credentials import issuers
from common.settings import SettingsError

GOOD: dict[str, Any] = {
    "issuer": "https://id.example.com/realms/a",
    "audiences": ["uplion"],
    "algorithms": ["RS256"],
    "account": {"claim": ["org", "id"]},
}


def written(folder: Path, *found: dict[str, Any]) -> Path:
    path = folder / "issuers.yaml"
    path.write_text(json.dumps({"issuers": found}))
    return path


def test_an_issuer_with_its_defaults(tmp_path: Path) -> None:
    (issuer,) = issuers.read(written(tmp_path, GOOD))
    assert issuer.scopes.values({}) == ("inference",)
    assert issuer.account.values({"org": {"id": "acme"}}) == ("acme",)
    assert issuer.account.values({"org": "acme"}) == ()


def test_a_claim_of_scopes_gives_inference_alone_unless_told_otherwise(tmp_path: Path) -> None:
    (issuer,) = issuers.read(written(tmp_path, {**GOOD, "scopes": {"claim": "scope"}}))
    assert issuer.scopes.values({"scope": "admin inference admin:write"}) == ("inference",)
    allowing = {**GOOD, "scopes": {"claim": "scope", "allowed": ["admin:read"]}}
    (issuer,) = issuers.read(written(tmp_path, allowing))
    assert issuer.scopes.values({"scope": ["admin", "inference", "admin:read"]}) == ("admin:read",)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"algorithms": ["HS256"]}, "algorithms: at least one of"),
        ({"algorithms": ["none"]}, "algorithms: at least one of"),
        ({"algorithms": []}, "algorithms: at least one of"),
        ({"audiences": []}, "audiences: at least one"),
        ({"issuer": "http://id.example.com"}, "issuer must be an https URL"),
        ({"issuer": "https://user@id.example.com"}, "issuer must be an https URL"),
        ({"issuer": "file:///etc/passwd"}, "issuer must be an https URL"),
        ({"jwks_uri": "http://10.0.0.1/keys"}, "jwks_uri must be an https URL"),
        ({"account": {}}, "account needs either a claim or a value"),
        ({"account": {"claim": "a", "value": "b"}}, "account needs either a claim or a value"),
        ({"scopes": {"value": "inference", "allowed": ["inference"]}}, "nothing to allow"),
        ({"scopes": {"value": "everything"}}, "scopes: known are"),
        ({"scopes": {"claim": "s", "allowed": ["root"]}}, "scopes: known are"),
        ({"authorized_parties": []}, "an empty list would refuse"),
        ({"audience": "x"}, "unknown field"),
    ],
)
def test_what_an_issuer_must_not_say(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        issuers.read(written(tmp_path, {**GOOD, **change}))


def test_an_issuer_is_named_once_and_the_file_is_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="named twice"):
        issuers.read(written(tmp_path, GOOD, GOOD))
    with pytest.raises(SettingsError, match="No such file"):
        issuers.read(tmp_path / "absent")
    (tmp_path / "odd").write_text("issuers: [")
    with pytest.raises(SettingsError, match="odd"):
        issuers.read(tmp_path / "odd")


@pytest.mark.parametrize(
    ("url", "plain", "safe"),
    [
        ("https://a.example/x", False, True),
        ("http://127.0.0.1:8/x", True, True),
        ("http://[::1]/x", True, True),
        ("http://localhost/x", True, True),
        ("http://127.0.0.1/x", False, False),
        ("http://127.0.0.1.evil.example/x", True, False),
        ("http://evil.example", True, False),
        ("https://", True, False),
        ("https://a:99999", True, False),
        ("ftp://127.0.0.1", True, False),
        ("//127.0.0.1", True, False),
    ],
)
def test_where_keys_may_be_fetched(url: str, plain: bool, safe: bool) -> None:
    assert issuers.is_safe(url, plain=plain) is safe
