"""Only complete characters come out, and every token once."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from inference.engines.transformers.detokenizer import Detokenizer

_TOKENIZER = Tokenizer(models.BPE())
_TOKENIZER.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
_TOKENIZER.decoder = decoders.ByteLevel()
_TOKENIZER.train_from_iterator(
    ["hello there, how are you"] * 3,
    trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)


def spell(ids, context=()):
    detokenizer = Detokenizer(_TOKENIZER, context)
    pieces = [piece for token in ids if (piece := detokenizer.push(token)) is not None]
    return pieces, detokenizer.flush()


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back_whole(text):
    ids = _TOKENIZER.encode(text).ids
    pieces, rest = spell(ids)
    assert "".join(piece for piece, _ in pieces) == text
    assert [token for _, tokens in pieces for token in tokens] + rest == ids


def test_a_character_waits_for_its_last_byte():
    ids = _TOKENIZER.encode("日").ids
    assert len(ids) == 3
    pieces, rest = spell(ids[:2])
    assert (pieces, rest) == ([], ids[:2])
    assert spell(ids) == ([("日", ids)], [])


def test_special_tokens_are_silent_and_counted():
    end = _TOKENIZER.token_to_id("<|end|>")
    ids = _TOKENIZER.encode("hello").ids
    pieces, rest = spell([*ids, end])
    assert pieces[-1] == ("", [end])
    assert rest == []


def test_a_space_before_the_first_word_stays():
    pieces, _ = spell(_TOKENIZER.encode(" there").ids, _TOKENIZER.encode("hello").ids)
    assert "".join(text for text, _ in pieces) == " there"
