"""What a key, or the account of a token, is allowed and limited to, as Postgres has it."""

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
    """Under this id the ring knows what holds for tokens of an account and its project (empty: none)."""
    return f"{_OWNER}{account}\n{project}"


def owner(record_id: str) -> tuple[str, str] | None:
    """The account and project that `owner_id` was made of; None: it is a key's id."""
    account, separator, project = record_id.removeprefix(_OWNER).partition("\n")
    return (account, project) if record_id.startswith(_OWNER) and separator else None


class CachedRecord(msgspec.Struct, frozen=True):
    """A record and when Postgres said so (unix time): its age counts from there, wherever it was kept."""

    record: KeyRecord
    read_seconds: float
