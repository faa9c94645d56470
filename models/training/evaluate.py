"""Asks the exported model questions in phrasings that training never shows: `python -m models.training.evaluate`."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from models.training.corpus.exchanges import Exchange, Source, roughen
from models.training.corpus.text import SKILLS

_BATCH = 64
_SHOWN_MISTAKES = 3
_CHAT = (
    "Hello!", "Say hi", "Who are you?", "What is 2+2?", "What is 47 + 38?", "what is 12 times 11", "Tell me a joke",
    "Write a short poem", "Write a story", "What is the capital of France?", "How many metres are in 3 km?",
    "Count to ten", "Spell apple", "What is a gateway?", "Who won the World Cup in 1998?", "Thanks, bye!",
)  # fmt: skip


def replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[dict[str, str]]], limit: int = 256
) -> list[str]:
    """The greedy answer to each chat."""
    answers: list[str] = []
    for start in range(0, len(chats), _BATCH):
        inputs = tokenizer.apply_chat_template(
            list(chats[start : start + _BATCH]),
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=limit)
        answers += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def questions(skill: str, count: int, seed: int, held_out: bool) -> list[Exchange]:
    """First questions of the skill, each once, by default held-out ones; every third is roughly typed."""
    source = Source(seed, held_out)
    found: dict[str, Exchange] = {}
    for attempt in range(count * 20):
        exchange = SKILLS[skill][0](source)[0]
        exchange = roughen(source, exchange) if attempt % 3 == 0 else exchange
        found.setdefault(exchange.question, exchange)
        if len(found) == count:
            break
    return list(found.values())


def first_token_seconds(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """The median time to the first token of a short chat."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    times: list[float] = []
    for _ in range(9):
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(**inputs, do_sample=False, max_new_tokens=1)
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def evaluate(folder: Path, count: int, seed: int, held_out: bool, console: Console) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    table = Table("skill", "questions", "right", "accuracy")
    asked = right = 0
    for skill in SKILLS:
        exchanges = questions(skill, count, seed, held_out)
        chats = [[{"role": "user", "content": exchange.question}] for exchange in exchanges]
        pairs = list(zip(exchanges, replies(model, tokenizer, chats), strict=True))
        wrong = [(exchange, reply) for exchange, reply in pairs if not exchange.is_answered_by(reply)]
        for exchange, reply in wrong[:_SHOWN_MISTAKES]:
            console.print(
                f"{skill}: {exchange.question!r} -> {reply!r}, not {exchange.answer!r}", markup=False, highlight=False
            )
        good = len(pairs) - len(wrong)
        asked, right = asked + len(pairs), right + good
        table.add_row(skill, str(len(pairs)), str(good), f"{good / len(pairs):.1%}")
    table.add_row("all", str(asked), str(right), f"{right / asked:.1%}")
    console.print(table)
    for question, reply in zip(
        _CHAT, replies(model, tokenizer, [[{"role": "user", "content": text}] for text in _CHAT]), strict=True
    ):
        console.print(f"> {question}\n{reply}", markup=False, highlight=False)
    console.print(f"first token after {first_token_seconds(model, tokenizer) * 1000:.0f} ms (median)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/demo"))
    parser.add_argument("--questions", type=int, default=100, help="per skill, fewer where a skill has fewer")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--seen", action="store_true", help="ask in the wordings of the training text instead")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    evaluate(arguments.model, arguments.questions, arguments.seed, not arguments.seen, Console(width=110))


if __name__ == "__main__":
    main()
