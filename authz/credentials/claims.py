"""The claims of a verified token."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a valid token proves of its bearer. `subject_id` is a pseudonym: no person's name gets into the ledger."""

    account: str
    project: str  # empty: none
    scopes: frozenset[str]
    subject_id: str
    expire_seconds: float  # unix time
