"""A question with its answer, and the seeded source that phrases them."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One user turn and the assistant turn that answers it.

    `key` is the text that a right answer must contain (with several, one of them), `exact` says that the letters of the
    question matter (spelling, repeating), so it must not be given typing mistakes.
    """

    question: str
    answer: str
    key: str | tuple[str, ...]
    exact: bool = False

    def is_answered_by(self, reply: str) -> bool:
        """Whether the reply contains a key as whole words and whole numbers."""
        keys = "|".join(re.escape(key) for key in ((self.key,) if isinstance(self.key, str) else self.key))
        return re.search(rf"(?<![\w.])(?:{keys})(?!\w|\.\d)", reply, re.IGNORECASE) is not None


class Source:
    """Random choices from one seed, which keeps the phrasings of training and of evaluation apart."""

    def __init__(self, seed: int, held_out: bool = False) -> None:
        self.random = random.Random(seed)
        self.held_out = held_out

    def pick(self, items: Sequence[Item]) -> Item:
        return self.random.choice(items)

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return self.random.randint(low, high)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def phrase(self, seen: Sequence[str], unseen: Sequence[str], **values: object) -> str:
        """One phrasing filled with the values: a seen one for training, an unseen one for evaluation."""
        return self.pick(unseen if self.held_out else seen).format(**values)


Skill = Callable[[Source], list[Exchange]]


def one(question: str, answer: str, key: str | tuple[str, ...] | None = None, exact: bool = False) -> list[Exchange]:
    """A dialogue of a single exchange; without a key the whole answer is expected."""
    return [Exchange(question, answer, answer.rstrip(".!") if key is None else key, exact)]


def article(noun: str) -> str:
    """The noun with `a` or `an` before it."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


_BEFORE = (
    "Please ",
    "Hey, ",
    "Hi, ",
    "Hi! ",
    "Hello! ",
    "Can you tell me: ",
    "Ok, ",
    "So, ",
    "Quick question: ",
    "And ",
)
_AFTER = (" please", ", please", " Thanks!", " thank you", "??", "!", " :)", " ")


def roughen(source: Source, exchange: Exchange) -> Exchange:
    """The same exchange with the question written the way hurried people write: no capitals, no full stop, typos."""
    question = exchange.question
    if source.chance(0.08):
        question = source.pick(_BEFORE) + question
    if exchange.exact:
        return replace(exchange, question=question)
    if source.chance(0.3):
        question = question.rstrip("?.! ")
    elif source.chance(0.08):
        question = question.rstrip("?.! ") + source.pick(_AFTER)
    if source.chance(0.3):
        question = question.lower()
    elif source.chance(0.02):
        question = question.upper()
    if source.chance(0.08):
        question = _mistyped(source, question)
    return replace(exchange, question=question)


def _mistyped(source: Source, text: str) -> str:
    """The text with one typing mistake inside one of its longer words."""
    words = list(re.finditer(r"[A-Za-z]{4,}", text))
    if not words:
        return text
    word = source.pick(words)
    at = source.number(word.start() + 1, word.end() - 2)
    kind = source.number(0, 2)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
