"""Tokens to text, one step at a time: whole characters come out at once, whatever they mean."""

import codecs
from collections import deque
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from inference.engines.transformers.text.token_bytes import TokenBytes

_CONTEXT_TOKENS = 8  # before a token: its text may depend on them

_utf8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one choice. Only the bytes of a character that is not whole yet are kept back.

    What has come out depends on the tokens alone: after the tokens of an earlier attempt the text goes on where that
    one ended, also within a character. Bytes that can begin no character come out as U+FFFD.
    """

    __slots__ = ("_bytes", "_context", "_decoder", "_pending", "_tokenizer")

    def __init__(
        self, tokenizer: Tokenizer, token_bytes: TokenBytes, prompt: Sequence[int] = (), earlier: Iterable[int] = ()
    ) -> None:
        """`prompt`: its end tells where a leading space belongs. `earlier`: tokens whose text has come out before."""
        self._tokenizer = tokenizer
        self._bytes = token_bytes
        self._decoder = _utf8("replace")
        self._context = deque(prompt[-_CONTEXT_TOKENS:], _CONTEXT_TOKENS)
        for token in earlier:
            self._text(token)
        self._pending: list[int] = []  # without any text so far

    def push(self, token: int) -> tuple[str, list[int]] | None:
        """The text that is whole now and the tokens since the last one; None while a character's bytes are missing."""
        self._pending.append(token)
        text = self._text(token)
        if not text and self._decoder.getstate()[0]:
            return None
        tokens, self._pending = self._pending, []
        return text, tokens

    def flush(self) -> tuple[str, list[int]]:
        """U+FFFD for a character that never became whole, and the tokens that were kept back for it."""
        tokens, self._pending = self._pending, []
        return self._decoder.decode(b"", final=True), tokens

    def _text(self, token: int) -> str:
        context = list(self._context)
        self._context.append(token)
        known = self._bytes.of(token)
        if known is not None:
            return self._decoder.decode(known)
        before = self._tokenizer.decode(context, skip_special_tokens=True)
        after = self._tokenizer.decode([*context, token], skip_special_tokens=True)
        return self._decoder.decode(b"", final=True) + after[len(before) :]
