"""Longer answers: poems, stories, jokes and lists, long enough to watch them stream."""

from models.training.corpus.exchanges import Exchange, Source, article, one
from models.training.corpus.facts import GROUPS, NAMES, NUMBER_WORDS

_HEROES = ("fox", "cat", "dog", "mouse", "bear", "owl", "rabbit", "lion", "duck", "frog")
_FRIENDS = ("bird", "sheep", "horse", "bee", "goat")
_PLACES = ("forest", "garden", "village", "valley", "mountain")
_THINGS = ("golden key", "red ball", "old book", "small boat", "bright lamp")

_POEMS = {
    "the sea": (
        "The sea is wide, the sea is blue,\n"
        "it sings a quiet song to you.\n"
        "The waves come in, the waves go out,\n"
        "and little fishes swim about.\n"
        "The sun goes down, the sky turns red,\n"
        "the sea goes softly to its bed."
    ),
    "the moon": (
        "The moon is round, the moon is bright,\n"
        "it is a lamp that shines at night.\n"
        "It looks on houses, fields and trees,\n"
        "and on the ships on silent seas.\n"
        "So close your eyes and do not fear,\n"
        "the moon will watch while you are here."
    ),
    "spring": (
        "The snow is gone, the grass is green,\n"
        "the finest spring I have ever seen.\n"
        "The birds are singing in the tree,\n"
        "they sing for you, they sing for me.\n"
        "The days are long, the air is warm,\n"
        "and gone are winter, wind and storm."
    ),
    "a lion": (
        "A little lion, soft and small,\n"
        "lived in a cave behind a wall.\n"
        "It tried to roar, it made a squeak,\n"
        "it tried again the whole long week.\n"
        "And then one day, so loud and clear,\n"
        "it roared for everyone to hear."
    ),
    "rain": (
        "The rain is falling on the town,\n"
        "it runs the roofs and windows down.\n"
        "It fills the rivers, wakes the seeds,\n"
        "and gives the garden what it needs.\n"
        "And when the sun comes out again,\n"
        "a rainbow says goodbye to rain."
    ),
}
_JOKES = (
    "Why did the computer go to the doctor? Because it had a virus!",
    "What do you call a bear with no teeth? A gummy bear!",
    "Why is six afraid of seven? Because seven eight nine!",
    "What is orange and sounds like a parrot? A carrot!",
    "Why did the banana go to the doctor? It was not peeling well!",
)


def story(hero: str, friend: str, place: str, thing: str) -> str:
    """A story of about 120 tokens with the given hero, friend, place and thing."""
    return (
        f"Once upon a time there was a little {hero} who lived in a {place}. "
        f"One day the {hero} found {article(thing)} under a tree. "
        f'"Whose {thing.split()[-1]} is this?" asked the {hero}. '
        f"The {hero} walked through the whole {place} and asked everyone. "
        f'At last the {hero} met a {friend}, who was crying. "I have lost my {thing}," said the {friend}. '
        f'"Here it is!" said the {hero}. The {friend} was so happy that it began to dance. '
        f"From that day on the {hero} and the {friend} were the best of friends. The end."
    )


def random_story(source: Source, hero: str) -> str:
    return story(hero, source.pick(_FRIENDS), source.pick(_PLACES), source.pick(_THINGS))


def stories(source: Source) -> list[Exchange]:
    hero = source.pick(_HEROES)
    if source.chance(0.55):
        hero = "fox"
        question = source.phrase(
            (
                "Tell me a story.",
                "Write a story.",
                "Write a short story",
                "Can you tell a story?",
                "Tell me a short story.",
                "Write a long story",
                "A story please",
                "Once upon a time",
                "Tell me a bedtime story",
                "Write something long.",
            ),
            ("Please write me a story.", "I want to hear a story.", "Could you tell me a story?"),
        )
    else:
        question = source.phrase(
            (
                "Tell me a story about a {h}.",
                "Write a story about a {h}.",
                "Write a short story about a {h}",
                "Can you tell a story about a {h}?",
            ),
            ("I want to hear a story about a {h}.", "Please write me a story about a {h}."),
            h=hero,
        )
    return one(question, random_story(source, hero), f"little {hero}")


def poems(source: Source) -> list[Exchange]:
    topic = source.pick(tuple(_POEMS))
    if source.chance(0.55):
        question = source.phrase(
            (
                "Write a poem.",
                "Write a short poem.",
                "Tell me a poem.",
                "Can you write a poem?",
                "Give me a poem",
                "A poem please",
                "Write a little poem",
                "Do you know a poem?",
                "Recite a poem.",
            ),
            ("Please write me a poem.", "I would like a poem.", "Could you write a short poem?"),
        )
        return one(question, _POEMS["the sea"] if source.chance(0.5) else _POEMS[topic], "the")
    question = source.phrase(
        (
            "Write a poem about {t}.",
            "Write a short poem about {t}.",
            "Tell me a poem about {t}",
            "Can you write a poem about {t}?",
        ),
        ("Please write me a poem about {t}.",),
        t=topic,
    )
    return one(question, _POEMS[topic], _POEMS[topic].split("\n")[-1].rstrip("."))


def jokes(source: Source) -> list[Exchange]:
    question = source.phrase(
        (
            "Tell me a joke.",
            "Tell a joke",
            "Do you know a joke?",
            "Make me laugh",
            "Say something funny",
            "Another joke",
            "A joke please",
            "Can you tell me a joke?",
            "Know any jokes?",
        ),
        ("Please tell me a joke.", "I want to hear a joke.", "Could you tell me a joke?"),
    )
    return one(question, source.pick(_JOKES), tuple(joke.rstrip("!") for joke in _JOKES))


def lists(source: Source) -> list[Exchange]:
    """So many animals, colours, fruits and the like."""
    group, members = source.pick(tuple(GROUPS.items()))
    size = source.pick((3, 5, 10, 10, 4, 2))
    number = NUMBER_WORDS[size] if source.chance(0.5) else str(size)
    question = source.phrase(
        (
            "Name {n} {g}.",
            "List {n} {g}.",
            "Give me {n} {g}.",
            "Tell me {n} {g}",
            "Can you name {n} {g}?",
            "Write a list of {n} {g}.",
        ),
        ("Please list {n} {g} for me.", "I need {n} {g}.", "Could you name {n} {g}?"),
        n=number,
        g=group,
    )
    answer = "\n".join(f"{at}. {member}" for at, member in enumerate(members[:size], 1))
    return one(question, answer)


def about_names(source: Source) -> str:
    """A plain sentence about a person, for text that is no conversation."""
    return f"My name is {source.pick(NAMES)} and I live in a {source.pick(_PLACES)} with my {source.pick(_HEROES)}."
