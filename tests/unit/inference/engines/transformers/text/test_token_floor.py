"""No text becomes fewer tokens than its bound says."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from inference.engines.transformers.text.token_floor import TokenFloor


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end of the turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["aaaaaaaa 日日日日", "        "] * 20, trainer)
    return tokenizer


def byte_fallback(model: type[models.BPE] = models.BPE, **options: bool) -> Tokenizer:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", "a", "aa"]
    merges = [("▁", "▁"), ("a", "a")]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(model(vocabulary, merges, unk_token="<unk>", **options))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def normalised(normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizer
    return tokenizer


BOUNDED = {
    "byte level": byte_level(),
    "byte fallback": byte_fallback(byte_fallback=True),
    "NFC": normalised(normalizers.NFC()),
    "NFKC and lower case": normalised(normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
}
FLOORS = {name: TokenFloor(tokenizer) for name, tokenizer in BOUNDED.items()}
PIECES = "aaaaaaaa日<|end of the turn|> \u0301\u0323\u1fef\u212a\U0001fbf9ﷺ각"


@pytest.mark.parametrize("name", BOUNDED)
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.one_of(st.sampled_from(PIECES), st.characters(exclude_categories=["Cs"])), max_size=60))
@example(text="<|end of the turn|>" * 5)
@example(text="a" * 64)
@example(text=" " * 64)
@example(text="\U0001fbf9\u212a" * 20)
@example(text=unicodedata.normalize("NFD", "ᾧ각ậ") * 9)
def test_a_text_has_at_least_so_many_tokens(name, text):
    tokenizer = BOUNDED[name]
    assert FLOORS[name].tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))


def test_the_longest_token_makes_the_bound():
    assert TokenFloor(BOUNDED["byte level"]).bytes_per_token == len("<|end of the turn|>")
    assert TokenFloor(BOUNDED["NFC"]).bytes_per_token == 4 * len("<|end of the turn|>")
    assert TokenFloor(BOUNDED["byte level"]).tokens("x" * 39) == 3


def unbounded() -> dict[str, Tokenizer]:
    """What may make one token, or none, of any text."""
    beside, dropping, blank = byte_level(), byte_level(), byte_level()
    beside.add_tokens([AddedToken("<|user|>", rstrip=True)])
    dropping.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    blank.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])
    return {
        "white space beside a token": beside,
        "a separator": dropping,
        "words": blank,
        "ends": normalised(normalizers.Strip()),
        "accents": normalised(normalizers.StripAccents()),
        "runs": normalised(normalizers.Replace(Regex(" +"), " ")),
        "unknown": byte_fallback(fuse_unk=True),
        "long words": Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")),
        "unigrams": Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)),
    }


@pytest.mark.parametrize("name", unbounded())
def test_where_text_may_vanish_there_is_no_bound(name):
    assert TokenFloor(unbounded()[name]).tokens("x" * 1_000_000) == 0
