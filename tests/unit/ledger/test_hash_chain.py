"""The bytes that the hash chain covers: they never change, or no ledger written before could be verified."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent
from uplion.inference.v1.sampling_pb2 import FinishReason

from billing.copy_rows import copy_row
from billing.entry import Arrival, decode
from billing.policy import INPUT_ONLY
from billing.pricing import Charge
from ledger import hash_chain
from ledger.usage_columns import TOKEN_COLUMNS

VALUES = (
    *("0190-id", 2, date(2026, 11, 1), "acc", "prj", "key", "llama", 7, "vllm", "batch", "chat", "cancelled", "stop"),
    *(1000, 300, 200, 100, 40, 1.5, datetime(2026, 11, 21, 12, 0, 0, 123_456, UTC), True),
    *(9, Decimal("0.123456789012345678"), "EUR", "input_only"),
)
NONE_LATER = (0,) * (len(hash_chain.COLUMNS) - len(hash_chain.ORIGINAL_COLUMNS))
ROW = (
    "0190-id\0" "2\0" "2026-11-01\0acc\0prj\0key\0llama\0" "7\0vllm\0batch\0chat\0cancelled\0stop\0"
    "1000\0" "300\0" "200\0" "100\0" "40\0" "1500000\0" "2026-11-21T12:00:00.123456+00:00\0" "1\0"
    "9\0" "123456789012345678\0EUR\0input_only\0"
)  # fmt: skip


def test_a_row_is_these_bytes():
    assert hash_chain.row(*VALUES, *NONE_LATER) == ROW
    assert hash_chain.digest(hash_chain.FIRST_PREVIOUS, [ROW, ROW]).hex() == (
        "d8569f3d3064a18d0d6c3710c331334fdf69eeed15fc70a469e9f3ff85225776"
    )


def test_unknown_values_are_empty():
    row = hash_chain.row(*VALUES[:18], None, *VALUES[19:21], None, None, None, "", *NONE_LATER)
    assert row == ROW[: ROW.index("1500000")] + "\0" + "2026-11-21T12:00:00.123456+00:00\0" + "1\0\0\0\0\0"


def test_the_writer_makes_the_same_bytes():
    event = UsageEvent(request_id="0190-id", attempt=2, account="acc", project="prj", key="key", model="x")
    event.status, event.finish_reason = AttemptStatus.ATTEMPT_STATUS_CANCELLED, FinishReason.FINISH_REASON_STOP
    event.model_served, event.model_revision, event.provider, event.tier = "llama", 7, "vllm", "batch"
    event.operation, event.last = "chat", True
    counts = zip(TOKEN_COLUMNS[:5], VALUES[13:18], strict=True)
    for column, count in counts:
        setattr(event.usage, column, count)
    event.compute_duration.FromMicroseconds(1_500_000)
    event.end_time.FromDatetime(VALUES[19])
    entry = decode(event.SerializeToString(), Arrival(int(VALUES[19].timestamp() * 1e9), None))
    chained, _ = copy_row(entry, Charge(9, 123456789012345678, "EUR"), INPUT_ONLY)
    assert chained == ROW


def test_a_row_of_an_export_is_recognised():
    values = ROW.split("\0")[:-1]
    assert hash_chain.is_row(values)
    assert not hash_chain.is_row(values[:-1])
    assert not hash_chain.is_row([*values, "more"])
    assert not hash_chain.is_row(["\0", *values[1:]])
    assert hash_chain.is_header(hash_chain.COLUMNS)
    assert hash_chain.is_header(hash_chain.ORIGINAL_COLUMNS)
    assert not hash_chain.is_header(hash_chain.ORIGINAL_COLUMNS[:-1])
    assert not hash_chain.is_header((*hash_chain.COLUMNS, "more"))


def test_a_later_token_class_changes_no_row_without_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hash_chain, "_LATER", ("image_tokens", "audio_tokens"))
    assert hash_chain.row(*VALUES, 0, 0) == ROW
    assert hash_chain.row(*VALUES, 0, 5) == ROW + "audio_tokens=5\0"
    values = ROW.split("\0")[:-1]
    assert hash_chain.is_row([*values, "image_tokens=1", "audio_tokens=5"])
    assert not hash_chain.is_row([*values, "audio_tokens=5", "image_tokens=1"])
