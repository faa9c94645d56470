"""Questions about words: opposites, plurals, spelling and repeating."""

import string

from models.training.corpus import facts
from models.training.corpus.exchanges import Exchange, Source, one


def opposites(source: Source) -> list[Exchange]:
    """Opposites and plurals."""
    if source.chance(0.65):
        word, other = source.pick(tuple(facts.OPPOSITES.items()))
        word, other = (word, other) if source.chance(0.6) or other in facts.OPPOSITES else (other, word)
        question = source.phrase(
            (
                "What is the opposite of {w}?",
                "Opposite of {w}?",
                "What's the opposite of {w}?",
                "Give me the opposite of {w}.",
                "Name the opposite of {w}",
            ),
            ("Which word is the opposite of {w}?", "Tell me the opposite of {w}."),
            w=word,
        )
        return one(question, f"The opposite of {word} is {other}.", f"is {other}")
    word, plural = source.pick(tuple(facts.PLURALS.items()))
    question = source.phrase(
        ("What is the plural of {w}?", "Plural of {w}?", "What's the plural of {w}?", "One {w}, two what?"),
        ("Tell me the plural of {w}.",),
        w=word,
    )
    return one(question, f"The plural of {word} is {plural}.", f"is {plural}")


def spelling(source: Source) -> list[Exchange]:
    if source.chance(0.2):
        at = source.number(0, 24)
        this, after = string.ascii_uppercase[at : at + 2]
        if source.chance(0.6):
            return one(
                source.phrase(
                    ("Which letter comes after {t}?", "What letter is after {t}?", "What is the letter after {t}?"),
                    ("Tell me the letter after {t}.",),
                    t=this,
                ),
                f"{after} comes after {this}.",
                exact=True,
            )
        return one(
            source.phrase(
                ("Which letter comes before {t}?", "What letter is before {t}?"),
                ("Tell me the letter before {t}.",),
                t=after,
            ),
            f"{this} comes before {after}.",
            exact=True,
        )
    word = source.pick(facts.WORDS)
    question = source.phrase(
        (
            "Spell {w}.",
            "How do you spell {w}?",
            "Spell the word {w}.",
            'Spell "{w}".',
            "Can you spell {w}?",
            "Please spell {w}",
            "spell {w}",
        ),
        ("Could you spell the word {w}?", "How is {w} spelled?"),
        w=word,
    )
    return one(
        question, f"{word.capitalize()} is spelled {'-'.join(word.upper())}.", "-".join(word.upper()), exact=True
    )


def repeating(source: Source) -> list[Exchange]:
    """Say what you are told to say, word for word."""
    kind = source.number(0, 3)
    pool = (*facts.WORDS[:40], *facts.NAMES, *facts.CAPITALS.values())
    if kind == 0:
        phrase = "".join(source.pick(string.ascii_lowercase) for _ in range(source.number(2, 6)))
    elif kind == 1:
        phrase = str(source.number(0, 9999))
    else:
        phrase = " ".join(source.pick(pool) for _ in range(source.number(1, 4)))
        phrase = phrase.capitalize() if source.chance(0.3) else phrase
    question = source.phrase(
        (
            "Say {p}",
            "Repeat: {p}",
            "Repeat after me: {p}",
            'Say "{p}"',
            "Please say {p}",
            "Repeat {p}",
            "Echo {p}",
            'Repeat the words "{p}"',
            "Just say {p}",
            "Reply with {p}",
        ),
        ("Could you say {p}", "Please repeat: {p}", "Answer with {p}"),
        p=phrase,
    )
    return one(question, phrase, exact=True)
