"""The transformers engine with a tiny model on the CPU, against the library's own `generate` as the truth."""

import asyncio
import struct
import time
import uuid
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP

from common.errors import Reason, UplionError
from common.manifest import AIModel, Metadata, Spec
from common.sampling import Sampling
from inference.engines.engine import Chat, Generation, Text, Tokens
from inference.engines.output import Output
from inference.engines.registry import engine_for
from inference.engines.transformers.fast_import import fast_import
from inference.engines.transformers.text.detokenizer import Detokenizer
from inference.settings import InferenceSettings
from tests.integration.inference import tiny_model
from tests.kit.until import until

with fast_import():
    from inference.engines.transformers import embedding

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one engine for all: a start costs a second
GREEDY = Sampling(max_output_tokens=12, temperature=0.0)
WAIT_SECONDS = 90.0


def model_of(folder: Path, **spec) -> AIModel:
    return AIModel(
        "model.youxam.com/v1alpha1", "AIModel", Metadata("tiny"), Spec("local", str(folder), maxProcessNum=32, **spec)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # The engine's imports come first, as in a worker: they are the lean ones.
    engine_for(model_of(Path("none")), InferenceSettings(Path("none"), "none"))
    return tiny_model.build(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def started(folder, **settings):
    engine = engine_for(model_of(folder), InferenceSettings(Path("none"), "none", threads=1, **settings))
    async with asyncio.timeout(WAIT_SECONDS):
        await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder):
    async with started(folder) as engine:
        yield engine


async def collect(engine, prompt, sampling=GREEDY, resume=()):
    """Texts, token ids and finish of each choice, and the output."""
    output = Output()
    await engine.generate(Generation(uuid.uuid4().hex, prompt, sampling, resume), output)
    pieces: dict[int, Any] = {}
    async with asyncio.timeout(WAIT_SECONDS):
        while not output.drained:
            for delta in await output.take():
                text, ids, _ = pieces.get(delta.index, ("", [], None))
                pieces[delta.index] = (text + delta.text, ids + delta.token_ids, delta.finish_reason)
    return pieces, output


async def drain(output):
    while not output.drained:
        await output.take()


def truth(engine, ids, tokens=12):
    """Greedy decoding by the plain model, one token at a time without any cache."""
    import torch

    model = engine._loaded.model
    ids = list(ids)
    made = []
    with torch.no_grad():
        for _ in range(tokens):
            token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            made.append(token)
            ids.append(token)
            if token in engine._loaded.end_tokens:
                break
    return made


async def test_greedy_answers_are_those_of_the_plain_model(engine):
    prompts = [[(7 * i + j) % 300 + 6 for j in range(3 + 7 * i)] for i in range(8)]
    answers = await asyncio.gather(*(collect(engine, Tokens(prompt)) for prompt in prompts))
    for prompt, (pieces, output) in zip(prompts, answers, strict=True):
        assert pieces[0][1] == truth(engine, prompt)
        assert output.input_tokens == len(prompt)
        assert output.output_tokens == len(pieces[0][1])


async def test_a_prompt_longer_than_a_step_is_read_in_parts(engine):
    prompt = [i % 300 + 6 for i in range(450)]
    short, long = await asyncio.gather(collect(engine, Tokens([9, 8, 7])), collect(engine, Tokens(prompt)))
    assert long[0][0][1] == truth(engine, prompt)
    assert short[0][0][1] == truth(engine, [9, 8, 7])


async def test_a_shared_beginning_comes_from_the_cache(engine):
    prompt = [(3 * i) % 300 + 6 for i in range(100)]
    first, second = await collect(engine, Tokens(prompt)), await collect(engine, Tokens([*prompt, 50]))
    assert first[1].cached_tokens == 0
    assert 64 <= second[1].cached_tokens <= 100
    assert second[0][0][1] == truth(engine, [*prompt, 50])


async def test_text_is_the_tokens_decoded(engine):
    for seed in range(4):
        pieces, _ = await collect(engine, Text("Hello there"), Sampling(max_output_tokens=60, seed=seed))
        text, ids, finish = pieces[0]
        assert text == engine._loaded.tokenizer.decode(ids, skip_special_tokens=True)
        assert "\ufffd" in text, "the model's tokens are mostly bytes, and chance makes few characters of them"
        assert finish in (FINISH_REASON_LENGTH, FINISH_REASON_STOP)


async def test_length_and_end_token_finish_differently(engine):
    pieces, _ = await collect(engine, Tokens([9, 8, 7]), Sampling(max_output_tokens=3, temperature=0.0))
    assert (len(pieces[0][1]), pieces[0][2]) == (3, FINISH_REASON_LENGTH)
    third = pieces[0][1][2]
    engine._loaded.end_tokens, kept = frozenset({third}), engine._loaded.end_tokens
    engine._manager.generation_config.eos_token_id = third
    try:
        pieces, output = await collect(engine, Tokens([9, 8, 7]))
    finally:
        engine._loaded.end_tokens = kept
        engine._manager.generation_config.eos_token_id = sorted(kept)
    assert pieces[0][2] == FINISH_REASON_STOP
    assert output.output_tokens == len(pieces[0][1]) <= 3, "the end token counts"


async def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(engine):
    whole = (await collect(engine, Text("Hello"), Sampling(max_output_tokens=40, temperature=0.0)))[0][0][0]
    stop = whole[6:9]
    at = whole.index(stop)
    sampling = Sampling(max_output_tokens=40, temperature=0.0, stop=(stop,))
    pieces, _ = await collect(engine, Text("Hello"), sampling)
    assert pieces[0][0] == whole[:at]
    assert pieces[0][2] == FINISH_REASON_STOP
    await until(lambda: not engine.stats().running, WAIT_SECONDS)


async def test_a_stop_text_is_found_in_what_is_no_character(engine):
    drawn: dict[str, Any] = {"max_output_tokens": 60, "seed": 3}
    whole = (await collect(engine, Text("Hello there"), Sampling(**drawn)))[0][0][0]
    at = whole.index("\ufffd", 1)
    stop = whole[at - 1 : at + 1]
    pieces, _ = await collect(engine, Text("Hello there"), Sampling(**drawn, stop=(stop,)))
    assert pieces[0][0] == whole[: whole.index(stop)]
    assert pieces[0][2] == FINISH_REASON_STOP


async def test_an_answer_goes_on_where_an_earlier_attempt_ended_also_within_a_character(engine):
    tokenizer = engine._loaded.tokenizer.backend_tokenizer
    for sampling in (GREEDY, Sampling(max_output_tokens=12, seed=5, frequency_penalty=0.7)):
        text, ids, _ = (await collect(engine, Text("Hello"), sampling))[0][0]
        earlier = Detokenizer(tokenizer, engine._token_bytes)
        delivered = ""
        for done in range(1, len(ids) + 1):
            delivered += (earlier.push(ids[done - 1]) or ("", []))[0]
            pieces, output = await collect(engine, Text("Hello"), sampling, resume=(tuple(ids[:done]),))
            assert pieces[0][1] == ids[done:]
            assert delivered + pieces[0][0] == text
            assert output.output_tokens == len(ids) - done, "only what is new is billed"


async def test_the_same_seed_gives_the_same_answer_whatever_runs_beside(engine):
    seeded = Sampling(max_output_tokens=16, seed=11)
    alone = (await collect(engine, Text("Hello"), seeded))[0][0][1]
    beside = await asyncio.gather(
        collect(engine, Text("Hello"), seeded),
        collect(engine, Text("Hello"), Sampling(max_output_tokens=16, seed=12)),
        *(collect(engine, Text("One"), Sampling(max_output_tokens=16)) for _ in range(5)),
    )
    assert beside[0][0][0][1] == alone
    assert beside[1][0][0][1] != alone


async def test_choices_are_independent_and_counted_together(engine):
    pieces, output = await collect(engine, Text("Hello"), Sampling(max_output_tokens=8, seed=1, choices=3))
    assert sorted(pieces) == [0, 1, 2]
    assert len({tuple(ids) for _, ids, _ in pieces.values()}) > 1
    assert output.output_tokens == sum(len(ids) for _, ids, _ in pieces.values())


async def test_penalties_push_away_from_what_was_said(engine):
    plain = (await collect(engine, Text("Hello"), Sampling(max_output_tokens=40, temperature=0.0)))[0][0][1]
    pushed = Sampling(max_output_tokens=40, temperature=0.0, frequency_penalty=2.0, presence_penalty=2.0)
    other = (await collect(engine, Text("Hello"), pushed))[0][0][1]
    assert len(set(other)) >= len(set(plain))
    assert other != plain or len(set(plain)) == len(plain)


async def test_cancel_stops_within_a_step(engine):
    output = Output()
    await engine.generate(Generation("c", Text("Hello"), Sampling(max_output_tokens=400, seed=2)), output)
    await output.take()
    engine.cancel("c")
    counted = output.output_tokens
    await until(lambda: not (engine.stats().running or engine.stats().queued), WAIT_SECONDS)
    await collect(engine, Text("Hello"), Sampling(max_output_tokens=1))  # steps come in their order
    assert output.output_tokens == counted, "nothing is said of a cancelled request"


async def test_many_at_once_with_a_cache_too_small_for_all(folder):
    async with started(folder, cache_bytes=1) as engine:  # one context only
        prompts = [[i + 6, *range(10, 60)] for i in range(14)]
        sampling = Sampling(max_output_tokens=8, temperature=0.0)
        answers = await asyncio.gather(*(collect(engine, Tokens(prompt), sampling) for prompt in prompts))
        for prompt, (pieces, _) in zip(prompts, answers, strict=True):
            assert pieces[0][1] == truth(engine, prompt, 8)


async def test_too_long_a_prompt_is_refused_before_it_is_computed(engine):
    with pytest.raises(UplionError) as caught:
        await collect(engine, Tokens([9] * 512))
    assert caught.value.reason is Reason.CONTEXT_LENGTH_EXCEEDED
    assert caught.value.facts == {"context_tokens": 512, "input_tokens": 512}
    pieces, _ = await collect(engine, Tokens([9] * 508), Sampling(temperature=0.0))
    assert len(pieces[0][1]) <= 4


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (Tokens([9, 9999]), Reason.INVALID_REQUEST),
        (Tokens([]), Reason.INVALID_REQUEST),
        (Chat([{"role": "tool", "content": "x"}]), Reason.INVALID_REQUEST),
        (Chat([{"role": "user", "content": [{"type": "image_url"}]}]), Reason.UNSUPPORTED_PARAMETER),
    ],
)
async def test_prompts_it_cannot_read_are_refused(engine, prompt, reason):
    with pytest.raises(UplionError) as caught:
        await collect(engine, prompt)
    assert caught.value.reason is reason


