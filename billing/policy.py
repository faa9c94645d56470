"""The billing policy: what an attempt that ended abnormally costs (docs/billing.md).

Tokens are always recorded as measured; a policy changes the cost alone. `accounts.billing_policy` holds an account's
differences from the defaults as JSON, with the same keys; a check constraint refuses others.
"""

import json
from collections.abc import Mapping
from typing import Final, Literal

from billing.entry import Entry
from ledger import usage_columns

# What is charged, as in the ledger's column `policy`. Literals, not an Enum, whose members cost 1 us an event.
Action = Literal["", "input_only", "waived"]
BILL: Final = ""  # everything that was measured
INPUT_ONLY: Final = "input_only"
WAIVE: Final = "waived"

# The abnormal ends, and what each costs unless the account's own policy differs.
DEFAULTS: Mapping[str, Action] = {
    "cancelled": BILL,  # the client left; the tokens until then were generated for it
    "worker_lost": BILL,  # what the client received of it
    "timed_out": BILL,
    "guard_stopped": BILL,
    "failed": WAIVE,  # an error of the platform or its upstream
    "zero_output": WAIVE,  # a generation that completed with an explicit count of 0
}
_ACTIONS: Mapping[str, Action] = {"bill": BILL, "input_only": INPUT_ONLY, "waive": WAIVE}
_GUARD_STOPPED = "content_filter"  # the finish reason
_GENERATES_NOTHING = frozenset({"embedding"})
_OUTPUT = usage_columns.TOKEN_CLASSES.index(usage_columns.OUTPUT)


def abnormal_end(entry: Entry) -> str | None:
    """The key of DEFAULTS that the entry's end has, or "refused"; None for a normal end.

    An explicit zero is not a missing value: a completed attempt without `usage` is not "zero_output".
    """
    if entry.finish_reason == _GUARD_STOPPED:
        return "guard_stopped"
    if entry.status != "completed":
        return entry.status
    if entry.measured and not entry.tokens[_OUTPUT] and entry.operation not in _GENERATES_NOTHING:
        return "zero_output"
    return None


def action(end: str | None, own: Mapping[str, Action]) -> Action:
    """What is charged for an end, by the account's own policy or the default. A refused attempt is always free."""
    if end is None:
        return BILL
    if end == "refused":
        return WAIVE
    return own.get(end, DEFAULTS[end])


def parse(billing_policy: str) -> dict[str, Action]:
    """The JSON of `accounts.billing_policy`."""
    return {end: _ACTIONS[word] for end, word in json.loads(billing_policy).items()}
