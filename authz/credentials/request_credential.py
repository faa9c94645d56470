"""The credential a request shows: one, in any of three headers, or none at all."""

from collections.abc import Mapping

from credentials.headers import HEADERS, MOST_TOKEN_CHARACTERS, NO_KEY, NOT_BEARER, SCHEME, TWO_KEYS, refused

__all__ = ["HEADERS", "credential", "refused"]


def credential(headers: Mapping[str, str]) -> str:
    """The key's or token's text; raises INVALID_API_KEY. Two different ones, or anything unclear, is none.

    Envoy joins repeated headers with a comma, and a comma is in no key and in no token. The edge judges by the same
    rules (front.lua), so what gets here is odd only where it was not asked through the edge.
    """
    found: str | None = None
    for name in HEADERS:
        value = headers.get(name)
        if value is None:
            continue
        if name == "authorization":
            if value[: len(SCHEME)].lower() != SCHEME:
                raise refused(NOT_BEARER)
            value = value[len(SCHEME) :]
        if found is not None and found != value:
            raise refused(TWO_KEYS)
        found = value
    if found is None:
        raise refused(NO_KEY)
    if not found or len(found) > MOST_TOKEN_CHARACTERS or not found.isascii():
        raise refused()
    return found
