"""Key records: what a key, or the account of a token, is allowed and limited to."""

import msgspec

from ledger.limits import Rule


class KeyRecord(msgspec.Struct, frozen=True):
    """A key with its project and account, as Postgres has them."""

    id: str
    account: str
    digest: bytes
    pepper_id: str
    scopes: frozenset[str]
    active: bool
    expire_seconds: float | None = None  # unix time
    project: str = ""  # empty: the key belongs to none
    rules: tuple[Rule, ...] = ()  # of the account, the project and the key
    models: tuple[str, ...] = ()  # globs; empty: every model
    tiers: tuple[str, ...] = ()  # the first is what a request gets that asks for none; empty: every tier
    networks: tuple[str, ...] = ()  # CIDR; empty: from anywhere


_OWNER = "token:"  # no key's id holds a colon


def owner_id(account: str, project: str) -> str:
    """The record id for tokens of an account and its project (empty: none)."""
    return f"{_OWNER}{account}\n{project}"


def owner(record_id: str) -> tuple[str, str] | None:
    """The account and project of an `owner_id`; None: it is a key's id."""
    account, separator, project = record_id.removeprefix(_OWNER).partition("\n")
    return (account, project) if record_id.startswith(_OWNER) and separator else None


class CachedRecord(msgspec.Struct, frozen=True):
    """A record and when it was read from Postgres (unix time): its age counts from there, in whichever cache it is."""

    record: KeyRecord
    read_seconds: float
