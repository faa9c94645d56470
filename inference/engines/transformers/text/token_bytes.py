"""The bytes behind the tokens of a vocabulary, where its tokenizer has such tokens.

Two kinds do: byte-level ones, whose tokens spell bytes as printable characters, and those with byte fallback, which
write `<0xE6>` for each byte of a character that they do not know. All other tokens are texts.
"""

import json
from collections.abc import Iterator, Mapping

from tokenizers import Tokenizer

_BYTE_LENGTH = len("<0xE6>")


class TokenBytes:
    """Looks tokens up. Used by the engine's thread and the event loop."""

    __slots__ = ("_by_fallback", "_by_level", "_known", "_special", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = tokenizer.decoder  # its state is its part of tokenizer.json, as bytes
        steps = _steps(json.loads(decoder.__getstate__()) if decoder is not None else None)
        decoders = {str(step.get("type")) for step in steps}
        self._by_level = "ByteLevel" in decoders
        self._by_fallback = "ByteFallback" in decoders
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(str(token.content) for token in added.values() if token.special)
        self._known: dict[int, bytes | None] = {}

    @staticmethod
    def alphabet() -> list[str]:
        """How a byte-level vocabulary spells each byte."""
        return list(_LEVEL)

    def of(self, token: int) -> bytes | None:
        """Empty for a special token, and for one that is none; None for one whose text its neighbours may change."""
        try:
            return self._known[token]
        except KeyError:
            found = self._known[token] = self._read(self._tokenizer.id_to_token(token))
            return found

    def _read(self, name: str | None) -> bytes | None:
        if name is None or name in self._special:
            return b""
        if self._by_level:
            try:
                return bytes([_LEVEL[character] for character in name])
            except KeyError:  # an added token that is not spelled in bytes
                return name.encode()
        if self._by_fallback and len(name) == _BYTE_LENGTH and name.startswith("<0x") and name.endswith(">"):
            try:
                return bytes.fromhex(name[3:5])
            except ValueError:
                return None
        return None


def _steps(decoder: object) -> Iterator[Mapping[str, object]]:
    """A decoder's steps, as tokenizer.json has them."""
    if isinstance(decoder, dict):
        yield decoder
        for step in decoder.get("decoders", ()):
            yield from _steps(step)


def _byte_level() -> dict[str, int]:
    """GPT-2's spelling: printable bytes of Latin-1 are themselves, the others in turn what follows U+00FF."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spelling = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(0x100) if byte not in printable)
    return spelling | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_LEVEL = _byte_level()
