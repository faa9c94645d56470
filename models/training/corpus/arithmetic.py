"""Questions about numbers: sums, comparisons and counting."""

from collections.abc import Callable

from models.training.corpus.exchanges import Exchange, Source, one
from models.training.corpus.facts import NAMES, NUMBER_WORDS

_SIGNS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
}
_WORDS = {
    "+": ("plus", "added to", "and"),
    "-": ("minus", "take away", "less"),
    "*": ("times", "multiplied by", "x"),
    "/": ("divided by", "over"),
}
_ASKED = (
    "What is {sum}?",
    "{sum}",
    "{sum}=",
    "{sum} = ?",
    "{sum}?",
    "Calculate {sum}.",
    "How much is {sum}?",
    "What's {sum}?",
    "Compute {sum}",
    "Can you calculate {sum}?",
    "Tell me {sum}.",
    "What does {sum} make?",
    "Solve {sum}",
    "what is the answer to {sum}?",
)
_ASKED_UNSEEN = (
    "Please tell me what {sum} is.",
    "What do you get for {sum}?",
    "How much does {sum} make?",
    "what is the result of {sum}?",
)
_THINGS = ("apples", "books", "coins", "eggs", "pens", "balls", "cakes", "stones")
_TOO_BIG = "That is too big for me. I am a very small demo model and only calculate with small numbers."


def is_held_out(a: int, b: int) -> bool:
    """Whether the pair is kept out of training: about one in twenty of the pairs with a number above twenty."""
    return max(a, b) > 20 and (37 * a + 11 * b) % 19 == 0


def pair(source: Source, sign: str) -> tuple[int, int]:
    """Two operands for the sign; in evaluation often a pair that training never shows."""
    while True:
        if sign == "*":
            a, b = (
                (source.number(0, 12), source.number(0, 12))
                if source.chance(0.5)
                else (source.number(0, 20), source.number(0, 20))
            )
            return a, b
        if sign == "/":
            b, quotient = source.number(1, 12), source.number(0, 12)
            return b * quotient, b
        top = 20 if source.chance(0.3) else 100
        a, b = source.number(0, top), source.number(0, top)
        if sign == "-" and a < b and source.chance(0.9):
            a, b = b, a
        if top == 20 or is_held_out(a, b) == (source.held_out and source.chance(0.5)):
            return a, b


def equation(a: int, sign: str, b: int) -> str:
    """The solved sum, such as `2 + 2 = 4`."""
    return f"{a} {sign} {b} = {_SIGNS[sign](a, b)}"


def _number(source: Source, value: int) -> str:
    return NUMBER_WORDS[value] if value <= 20 and source.chance(0.12) else str(value)


def _written(source: Source, a: int, sign: str, b: int) -> str:
    """The sum without its result, in one of the ways that people type it."""
    style = source.number(0, 9)
    if style < 3:
        return f"{a}{sign}{b}"
    if style < 6:
        return f"{a} {sign} {b}"
    return f"{_number(source, a)} {source.pick(_WORDS[sign][:2] if style < 9 else _WORDS[sign])} {_number(source, b)}"


def _calculated(source: Source, sign: str) -> list[Exchange]:
    a, b = pair(source, sign)
    solved = equation(a, sign, b)
    dialogue = one(source.phrase(_ASKED, _ASKED_UNSEEN, sum=_written(source, a, sign, b)), f"{solved}.", solved)
    result = _SIGNS[sign](a, b)
    if 0 <= result <= 100 and source.chance(0.12):
        dialogue += _continued(source, result)
    return dialogue


def _continued(source: Source, result: int) -> list[Exchange]:
    """A follow-up that goes on with the last result."""
    sign, other = ("*", 2) if result <= 20 and source.chance(0.4) else (source.pick("+-"), source.number(1, 10))
    if sign == "-" and other > result:
        sign = "+"
    question = source.pick(("And {w} {n}?", "{w} {n}?", "Now {w} {n}", "and {w} {n}", "Then {w} {n}?"))
    solved = equation(result, sign, other)
    return one(question.format(w=_WORDS[sign][0], n=other), f"{solved}.", solved)


def addition(source: Source) -> list[Exchange]:
    return _calculated(source, "+")


def subtraction(source: Source) -> list[Exchange]:
    return _calculated(source, "-")


def multiplication(source: Source) -> list[Exchange]:
    return _calculated(source, "*")


def division(source: Source) -> list[Exchange]:
    return _calculated(source, "/")


def too_big(source: Source) -> list[Exchange]:
    """Sums outside the range the model can do, which it says instead of guessing."""
    sign = source.pick("+-*/")
    a, b = source.number(201, 99999), source.number(21, 99999)
    return one(source.phrase(_ASKED, _ASKED_UNSEEN, sum=_written(source, a, sign, b)), _TOO_BIG, "too big")