async def test_chat_goes_through_the_template(engine):
    parts: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    _, output = await collect(engine, Chat(parts))
    tokenizer = engine._loaded.tokenizer
    expected = tokenizer("<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>", add_special_tokens=False)
    assert output.input_tokens == len(expected["input_ids"])


async def test_embeddings_are_means_of_unit_length_and_do_not_depend_on_neighbours(engine):
    texts = [Text("Hello there"), Text("One two three four five six"), Tokens([9, 8, 7])]
    together = await engine.embed("e", texts)
    alone = await engine.embed("e", [Text("Hello there")])
    vectors = [struct.unpack(f"<{len(value) // 4}f", value) for value in together.values]
    assert [len(vector) for vector in vectors] == [64] * 3
    for vector in vectors:
        assert sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-5)
    assert struct.unpack("<64f", alone.values[0]) == pytest.approx(vectors[0], abs=1e-5)
    assert together.input_tokens == alone.input_tokens + 3 + len(
        engine._loaded.tokenizer("One two three four five six")["input_ids"]
    )


async def test_embeddings_and_answers_share_the_model(engine):
    answers: list[Any]
    answers, _ = await asyncio.gather(
        asyncio.gather(*(collect(engine, Tokens([9, 8, i + 10])) for i in range(8))),
        asyncio.gather(*(engine.embed(f"e{i}", [Text("Hello there")] * 20) for i in range(3))),
    )
    for i, (pieces, _) in enumerate(answers):
        assert pieces[0][1] == truth(engine, [9, 8, i + 10])


