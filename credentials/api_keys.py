"""Keys: `upl_<env>_<id12>_<secret43><crc6>`; made, read and digested here, kept by control, checked by authz.

The CRC refuses typos before any lookup (the shape GitHub's tokens have); only an HMAC of the secret is ever stored.
Secret scanners find them by SCANNER_PATTERN.
"""

import hmac
import re
import secrets
import zlib
from dataclasses import dataclass, field

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SCANNER_PATTERN = r"upl_[a-z]{1,8}_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}"
_PATTERN = re.compile(r"upl_([a-z]{1,8})_([0-9A-Za-z]{12})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")


class MalformedKeyError(ValueError):
    """The text is no key of ours: wrong shape or checksum."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key in parts. `secret` has 256 bits and must never be logged; `id` is public."""

    environment: str
    id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """What the client sends."""
        head = f"upl_{self.environment}_{self.id}_{self.secret}"
        return head + _checksum(head)


def generate(environment: str = "live") -> ApiKey:
    """A fresh key; 43 base62 characters hold 256 bits."""
    return ApiKey(environment, _random(12), _random(43))


def parse(text: str) -> ApiKey:
    """Reads a key; raises MalformedKeyError without telling which part is wrong."""
    match = _PATTERN.fullmatch(text)
    if match is None or _checksum(text[:-6]) != match[4]:
        raise MalformedKeyError("not a key")
    return ApiKey(match[1], match[2], match[3])


def digest(secret: str, pepper: bytes) -> bytes:
    """HMAC-SHA-256 of the secret: what is stored, and compared with hmac.compare_digest."""
    return hmac.digest(pepper, secret.encode(), "sha256")


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(text: str) -> str:
    value = zlib.crc32(text.encode())
    digits = ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = _ALPHABET[digit] + digits
    return digits


# Public, well formed, and always refused: for documentation, scanners' tests and demonstrations.
TEST_KEY = ApiKey("test", "000000000000", "0" * 43).text
