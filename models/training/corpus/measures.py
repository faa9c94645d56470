"""Questions about units, times and dates."""

from models.training.corpus.exchanges import Exchange, Source, one
from models.training.corpus.facts import DAYS, MONTH_DAYS, MONTHS, ORDINALS

# The larger unit (singular, plural, short), the smaller one, how many of it make a larger one, the usual amounts.
_FEW = tuple(range(1, 13))
_MANY = (*range(1, 21), 25, 30, 40, 50, 75, 100)
_UNITS = (
    (("kilometre", "kilometres", "km"), ("metre", "metres", "m"), 1000, _MANY),
    (("metre", "metres", "m"), ("centimetre", "centimetres", "cm"), 100, _MANY),
    (("centimetre", "centimetres", "cm"), ("millimetre", "millimetres", "mm"), 10, _MANY),
    (("kilogram", "kilograms", "kg"), ("gram", "grams", "g"), 1000, _MANY),
    (("tonne", "tonnes", "t"), ("kilogram", "kilograms", "kg"), 1000, _MANY),
    (("litre", "litres", "l"), ("millilitre", "millilitres", "ml"), 1000, _MANY),
    (("hour", "hours", "h"), ("minute", "minutes", "min"), 60, _FEW),
    (("minute", "minutes", "min"), ("second", "seconds", "s"), 60, _FEW),
    (("day", "days", "days"), ("hour", "hours", "hours"), 24, _FEW),
    (("week", "weeks", "weeks"), ("day", "days", "days"), 7, _FEW),
    (("year", "years", "years"), ("month", "months", "months"), 12, _FEW),
    (("dozen", "dozen", "dozen"), ("egg", "eggs", "eggs"), 12, _FEW),
    (("kilobyte", "kilobytes", "kB"), ("byte", "bytes", "bytes"), 1000, _MANY),
)
_ASKED = (
    "How many {to} are in {n} {of}?",
    "How many {to} are there in {n} {of}?",
    "Convert {n} {of} to {to}.",
    "{n} {of} in {to}",
    "What is {n} {of} in {to}?",
    "How many {to} is {n} {of}?",
    "How many {to} are {n} {of}?",
    "{n} {of} to {to}",
    "Change {n} {of} into {to}.",
)
_ASKED_UNSEEN = ("Tell me how many {to} are in {n} {of}.", "What are {n} {of} in {to}?", "{n} {of} is how many {to}?")


def _named(unit: tuple[str, str, str], amount: int) -> str:
    return unit[0] if amount == 1 else unit[1]


def _typed(source: Source, unit: tuple[str, str, str], amount: int) -> str:
    """The unit as people type it: in full, abbreviated, or in American spelling."""
    if source.chance(0.35):
        return unit[2]
    name = _named(unit, amount)
    return name.replace("metre", "meter").replace("litre", "liter") if source.chance(0.3) else name


def units(source: Source) -> list[Exchange]:
    large, small, factor, amounts = source.pick(_UNITS)
    amount = source.pick(amounts)
    of, to = (amount, large), (amount * factor, small)
    if source.chance(0.35):
        of, to = to, of
    question = source.phrase(
        _ASKED, _ASKED_UNSEEN, n=of[0], of=_typed(source, of[1], of[0]), to=_typed(source, to[1], 2)
    )
    if of[0] == 1 and source.chance(0.3):
        question = question.replace("1 ", "an " if of[1][0][0] in "eh" else "a ", 1)
    verb = "is" if of[0] == 1 else "are"
    key = f"{to[0]} {_named(to[1], to[0])}"
    return one(question, f"{of[0]} {_named(of[1], of[0])} {verb} {key}.", key)


def temperatures(source: Source) -> list[Exchange]:
    celsius = source.pick((-10, 0, 5, 10, 15, 20, 25, 30, 35, 37, 40, 50, 100))
    fahrenheit = round(celsius * 9 / 5 + 32)
    names = (
        ("degrees Celsius", "Celsius", "C", "degrees C", "°C"),
        ("degrees Fahrenheit", "Fahrenheit", "F", "degrees F", "°F"),
    )
    c, f = source.pick(names[0]), source.pick(names[1])
    asked = (*_ASKED[2:5], "{n} {of} to {to}", "What is {n} {of} in {to}")
    unseen = ("How much is {n} {of} in {to}?", "Tell me {n} {of} in {to}.")
    if source.chance(0.6):
        key = f"{fahrenheit} degrees Fahrenheit"
        return one(source.phrase(asked, unseen, n=celsius, of=c, to=f), f"{celsius} degrees Celsius is {key}.", key)
    key = f"{celsius} degrees Celsius"
    return one(
        source.phrase(asked, unseen, n=fahrenheit, of=f, to=c), f"{fahrenheit} degrees Fahrenheit is {key}.", key
    )


