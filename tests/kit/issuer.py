"""An OpenID Connect issuer on loopback: discovery, keys that rotate, tokens, and every way to misbehave."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import Key, generate_key
from joserfc.jws import JWSRegistry

from authz.credentials.issuers import ALGORITHMS

_SHAPES: dict[str, tuple[Any, Any]] = {
    "RS256": ("RSA", 2048),
    "PS256": ("RSA", 2048),
    "ES256": ("EC", "P-256"),
    "Ed25519": ("OKP", "Ed25519"),
}


def signing_key(algorithm: str, key_id: str) -> Key:
    kind, shape = _SHAPES[algorithm]
    key: Key = generate_key(kind, shape, {"kid": key_id, "use": "sig", "alg": algorithm})
    return key


class Issuer:
    """Serves what `discovery` and `keys` hold at the moment."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.discovery: Any = {"issuer": url, "jwks_uri": f"{url}/keys"}
        self.key = signing_key("RS256", "first")
        self.published: list[Any] = [self.key.as_dict(private=False)]
        self.raw: bytes | None = None  # the key set's very bytes, when they are to be odd
        self.redirect: str | None = None
        self.requests: list[str] = []

    def rotate(self, key_id: str, algorithm: str = "RS256") -> None:
        self.key = signing_key(algorithm, key_id)
        self.published = [self.key.as_dict(private=False)]

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": "person@example.com",
            "aud": "uplion",
            "azp": "app",
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "org": {"id": "acme"},
            "scope": "openid inference admin",
        } | changes
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self, key: Any = None, header: dict[str, Any] | None = None, algorithm: str = "RS256", **changes: Any
    ) -> str:
        """A token of the issuer's; `changes` of None take a claim away."""
        signed = {"alg": algorithm, "kid": (key or self.key).kid} | (header or {})
        signed = {name: value for name, value in signed.items() if value is not None}
        registry = JWSRegistry(algorithms=[*ALGORITHMS, "HS256", "none"], strict_check_header=False)
        return jwt.encode(signed, self.claims(**changes), key or self.key, registry=registry)


@contextmanager
def running_issuer(port: int = 0) -> Iterator[Issuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests.append(self.path)
            if issuer.redirect is not None:
                self.send_response(302)
                self.send_header("location", issuer.redirect)
                self.end_headers()
                return
            known = self.path == "/.well-known/openid-configuration"
            body = json.dumps(issuer.discovery if known else {"keys": issuer.published}).encode()
            if issuer.raw is not None and not known:
                body = issuer.raw
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    issuer = Issuer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
