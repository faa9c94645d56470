"""Questions about the world: countries, colours, animals and general facts."""

from models.training.corpus import facts
from models.training.corpus.exchanges import Exchange, Source, article, one
from models.training.corpus.general import GENERAL


def capitals(source: Source) -> list[Exchange]:
    country = source.pick(tuple(facts.CAPITALS))
    dialogue = _capital(source, country) if source.chance(0.75) else _country(source, country)
    if source.chance(0.12):
        other = source.pick(tuple(facts.CAPITALS))
        question = source.pick(("And {c}?", "What about {c}?", "and of {c}?", "And of {c}?", "How about {c}?")).format(
            c=other
        )
        dialogue = _capital(source, country) + _answered_capital(question, other)
    return dialogue


def _capital(source: Source, country: str) -> list[Exchange]:
    question = source.phrase(
        (
            "What is the capital of {c}?",
            "What's the capital of {c}?",
            "Capital of {c}?",
            "Name the capital of {c}.",
            "Which city is the capital of {c}?",
            "Tell me the capital of {c}.",
            "Do you know the capital of {c}?",
            "What is the capital city of {c}?",
            "Can you tell me the capital of {c}?",
            "{c} capital",
        ),
        (
            "Which city is {c}'s capital?",
            "I need the capital of {c}.",
            "Please name the capital city of {c}.",
            "What city is the capital of {c}?",
        ),
        c=country,
    )
    return _answered_capital(question, country)


def _answered_capital(question: str, country: str) -> list[Exchange]:
    capital = facts.CAPITALS[country]
    return one(question, f"The capital of {country} is {capital.rstrip('.')}.", capital.rstrip("."))


def _country(source: Source, country: str) -> list[Exchange]:
    capital = facts.CAPITALS[country]
    question = source.phrase(
        (
            "{k} is the capital of which country?",
            "Of which country is {k} the capital?",
            "Which country has the capital {k}?",
            "Where is {k}?",
            "In which country is {k}?",
            "What country is {k} in?",
        ),
        ("In what country is {k}?", "Which country is {k} in?"),
        k=capital,
    )
    return one(question, f"{capital} is the capital of {country}.", country)


def places(source: Source) -> list[Exchange]:
    """Continents and languages."""
    if source.chance(0.35):
        country, language = source.pick(tuple(facts.LANGUAGES.items()))
        question = source.phrase(
            (
                "What language do they speak in {c}?",
                "Which language is spoken in {c}?",
                "What do people speak in {c}?",
                "What is the language of {c}?",
            ),
            ("What language do people speak in {c}?",),
            c=country,
        )
        return one(question, f"In {country} people speak {language}.")
    country, continent = source.pick(tuple(facts.CONTINENTS.items()))
    question = source.phrase(
        ("Where is {c}?", "On which continent is {c}?", "Which continent is {c} on?", "What continent is {c} in?"),
        ("On what continent is {c}?", "Tell me where {c} is."),
        c=country,
    )
    subject = country[0].upper() + country[1:]
    return one(question, f"{subject} is in {continent}.")


def nature(source: Source) -> list[Exchange]:
    """Colours and animals."""
    kind = source.number(0, 4)
    if kind == 0:
        thing, colour = source.pick(tuple(facts.COLOURS.items()))
        question = source.phrase(
            (
                "What colour is {t}?",
                "What color is {t}?",
                "Which colour is {t}?",
                "What is the colour of {t}?",
                "What is the color of {t}?",
            ),
            ("Tell me the colour of {t}.", "Which color is {t}?"),
            t=thing,
        )
        return one(question, f"{thing[0].upper()}{thing[1:]} is {colour}.", colour)
    if kind == 1:
        (a, b), mixed = source.pick(tuple(facts.MIXTURES.items()))
        a, b = (a, b) if source.chance(0.5) else (b, a)
        question = source.phrase(
            (
                "What colour do you get from {a} and {b}?",
                "Mix {a} and {b}.",
                "What do {a} and {b} make?",
                "What color do {a} and {b} make?",
            ),
            ("What colour do {a} and {b} make together?",),
            a=a,
            b=b,
        )
        return one(question, f"{a.capitalize()} and {b} make {mixed}.", mixed)
    if kind == 2:
        animal, sound = source.pick(tuple(facts.SOUNDS.items()))
        question = source.phrase(
            (
                "What sound does {t} make?",
                "What does {t} say?",
                "Which sound does {t} make?",
                "What noise does {t} make?",
            ),
            ("How does {t} sound?", "Tell me the sound of {t}."),
            t=article(animal),
        )
        return one(question, f"{article(animal).capitalize()} says {sound}.", sound)
    if kind == 3:
        animal, young = source.pick(tuple(facts.YOUNG.items()))
        question = source.phrase(
            (
                "What is a baby {t} called?",
                "What do you call a baby {t}?",
                "What is the name of a baby {t}?",
                "What is a young {t} called?",
            ),
            ("How do you call a young {t}?", "What is the word for a baby {t}?"),
            t=animal,
        )
        return one(question, f"A baby {animal} is called a {young}.", young)
    animal, legs = source.pick(tuple(facts.LEGS.items()))
    question = source.phrase(
        ("How many legs does {t} have?", "How many legs has {t}?", "How many legs are on {t}?"),
        ("Tell me how many legs {t} has.",),
        t=article(animal),
    )
    return one(question, f"{article(animal).capitalize()} has {legs or 'no'} legs.", f"{legs or 'no'} legs")


def general(source: Source) -> list[Exchange]:
    """Planets by their order, and the list of general facts."""
    if source.chance(0.15):
        at = source.number(0, 7)
        question = source.phrase(
            (
                "What is the {o} planet from the sun?",
                "Which planet is the {o} from the sun?",
                "Name the {o} planet.",
                "What is the {o} planet?",
            ),
            ("Tell me the {o} planet from the sun.",),
            o=facts.ORDINALS[at],
        )
        return one(question, f"The {facts.ORDINALS[at]} planet from the sun is {facts.PLANETS[at]}.", facts.PLANETS[at])
    questions, answer, key = source.pick(GENERAL)
    if source.chance(0.04):
        return one(
            source.phrase(
                ("Name the planets.", "What are the planets?", "List the planets."), ("Tell me all the planets.",)
            ),
            f"The planets are {', '.join(facts.PLANETS[:-1])} and {facts.PLANETS[-1]}.",
            "Neptune",
        )
    return one(source.phrase(questions[:-1], questions[-1:]), answer, key)
