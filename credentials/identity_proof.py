"""The proof that authz made a call's identity headers: a MAC, which router and control check before they read any.

`x-uplion-proof: <key id>.<expiry>.<MAC>`: the expiry in unix seconds; the MAC is HMAC-SHA-256, its first 16 bytes in
hexadecimal, over key id, expiry, the gRPC method's full name, the request id and every identity header. So a proof is
good for one request, to one method, for a minute. Made and verified in 2 us each.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest

from common import names
from common.identity import IDENTITY_HEADERS, Identity, UnprovenError
from common.settings import SettingsError
from credentials import shared_secrets

VARIABLE = "UPLION_PROOF_KEYS"
LIFE_SECONDS = 60  # on its way from authz to the service, and what the clocks of their hosts may differ by
_MAC_CHARACTERS = 32  # of hexadecimal: 16 bytes
_BLOCK_BYTES = 64  # of SHA-256
_SECRET_BYTES_MIN = 32
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
# No header can hold it, so that no two calls have one text.
_SEPARATOR = "\n"
_SEPARATORS = 3 + len(IDENTITY_HEADERS)


class IdentityProofs:
    """Makes proofs with the first of the keys, and accepts those that any of them made."""

    def __init__(self, keys: Mapping[str, bytes], clock: Callable[[], float] = time.time) -> None:
        self._macs = {key_id: _mac(secret) for key_id, secret in keys.items()}
        self._key_id, self._mac = next(iter(self._macs.items()))
        self._clock = clock

    @classmethod
    def of(cls, texts: Iterable[str]) -> "IdentityProofs":
        """From the setting; SettingsError names the variable, never a secret, and says what to do."""
        keys = shared_secrets.read(texts, VARIABLE)
        for key_id, secret in keys.items():
            if not _KEY_ID.fullmatch(key_id):
                raise SettingsError([f"{VARIABLE}: an id has at most 32 letters, digits, `-` and `_`"])
            if len(secret) < _SECRET_BYTES_MIN:
                raise SettingsError(
                    [f"{VARIABLE}: the secret {key_id!r} is too short; make one by `openssl rand -hex 32`"]
                )
        return cls(keys)

    def make(self, method: str, request_id: str, headers: Iterable[tuple[str, str]]) -> str:
        """The proof for a call of the method ("/package.Service/Method") with what `Identity.to_headers` wrote."""
        expiry = str(int(self._clock()) + LIFE_SECONDS)
        text = _SEPARATOR.join((self._key_id, expiry, method, request_id, *[value for _, value in headers]))
        return f"{self._key_id}.{expiry}.{self._mac(text)}"

    def verify(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Identity:
        """The identity of a call's headers; raises UnprovenError unless authz made all of them for this call."""
        found: dict[str, str] = {}
        for name, value in metadata:
            if name in _READ:
                if name in found:
                    raise UnprovenError("a header comes twice")
                found[name] = str(value)
        if len(found) != len(_READ):
            raise UnprovenError("a header is missing")
        key_id, _, rest = found[names.HEADER_PROOF].partition(".")
        expiry, _, given = rest.partition(".")
        mac = self._macs.get(key_id)
        if mac is None:
            raise UnprovenError("its key is not known here")
        request_id = found[names.HEADER_REQUEST_ID]
        text = _SEPARATOR.join((key_id, expiry, method, request_id, *[found[name] for name in IDENTITY_HEADERS]))
        # The texts are compared, so that nothing but the form that authz writes is accepted.
        if not given.isascii() or not compare_digest(mac(text), given) or text.count(_SEPARATOR) != _SEPARATORS:
            raise UnprovenError("it does not match the call")
        if int(expiry) < self._clock():
            raise UnprovenError("it has expired, or the clocks differ by more than a minute")
        if not (request_id and found[names.HEADER_ACCOUNT] and found[names.HEADER_KEY]):
            raise UnprovenError("it is of nobody, or for no request")
        return Identity.from_headers(found)


_READ = frozenset((names.HEADER_PROOF, names.HEADER_REQUEST_ID, *IDENTITY_HEADERS))


def _mac(secret: bytes) -> Callable[[str], str]:
    """HMAC-SHA-256 with the key's two blocks hashed beforehand: a third of the time of `hmac.digest`."""
    block = (secret if len(secret) <= _BLOCK_BYTES else sha256(secret).digest()).ljust(_BLOCK_BYTES, b"\0")
    inner, outer = sha256(bytes(byte ^ 0x36 for byte in block)), sha256(bytes(byte ^ 0x5C for byte in block))

    def mac(text: str) -> str:
        message, digest = inner.copy(), outer.copy()
        message.update(text.encode())
        digest.update(message.digest())
        return digest.hexdigest()[:_MAC_CHARACTERS]

    return mac
