"""Draws the next token of every request in a step, each by its own rules.

It takes the place of the library's list of logits processors, which knows temperature, top-k and top-p per request but
neither greedy nor seeded requests beside sampled ones, nor penalties. Its scores leave one token possible, so that the
library's argmax picks what was drawn here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.requests import FutureRequestState
from transformers.generation.logits_process import LogitsProcessorList

from common.sampling import Sampling
from inference.engines.output import Output
from inference.engines.transformers.compute_time import StepClock

_SEED_MASK = (1 << 63) - 1
_SEED_STEP = 0x9E3779B97F4A7C15  # spreads (seed, choice, position) over all generators


@dataclass(slots=True, eq=False)
class Draw:
    """How the tokens of one choice are drawn, and the state that this needs."""

    sampling: Sampling
    choice: int
    position: int  # tokens drawn before, those of earlier attempts included
    seen: dict[int, int] = field(default_factory=dict)  # how often a token appeared; kept only for penalties
    cached_tokens: int | None = None  # of the prompt, once its first step is known
    output: Output | None = None  # where the time it takes is counted

    @classmethod
    def after(cls, sampling: Sampling, choice: int, tokens: Sequence[int], output: Output | None = None) -> "Draw":
        """Continues after the tokens of an earlier attempt."""
        draw = cls(sampling, choice, len(tokens), output=output)
        if draw.penalised:
            for token in tokens:
                draw.seen[token] = draw.seen.get(token, 0) + 1
        return draw

    @property
    def penalised(self) -> bool:
        return self.sampling.frequency_penalty != 0 or self.sampling.presence_penalty != 0

    @property
    def generator_seed(self) -> int:
        """Depends on the position alone, so that a resumed request draws what the lost one would have drawn."""
        seed = self.sampling.seed or 0
        return (seed * _SEED_STEP + self.choice * 0x100000001 + self.position * 0x1000193) & _SEED_MASK


class Sampler(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]  # untyped base
    """Draws for all requests inside the engine, by the library's request id."""

    def __init__(self, steps: StepClock) -> None:
        super().__init__(LogitsProcessorList())
        self._steps = steps
        self.do_processing = True
        self._draws: dict[str, Draw] = {}
        self._rows: list[Draw | None] = []
        self._generator = torch.Generator()

    def add(self, request_id: str, draw: Draw) -> None:
        """To be called before the request is given to the library."""
        self._draws[request_id] = draw

    def remove(self, request_id: str) -> None:
        self._draws.pop(request_id, None)

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        """Called by the library once for each step, with the requests that the step computes."""
        rows: list[Draw | None] = []
        shares: list[tuple[Output, int]] = []
        for request in requests_in_batch:
            draw = self._draws.get(request.state.request_id)
            if draw is not None and draw.output is not None:
                shares.append((draw.output, request.query_length))
            if draw is not None and draw.cached_tokens is None:
                # The offset already counts this step's tokens; what lies before them came out of the prefix cache.
                draw.cached_tokens = request.state.position_offset - request.query_length
            if request.has_new_token:
                rows.append(draw)
        self._rows = rows
        self._steps.begin(shares)
        return arg_storage

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, args: torch.Tensor) -> torch.Tensor:
        """Scores in, one row for each request that gets a token; scores out whose highest is the token drawn."""
        self._penalise(scores)
        sampled = [row for row, draw in enumerate(self._rows) if draw is not None and not draw.sampling.greedy]
        if sampled:
            tokens = self._sample(scores, sampled)
            scores[sampled, tokens] = torch.inf
        self._remember(scores)
        return scores

    def _sample(self, scores: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """One uniform number a row, looked up in the row's cumulated probabilities.

        (torch.multinomial draws a number for every token of the vocabulary: 8 ms a step of 64 rows of the demo model.)
        """
        draws = [draw for row in rows if (draw := self._rows[row]) is not None]
        device = scores.device
        temperatures = torch.tensor([draw.sampling.temperature for draw in draws], device=device)
        logits = scores[rows] / temperatures.unsqueeze(1)
        if any(draw.sampling.top_k > 0 for draw in draws):
            logits = _top_k(logits, [draw.sampling.top_k for draw in draws])
        if any(draw.sampling.top_p < 1 for draw in draws):
            logits = _top_p(logits, [draw.sampling.top_p for draw in draws])
        cumulated = logits.softmax(dim=-1).cumsum(dim=-1)
        marks = torch.rand(len(draws)).tolist()
        for row, draw in enumerate(draws):
            if draw.sampling.seed is not None:
                self._generator.manual_seed(draw.generator_seed)
                marks[row] = torch.rand(1, generator=self._generator).item()
        wanted = torch.tensor(marks, device=device) * cumulated[:, -1]
        # The first token whose sum is above the mark: one without probability never is the first.
        return torch.searchsorted(cumulated, wanted.unsqueeze(1), right=True).squeeze(1).clamp_max(logits.shape[1] - 1)

    def _penalise(self, scores: torch.Tensor) -> None:
        for row, draw in enumerate(self._rows):
            if draw is not None and draw.penalised and draw.seen:
                tokens = torch.tensor(list(draw.seen), device=scores.device)
                counts = torch.tensor(list(draw.seen.values()), dtype=scores.dtype, device=scores.device)
                sampling = draw.sampling
                scores[row, tokens] -= counts * sampling.frequency_penalty + sampling.presence_penalty

    def _remember(self, scores: torch.Tensor) -> None:
        penalised = [row for row, draw in enumerate(self._rows) if draw is not None and draw.penalised]
        drawn = dict(zip(penalised, scores[penalised].argmax(dim=-1).tolist(), strict=True)) if penalised else {}
        for row, draw in enumerate(self._rows):
            if draw is not None:
                draw.position += 1
                if row in drawn:
                    draw.seen[drawn[row]] = draw.seen.get(drawn[row], 0) + 1


def _top_k(logits: torch.Tensor, limits: list[int]) -> torch.Tensor:
    """Keeps each row's k best; a limit of 0 keeps all."""
    vocabulary = logits.shape[1]
    limits = [min(limit, vocabulary) if limit > 0 else vocabulary for limit in limits]
    best = logits.topk(max(limits), dim=-1).values
    last = best.gather(1, torch.tensor(limits, device=logits.device).unsqueeze(1) - 1)
    return logits.masked_fill(logits < last, -torch.inf)


def _top_p(logits: torch.Tensor, shares: list[float]) -> torch.Tensor:
    """Keeps the smallest set of best tokens of each row whose probabilities reach its share."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    outside = before >= torch.tensor(shares, device=logits.device).unsqueeze(1)
    outside[:, 0] = False  # one token always stays
    return logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
