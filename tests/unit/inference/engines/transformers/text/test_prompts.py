"""Prompts to tokens: what cannot fit is not tokenised, and a long text stands in nobody's way."""

import asyncio
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from common.errors import Reason, UplionError
from inference.engines.engine import MAX_EMBEDDING_TOKENS, Chat, Text, Tokens
from inference.engines.transformers.library_types import FastTokenizer
from inference.engines.transformers.text import chat_template
from inference.engines.transformers.text.prompts import Prompts

CONTEXT = 100_000
LONG = "x" * 70_000  # characters: not a short prompt
SHORT = "x" * 3_000  # not one that is tokenised at once, either
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


class Gate:
    """A tokenizer of bytes that says what it tokenises, and waits in long texts until it is opened."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.open = threading.Event()
        self.reached = threading.Event()
        self.lengths: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts: Sequence[str], add_special_tokens: bool = True) -> Any:
        self.lengths += map(len, texts)
        if len(texts[0]) >= len(LONG):
            self.reached.set()
            assert self.open.wait(60)
        return self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


def prompts_of(template: str | None = TEMPLATE, context: int = CONTEXT) -> tuple[Prompts, Gate]:
    spelled = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: place for place, character in enumerate(spelled)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    gate = Gate(tokenizer)
    fast = SimpleNamespace(
        backend_tokenizer=gate,
        bos_token_id=None,
        eos_token_id=0,
        chat_template=template,
        special_tokens_map={},
        get_chat_template=lambda: template,
    )
    return Prompts(cast(FastTokenizer, fast), tokenizer.get_vocab_size(), context), gate


async def refusal(call):
    with pytest.raises(UplionError) as caught:
        await call
    return caught.value


async def test_what_cannot_fit_is_refused_before_it_is_tokenised():
    prompts, gate = prompts_of(context=2048)
    for prompt in (Text("x" * 3_000_000), Chat([{"role": "user", "content": "x" * 3_000_000}])):
        error = await refusal(prompts.encode(prompt))
        assert error.reason is Reason.CONTEXT_LENGTH_EXCEEDED
        assert "holds 2048 tokens and the prompt has 30000" in error.message
        assert "bytes, which are at least 42857" in error.message, "the longest token has seven"
    error = await refusal(prompts.encode(Tokens([1] * 2048)))
    assert error.facts == {"context_tokens": 2048, "input_tokens": 2048}
    error = await refusal(prompts.encode_inputs([Text("x"), Text("x" * 3_000_000)]))
    assert (error.reason, error.param) == (Reason.CONTEXT_LENGTH_EXCEEDED, "input[1]")
    assert gate.lengths == []
    assert len(await prompts.encode(Text("x" * 2047))) == 2047
    error = await refusal(prompts.encode(Text("x" * 2048)))
    assert "the prompt has 2048;" in error.message, "it might have fitted, and was counted"


async def test_a_template_that_drops_text_makes_room():
    prompts, gate = prompts_of("{{ messages[-1].content | trim }}", 2048)
    messages = [{"role": "user", "content": "x" * 3_000_000}, {"role": "user", "content": "Hi" + " " * 1_000_000}]
    assert len(await prompts.encode(Chat(messages))) == 2
    assert gate.lengths == [2]


async def test_short_prompts_pass_long_ones():
    prompts, gate = prompts_of()
    async with asyncio.TaskGroup() as tasks:
        long = [tasks.create_task(prompts.encode(Text(LONG))) for _ in range(4)]
        assert await asyncio.to_thread(gate.reached.wait, 60)
        for prompt in (Text("x"), Text(SHORT), Chat([{"role": "user", "content": SHORT}])):
            assert await prompts.encode(prompt)
        assert len(await prompts.encode_inputs([Text(SHORT)] * 100)) == 100
        assert not any(task.done() for task in long)
        gate.open.set()
    assert [len(task.result()) for task in long] == [len(LONG)] * 4


async def test_what_waits_when_its_caller_leaves_is_not_done():
    prompts, gate = prompts_of()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(prompts.encode(Text(LONG)))
        assert await asyncio.to_thread(gate.reached.wait, 60)
        left = [tasks.create_task(prompts.encode(Text(LONG + "x"))) for _ in range(4)]
        await asyncio.sleep(0)
        for task in left:
            task.cancel()
        last = tasks.create_task(prompts.encode(Text(LONG + "xx")))
        await asyncio.sleep(0)
        gate.open.set()
    assert (len(first.result()), len(last.result())) == (len(LONG), len(LONG) + 2)
    assert gate.lengths == [len(LONG), len(LONG) + 2]


async def test_inputs_to_embed_are_bounded_together():
    prompts, gate = prompts_of()
    error = await refusal(prompts.encode_inputs([Tokens([1] * 100_000)] * 3 + [Tokens([1])]))
    assert (error.reason, error.param) == (Reason.INVALID_REQUEST, "input")
    assert "at most 300000" in error.message
    assert gate.lengths == []
    gate.open.set()
    texts = [Text("x" * 1000)] * 310  # by their bytes they might fit
    assert (await refusal(prompts.encode_inputs(texts))).facts == {"input_tokens": MAX_EMBEDDING_TOKENS + 10_000}
    assert [len(ids) for ids in await prompts.encode_inputs(texts[:300])] == [1000] * 300
    mixed = await prompts.encode_inputs([Tokens([1, 2]), Text("abc"), Tokens([3])])
    assert [len(ids) for ids in mixed] == [2, 3, 1]


async def test_a_template_of_many_messages_lets_other_threads_go_on(monkeypatch):
    pauses = 0

    def sleep(seconds: float) -> None:
        nonlocal pauses
        pauses += 1

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(chat_template, "_TURN_SECONDS", 0.0)
    messages = [{"role": "user", "content": "x"}] * 4096
    prompts, _ = prompts_of()
    assert len(await prompts.encode(Chat(messages))) == len("<user>x") * 4096 + len("<assistant>")
    assert pauses >= 4096
    plain, _ = prompts_of(None)
    assert len(await plain.encode(Chat(messages))) == len("user: x\n") * 4096 + len("assistant:")
    assert pauses >= 2 * 4096


async def test_a_template_has_a_bounded_time(monkeypatch):
    monkeypatch.setattr(chat_template, "_MOST_SECONDS", 0.05)
    prompts, gate = prompts_of("{% for m in messages %}{% for n in messages %}{{ n.content }}{% endfor %}{% endfor %}")
    error = await refusal(prompts.encode(Chat([{"role": "user", "content": "x"}] * 4096)))
    assert (error.reason, error.param) == (Reason.INVALID_REQUEST, "messages")
    assert gate.lengths == []
