"""Row S3: tokens that each differ from a good one in one thing, and prove nothing."""

import base64
import hmac
import json
import warnings
from typing import Any

from joserfc.jws import JWSRegistry

from tests.kit.issuer import Issuer, signing_key


def _b64(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def _resigned(issuer: Issuer, header: Any, payload: Any) -> str:
    """Signed by the issuer itself, over bytes that joserfc would not write."""
    head = f"{_b64(header)}.{_b64(payload)}"
    return f"{head}.{_b64(JWSRegistry.algorithms['RS256'].sign(head.encode(), issuer.key))}"


def _hmac(header: dict[str, Any], body: str, key: bytes) -> str:
    """As a library that lets the token choose the algorithm would check it."""
    head = f"{_b64({**header, 'alg': 'HS256'})}.{body}"
    return f"{head}.{_b64(hmac.digest(key, head.encode(), 'sha256'))}"


def forged(issuer: Issuer) -> dict[str, str]:
    """By what is wrong with each."""
    return {**_signatures(issuer), **_keys(issuer), **_headers(issuer), **_claims(issuer), **_shapes(issuer)}


def _signatures(issuer: Issuer) -> dict[str, str]:
    head, body, signature = issuer.token().split(".")
    header = {"alg": "RS256", "kid": "first", "typ": "JWT"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joserfc's, about `none`
        none = issuer.token(header={"alg": "none"})
    modulus = issuer.published[0]["n"]
    public: Any = issuer.key
    return {
        "none": none,
        "none, in capitals": f"{_b64({**header, 'alg': 'NONE'})}.{body}.",
        "no alg": f"{_b64({'kid': 'first'})}.{body}.{signature}",
        "no signature": f"{head}.{body}.",
        "a signature of other claims": f"{head}.{_b64(issuer.claims(org={'id': 'victim'}))}.{signature}",
        "a signature in another alphabet": f"{head}.{body}.{signature[:-3]}+/=",
        "an algorithm not listed": f"{_b64({**header, 'alg': 'RS512'})}.{body}.{signature}",
        "HS256 with the public key": _hmac(header, body, public.as_pem(private=False)),
        "HS256 with the modulus": _hmac(header, body, modulus.encode()),
        "HS256 with an empty key": _hmac(header, body, b""),
    }


def _keys(issuer: Issuer) -> dict[str, str]:
    stranger = signing_key("RS256", "first")
    embedded = {"jwk": stranger.as_dict(private=False)}
    return {
        "a stranger's key of the same id": issuer.token(stranger),
        "an embedded jwk": issuer.token(stranger, embedded),
        "an embedded jwk without a kid": issuer.token(stranger, {**embedded, "kid": None}),
        "even a jwk beside a good signature": issuer.token(header={"jwk": issuer.published[0]}),
        "a jku": issuer.token(stranger, {"jku": f"{issuer.url}/evil"}),
        "an x5u": issuer.token(stranger, {"x5u": f"{issuer.url}/evil"}),
        "an x5c": issuer.token(stranger, {"x5c": ["AAAA"]}),
        "a kid that is a path": issuer.token(stranger, {"kid": "../../../../dev/null"}),
        "a kid that is SQL": issuer.token(stranger, {"kid": "first' OR 1=1 --"}),
        "an empty kid": issuer.token(header={"kid": ""}),
        "no kid": issuer.token(header={"kid": None}),
    }


def _headers(issuer: Issuer) -> dict[str, str]:
    good = issuer.claims()
    return {
        "a critical header": _resigned(issuer, {"alg": "RS256", "kid": "first", "crit": ["exp"], "exp": 1}, good),
        "an unencoded payload": _resigned(issuer, {"alg": "RS256", "kid": "first", "b64": False}, good),
        "another type": issuer.token(header={"typ": "logout+jwt"}),
        "a nested token": issuer.token(header={"cty": "JWT"}),
        "a header twice": _resigned(issuer, b'{"alg":"none","alg":"RS256","kid":"first"}', good),
        "a header that is a list": _resigned(issuer, ["alg"], good),
        "a header of numbers": _resigned(issuer, {"alg": 1, "kid": 2}, good),
    }


def _claims(issuer: Issuer) -> dict[str, str]:
    now = issuer.claims()["iat"]
    header = {"alg": "RS256", "kid": "first", "typ": "JWT"}
    good = issuer.claims()
    twice = json.dumps(good)[:-1] + ', "sub": "somebody else"}'
    return {
        "another audience": issuer.token(aud="somebody"),
        "no audience": issuer.token(aud=None),
        "an empty audience": issuer.token(aud=[]),
        "an audience that is an object": issuer.token(aud={"uplion": 1}),
        "another issuer": issuer.token(iss="https://evil.example"),
        "an issuer with a slash more": issuer.token(iss=f"{issuer.url}/"),
        "no issuer": issuer.token(iss=None),
        "a list of issuers": issuer.token(iss=[issuer.url]),
        "another party": issuer.token(azp="other"),
        "no party": issuer.token(azp=None),
        "expired": issuer.token(exp=now - 70),
        "without an end": issuer.token(exp=None),
        "an end that is text": issuer.token(exp=str(now + 300)),
        "an end that is true": issuer.token(exp=True),
        "an end that is NaN": _resigned(issuer, header, {**good, "exp": float("nan")}),
        "an end of infinity": _resigned(issuer, header, {**good, "exp": float("inf")}),
        "not yet": issuer.token(nbf=now + 120),
        "issued tomorrow": issuer.token(iat=now + 86_400),
        "no subject": issuer.token(sub=None),
        "an empty subject": issuer.token(sub=""),
        "a subject that is a number": issuer.token(sub=7),
        "no account": issuer.token(org=None),
        "two accounts": issuer.token(org={"id": ["acme", "victim"]}),
        "an account that is a header": issuer.token(org={"id": "acme\r\nx-uplion-account:victim"}),
        "bound to a key": issuer.token(cnf={"jkt": "x"}),
        "a claim twice": _resigned(issuer, header, twice.encode()),
    }


def _shapes(issuer: Issuer) -> dict[str, str]:
    head, body, signature = issuer.token().split(".")
    header = {"alg": "RS256", "kid": "first", "typ": "JWT"}
    unsigned = {"payload": body, "signatures": [{"header": {"alg": "none", "kid": "first"}, "signature": ""}]}
    return {
        "an unsigned JSON JWS": json.dumps(unsigned),
        "a JSON JWS": json.dumps({"payload": body, "protected": head, "signature": signature}),
        "deep": _resigned(issuer, header, b"[" * 5000),
        "no object": _resigned(issuer, header, "uplion"),
        "no JSON": _resigned(issuer, header, b"\xff\xfe"),
        "digits without end": _resigned(issuer, header, b'{"iss":' + b"9" * 5000 + b"}"),
        "too long": issuer.token(padding="x" * 8192),
        "two parts": f"{head}.{body}",
        "four parts": f"{head}.{body}.{signature}.",
        "five parts": f"{head}.{body}.{signature}.a.b",
        "no ASCII": f"{head}.{body}.é",
        "nothing": "..",
    }