def calendar(source: Source) -> list[Exchange]:
    """Days and months: what follows what, how many, and how long."""
    name, names = source.pick((("day", DAYS), ("month", MONTHS)))
    at = source.number(0, len(names) - 1)
    this, after, before = names[at], names[(at + 1) % len(names)], names[at - 1]
    kind = source.number(0, 5)
    if kind in (0, 1):
        question = source.phrase(
            (
                "Which {k} comes after {t}?",
                "What comes after {t}?",
                "What {k} is after {t}?",
                "What is the {k} after {t}?",
                "Which {k} follows {t}?",
            ),
            ("Tell me which {k} comes after {t}.", "Name the {k} after {t}."),
            k=name,
            t=this,
        )
        return one(question, f"{after} comes after {this}.")
    if kind == 2:
        question = source.phrase(
            (
                "Which {k} comes before {t}?",
                "What comes before {t}?",
                "What {k} is before {t}?",
                "What is the {k} before {t}?",
            ),
            ("Tell me which {k} comes before {t}.", "Name the {k} before {t}."),
            k=name,
            t=this,
        )
        return one(question, f"{before} comes before {this}.")
    if kind == 3:
        place = "week" if name == "day" else "year"
        question = source.phrase(
            (
                "What is the {o} {k} of the {p}?",
                "Which {k} is the {o} of the {p}?",
                "Name the {o} {k} of the {p}.",
                "What is the {o} {k}?",
            ),
            ("Tell me the {o} {k} of the {p}.",),
            o=ORDINALS[at],
            k=name,
            p=place,
        )
        return one(question, f"The {ORDINALS[at]} {name} of the {place} is {this}.")
    if kind == 4:
        month = source.number(0, 11)
        question = source.phrase(
            ("How many days are in {m}?", "How many days does {m} have?", "How long is {m}?"),
            ("Tell me how many days {m} has.",),
            m=MONTHS[month],
        )
        leap = ", and 29 in a leap year" if month == 1 else ""
        return one(question, f"{MONTHS[month]} has {MONTH_DAYS[month]} days{leap}.", f"{MONTH_DAYS[month]} days")
    return _calendar_lists(source)


def _calendar_lists(source: Source) -> list[Exchange]:
    lists = (
        (
            (
                "Name the days of the week.",
                "What are the days of the week?",
                "List the days of the week",
                "Tell me the days of the week.",
            ),
            ("Which days are in a week? List them.",),
            f"The days of the week are {_enumerated(DAYS)}.",
        ),
        (
            (
                "Name the months of the year.",
                "What are the months?",
                "List the months of the year",
                "Tell me the months.",
            ),
            ("Which months are in a year? List them.",),
            f"The months of the year are {_enumerated(MONTHS)}.",
        ),
        (
            ("How many days are in a week?", "How many days does a week have?"),
            ("Tell me how many days a week has.",),
            "A week has 7 days.",
        ),
        (
            ("How many months are in a year?", "How many months does a year have?"),
            ("Tell me how many months a year has.",),
            "A year has 12 months.",
        ),
        (
            ("How many days are in a year?", "How many days does a year have?", "How long is a year?"),
            ("Tell me how many days a year has.",),
            "A year has 365 days, and 366 in a leap year.",
        ),
        (
            ("How many weeks are in a year?", "How many weeks does a year have?"),
            ("Tell me how many weeks a year has.",),
            "A year has 52 weeks.",
        ),
        (
            ("How many hours are in a day?", "How long is a day?"),
            ("Tell me how many hours a day has.",),
            "A day has 24 hours.",
        ),
        (
            ("Which days are the weekend?", "What is the weekend?"),
            ("Tell me which days the weekend is.",),
            "The weekend is Saturday and Sunday.",
        ),
    )
    seen, unseen, answer = source.pick(lists)
    return one(source.phrase(seen, unseen), answer)


def _enumerated(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
