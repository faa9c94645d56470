"""The policy for abnormal ends: what an attempt that did not simply complete costs. docs/billing.md is its prose.

Tokens are always recorded as they were measured; a policy changes the cost alone. `accounts.billing_policy` holds, as
JSON, what an account does differently from the defaults, in the same words; the database refuses any others.
"""

import json
from collections.abc import Mapping
from typing import Final, Literal

from billing.entry import Entry

# What is charged, as the ledger's `policy` column says it. Words, not an Enum: naming its members cost 1 us an event.
Action = Literal["", "input_only", "waived"]
BILL: Final = ""  # all that was measured
INPUT_ONLY: Final = "input_only"
WAIVE: Final = "waived"

# How an attempt can end, and what that costs when the account says nothing else.
DEFAULTS: Mapping[str, Action] = {
    "cancelled": BILL,  # the client left; the tokens until then were made for it
    "worker_lost": BILL,  # what the client was given of it
    "timed_out": BILL,
    "guard_stopped": BILL,
    "failed": WAIVE,  # our fault, or our upstream's
    "zero_output": WAIVE,  # a generation that completed and says that it generated nothing
}
_ACTIONS: Mapping[str, Action] = {"bill": BILL, "input_only": INPUT_ONLY, "waive": WAIVE}
_GUARD_STOPPED = "content_filter"  # the finish reason
_GENERATES_NOTHING = frozenset({"embedding"})


def abnormal_end(entry: Entry) -> str | None:
    """Which key of DEFAULTS the entry is, or "refused"; None when it is billed as measured in any case.

    An explicit zero is not a missing value: a completed attempt that does not say what it used is not "zero_output".
    """
    if entry.finish_reason == _GUARD_STOPPED:
        return "guard_stopped"
    if entry.status != "completed":
        return entry.status
    if entry.measured and not entry.output_tokens and entry.operation not in _GENERATES_NOTHING:
        return "zero_output"
    return None


def action(end: str | None, own: Mapping[str, Action]) -> Action:
    """What an end costs an account with policies of its own. What was refused costs nobody anything."""
    if end is None:
        return BILL
    if end == "refused":
        return WAIVE
    return own.get(end, DEFAULTS[end])


def parse(billing_policy: str) -> dict[str, Action]:
    """The JSON of `accounts.billing_policy`."""
    return {end: _ACTIONS[word] for end, word in json.loads(billing_policy).items()}
