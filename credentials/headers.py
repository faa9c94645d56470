"""The headers that carry a credential, and the refusal of a malformed one, the same in the edge and authz."""

from common.errors import Reason, UplionError

HEADERS = ("authorization", "x-api-key", "api-key")  # OpenAI's, Anthropic's and Azure's clients
SCHEME = "bearer"  # in any case, and one blank or more after it (RFC 9110, 11.4)
MOST_TOKEN_CHARACTERS = 8192  # of a signed token; a key is far shorter

NO_KEY = "No key was given. Send it as: Authorization: Bearer <key>."
NOT_BEARER = "The authorization header must be: Bearer <key>."
TWO_KEYS = "The request shows two different keys."
NOT_VALID = "The key is not valid."  # nothing of what was wrong with it
UNPROVED = "The token is not valid."
EXPIRED = "The token has expired."


def refused(message: str = NOT_VALID) -> UplionError:
    return UplionError(Reason.INVALID_API_KEY, message)
