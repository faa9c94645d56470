"""The key a request shows: one, in any of three headers, or none at all."""

from collections.abc import Mapping

from common.errors import Reason, UplionError

HEADERS = ("authorization", "x-api-key", "api-key")  # OpenAI's, Anthropic's and Azure's clients
_MOST_CHARACTERS = 256
_SCHEME = "bearer "


def credential(headers: Mapping[str, str]) -> str:
    """The key's text; raises INVALID_API_KEY. Two different keys, or anything unclear, is no key.

    Envoy joins repeated headers with a comma, and a comma is in no key.
    """
    found: str | None = None
    for name in HEADERS:
        value = headers.get(name)
        if value is None:
            continue
        if name == "authorization":
            if value[:7].lower() != _SCHEME:
                raise refused("The authorization header must be: Bearer <key>.")
            value = value[7:]
        if found is not None and found != value:
            raise refused("The request shows two different keys.")
        found = value
    if found is None:
        raise refused("No key was given. Send it as: Authorization: Bearer <key>.")
    if not found or len(found) > _MOST_CHARACTERS or not found.isascii():
        raise refused()
    return found


def refused(message: str = "The key is not valid.") -> UplionError:
    """Says nothing of what was wrong with a key that looks like one."""
    return UplionError(Reason.INVALID_API_KEY, message)
