"""Prompts to token ids: the model's chat template, its tokenizer, and what both refuse."""

import asyncio
from collections.abc import Mapping, Sequence

from common.errors import Reason, UplionError
from inference.engines.engine import Chat, Prompt, Text, Tokens
from inference.engines.transformers.library_types import FastTokenizer

_LONG_CHARACTERS = 16_384  # longer texts are encoded in a thread, so that the event loop goes on


class Prompts:
    """Turns prompts into token ids for one model."""

    def __init__(self, tokenizer: FastTokenizer, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._has_template = bool(tokenizer.chat_template)

    async def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens; raises INVALID_REQUEST for what the model cannot read."""
        if isinstance(prompt, Tokens):
            return self._checked(prompt.ids)
        special = isinstance(prompt, Text)  # a template writes its special tokens itself
        text = prompt.text if isinstance(prompt, Text) else self._render(prompt)
        if len(text) > _LONG_CHARACTERS:
            return await asyncio.to_thread(self._encode, text, special)
        return self._encode(text, special)

    def _encode(self, text: str, special: bool) -> list[int]:
        tokens: list[int] = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=special).ids
        if not tokens:  # nothing to continue: start as a text starts
            start = self._tokenizer.bos_token_id
            tokens = [start if start is not None else (self._tokenizer.eos_token_id or 0)]
        return tokens

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
        if not self._has_template:
            turns = [f"{message['role']}: {message['content']}\n" for message in messages]
            return "".join(turns) + "assistant:"
        from jinja2.exceptions import TemplateError

        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as problem:
            raise UplionError(
                Reason.INVALID_REQUEST, f"The model's chat template refuses the messages: {problem}", param="messages"
            ) from problem


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