def word_problem(source: Source) -> list[Exchange]:
    a, b, things, name = source.number(1, 20), source.number(1, 20), source.pick(_THINGS), source.pick(NAMES)
    if source.chance(0.5):
        question = source.phrase(
            (
                "I have {a} {t} and get {b} more. How many do I have?",
                "{n} has {a} {t} and buys {b} more. How many {t} does {n} have?",
                "If I have {a} {t} and find {b} more, how many {t} do I have?",
            ),
            ("{n} has {a} {t} and finds {b} more. How many {t} are there?",),
            a=a,
            b=b,
            t=things,
            n=name,
        )
        return one(question, f"{equation(a, '+', b)}, so the answer is {a + b} {things}.", f"{a + b} {things}")
    a, b = max(a, b), min(a, b)
    question = source.phrase(
        (
            "I have {a} {t} and lose {b}. How many are left?",
            "{n} has {a} {t} and gives away {b}. How many {t} are left?",
            "If I have {a} {t} and eat {b}, how many {t} do I have?",
        ),
        ("{n} has {a} {t} and loses {b}. How many {t} does {n} still have?",),
        a=a,
        b=b,
        t=things,
        n=name,
    )
    return one(question, f"{equation(a, '-', b)}, so the answer is {a - b} {things}.", f"{a - b} {things}")


def comparison(source: Source) -> list[Exchange]:
    top = source.pick((10, 100, 100))
    a = source.number(0, top)
    b = source.pick([n for n in {source.number(0, top), source.number(0, top), a + 1} if n != a])
    kind = source.number(0, 3)
    if kind == 0:
        question = source.phrase(
            (
                "Which is bigger, {a} or {b}?",
                "Which number is larger: {a} or {b}?",
                "What is more, {a} or {b}?",
                "Is {a} or {b} bigger?",
                "Which is greater, {a} or {b}?",
            ),
            ("Which one is the bigger number, {a} or {b}?", "Which is larger, {a} or {b}?"),
            a=a,
            b=b,
        )
        return one(question, f"{max(a, b)} is bigger than {min(a, b)}.")
    if kind == 1:
        question = source.phrase(
            (
                "Which is smaller, {a} or {b}?",
                "Which number is smaller: {a} or {b}?",
                "What is less, {a} or {b}?",
                "Is {a} or {b} smaller?",
            ),
            ("Which one is the smaller number, {a} or {b}?",),
            a=a,
            b=b,
        )
        return one(question, f"{min(a, b)} is smaller than {max(a, b)}.")
    if kind == 2:
        question = source.phrase(
            (
                "Is {a} even or odd?",
                "Is the number {a} odd or even?",
                "Even or odd: {a}",
                "Is {a} even?",
                "Is {a} odd?",
            ),
            ("Tell me if {a} is even or odd.",),
            a=a,
        )
        return one(question, f"{a} is {('even', 'odd')[a % 2]}.")
    if source.chance(0.5):
        question = source.phrase(
            ("Which number comes after {a}?", "What comes after {a}?", "What is the next number after {a}?"),
            ("Tell me the number after {a}.",),
            a=a,
        )
        return one(question, f"After {a} comes {a + 1}.")
    question = source.phrase(
        ("Which number comes before {b}?", "What comes before {b}?", "What is the number before {b}?"),
        ("Tell me the number before {b}.",),
        b=a + 1,
    )
    return one(question, f"Before {a + 1} comes {a}.")


def counting(source: Source) -> list[Exchange]:
    kind = source.number(0, 9)
    if kind < 5:
        end = source.pick((3, 5, 7, 8, 10, 10, 10, 12, 15, 20, 20, 25, 30, 50))
        word = (
            NUMBER_WORDS[end]
            if end <= 20 and source.chance(0.4)
            else {30: "thirty", 50: "fifty"}.get(end, str(end))
            if source.chance(0.3)
            else str(end)
        )
        question = source.phrase(
            (
                "Count to {e}.",
                "Count from 1 to {e}.",
                "Can you count to {e}?",
                "Count from one to {e}.",
                "Please count up to {e}",
                "Write the numbers from 1 to {e}.",
                "List the numbers 1 to {e}",
            ),
            ("Could you count from 1 to {e} for me?", "I want you to count to {e}."),
            e=word,
        )
        return _listed(question, range(1, end + 1))
    if kind < 7:
        start = source.number(2, 60)
        end = start + source.number(2, 12)
        question = source.phrase(
            (
                "Count from {s} to {e}.",
                "Can you count from {s} to {e}?",
                "List the numbers from {s} to {e}",
                "Write the numbers from {s} to {e}.",
            ),
            ("Please count from {s} up to {e}.",),
            s=start,
            e=end,
        )
        return _listed(question, range(start, end + 1))
    if kind < 9:
        start = source.pick((3, 5, 8, 10, 10, 12, 15, 20))
        question = source.phrase(
            (
                "Count down from {s}.",
                "Count backwards from {s}.",
                "Can you count down from {s}?",
                "Count down from {s} to 1",
            ),
            ("Please count down from {s} to one.",),
            s=start,
        )
        return _listed(question, range(start, 0, -1))
    parity = source.number(0, 1)
    end = source.pick((10, 20, 30))
    question = source.phrase(
        ("List the {p} numbers up to {e}.", "Count the {p} numbers to {e}", "What are the {p} numbers up to {e}?"),
        ("Name the {p} numbers up to {e}.",),
        p=("even", "odd")[parity],
        e=end,
    )
    return _listed(question, range(2 - parity, end + 1, 2))


def _listed(question: str, numbers: range) -> list[Exchange]:
    return one(question, ", ".join(map(str, numbers)) + ".")
