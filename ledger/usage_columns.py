"""Usage columns: what a usage event measures, and how each place that holds a measure names it.

Events, ledger, rollups, prices, metrics and exports derive their columns from TOKEN_CLASSES and DURATIONS. Token counts
travel as tuples in the order of TOKEN_CLASSES.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SCHEMA_VERSION = 4  # the oldest schema whose tables have all these columns


@dataclass(frozen=True, slots=True)
class TokenClass:
    """A class of tokens that is counted and priced."""

    name: str  # in exports, statements (UsageClass) and as the metric's label; there without the tokens of its parts
    column: str  # in TokenUsage, UsageRow, `usage_events` and `usage_hourly`; here with the tokens of its parts
    rate: str  # in Rates and `prices`; null there means the rate of the class that this one is a part of
    part_of: "TokenClass | None" = None


@dataclass(frozen=True, slots=True)
class DurationColumn:
    """A duration that is measured."""

    field: str  # in UsageEvent and in the admin API's Attempt
    column: str  # in `usage_events`, in seconds; null: not known


INPUT = TokenClass("input", "input_tokens", "input_per_million_tokens")
OUTPUT = TokenClass("output", "output_tokens", "output_per_million_tokens")
# The first five stand in the hash chain's rows by position. A later class goes to the end: see `hash_chain`.
TOKEN_CLASSES = (
    INPUT,
    TokenClass("cached_input", "cached_tokens", "cached_per_million_tokens", INPUT),
    TokenClass("cache_write", "cache_write_tokens", "cache_write_per_million_tokens", INPUT),
    OUTPUT,
    TokenClass("reasoning", "reasoning_tokens", "reasoning_per_million_tokens", OUTPUT),
)
DURATIONS = (
    DurationColumn("queue_duration", "queue_seconds"),
    DurationColumn("first_token_duration", "first_token_seconds"),
    DurationColumn("duration", "duration_seconds"),
    DurationColumn("compute_duration", "compute_seconds"),
)

TOKEN_COLUMNS = tuple(each.column for each in TOKEN_CLASSES)
COMPUTE_SECONDS = "compute_seconds"  # the only duration that is priced, and so summed in rollups
ROLLUP_COLUMNS = ("requests", *TOKEN_COLUMNS, COMPUTE_SECONDS, "cost")  # the sums of `usage_hourly`
# All tokens of a row, as SQL: what limits of tokens count. The other classes are parts of these.
TOTAL_TOKENS = " + ".join(each.column for each in TOKEN_CLASSES if each.part_of is None)

_WHOLES = tuple(index for index, each in enumerate(TOKEN_CLASSES) if each.part_of is None)
_FAMILIES = tuple(  # the index of each class that is no part, and those of its parts
    (index, tuple(other for other, each in enumerate(TOKEN_CLASSES) if each.part_of is TOKEN_CLASSES[index]))
    for index in _WHOLES
)


def total(tokens: Sequence[int]) -> int:
    """All tokens of a row, each once."""
    return sum([tokens[index] for index in _WHOLES])


def disjoint(tokens: Sequence[int]) -> list[int]:
    """The same tokens with each in one class only; a part is cut to what the class it belongs to has left."""
    apart = list(tokens)
    for whole, parts in _FAMILIES:
        left = tokens[whole]
        for part in parts:
            count = tokens[part]
            if count > left:
                count = apart[part] = left
            left -= count
        apart[whole] = left
    return apart
