"""The engine `transformers`: the library's continuous batching manager behind the Engine protocol."""

import asyncio
import logging
from collections.abc import Sequence

from uplion.inference.v1.sampling_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP

from common.deltas import Delta
from common.sampling import Sampling
from inference.engines.engine import Capability, EngineStats, Generation, Text, Tokens, Vectors, output_limit
from inference.engines.output import Output
from inference.engines.stopping import StopScanner
from inference.engines.transformers.embedding import Embedder
from inference.engines.transformers.loading import EngineResources, LoadedModel, load, prepare
from inference.engines.transformers.model_files import model_folder
from inference.engines.transformers.sampler import Draw
from inference.engines.transformers.steps import Choice, Request, StepOutput, StepRouter, engine_error
from inference.engines.transformers.text.detokenizer import Detokenizer
from inference.engines.transformers.text.prompts import Prompts
from inference.engines.transformers.text.token_bytes import TokenBytes

logger = logging.getLogger(__name__)

_WATCH_SECONDS = 0.25
_STOP_SECONDS = 2.0
_WARM_UP_TOKENS = 2


class TransformersEngine:
    """Generation runs in the library's thread, embeddings and long prompts in others; all else is on the event loop."""

    provider = "transformers"
    capabilities = frozenset(Capability)

    def __init__(self, source: str, resources: EngineResources) -> None:
        self._source = source
        self._resources = resources
        self.context_tokens = 0
        self._requests: dict[str, Request] = {}

    async def start(self) -> None:
        folder = await asyncio.to_thread(model_folder, self._source)
        self._loaded: LoadedModel = await asyncio.to_thread(load, folder, self._resources)
        self.context_tokens = self._loaded.context_tokens
        self._sampler = self._loaded.sampler
        self._prompts = Prompts(self._loaded.tokenizer, self._loaded.vocabulary_size, self.context_tokens)
        self._embedder = Embedder(self._loaded)
        self._token_bytes = TokenBytes(self._loaded.tokenizer.backend_tokenizer)
        self._manager = self._loaded.manager
        loop = asyncio.get_running_loop()
        self._router = StepRouter(loop, self._loaded.steps, self._manager.cancel_request, self._on_step)
        await asyncio.to_thread(prepare, self._loaded, self._router)
        self._manager.start()
        await self._warm_up()

    async def failure(self) -> Exception:
        while self._manager.is_running():  # noqa: ASYNC110  # the library sets no event when its thread ends
            await asyncio.sleep(_WATCH_SECONDS)
        return self._manager.background_thread_status.fatal_error or RuntimeError("the engine's thread ended")

    async def generate(self, generation: Generation, output: Output) -> None:
        prompt = await self._prompts.encode(generation.prompt)
        limit = output_limit(generation.sampling, len(prompt), self.context_tokens)
        resumed = generation.resume or ((),) * generation.sampling.choices
        request = Request(generation.id, output, len(prompt), {})
        output.begin(len(prompt))
        output.compute_seconds = 0.0
        starting: list[tuple[Choice, list[int], int]] = []
        for index, tokens in enumerate(resumed):
            choice = self._choice(request, generation, index, prompt, tokens)
            ended = bool(tokens) and tokens[-1] in self._loaded.end_tokens
            if ended or len(tokens) >= limit:
                rest, _ = choice.detokenizer.flush()
                finish_reason = FINISH_REASON_STOP if ended else FINISH_REASON_LENGTH
                output.add(Delta(index, [rest] if rest else [], [], finish_reason))
                continue
            request.running[choice.engine_id] = choice
            starting.append((choice, [*prompt, *tokens], limit - len(tokens)))
        if not starting:
            output.end()
            return
        self._requests[generation.id] = request
        for choice, tokens_so_far, new_tokens in starting:
            self._submit(choice, tokens_so_far, new_tokens)

    async def embed(self, attempt_id: str, inputs: Sequence[Text | Tokens]) -> Vectors:
        encoded = await self._prompts.encode_inputs(inputs)
        values, compute_seconds = await self._embedder.embed(encoded)
        return Vectors(values, sum(map(len, encoded)), compute_seconds)

    def cancel(self, attempt_id: str) -> None:
        request = self._requests.pop(attempt_id, None)
        if request is not None:
            for engine_id in request.running:
                self._manager.cancel_request(engine_id)
                self._forget(engine_id)

    def stats(self) -> EngineStats:
        processor = self._manager.batch_processor
        if processor is None:
            return EngineStats()
        scheduler = processor.scheduler
        return EngineStats(
            queued=len(scheduler.waiting_requests) + self._manager.input_queue.qsize(),
            running=len(scheduler.active_requests),
            cache_use=1.0 - float(processor.cache.compute_free_capacity()),
        )

    async def close(self) -> None:
        self._requests.clear()
        if not hasattr(self, "_manager"):
            return
        self._prompts.close()
        self._embedder.close()
        if self._manager.is_running():
            await asyncio.to_thread(self._manager.stop, timeout=_STOP_SECONDS, hard_stop=True)

    async def _warm_up(self) -> None:
        """Runs the first step, which allocates the cache, before the first request."""
        output = Output()
        sampling = Sampling(max_output_tokens=_WARM_UP_TOKENS, temperature=0.0)
        await self.generate(Generation("warm-up", Text("Hello"), sampling), output)
        while not output.drained:
            await output.take()

    def _choice(
        self, request: Request, generation: Generation, index: int, prompt: list[int], resumed: Sequence[int]
    ) -> Choice:
        detokenizer = Detokenizer(self._loaded.tokenizer.backend_tokenizer, self._token_bytes, prompt, resumed)
        stop = generation.sampling.stop
        return Choice(
            request=request,
            index=index,
            engine_id=f"{generation.id}#{index}",
            draw=Draw.after(generation.sampling, index, resumed, request.output),
            detokenizer=detokenizer,
            scanner=StopScanner(stop) if stop else None,
            end_tokens=self._loaded.end_tokens,
        )

    def _submit(self, choice: Choice, tokens: list[int], new_tokens: int) -> None:
        self._router.add(choice)
        self._sampler.add(choice.engine_id, choice.draw)
        accepted = self._manager.add_request(
            tokens, request_id=choice.engine_id, max_new_tokens=new_tokens, streaming=True
        )
        if accepted is None:
            raise engine_error(self._manager.background_thread_status.can_accept_new_requests())

    def _on_step(self, made: list[StepOutput]) -> None:
        """Passes a step's outputs on to their requests."""
        for item in made:
            request = item.choice.request
            if self._requests.get(request.attempt_id) is not request:
                continue  # cancelled meanwhile
            if item.delta is None:
                self.cancel(request.attempt_id)
                request.output.fail(engine_error(item.error))
                continue
            draw = item.choice.draw
            if item.choice.index == 0 and draw.cached_tokens:
                request.output.begin(request.input_tokens, min(draw.cached_tokens, request.input_tokens))
            request.output.add(item.delta)
            if item.delta.finish_reason:
                self._forget(item.choice.engine_id)
                del request.running[item.choice.engine_id]
                if not request.running:
                    del self._requests[request.attempt_id]
                    request.output.end()

    def _forget(self, engine_id: str) -> None:
        self._router.remove(engine_id)
        self._sampler.remove(engine_id)
