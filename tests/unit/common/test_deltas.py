"""Deltas are merged without losing a part, a token or their order, and cross the wire unchanged."""

from hypothesis import given
from hypothesis import strategies as st
from uplion.dispatch.v1 import run_pb2
from uplion.inference.v1.sampling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_UNSPECIFIED,
)

from common.deltas import Delta, Deltas, Part, Reasoning, Refusal, ToolCall, from_message, to_message


def merged(*deltas: Delta) -> list[Delta]:
    waiting = Deltas()
    for delta in deltas:
        waiting.add(delta)
    assert waiting
    taken = waiting.take()
    assert not waiting
    assert waiting.size == 0
    return taken


def message(delta: Delta) -> run_pb2.Delta:
    written = run_pb2.Delta()
    to_message(delta, written)
    return written


def probability(token_id: int) -> run_pb2.TokenLogProbability:
    return run_pb2.TokenLogProbability(chosen=run_pb2.TokenCandidate(token_id=token_id, log_probability=-1.0))


def test_each_choice_has_one_delta_in_the_order_of_its_first() -> None:
    deltas = merged(Delta(1, ["x"], [7]), Delta(0, ["a"], [1]), Delta(1, ["y"], [8, 9]))
    assert deltas == [Delta(1, ["xy"], [7, 8, 9]), Delta(0, ["a"], [1])]
    assert Deltas().take() == []


def test_a_finish_reason_stays_once_it_is_set() -> None:
    assert merged(Delta(0, [], [], FINISH_REASON_LENGTH), Delta(0, ["a"], [1])) == [
        Delta(0, ["a"], [1], FINISH_REASON_LENGTH)
    ]


def test_neighbours_of_one_kind_are_one_part() -> None:
    (delta,) = merged(
        Delta(0, [Reasoning("let me")], [1]),
        Delta(0, [Reasoning(" think")], [2]),
        Delta(0, ["The", " answer"], [3, 4]),
        Delta(0, [Refusal("I"), Refusal(" will not")], [5]),
        Delta(0, [Reasoning("again"), "."], [6]),
    )
    assert delta.parts == [Reasoning("let me think"), "The answer", Refusal("I will not"), Reasoning("again"), "."]
    assert delta.text == "The answer."
    assert delta.token_ids == [1, 2, 3, 4, 5, 6]


def test_neighbouring_parts_of_tool_calls_are_one_for_each_index() -> None:
    (delta,) = merged(
        Delta(0, [ToolCall(0, "call-a", "look_up", "")], [1]),
        Delta(0, [ToolCall(1, "call-b", "look_up", '{"b"')], [2]),
        Delta(0, [ToolCall(0, arguments='{"a":'), ToolCall(1, arguments=":2}"), ToolCall(0, arguments="1}")], [3]),
        Delta(0, ["then"], [4]),
        Delta(0, [ToolCall(1, arguments=" ")], [5]),
    )
    assert delta.parts == [
        ToolCall(0, "call-a", "look_up", '{"a":1}'),
        ToolCall(1, "call-b", "look_up", '{"b":2}'),
        "then",
        ToolCall(1, arguments=" "),
    ]


def test_frames_in_the_callers_dialect_stay_frames() -> None:
    (delta,) = merged(Delta(0, [b"data: 1"], []), Delta(0, [b"data: 2", "x"], []), Delta(0, [b"data: 3"], []))
    assert delta.parts == [b"data: 1", b"data: 2", "x", b"data: 3"]


def test_log_probabilities_are_appended() -> None:
    (delta,) = merged(
        Delta(0, ["a"], [1], log_probabilities=[probability(1)]),
        Delta(0, [], []),
        from_message(message(Delta(0, ["b"], [2], log_probabilities=[probability(2)]))),
    )
    assert delta.log_probabilities == [probability(1), probability(2)]
    first, second = (message(Delta(0, [], [n], log_probabilities=[probability(n)])) for n in (1, 2))
    (delta,) = merged(from_message(first), from_message(second))
    assert delta.log_probabilities == [probability(1), probability(2)]


def test_the_size_counts_what_waits() -> None:
    waiting = Deltas()
    parts: list[Part] = ["né", b"123", Reasoning("12"), Refusal("1"), ToolCall(0, "i", "nn", "aaa")]
    waiting.add(Delta(0, parts, [1, 2, 3]))
    waiting.add(Delta(1, ["x"], [4]))
    assert waiting.size == 15


def test_a_part_of_a_kind_from_a_newer_version_is_empty_text() -> None:
    assert from_message(run_pb2.Delta(index=0, parts=[run_pb2.Part()])).parts == [""]


parts = st.one_of(
    st.text(max_size=5),
    st.binary(max_size=5),
    st.builds(Reasoning, st.text(max_size=5)),
    st.builds(Refusal, st.text(max_size=5)),
    st.builds(ToolCall, st.integers(0, 2), st.text(max_size=2), st.text(max_size=2), st.text(max_size=5)),
)
deltas = st.builds(
    Delta,
    st.integers(0, 2),
    st.lists(parts, max_size=4),
    st.lists(st.integers(0, 1 << 31), max_size=3),
    st.sampled_from([FINISH_REASON_UNSPECIFIED, FINISH_REASON_STOP, FINISH_REASON_LENGTH]),
)


@given(deltas)
def test_the_wire_changes_nothing(delta: Delta) -> None:
    assert from_message(message(delta)) == delta


@given(st.lists(deltas, min_size=1, max_size=8))
def test_what_was_merged_on_the_way_says_the_same(sent: list[Delta]) -> None:
    """Whether the worker merged them, the router, both or neither."""
    alone: dict[int, tuple[str, list[int]]] = {}
    for delta in sent:
        text, ids = alone.get(delta.index, ("", []))
        alone[delta.index] = (text + delta.text, [*ids, *delta.token_ids])
    half = len(sent) // 2
    there = [message(delta) for part in (sent[:half], sent[half:]) if part for delta in merged(*part)]
    assert {delta.index: (delta.text, list(delta.token_ids)) for delta in merged(*map(from_message, there))} == alone
