"""Whole characters come out at once, and every token once."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from inference.engines.transformers.text.detokenizer import Detokenizer
from inference.engines.transformers.text.token_bytes import TokenBytes

MARK = "\ufffd"  # a character like any other, and what stands for bytes that are none


def byte_level() -> Tokenizer:
    """As Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Merged, so that there are tokens which hold whole characters and parts of others.
    tokenizer.train_from_iterator(
        ["hello there, how are you", f"a日 a月 a木 a村 a正 a水 {MARK}{MARK}x{MARK}"] * 30, trainer
    )
    tokenizer.add_tokens([AddedToken("日本", special=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral have it: texts, and a token for each byte of what has none."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "h", MARK]
    model = models.BPE({piece: place for place, piece in enumerate(pieces)}, [("▁", "a")], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def words() -> Tokenizer:
    """Texts only: the space before a word is not in its token."""
    pieces = ["[UNK]", "hello", "there", "##s", MARK]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


LEVEL, FALLBACK, WORDS = byte_level(), byte_fallback(), words()


def named(tokenizer: Tokenizer, *names: str) -> list[int]:
    return [token for name in names if (token := tokenizer.token_to_id(name)) is not None]


(END,) = named(LEVEL, "<|end|>")


def level(data: bytes) -> list[int]:
    """Bytes one by one, as a model may generate them."""
    spelled = {TokenBytes(LEVEL).of(token): token for token in range(256, 0, -1)}
    return [spelled[bytes([byte])] for byte in data]


def fallback(data: bytes) -> list[int]:
    return named(FALLBACK, *(f"<0x{byte:02X}>" for byte in data))


class Spelled:
    """All that came out for some tokens."""

    def __init__(
        self, ids: Sequence[int], tokenizer: Tokenizer = LEVEL, prompt: Sequence[int] = (), earlier: Sequence[int] = ()
    ) -> None:
        detokenizer = Detokenizer(tokenizer, TokenBytes(tokenizer), prompt, earlier)
        self.pieces = [piece for token in ids if (piece := detokenizer.push(token)) is not None]
        self.rest = detokenizer.flush()
        self.texts = [text for text, _ in self.pieces]
        self.text = "".join([*self.texts, self.rest[0]])
        self.ids = [token for _, tokens in [*self.pieces, self.rest] for token in tokens]


@settings(max_examples=200, deadline=None)
@given(st.text())
@example(MARK)
@example(f"{MARK}a")
@example(f"a{MARK}b")
@example(f"a{MARK}")
@example(f"日{MARK}日")
@example("日本日")
def test_any_text_comes_back_whole(text):
    ids = LEVEL.encode(text).ids
    spelled = Spelled(ids)
    assert spelled.text == text
    assert spelled.ids == ids
    assert spelled.rest == ("", [])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, LEVEL.get_vocab_size() - 1), max_size=12), st.integers(0, 12))
@example(level(b"\xe6"), 0)
@example(level(b"\xe6\x97A"), 2)
@example(level(b"A\x97\xe6\xe6\x97\xa5"), 4)
@example([*level(b"\xe6\x97"), END, *level(b"\xa5")], 3)
def test_any_tokens_come_out_as_the_library_decodes_them_all_and_go_on_after_any_of_them(ids, done):
    whole = Spelled(ids)
    assert whole.text == LEVEL.decode(ids, skip_special_tokens=True)
    assert whole.ids == ids
    begun = Detokenizer(LEVEL, TokenBytes(LEVEL))
    delivered = [piece for token in ids[:done] if (piece := begun.push(token)) is not None]
    earlier = [token for _, tokens in delivered for token in tokens]
    later = Spelled(ids[len(earlier) :], earlier=earlier)
    assert "".join(text for text, _ in delivered) + later.text == whole.text
    assert [*earlier, *later.ids] == ids


def test_a_character_waits_for_its_last_byte_and_no_longer():
    ids = level("日".encode())
    assert Spelled(ids[:2]).pieces == []
    assert Spelled(ids[:2]).rest == (MARK, ids[:2])
    assert Spelled(ids).pieces == [("日", ids)]


def test_a_mark_waits_for_nothing():
    ids = LEVEL.encode(MARK).ids
    assert Spelled(ids).pieces == [(MARK, ids)]
    assert Spelled(level(f"{MARK}a".encode())).texts == [MARK, "a"]


def test_what_is_whole_does_not_wait_for_the_beginning_that_follows_it_in_the_same_token():
    split = next(token for token in range(LEVEL.get_vocab_size()) if TokenBytes(LEVEL).of(token) == b"a\xe6")
    rest = level(b"\x97\xa5")
    assert Spelled([split, *rest]).pieces == [("a", [split]), ("日", rest)]
    assert Spelled([split]).pieces == [("a", [split])]
    assert Spelled([split]).rest == (MARK, [])
    assert Spelled(rest, earlier=[split]).text == "日"


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"\xe6\x97A", ["\ufffdA"]),  # never became whole, and something else followed
        (b"\x97A", [MARK, "A"]),  # begins no character
        (b"\xff\xe6\x97\xa5", [MARK, "日"]),
        (b"\xe6\xe6\x97\xa5", [MARK, "日"]),
        (b"\xf0\x9f\x98\x80", ["😀"]),
    ],
)
def test_bytes_that_are_no_character_are_marked_and_good_ones_follow(data, texts):
    assert [text for text in Spelled(level(data)).texts if text] == texts
    assert [text for text in Spelled(fallback(data), FALLBACK).texts if text] == texts


def test_special_tokens_are_silent_and_counted():
    ids = LEVEL.encode("hello").ids
    spelled = Spelled([*ids, END])
    assert spelled.pieces[-1] == ("", [END])
    assert spelled.rest == ("", [])
    waiting = [*level(b"\xe6"), END]
    assert Spelled(waiting).pieces == []
    assert Spelled(waiting).rest == (MARK, waiting)


def test_a_token_beyond_the_vocabulary_is_silent():
    assert Spelled([LEVEL.get_vocab_size() + 5]).pieces == [("", [LEVEL.get_vocab_size() + 5])]


def test_a_space_before_the_first_word_stays():
    assert Spelled(LEVEL.encode(" there").ids, prompt=LEVEL.encode("hello").ids).text == " there"
    spaced, letter = named(FALLBACK, "▁a", "h")
    assert Spelled([spaced], FALLBACK, prompt=[letter]).text == " a"
    assert Spelled([spaced, spaced], FALLBACK).texts == ["a", " a"]
    hello, there, ending = named(WORDS, "hello", "there", "##s")
    assert Spelled([there, ending], WORDS, prompt=[hello]).texts == [" there", "s"]


def test_texts_and_bytes_of_one_vocabulary():
    spaced, mark = named(FALLBACK, "▁a", MARK)
    ids = [spaced, *fallback("日".encode()), spaced, mark, *fallback(b"\xe6\x97"), spaced, *fallback(b"\xe6")]
    spelled = Spelled(ids, FALLBACK, prompt=[spaced])
    assert spelled.texts == [" a", "日", " a", MARK, "\ufffd a"]
    assert spelled.rest == (MARK, ids[-1:])
    assert spelled.ids == ids
    assert Spelled(named(WORDS, MARK), WORDS).texts == [MARK]
