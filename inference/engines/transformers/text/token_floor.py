"""The fewest tokens that a text can become: what cannot fit is refused before it is tokenised.

A token covers at most as many bytes of a text as the longest one of the vocabulary has. That holds for tokenizers that
drop nothing; where a step may swallow any amount of text, or is not known here, there is no such bound.
"""

import json
from collections.abc import Iterator, Mapping

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from inference.engines.transformers.text.token_bytes import TokenBytes

_SHRINKING = 4  # bytes that Unicode's normal forms, and lower case, make one of: U+1FBF9 becomes "9", U+212A "k"
_NORMAL_FORMS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase"})
_KEEPING = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"})  # pre-tokenizers
_CUTTING = frozenset({"Split", "Punctuation"})  # these drop what they cut out, if they are told to
_REMOVED = "Removed"
_BYTES = 256

Step = Mapping[str, object]


class TokenFloor:
    """The bound of one tokenizer."""

    __slots__ = ("bytes_per_token",)

    def __init__(self, tokenizer: Tokenizer) -> None:
        shrinking = _shrinking(tokenizer)
        self.bytes_per_token = 0 if shrinking is None else shrinking * _longest_token(tokenizer)  # 0: no bound

    def tokens(self, text: str) -> int:
        """At least so many; 0 where there is no bound."""
        if not self.bytes_per_token:
            return 0
        return -(-len(text.encode("utf-8", "surrogatepass")) // self.bytes_per_token)


def _shrinking(tokenizer: Tokenizer) -> int | None:
    """How many bytes of a text become one of what is looked up, at most; None: any number."""
    if not _covers_all_text(tokenizer):
        return None
    if any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values()):
        return None  # it takes the white space beside it
    for step in _steps(tokenizer.pre_tokenizer):
        kind = step["type"]
        if kind not in _KEEPING and (kind not in _CUTTING or step.get("behavior") == _REMOVED):
            return None
    shrinking = 1
    for step in _steps(tokenizer.normalizer):
        kind = step["type"]
        if kind in _NORMAL_FORMS:
            shrinking *= _SHRINKING
        elif kind not in ("Prepend", "ByteLevel") and not _grows(step):
            return None
    return shrinking


def _covers_all_text(tokenizer: Tokenizer) -> bool:
    """Whether every byte is in some token: an unknown text becomes bytes, and not one token or none."""
    steps = [*_steps(tokenizer.pre_tokenizer), *_steps(tokenizer.normalizer)]
    if not isinstance(tokenizer.model, BPE):
        return False  # WordPiece and Unigram may make one token of an unknown text of any length
    if any(step["type"] == "ByteLevel" for step in steps):
        known = TokenBytes.alphabet()
    elif tokenizer.model.byte_fallback:
        known = [f"<0x{byte:02X}>" for byte in range(_BYTES)]
    else:
        return False
    return all(tokenizer.token_to_id(name) is not None for name in known)


def _grows(step: Step) -> bool:
    """Whether it replaces a text by one that is as long."""
    pattern = step.get("pattern")
    found = pattern.get("String") if isinstance(pattern, dict) else None
    return step["type"] == "Replace" and bool(found) and len(str(found).encode()) <= len(str(step["content"]).encode())


def _longest_token(tokenizer: Tokenizer) -> int:
    """In bytes of text."""
    known = TokenBytes(tokenizer)
    names = tokenizer.get_vocab(with_added_tokens=True)
    return max(len(known.of(token) or name.encode()) for name, token in names.items())


def _steps(part: Normalizer | PreTokenizer | None) -> Iterator[Step]:
    """The steps of a part of a tokenizer, as tokenizer.json has them. (Its state is that, as bytes.)"""
    if part is not None:
        yield from _flat(json.loads(part.__getstate__()))


def _flat(step: dict[str, object]) -> Iterator[Step]:
    if step["type"] != "Sequence":
        yield step
        return
    inner = step.get("pretokenizers", step.get("normalizers"))
    for each in inner if isinstance(inner, list) else ():
        yield from _flat(each)
