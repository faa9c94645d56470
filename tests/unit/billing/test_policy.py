"""What abnormal ends are, and what they cost."""

from typing import Any

import pytest

from billing.entry import Entry
from billing.policy import BILL, DEFAULTS, INPUT_ONLY, WAIVE, abnormal_end, action, parse


def ended(status="completed", output_tokens=5, finish_reason="", operation="chat", measured=True):
    fields: dict[str, Any] = dict.fromkeys(Entry._fields)
    fields |= {"status": status, "tokens": (7, 0, 0, output_tokens, 0), "finish_reason": finish_reason}
    return Entry(**(fields | {"operation": operation, "measured": measured}))


@pytest.mark.parametrize(
    ("entry", "end"),
    [
        (ended(), None),
        (ended("cancelled"), "cancelled"),
        (ended("worker_lost"), "worker_lost"),
        (ended("timed_out"), "timed_out"),
        (ended("failed"), "failed"),
        (ended("refused"), "refused"),
        (ended(finish_reason="content_filter"), "guard_stopped"),
        (ended(output_tokens=0), "zero_output"),
        (ended(output_tokens=0, operation="embedding"), None),
        (ended(output_tokens=0, measured=False), None),
    ],
)
def test_every_end_has_its_name(entry, end):
    assert abnormal_end(entry) == end
    assert end is None or end == "refused" or end in DEFAULTS


def test_an_account_may_differ_from_the_defaults_and_never_pays_for_what_was_refused():
    own = parse('{"failed": "bill", "cancelled": "input_only", "worker_lost": "waive"}')
    assert {end: action(end, own) for end in (None, "refused", *DEFAULTS)} == {
        None: BILL,
        "refused": WAIVE,
        "cancelled": INPUT_ONLY,
        "worker_lost": WAIVE,
        "timed_out": BILL,
        "guard_stopped": BILL,
        "failed": BILL,
        "zero_output": WAIVE,
    }
