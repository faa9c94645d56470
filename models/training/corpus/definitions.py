"""What the words around Uplion mean."""

from models.training.corpus.exchanges import Exchange, Source, one

DEFINITIONS = {
    "a gateway": "A gateway is the door of the system: it takes each request, checks it and passes it on.",
    "a token": "A token is a small piece of text, such as a word or a part of a word, that a model reads or writes.",
    "a queue": "A queue is a line where requests wait until a worker is free.",
    "a worker": "A worker is a program that takes requests and runs the model to answer them.",
    "a replica": "A replica is one of several equal copies that share the work.",
    "a tenant": "A tenant is a customer or team whose requests and bills are kept apart from the others.",
    "a router": "A router decides which worker gets a request.",
    "a model": "A model is a program that has learned from examples; a language model writes text.",
    "a language model": "A language model is a program that writes text, one token after another.",
    "a prompt": "A prompt is the text that you send to a model.",
    "a completion": "A completion is the text that a model writes after your prompt.",
    "an api key": "An API key is a secret that shows who is sending a request.",
    "streaming": "Streaming means that you see the answer token by token while the model writes it.",
    "uplion": "Uplion is a system that serves language models to many users through one gateway.",
    "kubernetes": "Kubernetes is a system that runs programs on many computers and keeps them running.",
    "a gpu": "A GPU is a chip that does many calculations at once, so that models run fast.",
    "a cpu": "A CPU is the main chip of a computer. I am small enough to run on one.",
    "a rate limit": "A rate limit is how many requests you may send in a given time.",
    "a quota": "A quota is the amount that you may use, for example tokens in a month.",
    "billing": "Billing counts the tokens that you use and turns them into a price.",
    "a context window": "A context window is how many tokens a model can look at together.",
    "a chat template": "A chat template turns messages into the text that a model reads.",
    "a tokenizer": "A tokenizer cuts text into tokens and joins tokens to text again.",
    "a computer": "A computer is a machine that follows instructions and works with data.",
    "an algorithm": "An algorithm is a list of steps that solves a problem.",
    "the internet": "The internet is a network that connects computers around the world.",
}


def definitions(source: Source) -> list[Exchange]:
    term, answer = source.pick(tuple(DEFINITIONS.items()))
    question = source.phrase(
        (
            "What is {t}?",
            "Explain {t}.",
            "What's {t}?",
            "What does {t} mean?",
            "Tell me what {t} is.",
            "Define {t}",
            "Can you explain {t}?",
            "Explain what {t} is.",
        ),
        ("Please explain to me what {t} is.", "Do you know what {t} is?", "Could you explain {t}?"),
        t=term,
    )
    for short, name in (
        ("api", "API"),
        ("gpu", "GPU"),
        ("cpu", "CPU"),
        ("uplion", "Uplion"),
        ("kubernetes", "Kubernetes"),
    ):
        question = question.replace(short, name)
    return one(question, answer)