async def test_a_long_text_is_embedded_in_slices_as_if_it_were_read_at_once(engine, monkeypatch):
    text = Tokens([20 + (7 * i) % 280 for i in range(400)])
    monkeypatch.setattr(embedding, "_SLICE_SECONDS", 1000.0)  # no slice is too slow: their sizes are the test's
    sizes: list[int] = []

    def counted(seconds: float) -> None:
        sizes.append(engine._embedder._computed_tokens)

    monkeypatch.setattr(engine._embedder, "_pace", counted)
    found = []
    for size in (400, 150, 16):
        monkeypatch.setattr(engine._embedder, "_slice_tokens", size)
        found.append(struct.unpack("<64f", (await engine.embed("e", [text])).values[0]))
    assert sizes == [400, 150, 150, 100, *[16] * 25]
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


async def test_slices_of_embeddings_and_steps_of_generation_take_turns(engine, monkeypatch):
    monkeypatch.setattr(embedding, "_FEWEST_TOKENS", 16)
    monkeypatch.setattr(embedding, "_MOST_TOKENS", 16)
    monkeypatch.setattr(engine._embedder, "_slice_tokens", 16)
    order: list[str] = []
    compute, deliver = engine._embedder._compute, engine._router.deliver_batch

    def slice_of(*work):
        try:
            return compute(*work)
        finally:
            order.append("slice")

    def step(outputs):
        order.append("step")
        deliver(outputs)

    monkeypatch.setattr(engine._embedder, "_compute", slice_of)
    monkeypatch.setattr(engine._router, "deliver_batch", step)
    async with asyncio.TaskGroup() as tasks:
        embedded = [tasks.create_task(engine.embed(f"e{i}", [Tokens([9] * 400)] * 8)) for i in range(4)]
        await until(lambda: "slice" in order, WAIT_SECONDS)
        long = Sampling(max_output_tokens=60, temperature=0.0, frequency_penalty=2.0)
        tokens = (await collect(engine, Tokens([9, 8, 7]), long))[0][0][1]
        ended = len(order)
        assert not all(task.done() for task in embedded), "the answer passed them"
        for task in embedded:
            task.cancel()
    first, last = order.index("step"), max(at for at in range(ended) if order[at] == "step")
    between = "".join(order[first : last + 1]).split("step")
    assert len(tokens) <= len(between)
    assert max(part.count("slice") for part in between) <= 2
    await until(lambda: order[-1:] == ["slice"] and engine._embedder._thread._work_queue.empty(), WAIT_SECONDS)
    assert order.count("slice") < 4 * 8 * 25, "what was cancelled is not computed"


