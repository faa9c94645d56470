"""Attention over the paged cache on a CPU, request by request.

The library's `sdpa` builds one dense mask over every request of a step, so that 200 requests cost 200 times the work of
one each; here each request attends to its own keys only. Registered through the library's own AttentionInterface.
"""

from dataclasses import dataclass
from typing import TypedDict, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from inference.engines.transformers.library_types import PagedCache, TextConfig

NAME = "uplion_paged"
_SMALLEST_BUCKET = 64
_PLAN = "uplion_plan"  # attribute of a tensor of the step


def register() -> None:
    """Registers `forward` with the library. Idempotent."""
    AttentionInterface.register(NAME, forward)


def suits(config: TextConfig) -> bool:
    """Whether every layer has plain full attention; other models keep the library's implementation."""
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        set(layer_types) == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and getattr(config, "attn_logit_softcapping", None) is None
        and getattr(config, "attention_chunk_size", None) is None
    )


def forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cache: PagedCache | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """The library's signature. Without a paged cache (embeddings) it is the library's sdpa."""
    if cache is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    plan = _plan(cast(_StepIndexes, kwargs))
    key, value = cache.update(key, value, module.layer_idx, {**kwargs, "read_index": plan.read_index})
    output = torch.empty_like(query)
    grouped = query.shape[1] != key.shape[1]
    for bucket in plan.decodes:
        _decode(query, key, value, output, bucket, scaling, grouped)
    for start, end, key_start, key_end, mask in plan.prompts:
        output[:, :, start:end] = scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, key_start:key_end],
            value[:, :, key_start:key_end],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
    return output.transpose(1, 2).contiguous(), None


class _StepIndexes(TypedDict):
    """The library's arguments about a step: where each request's queries and keys end, and which keys are read."""

    cu_seq_lens_q: torch.Tensor
    cu_seq_lens_k: dict[str, torch.Tensor]
    read_index: list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Requests with one query each and about as many keys; padded to the longest of them."""

    rows: torch.Tensor  # of the queries
    key_start: int  # where its keys begin among those read, requests * longest of them
    mask: torch.Tensor  # [requests, 1, 1, longest]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which keys each query of a step attends to; the same in every layer."""

    decodes: list[_Bucket]
    prompts: list[tuple[int, int, int, int, torch.Tensor | None]]  # query from, to; key from, to; mask
    read_index: list[torch.Tensor]  # the library's, in our order: keys come out of the cache already padded


def _plan(indexes: _StepIndexes) -> _Plan:
    """Built in the first layer, and kept on a tensor of the step as long as that lives."""
    query_ends = indexes["cu_seq_lens_q"]
    found: _Plan | None = getattr(query_ends, _PLAN, None)
    if found is None:
        (key_ends,) = indexes["cu_seq_lens_k"].values()
        (read_index,) = indexes["read_index"]
        found = _build_plan(query_ends.tolist(), key_ends.tolist(), read_index)
        setattr(query_ends, _PLAN, found)
    return found


def _build_plan(query_ends: list[int], key_ends: list[int], read_index: torch.Tensor) -> _Plan:
    buckets: dict[int, list[tuple[int, int, int]]] = {}
    waiting: list[tuple[int, int, int, int]] = []
    for at in range(len(query_ends) - 1):
        start, end, key_start, key_end = *query_ends[at : at + 2], *key_ends[at : at + 2]
        if end - start == 1 and read_index.numel():
            # The same power of two: padding costs at most twice the work.
            bucket = (max(key_end - key_start, _SMALLEST_BUCKET) - 1).bit_length()
            buckets.setdefault(bucket, []).append((start, key_start, key_end - key_start))
        else:
            waiting.append((start, end, key_start, key_end))
    order: list[torch.Tensor] = []
    decodes: list[_Bucket] = []
    position = 0
    for spans in buckets.values():
        rows, starts, lengths = (torch.tensor(column) for column in zip(*spans, strict=True))
        steps = torch.arange(max(span[2] for span in spans))
        inside = steps < lengths.unsqueeze(1)
        order.append((starts.unsqueeze(1) + steps).where(inside, starts.unsqueeze(1)).flatten())
        decodes.append(_Bucket(rows, position, inside[:, None, None, :]))
        position += order[-1].numel()
    prompts: list[tuple[int, int, int, int, torch.Tensor | None]] = []
    for start, end, key_start, key_end in waiting:
        queries, keys = end - start, key_end - key_start
        # A later part of a prompt also sees all that is cached.
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if queries != keys else None
        prompts.append((start, end, position, position + keys, mask))
        order.append(torch.arange(key_start, key_end))
        position += keys
    return _Plan(decodes, prompts, [read_index[torch.cat(order)] if read_index.numel() else read_index])


def _decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    bucket: _Bucket,
    scaling: float | None,
    grouped: bool,
) -> None:
    """One query each, all in one call."""
    requests, longest = bucket.rows.shape[0], bucket.mask.shape[3]
    shape = (requests, longest, key.shape[1], key.shape[3])
    span = slice(bucket.key_start, bucket.key_start + requests * longest)
    keys, values = (states[0].transpose(0, 1)[span].view(shape).transpose(1, 2) for states in (key, value))
    queries = query[0].transpose(0, 1).index_select(0, bucket.rows).unsqueeze(2)
    answer = scaled_dot_product_attention(
        queries, keys, values, attn_mask=bucket.mask, scale=scaling, enable_gqa=grouped
    )
    output[0].transpose(0, 1).index_copy_(0, bucket.rows, answer.squeeze(2))
