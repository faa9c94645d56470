"""Prompts to token ids: the model's chat template, its tokenizer, and what both refuse."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tokenizers import Encoding

from common.errors import Reason, UplionError
from inference.engines.engine import (
    Chat,
    Prompt,
    Text,
    Tokens,
    check_embedding_tokens,
    prompt_too_long,
)
from inference.engines.transformers.library_types import FastTokenizer
from inference.engines.transformers.text.chat_template import ChatTemplate
from inference.engines.transformers.text.token_floor import TokenFloor

_AT_ONCE_CHARACTERS = 2048  # on the event loop: 1 ms
_SHORT_CHARACTERS = 65_536  # in the lane of short prompts: 60 ms
_MESSAGE_CHARACTERS = 32  # what a message costs in a template, in characters to tokenise

ResultT = TypeVar("ResultT")


class Prompts:
    """Turns prompts into token ids for one model.

    What takes longer than a millisecond runs in one of two lanes of a thread each, by its size: a long text, which may
    take seconds, stands in the way of long ones only. Tokenising (in batches) does not hold the interpreter's lock.
    """

    def __init__(self, tokenizer: FastTokenizer, vocabulary_size: int, context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._context_tokens = context_tokens
        self._template = ChatTemplate(tokenizer)
        self._floor = TokenFloor(tokenizer.backend_tokenizer)
        self._short = ThreadPoolExecutor(1, thread_name_prefix="short prompts")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="long prompts")

    async def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens, with room for an answer.

        Raises INVALID_REQUEST for what the model cannot read, and CONTEXT_LENGTH_EXCEEDED.
        """
        return await self._in_lane(_characters(prompt), self._prepare, prompt)

    async def encode_inputs(self, inputs: Sequence[Text | Tokens]) -> list[list[int]]:
        """The tokens of each text to embed; raises the same, also where they are too many together."""
        total = 0
        for index, item in enumerate(inputs):
            least = len(item.ids) if isinstance(item, Tokens) else self._floor.tokens(item.text)
            self._check_input(index, least, "at least " if isinstance(item, Text) else "")
            total += least
        check_embedding_tokens(total)
        encoded: list[list[int]] = []
        total = 0
        while len(encoded) < len(inputs):
            group = _group(inputs, len(encoded))
            ids = await self._in_lane(sum(map(_characters, group)), self._encode_group, group, len(encoded))
            encoded += ids
            total += sum(map(len, ids))
            check_embedding_tokens(total)
        return encoded

    def close(self) -> None:
        for lane in (self._short, self._long):
            lane.shutdown(wait=False, cancel_futures=True)

    async def _in_lane(self, characters: int, work: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Work that has not begun when its caller is cancelled is not done at all."""
        if characters <= _AT_ONCE_CHARACTERS:
            return work(*arguments)
        lane = self._short if characters <= _SHORT_CHARACTERS else self._long
        return await asyncio.get_running_loop().run_in_executor(lane, work, *arguments)

    def _prepare(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, Tokens):
            self._check_prompt(len(prompt.ids))
            return self._checked(prompt.ids)
        text = prompt.text if isinstance(prompt, Text) else self._render(prompt)
        if (least := self._floor.tokens(text)) >= self._context_tokens:
            raise prompt_too_long(self._context_tokens, least, len(text.encode("utf-8", "surrogatepass")))
        # A template writes its special tokens itself.
        (encoding,) = self._tokenizer.backend_tokenizer.encode_batch_fast(
            [text], add_special_tokens=isinstance(prompt, Text)
        )
        self._check_prompt(len(encoding))
        return self._ids(encoding)

    def _encode_group(self, group: Sequence[Text | Tokens], first: int) -> list[list[int]]:
        """Of inputs from number `first` on."""
        texts = [item.text for item in group if isinstance(item, Text)]
        encodings = iter(self._tokenizer.backend_tokenizer.encode_batch_fast(texts))
        found: list[list[int]] = []
        for index, item in enumerate(group, first):
            if isinstance(item, Tokens):
                found.append(self._checked(item.ids))
                continue
            encoding = next(encodings)
            self._check_input(index, len(encoding))
            found.append(self._ids(encoding))
        return found

    def _ids(self, encoding: Encoding) -> list[int]:
        """Of a text that fits: to list the ids of millions takes the interpreter's lock for tens of milliseconds."""
        if len(encoding):
            return encoding.ids
        start = self._tokenizer.bos_token_id  # nothing to continue: start as a text starts
        return [start if start is not None else (self._tokenizer.eos_token_id or 0)]

    def _check_prompt(self, tokens: int) -> None:
        if tokens >= self._context_tokens:
            raise prompt_too_long(self._context_tokens, tokens)

    def _check_input(self, index: int, tokens: int, precision: str = "") -> None:
        if tokens > self._context_tokens:
            raise UplionError(
                Reason.CONTEXT_LENGTH_EXCEEDED,
                f"This model's context holds {self._context_tokens} tokens; input {index} has {precision}{tokens}.",
                param=f"input[{index}]",
            )

    def _checked(self, ids: Sequence[int]) -> list[int]:
        if not ids:
            raise UplionError(Reason.INVALID_REQUEST, "The prompt has no tokens.", param="prompt")
        if max(ids) >= self._vocabulary_size:
            raise UplionError(
                Reason.INVALID_REQUEST,
                f"Token {max(ids)} is not in this model's vocabulary of {self._vocabulary_size}.",
                param="prompt",
            )
        return list(ids)

    def _render(self, chat: Chat) -> str:
        messages = [_plain(message, index) for index, message in enumerate(chat.messages)]
        few = len(messages) * _MESSAGE_CHARACTERS <= _AT_ONCE_CHARACTERS
        return self._template.render(messages) if few else self._template.render_in_turns(messages)


def _characters(prompt: Prompt) -> int:
    """About how much text a prompt is."""
    if isinstance(prompt, Text):
        return len(prompt.text)
    if isinstance(prompt, Tokens):
        return len(prompt.ids)
    contents = (message.get("content") for message in prompt.messages)
    return sum(_MESSAGE_CHARACTERS + (len(str(content)) if content else 0) for content in contents)


def _group(inputs: Sequence[Text | Tokens], first: int) -> Sequence[Text | Tokens]:
    """As many inputs as make a short text together, at least one."""
    characters, last = _characters(inputs[first]), first + 1
    while last < len(inputs) and (characters := characters + _characters(inputs[last])) <= _SHORT_CHARACTERS:
        last += 1
    return inputs[first:last]


def _plain(message: Mapping[str, object], index: int) -> dict[str, object]:
    """A message as every template accepts it: content as one text, and `system` for the newer role `developer`."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) != len(content):
            raise UplionError(
                Reason.UNSUPPORTED_PARAMETER,
                "This model reads text only.",
                param=f"messages[{index}].content",
            )
        content = "".join(str(text or "") for text in texts)
    role = "system" if message.get("role") == "developer" else message.get("role")
    return {**message, "role": role, "content": content or ""}
