"""The credential of a request: exactly one, in any of three headers."""

from collections.abc import Mapping

from credentials.headers import HEADERS, MOST_TOKEN_CHARACTERS, NO_KEY, NOT_BEARER, SCHEME, TWO_KEYS, refused

__all__ = ["HEADERS", "credential", "refused"]


def credential(headers: Mapping[str, str]) -> str:
    """The key's or token's text; raises INVALID_API_KEY, also for two different ones.

    Envoy joins repeated headers with a comma, which is in no key and in no token. The edge applies the same rules
    (front.lua), so only a call that bypassed the edge is refused here.
    """
    found: str | None = None
    for name in HEADERS:
        value = headers.get(name)
        if value is None:
            continue
        if name == "authorization":
            scheme, blank, value = value.partition(" ")
            if not blank or scheme.lower() != SCHEME:
                raise refused(NOT_BEARER)
            value = value.strip(" ")
        if found is not None and found != value:
            raise refused(TWO_KEYS)
        found = value
    if found is None:
        raise refused(NO_KEY)
    if not found or len(found) > MOST_TOKEN_CHARACTERS or not found.isascii():
        raise refused()
    return found
