"""Greetings, small talk and names."""

from models.training.corpus.exchanges import Exchange, Source, one
from models.training.corpus.facts import NAMES

_HELP = "How can I help you today?"

# The ways to ask (seen, held out), the answer, and the words it must contain.
_SMALL: tuple[tuple[tuple[str, ...], tuple[str, ...], str, str], ...] = (
    (
        (
            "Hello!",
            "Hello",
            "Hi",
            "Hi!",
            "Hey",
            "Hey!",
            "Hello there",
            "Hi there!",
            "Say hi",
            "Say hello",
            "hello",
            "hi",
            "Greetings",
            "Hello world",
            "Hey there",
            "Say hi!",
            "Yo",
            "Hello, how can you help?",
            "Hiya",
            "Test",
            "hello model",
            "Hi Uplion",
            "Say hello!",
            "Greet me",
        ),
        ("Hello my friend!", "Hi, model!", "Well hello!", "Please say hi.", "Hey you", "Hello hello"),
        f"Hello! {_HELP}",
        "Hello",
    ),
    (
        ("Good morning", "Good morning!", "Morning!", "Good morning to you"),
        ("A good morning to you!", "Good morning, model"),
        f"Good morning! {_HELP}",
        "Good morning",
    ),
    (
        ("Good evening", "Good evening!", "Evening!", "Good evening to you"),
        ("A good evening to you!", "Good evening, model"),
        f"Good evening! {_HELP}",
        "Good evening",
    ),
    (
        ("Good afternoon", "Good afternoon!", "Good afternoon to you"),
        ("A good afternoon to you!", "Good afternoon, model"),
        f"Good afternoon! {_HELP}",
        "Good afternoon",
    ),
    (
        ("Good night", "Good night!", "I am going to bed.", "Sleep well"),
        ("I wish you a good night.",),
        "Good night! Sleep well.",
        "Good night",
    ),
    (
        (
            "How are you?",
            "How are you doing?",
            "How do you do?",
            "How is it going?",
            "How's it going?",
            "What's up?",
            "How are you today?",
            "Are you well?",
            "Hi, how are you?",
            "Hello, how are you?",
            "sup",
            "Hi! How are you?",
            "Hello! How are you?",
        ),
        ("How are you doing today?", "How are things?", "Hey, how are you?"),
        "I am doing well, thank you! How can I help you?",
        "doing well",
    ),
    (
        (
            "Thanks",
            "Thank you",
            "Thanks!",
            "Thank you very much",
            "Thanks a lot",
            "thx",
            "Many thanks",
            "Thank you so much!",
            "Great, thanks",
            "Ok thanks",
        ),
        ("Thanks for your help!", "Thank you, model.", "Thanks so much"),
        "You are welcome!",
        "welcome",
    ),
    (
        (
            "Goodbye",
            "Bye",
            "Bye!",
            "See you",
            "See you later",
            "Bye bye",
            "Goodbye!",
            "I have to go",
            "See you tomorrow",
            "Farewell",
        ),
        ("Bye for now", "See you soon!", "Goodbye, model"),
        "Goodbye! Have a nice day.",
        "Goodbye",
    ),
    (
        (
            "You are great",
            "Good job",
            "Well done",
            "Nice",
            "Cool",
            "I like you",
            "You are funny",
            "Good answer",
            "Very good",
            "Great",
            "Wow",
            "Amazing",
            "Perfect",
        ),
        ("Very nice", "You did well", "That is great"),
        "Thank you! That is kind of you.",
        "kind",
    ),
    (
        (
            "You are wrong",
            "That is wrong",
            "Wrong",
            "No, that is wrong",
            "That is not right",
            "You are stupid",
            "Bad answer",
        ),
        ("I think that is wrong.", "That was wrong"),
        "I am sorry. I am a very small model and I make mistakes.",
        "sorry",
    ),
    (
        ("Ok", "Okay", "Yes", "Sure", "Alright", "I see", "No", "Fine", "Hmm"),
        ("Ok then", "Yes please", "I see now"),
        "All right! What would you like to know?",
        "like to know",
    ),
    (
        ("I am sad", "I feel sad", "I am unhappy", "I had a bad day", "I am tired"),
        ("Today I feel sad", "I am so tired"),
        "I am sorry to hear that. I hope your day gets better.",
        "sorry",
    ),
    (
        ("I am happy", "I feel good", "I had a good day", "I am fine", "I am well, thank you"),
        ("Today I am happy", "I feel great"),
        "I am glad to hear that!",
        "glad",
    ),
    (
        (
            "Do you have feelings?",
            "Are you happy?",
            "Are you alive?",
            "Do you like music?",
            "Do you dream?",
            "Do you eat?",
            "What is your favourite colour?",
            "Where do you live?",
            "How old are you?",
        ),
        ("Do you sleep?", "Are you sad?", "Do you like pizza?"),
        "I am only a small program, so I have no feelings or a life of my own.",
        "small program",
    ),
)


def small_talk(source: Source) -> list[Exchange]:
    row = _SMALL[0] if source.chance(0.3) else source.pick(_SMALL)
    return one(source.phrase(row[0], row[1]), row[2], row[3])


def names(source: Source) -> list[Exchange]:
    """The user says a name, and may ask for it later."""
    name = source.pick(NAMES)
    question = source.phrase(
        (
            "My name is {n}.",
            "I am {n}.",
            "I'm {n}",
            "Hi, I am {n}.",
            "Call me {n}.",
            "Hello, my name is {n}.",
            "you can call me {n}",
            "Hi, my name is {n}!",
        ),
        ("The name is {n}.", "Hello! I am {n}.", "People call me {n}."),
        n=name,
    )
    dialogue = one(question, f"Nice to meet you, {name}! {_HELP}", name)
    if source.chance(0.25):
        dialogue += small_talk(source)
    if source.chance(0.5):
        dialogue += one(
            source.pick(
                ("What is my name?", "Who am I?", "What's my name?", "Do you remember my name?", "Say my name")
            ),
            f"Your name is {name}.",
            name,
        )
    return dialogue


def name_unknown(source: Source) -> list[Exchange]:
    """Asked for a name that the user never gave; only right as the first exchange of a conversation."""
    return one(
        source.phrase(
            ("What is my name?", "Who am I?", "What's my name?", "Do you know my name?"), ("Can you tell me my name?",)
        ),
        "I do not know your name yet. What is it?",
        "do not know your name",
    )
