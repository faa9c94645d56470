"""A model's chat template: messages in, the text that the model was trained on out, within bounded time."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from common.errors import Reason, UplionError
from inference.engines.transformers.library_types import FastTokenizer

_TURN_SECONDS = (
    0.0005  # of the interpreter's lock; a turn of 4,096 messages would be 25 ms, and every step waits for it
)
_MOST_SECONDS = 5.0  # of turns: a template may take a time that grows with the square of the messages

Messages = Sequence[Mapping[str, object]]


class Compiled(Protocol):
    """A template that jinja2 has compiled."""

    def generate(self, **values: object) -> Iterator[str]:
        """The text, piece by piece."""


class ChatTemplate:
    """Renders the messages of one model. Safe for any number of threads."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._compiled = _compiled(tokenizer)
        self._special = dict(tokenizer.special_tokens_map)

    def render(self, messages: Messages) -> str:
        """At once, for a few messages. Raises INVALID_REQUEST for what the template refuses."""
        return self._joined(messages, iter)

    def render_in_turns(self, messages: Messages) -> str:
        """In a thread of its own, for many: the other threads go on meanwhile."""
        return self._joined(messages, _in_turns)

    def _joined(self, messages: Messages, paced: Callable[[Iterable[str]], Iterable[str]]) -> str:
        if self._compiled is None:
            turns = (f"{message['role']}: {message['content']}\n" for message in messages)
            return "".join(paced(turns)) + "assistant:"
        from jinja2.exceptions import TemplateError

        pieces = self._compiled.generate(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special
        )
        try:
            return "".join(paced(pieces))
        except TemplateError as problem:
            raise UplionError(
                Reason.INVALID_REQUEST, f"The model's chat template refuses the messages: {problem}", param="messages"
            ) from problem


def _compiled(tokenizer: FastTokenizer) -> Compiled | None:
    """None: the model has none."""
    if not tokenizer.chat_template:
        return None
    from transformers.utils.chat_template_utils import _compile_jinja_template

    compiled: Compiled = _compile_jinja_template(tokenizer.get_chat_template())
    return compiled


def _in_turns(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces, with a pause after each turn. Raises INVALID_REQUEST when they take too long."""
    spent_seconds, began = 0.0, time.perf_counter()
    for piece in pieces:
        yield piece
        turn_seconds = time.perf_counter() - began
        if turn_seconds < _TURN_SECONDS:
            continue
        spent_seconds += turn_seconds
        if spent_seconds > _MOST_SECONDS:
            raise UplionError(
                Reason.INVALID_REQUEST,
                f"The model's chat template takes longer than {_MOST_SECONDS:g} s for these messages; send fewer.",
                param="messages",
            )
        time.sleep(_TURN_SECONDS)  # without the lock
        began = time.perf_counter()
