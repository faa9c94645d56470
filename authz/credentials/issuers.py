"""Token issuers: the issuers file, read and validated once at the start."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import yaml

from common import names
from common.admin_api import ADMIN_SCOPES
from common.manifest import check_yaml, read_yaml
from common.settings import SettingsError

# Asymmetric ones only: with HS*, whoever can check a token can also make one.
ALGORITHMS = frozenset({"RS256", "PS256", "ES256", "EdDSA", "Ed25519"})
_SCOPES = frozenset({names.SCOPE_INFERENCE, *ADMIN_SCOPES})


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a value comes from: a claim (a list of names is the path to a nested one), or this file itself.

    Of a claim's values only the `allowed` ones count; for scopes the default is `inference` alone.
    """

    claim: str | tuple[str, ...] | None = None
    value: str | tuple[str, ...] | None = None
    allowed: tuple[str, ...] | None = None

    def values(self, claims: Mapping[str, object]) -> tuple[str, ...]:
        """A token's values; a text with spaces is several, as OAuth writes scopes."""
        found: object = self.value
        if self.claim is not None:
            found = claims
            for name in (self.claim,) if isinstance(self.claim, str) else self.claim:
                found = found.get(name) if isinstance(found, dict) else None
        values = found.split(" ") if isinstance(found, str) else found
        if not isinstance(values, list | tuple):
            return ()
        return tuple(
            each for each in values if isinstance(each, str) and each and (self.allowed is None or each in self.allowed)
        )

    def problems(self) -> Iterable[str]:
        if (self.claim is None) == (self.value is None):
            yield "needs either a claim or a value"
        if self.value is not None and self.allowed is not None:
            yield "has a value of its own, so there is nothing to allow"


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An OpenID Connect issuer, what its tokens must contain, and which of their claims are used."""

    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    account: Source
    project: Source | None = None
    scopes: Source = Source(value=names.SCOPE_INFERENCE)
    authorized_parties: tuple[str, ...] | None = None
    jwks_uri: str | None = None  # instead of discovery

    def problems(self) -> Iterable[str]:
        yield from _url_problems("issuer", self.issuer)
        if self.jwks_uri is not None:
            yield from _url_problems("jwks_uri", self.jwks_uri)
        if not self.audiences or not all(self.audiences):
            yield "audiences: at least one must be named, or tokens made for any audience would be accepted"
        if not self.algorithms or not set(self.algorithms) <= ALGORITHMS:
            yield f"algorithms: at least one of {', '.join(sorted(ALGORITHMS))}, and no other"
        if self.authorized_parties is not None and not self.authorized_parties:
            yield "authorized_parties: an empty list would refuse every token"
        for name, source in (("account", self.account), ("project", self.project), ("scopes", self.scopes)):
            yield from (f"{name} {problem}" for problem in (source.problems() if source else ()))
        given = self.scopes.allowed or self.scopes.values({})
        if not set(given) <= _SCOPES:
            yield f"scopes: known are {', '.join(sorted(_SCOPES))}"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    issuers: tuple[Issuer, ...]


def read(path: Path) -> tuple[Issuer, ...]:
    """The issuers of a YAML or JSON file; raises SettingsError with every problem."""
    try:
        text = read_yaml(path)
        check_yaml(text)
        found = msgspec.convert(yaml.safe_load(text), _File)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as problem:
        raise SettingsError([f"{path}: {problem}"]) from problem
    problems = [f"{path}: {each.issuer}: {problem}" for each in found.issuers for problem in each.problems()]
    if len({each.issuer for each in found.issuers}) < len(found.issuers):
        problems.append(f"{path}: an issuer is named twice")
    if problems:
        raise SettingsError(problems)
    return tuple(_with_default_scopes(each) for each in found.issuers)


def is_safe(url: str, *, plain: bool) -> bool:
    """Whether keys may be fetched there: over TLS, or in plain from this machine where `plain` allows it."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.port == 0 or parts.username is not None or parts.fragment or not host:
            return False
    except ValueError:
        return False
    return parts.scheme == "https" or (plain and parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url_problems(name: str, url: str) -> Iterable[str]:
    if not is_safe(url, plain=True):
        yield f"{name} must be an https URL (http is for 127.0.0.1 only)"


def _with_default_scopes(issuer: Issuer) -> Issuer:
    scopes = issuer.scopes
    if scopes.claim is None or scopes.allowed is not None:
        return issuer
    return msgspec.structs.replace(issuer, scopes=msgspec.structs.replace(scopes, allowed=(names.SCOPE_INFERENCE,)))
