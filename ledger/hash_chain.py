"""The hash chain over an account's rows of the ledger: the definition of the bytes that are hashed.

A batch adds one link to the chain of each account that it has new rows of:

    digest = SHA-256(previous || row || row || ...)

`previous` is the digest of the account's link before, or 32 zero bytes. The rows are those of `usage_events` that name
the link, sorted by request id (by code point), then attempt. A row is the UTF-8 text of COLUMNS in this order, each
followed by a NUL, which no text in Postgres can hold:

- text as it is; integers in decimal; booleans as 1 or 0; a null as nothing
- `month` as 2026-11-01; `end_time` in UTC as 2026-11-21T12:00:00.123456+00:00, always six decimals
- `compute_seconds` in whole microseconds; `cost` in whole 10^-18 of its currency
- a token class that is newer than the chain as `<column>=<count>`, and left out where it is 0, so that rows without it
  keep their bytes (ADR 7)

A row holds ids, counts, times and money: no name, and no text of a client (so not `model`, which a client may choose).
"""

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from hashlib import sha256

from ledger.prices import to_units
from ledger.usage_columns import TOKEN_COLUMNS

FIRST_PREVIOUS = bytes(32)
ORIGINAL_COLUMNS = (  # in the order and number of the first row: they never change
    "request_id",
    "attempt",
    "month",
    "account",
    "project",
    "key",
    "model_served",
    "model_revision",
    "provider",
    "tier",
    "operation",
    "status",
    "finish_reason",
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "compute_seconds",
    "end_time",
    "last",
    "price_version",
    "cost",
    "currency",
    "policy",
)
_LATER = tuple(column for column in TOKEN_COLUMNS if column not in ORIGINAL_COLUMNS)
COLUMNS = (*ORIGINAL_COLUMNS, *_LATER)


def row(
    request_id: str,
    attempt: int,
    month: date,
    account: str,
    project: str,
    key: str,
    model_served: str,
    model_revision: int,
    provider: str,
    tier: str,
    operation: str,
    status: str,
    finish_reason: str,
    input_tokens: int,
    cached_tokens: int,
    cache_write_tokens: int,
    output_tokens: int,
    reasoning_tokens: int,
    compute_seconds: float | None,
    end_time: datetime,
    last: bool,
    price_version: int | None,
    cost: Decimal | None,
    currency: str | None,
    policy: str,
    *later_tokens: int,
) -> str:
    """The canonical text of one row, from the ledger's columns (COLUMNS, in order); `end_time` is in UTC."""
    compute = "" if compute_seconds is None else round(compute_seconds * 1e6)
    version = "" if price_version is None else price_version
    units = "" if cost is None else to_units(cost)
    return (
        f"{request_id}\0{attempt}\0{month}\0{account}\0{project}\0{key}\0{model_served}\0{model_revision}\0{provider}\0"
        f"{tier}\0{operation}\0{status}\0{finish_reason}\0{input_tokens}\0{cached_tokens}\0{cache_write_tokens}\0"
        f"{output_tokens}\0{reasoning_tokens}\0{compute}\0{end_time.isoformat(timespec='microseconds')}\0{last:d}\0"
        f"{version}\0{units}\0{currency or ''}\0{policy}\0"
        f"{later_text(later_tokens)}"
    )


def later_text(counts: Iterable[int]) -> str:
    """The end of a row: the counts of the token classes that ORIGINAL_COLUMNS lacks."""
    return "".join([f"{column}={count}\0" for column, count in zip(_LATER, counts, strict=True) if count])


def is_header(columns: Iterable[str]) -> bool:
    """Whether an exported ledger has these columns: those of today, or of a time with fewer token classes."""
    found = tuple(columns)
    return len(found) >= len(ORIGINAL_COLUMNS) and found == COLUMNS[: len(found)]


def is_row(values: Sequence[str]) -> bool:
    """Whether these can be a row's values, each without its NUL."""
    count, later = len(ORIGINAL_COLUMNS), [value.partition("=")[0] for value in values[len(ORIGINAL_COLUMNS) :]]
    return (
        len(values) >= count
        and later == [column for column in _LATER if column in later]
        and not any("\0" in value for value in values)
    )


def digest(previous: bytes, rows: Iterable[str]) -> bytes:
    """A link's digest; `rows` in the order of the ledger."""
    return sha256(previous + "".join(rows).encode()).digest()
