"""What a token proved."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a valid token says of its bearer. `subject_id` is a pseudonym: no name of a person gets into the ledger."""

    account: str
    project: str  # empty: none
    scopes: frozenset[str]
    subject_id: str
    expire_seconds: float  # unix time
