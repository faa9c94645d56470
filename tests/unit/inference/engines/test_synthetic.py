"""The synthetic engine imports no torch, and says the same to the same request."""

import math
import struct
import subprocess
import sys

from common.manifest import Synthetic
from common.sampling import Sampling
from inference.engines.engine import Chat, Generation, Text
from inference.engines.output import Output
from inference.engines.synthetic import TOKENS, SyntheticEngine, token_count, vector


async def answer(sampling, resume=(), **options):
    engine = SyntheticEngine(Synthetic(**options), 100)
    output = Output()
    await engine.generate(Generation("a", Text("Hello"), sampling, resume), output)
    pieces = []
    while not output.drained:
        pieces += await output.take()
    await engine.close()
    return pieces


async def test_the_same_request_has_the_same_answer_at_any_rate():
    fast = await answer(Sampling(), outputTokens=20)
    slow = await answer(Sampling(), outputTokens=20, tokensPerSecond=20, firstTokenSeconds=0.01)
    assert len(slow) > len(fast) == 1
    assert "".join(piece.text for piece in slow) == fast[0].text
    assert [token for piece in slow for token in piece.token_ids] == fast[0].token_ids
    assert fast[0].text == "".join(TOKENS[token] for token in fast[0].token_ids)


async def test_it_goes_on_where_an_earlier_attempt_ended():
    (whole,) = await answer(Sampling(), outputTokens=20)
    (rest,) = await answer(Sampling(), (tuple(whole.token_ids[:8]),), outputTokens=20)
    assert rest.token_ids == whole.token_ids[8:]


async def test_a_full_context_ends_it():
    (piece,) = await answer(Sampling(), outputTokens=1000)
    assert len(piece.token_ids) == 100 - token_count(Text("Hello"))


def test_vectors_have_unit_length_and_depend_on_the_text():
    values = struct.unpack("<64f", vector(Text("one")))
    assert math.isclose(sum(value * value for value in values), 1.0, abs_tol=1e-5)
    assert vector(Text("one")) == vector(Text("one")) != vector(Text("two"))


def test_prompts_are_counted_by_their_text_alone():
    assert token_count(Chat([{"role": "user", "content": "x" * 40}, {"role": "user", "content": None}])) == 11


def test_its_worker_imports_no_torch():
    code = (
        "import sys, inference.app, inference.engines.synthetic; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'tokenizers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
