"""The hash chain over an account's part of the ledger: the one place that says which bytes are hashed.

A batch adds one link to the chain of every account it brought new rows for:

    digest = SHA-256(previous || line || line || ...)

`previous` is the digest of the account's link before, or 32 zero bytes. The lines are of the rows of `usage_events`
that name the link, sorted by request id (by code point), then attempt. A line is UTF-8: the row's COLUMNS in this
order, separated by tabs and ended by a newline, as `COPY ... TO` writes them,

- text with backslashes doubled (it holds no control characters), integers in decimal, booleans as t and f, null as \\N
- `month` as 2026-11-01; `end_time` in UTC as 2026-11-21T12:00:00.123456+00:00, always with six decimals
- `compute_seconds` with six decimals, `cost` with eighteen

It holds ids, counts, times and money: no name, and no text of a client (so not `model`, which one may have invented).
"""

from collections.abc import Iterable
from datetime import date, datetime
from decimal import Context, Decimal
from hashlib import sha256

FIRST_PREVIOUS = bytes(32)
COLUMNS = (
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
NULL = r"\N"
_WIDE = Context(prec=200)


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
) -> str:
    """The line of one row, from the ledger's columns (COLUMNS, in order); `end_time` is in UTC."""
    compute = NULL if compute_seconds is None else decimals(round(compute_seconds * 1e6), 6)
    money = NULL if cost is None else decimals(int(cost.scaleb(18, _WIDE)), 18)
    before = f"{request_id}\t{attempt}\t{month}\t{account}\t{project}\t{key}\t{model_served}\t{model_revision}"
    named = f"{provider}\t{tier}\t{operation}\t{status}\t{finish_reason}"
    counts = f"{input_tokens}\t{cached_tokens}\t{cache_write_tokens}\t{output_tokens}\t{reasoning_tokens}\t"
    version = NULL if price_version is None else price_version
    return (
        escaped(f"{before}\t{named}\t{counts}")
        + f"{compute}\t{end_time.isoformat(timespec='microseconds')}\t{'t' if last else 'f'}\t"
        + f"{version}\t{money}\t{NULL if currency is None else currency}\t{policy}\n"
    )


def digest(previous: bytes, rows: Iterable[str]) -> bytes:
    """A link's digest; `rows` in the order of the ledger."""
    return sha256(previous + "".join(rows).encode()).digest()


def escaped(text: str) -> str:
    """As COPY writes text without control characters."""
    return text.replace("\\", "\\\\")


def decimals(number: int, places: int) -> str:
    """A count of 10^-places, never negative, as a decimal number."""
    digits = f"{number:0{places + 1}}"
    return f"{digits[:-places]}.{digits[-places:]}"
