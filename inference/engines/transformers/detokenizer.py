"""Tokens to text, one step at a time; only complete characters come out."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """The text of one choice. Tokens whose bytes do not make a whole character yet are kept back."""

    __slots__ = ("_pending", "_stream", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        """`context`: the last tokens before the first one, so that a leading space is kept where it belongs."""
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(context), skip_special_tokens=True)
        self._pending: list[int] = []

    def push(self, token: int) -> tuple[str, list[int]] | None:
        """The text that this token completes, with all tokens behind it; None while a character is incomplete."""
        self._pending.append(token)
        text = self._stream.step(self._tokenizer, token)
        if text is None and not self._is_silent(token):
            return None
        tokens, self._pending = self._pending, []
        return text or "", tokens

    def flush(self) -> list[int]:
        """The tokens whose character never became complete."""
        tokens, self._pending = self._pending, []
        return tokens

    def _is_silent(self, token: int) -> bool:
        """Whether the token has no text at all, and nothing waits before it: a special one."""
        return len(self._pending) == 1 and self._tokenizer.decode([token], skip_special_tokens=True) == ""
