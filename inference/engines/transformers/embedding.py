"""Embeddings: the mean of a text's last hidden states, scaled to length 1; in slices between the generation's steps."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from transformers import DynamicCache

from inference.engines.transformers.loading import LoadedModel

_SLICE_SECONDS = 0.025  # a generation step waits for at most about two slices
_FIRST_TOKENS = 64  # of the first slice; each next one has as many as fit by the pace of the last one
_FEWEST_TOKENS = 16
_MOST_TOKENS = 4096  # padding included: bounds the memory of a slice
_TURN_SECONDS = 0.001  # while generation takes new requests over
_MOST_TURNS = 100

ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")


class _LongText:
    """A text of more tokens than a slice, and how far it has been read."""

    def __init__(self, tokens: list[int], cache: DynamicCache) -> None:
        self.tokens = tokens
        self.cache = cache
        self.read = 0
        self.sum = torch.zeros(1)  # of its hidden states


class Embedder:
    """Computes the vectors of any number of requests, a slice of each in turn, in a thread of its own."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embeddings")
        self._slice_tokens = _FIRST_TOKENS
        self._computed_tokens = 0  # of the last slice, padding included

    async def embed(self, texts: Sequence[list[int]]) -> tuple[list[bytes], float]:
        """Their vectors, and the compute seconds they took. Between two slices a cancelled call ends."""
        vectors: list[bytes] = []
        seconds = 0.0
        while len(vectors) < len(texts):
            batch = self._batch(texts, len(vectors))
            if len(batch[0]) > self._slice_tokens and self._loaded.full_attention:
                text = _LongText(batch[0], DynamicCache())
                while text.read < len(text.tokens):
                    seconds += (await self._slice(self._read, text))[1]
                vectors += _unit(text.sum)
            else:
                made, spent = await self._slice(self._embed, batch)
                vectors += made
                seconds += spent
        return vectors, seconds

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _batch(self, texts: Sequence[list[int]], first: int) -> Sequence[list[int]]:
        """As many texts from `first` on as are a slice together, padded; at least one."""
        longest, last = len(texts[first]), first + 1
        while last < len(texts):
            longest = max(longest, len(texts[last]))
            if longest * (last + 1 - first) > self._slice_tokens:
                break
            last += 1
        return texts[first:last]

    async def _slice(self, work: Callable[[ArgumentT], ResultT], argument: ArgumentT) -> tuple[ResultT, float]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, work, argument)

    def _compute(self, work: Callable[[ArgumentT], ResultT], argument: ArgumentT) -> tuple[ResultT, float]:
        """One slice, and the compute seconds it took."""
        manager, clock = self._loaded.manager, self._loaded.clock
        for _ in range(_MOST_TURNS):  # what asks for the engine now would wait for another slice
            if manager.input_queue.empty():
                break
            time.sleep(_TURN_SECONDS)
        with manager.pause():
            began = time.perf_counter()
            span = clock.start()
            try:
                made = work(argument)
            finally:
                seconds = clock.stop(span)
            self._pace(time.perf_counter() - began)
        return made, seconds

    def _pace(self, seconds: float) -> None:
        """Sizes the next slice by the time that this one took."""
        fitting = int(self._computed_tokens * _SLICE_SECONDS / seconds)
        if seconds > _SLICE_SECONDS:
            self._slice_tokens = max(_FEWEST_TOKENS, fitting, self._slice_tokens // 2)
        elif 2 * self._computed_tokens >= self._slice_tokens:  # a small one takes its time for other things
            self._slice_tokens = min(_MOST_TOKENS, fitting, self._slice_tokens * 2)

    @torch.inference_mode()
    def _embed(self, batch: Sequence[list[int]]) -> list[bytes]:
        """The vectors of whole texts."""
        longest = max(map(len, batch))
        device = self._loaded.model.device
        tokens = torch.zeros(len(batch), longest, dtype=torch.long, device=device)
        inside = torch.zeros(len(batch), longest, 1, device=device)
        for row, ids in enumerate(batch):
            tokens[row, : len(ids)] = torch.tensor(ids, device=device)
            inside[row, : len(ids)] = 1
        self._computed_tokens = tokens.numel()
        # Padding stands after the text, where a causal model never looks back from.
        states = self._loaded.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state.float()
        return _unit((states * inside).sum(dim=1))

    @torch.inference_mode()
    def _read(self, text: _LongText) -> None:
        """Goes on with a text, as a prompt is read in parts: what comes later sees all that is cached."""
        device = self._loaded.model.device
        part = torch.tensor([text.tokens[text.read : text.read + self._slice_tokens]], device=device)
        self._computed_tokens = part.numel()
        end = text.read + self._computed_tokens
        seen = torch.ones(self._computed_tokens, end, dtype=torch.bool, device=device).tril(text.read)
        output = self._loaded.model.base_model(
            input_ids=part, attention_mask=seen[None, None], past_key_values=text.cache, use_cache=True
        )
        text.sum = text.sum.to(device) + output.last_hidden_state.float().sum(dim=1)
        text.read = end


def _unit(sums: torch.Tensor) -> list[bytes]:
    """The means have the directions of the sums."""
    unit = torch.nn.functional.normalize(sums, dim=-1).cpu().numpy().astype("<f4")
    return [row.tobytes() for row in unit]
