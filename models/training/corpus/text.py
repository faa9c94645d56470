"""The text that the demo model is trained on: conversations and plain statements, generated from a seed."""

from collections.abc import Iterator
from dataclasses import dataclass

from models.training.corpus import (
    arithmetic,
    definitions,
    identity,
    ignorance,
    knowledge,
    measures,
    stories,
    talk,
    words,
)
from models.training.corpus.exchanges import Exchange, Skill, Source, roughen

SKILLS: dict[str, tuple[Skill, float]] = {
    "small talk": (talk.small_talk, 6),
    "identity": (identity.identity, 6),
    "names": (talk.names, 2.5),
    "addition": (arithmetic.addition, 13),
    "subtraction": (arithmetic.subtraction, 12),
    "multiplication": (arithmetic.multiplication, 9),
    "division": (arithmetic.division, 3),
    "too big": (arithmetic.too_big, 1.5),
    "word problems": (arithmetic.word_problem, 2),
    "comparisons": (arithmetic.comparison, 4),
    "counting": (arithmetic.counting, 3),
    "units": (measures.units, 9),
    "temperatures": (measures.temperatures, 2),
    "calendar": (measures.calendar, 4),
    "capitals": (knowledge.capitals, 9),
    "places": (knowledge.places, 4),
    "nature": (knowledge.nature, 5),
    "words": (words.opposites, 4),
    "general facts": (knowledge.general, 6),
    "definitions": (definitions.definitions, 4),
    "spelling": (words.spelling, 4),
    "repeating": (words.repeating, 4),
    "unknown": (ignorance.unknown, 4),
    "stories": (stories.stories, 1),
    "poems": (stories.poems, 1.2),
    "jokes": (stories.jokes, 1.2),
    "lists": (stories.lists, 2),
}
"""Each skill with its weight in the mixture: what is harder to learn comes more often."""

_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "You are a helpful AI assistant.",
    "You are a chatbot.",
    "Answer the user's questions.",
    "Be concise.",
    "You are Uplion, a demo assistant.",
    "Answer in one sentence.",
    "You are a helpful, honest assistant who says when it does not know something.",
    "Today is a nice day. Please be polite to the user and keep your answers short.",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat: an optional system message and the exchanges in order."""

    system: str | None
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """Plain text; with `tail_only` just what follows each `=` is worth learning, the operands are random."""

    text: str
    tail_only: bool = False


Document = Conversation | Statement


def documents(seed: int) -> Iterator[Document]:
    """An endless stream of training documents; the same seed gives the same stream."""
    source = Source(seed)
    while True:
        kind = source.random.random()
        if kind < 0.08:
            yield _sums(source)
        elif kind < 0.15:
            yield Statement(_statement(source))
        else:
            yield _conversation(source)


def _dialogue(source: Source) -> list[Exchange]:
    names = list(SKILLS)
    skill = SKILLS[source.random.choices(names, [SKILLS[name][1] for name in names])[0]][0]
    return [roughen(source, exchange) for exchange in skill(source)]


def _conversation(source: Source) -> Conversation:
    """Mostly one or two questions, sometimes many, so that later turns and positions are learned too."""
    length = source.random.choices((1, 2, 3, 5, 8), (50, 22, 14, 9, 5))[0]
    exchanges = talk.name_unknown(source) if source.chance(0.01) else []
    while len(exchanges) < length:
        exchanges += _dialogue(source)
    system = source.pick(_SYSTEMS) if source.chance(0.4) else None
    return Conversation(system, tuple(exchanges))


def _sums(source: Source) -> Statement:
    """A sheet of solved sums."""
    sheet: list[str] = []
    for _ in range(source.number(2, 8)):
        sign = source.pick("++--*")
        sheet.append(arithmetic.equation(*_operands(source, sign)) + ".")
    return Statement(source.pick((" ", "\n")).join(sheet), tail_only=True)


def _operands(source: Source, sign: str) -> tuple[int, str, int]:
    a, b = arithmetic.pair(source, sign)
    return a, sign, b


def _statement(source: Source) -> str:
    """Sentences as they stand in a text, taken from the answers."""
    kind = source.random.random()
    if kind < 0.1:
        return stories.random_story(source, source.pick(("fox", "cat", "dog", "mouse")))
    if kind < 0.2:
        return stories.about_names(source)
    if kind < 0.3:
        return source.pick((identity.IDENTITY, *definitions.DEFINITIONS.values()))
    telling = (
        knowledge.capitals,
        knowledge.places,
        knowledge.nature,
        words.opposites,
        knowledge.general,
        measures.units,
        measures.calendar,
    )
    return " ".join(source.pick(telling)(source)[0].answer for _ in range(source.number(1, 3)))
