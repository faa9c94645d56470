"""Verifies signed tokens (JWT) of configured issuers.

joserfc checks signature and claims. Before that, everything is refused by which a caller could influence the check:
headers that name or carry keys, duplicate names, algorithms that are not configured.
"""

import hmac
import json
import logging
import time
from base64 import b32encode
from collections.abc import Callable, Sequence
from typing import Any

from joserfc import jwt
from joserfc.errors import ExpiredTokenError
from joserfc.jwa import EdDSAAlgorithm, JWSAlgModel
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry
from joserfc.util import urlsafe_b64decode

from authz.credentials.claims import TokenClaims
from authz.credentials.issuer_keys import FetchIntervals, IssuerKeys
from authz.credentials.issuers import ALGORITHMS, Issuer
from common.errors import UplionError
from common.lifecycle import run_forever
from credentials.headers import EXPIRED, MOST_TOKEN_CHARACTERS, UNPROVED, refused

logger = logging.getLogger(__name__)

_SKEW_SECONDS = 60
_HEADERS = frozenset({"alg", "kid", "typ", "x5t", "x5t#S256"})  # no jwk, jku, x5u, x5c, crit, b64
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_MOST_NAME_CHARACTERS = 128
_MOST_SECONDS = float(1 << 53)


class _RefusedTokenError(Exception):
    """Why a token is refused, for the log; the caller does not see it."""


class _EdDSA(EdDSAAlgorithm):
    security_warning = ""  # the name is deprecated, the algorithm is not; issuers still use it


class _Registry(JWSRegistry):
    """Has the algorithms of ALGORITHMS only: neither `none` nor HMAC."""

    algorithms: dict[str, JWSAlgModel] = {  # noqa: RUF012  the library's own way
        name: _EdDSA() if name == "EdDSA" else JWSRegistry.algorithms[name] for name in ALGORITHMS
    }
    max_header_length = 1024
    max_payload_length = MOST_TOKEN_CHARACTERS


class _StrictDecoder(json.JSONDecoder):
    """JSON without duplicate names, NaN and Infinity."""

    def __init__(self, **_: object) -> None:
        super().__init__(object_pairs_hook=_once, parse_constant=_no_number)


class _Trusted:
    """An issuer, its keys, and the checks that joserfc makes of its tokens."""

    def __init__(self, issuer: Issuer, keys: IssuerKeys, clock: Callable[[], float]) -> None:
        self.issuer = issuer
        self.keys = keys
        self.signatures = _Registry(algorithms=issuer.algorithms)
        self.claims = JWTClaimsRegistry(
            now=lambda: int(clock()),
            leeway=_SKEW_SECONDS,
            iss={"essential": True, "value": issuer.issuer},
            sub={"essential": True},
            exp={"essential": True},
            aud={"essential": True, "values": list(issuer.audiences)},
        )


class Tokens:
    """The issuers and their keys. `run` must be running."""

    def __init__(
        self,
        issuers: Sequence[Issuer],
        pseudonym_key: bytes,
        intervals: FetchIntervals | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        intervals = intervals or FetchIntervals()
        self._issuers = {issuer.issuer: _Trusted(issuer, IssuerKeys(issuer, intervals), clock) for issuer in issuers}
        self._pseudonym_key = pseudonym_key

    async def run(self) -> None:
        """Keeps every issuer's keys fresh until cancelled."""
        await run_forever({f"keys of {name}": trusted.keys.run for name, trusted in self._issuers.items()})

    async def verify(self, text: str) -> TokenClaims:
        """The token's claims; raises INVALID_API_KEY, or UNAVAILABLE when its issuer's keys are not known yet."""
        try:
            return await self._verify(text)
        except UplionError:
            raise
        except ExpiredTokenError:
            raise refused(EXPIRED) from None
        except Exception as problem:  # another party's bytes may break anything; whatever it is, they prove nothing
            logger.debug("a token was refused", extra={"problem": f"{type(problem).__name__}: {problem}"})
            raise refused(UNPROVED) from None

    async def _verify(self, text: str) -> TokenClaims:
        if len(text) > MOST_TOKEN_CHARACTERS:
            raise _RefusedTokenError("too long")
        header, unproved = _parts(text)
        name = unproved.get("iss")
        if not isinstance(name, str) or name not in self._issuers:
            raise _RefusedTokenError("unknown issuer")
        trusted = self._issuers[name]
        if header["alg"] not in trusted.issuer.algorithms:
            raise _RefusedTokenError("another algorithm")
        key = await trusted.keys.key(header["kid"])
        if key is None:
            raise _RefusedTokenError("its key is not the issuer's")
        token = jwt.decode(text, key, registry=trusted.signatures, decoder_cls=_StrictDecoder)
        trusted.claims.validate(token.claims)
        return self._claims(trusted.issuer, token.claims)

    def _claims(self, issuer: Issuer, claims: dict[str, Any]) -> TokenClaims:
        party = claims.get("azp", claims.get("client_id"))
        if issuer.authorized_parties is not None and party not in issuer.authorized_parties:
            raise _RefusedTokenError("made for another client")
        if "cnf" in claims:
            raise _RefusedTokenError("bound to a key whose possession is not checked here")
        accounts = issuer.account.values(claims)
        projects = issuer.project.values(claims) if issuer.project else ("",)
        if len(accounts) != 1 or len(projects) > 1:
            raise _RefusedTokenError("not of one account and at most one project")
        return TokenClaims(
            account=_name(accounts[0]),
            project=_name(projects[0]) if projects and projects[0] else "",
            scopes=frozenset(issuer.scopes.values(claims)),
            subject_id=self._pseudonym(issuer.issuer, claims["sub"]),
            expire_seconds=float(min(claims["exp"], _MOST_SECONDS)),
        )

    def _pseudonym(self, issuer: str, subject: str) -> str:
        """Stable for a subject while the pepper is; without the pepper the subject cannot be found from it."""
        text = f"token subject\0{issuer}\0{subject}".encode("utf-8", "surrogatepass")
        return "tok_" + b32encode(hmac.digest(self._pseudonym_key, text, "sha256"))[:12].decode().lower()


def _parts(text: str) -> tuple[dict[str, str], dict[str, object]]:
    """The header, validated, and the claims, not verified yet."""
    first, second, _ = text.encode("ascii").split(b".")
    header, claims = _decoded(first), _decoded(second)
    if not header.keys() <= _HEADERS or not all(isinstance(value, str) for value in header.values()):
        raise _RefusedTokenError("an odd header")
    if not header.get("kid") or "alg" not in header or header.get("typ", "jwt").lower() not in _TYPES:
        raise _RefusedTokenError("no kid, no alg or another type of token")
    return header, claims


def _decoded(part: bytes) -> dict[str, Any]:
    found = json.loads(urlsafe_b64decode(part), cls=_StrictDecoder)
    if not isinstance(found, dict):
        raise _RefusedTokenError("no JSON object")
    return found


def _name(text: str) -> str:
    """An account's or a project's id; refused if a header cannot carry it."""
    if len(text) > _MOST_NAME_CHARACTERS or not (text.isascii() and text.isprintable()):
        raise _RefusedTokenError("an odd name")
    return text


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")