async def test_embeddings_are_bounded_together(engine):
    with pytest.raises(UplionError) as caught:
        await engine.embed("e", [Text("one two three " * 50)] * 2048)
    assert (caught.value.reason, caught.value.param) == (Reason.INVALID_REQUEST, "input")
    assert "at most 300000" in caught.value.message


async def test_requests_share_the_engines_time_by_their_tokens(engine):
    long, short = Tokens([20 + i % 280 for i in range(300)]), Tokens([9, 8, 7])
    for _ in range(5):
        started_seconds = time.perf_counter()
        answers, vectors = await asyncio.gather(
            asyncio.gather(
                *(collect(engine, prompt, Sampling(max_output_tokens=3)) for prompt in (long, short, short))
            ),
            engine.embed("e", [Text("Hello there")] * 20),
        )
        elapsed_seconds = time.perf_counter() - started_seconds
        spent_seconds = [output.compute_seconds for _, output in answers]
        assert min(spent_seconds) > 0
        assert vectors.compute_seconds > 0
        assert sum(spent_seconds) + vectors.compute_seconds <= elapsed_seconds
        if spent_seconds[0] > max(spent_seconds[1:]):
            break  # a busy machine may hold up a step that is mostly a short one's
    assert spent_seconds[0] > max(spent_seconds[1:])


async def test_a_broken_engine_fails_its_requests_and_says_so(folder):
    def broken(*_):
        raise RuntimeError("no more memory")

    async with started(folder) as engine, asyncio.timeout(WAIT_SECONDS):
        output = Output()
        await engine.generate(Generation("b", Text("Hello"), Sampling(max_output_tokens=400, temperature=0.0)), output)
        await output.take()
        engine._manager.batch_processor._generation_step = broken
        with pytest.raises(UplionError) as caught:
            await drain(output)
        problem = await engine.failure()
    assert caught.value.reason is Reason.INTERNAL
    assert "memory" not in caught.value.message, "what broke is for the log"
    assert "no more memory" in str(problem)
