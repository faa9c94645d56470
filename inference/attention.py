"""Attention over the paged cache on a CPU, request by request.

The library's `sdpa` builds one dense mask over every request of a step, so that 200 requests cost 200 times the work of
one each; here each looks at its own keys only. Registered through the library's own AttentionInterface.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "uplion_paged"
_SMALLEST_BUCKET = 64


def register() -> None:
    """Makes the name known to the library. Idempotent."""
    AttentionInterface.register(NAME, forward)


def suits(config: Any) -> bool:
    """Whether a model attends fully and plainly in every layer; others keep the library's own."""
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
    cache: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The library's signature. Without a paged cache (embeddings) it is the library's sdpa."""
    if cache is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    query_ends = kwargs["cu_seq_lens_q"].tolist()
    key, value = cache.update(key, value, module.layer_idx, kwargs)
    key_ends = kwargs["cu_seq_lens_k"].tolist()
    spans = [(query_ends[at], query_ends[at + 1], key_ends[at], key_ends[at + 1]) for at in range(len(query_ends) - 1)]
    output = torch.empty_like(query)
    grouped = query.shape[1] != key.shape[1]
    single = [span for span in spans if span[1] - span[0] == 1]
    for bucket in _by_length(single):
        _decode(query, key, value, output, bucket, scaling, grouped)
    for start, end, key_start, key_end in spans:
        if end - start > 1:
            mask = None
            if end - start != key_end - key_start:  # a later part of a prompt: it also sees what is cached
                ones = torch.ones(end - start, key_end - key_start, dtype=torch.bool, device=query.device)
                mask = ones.tril(key_end - key_start - (end - start))
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


Span = tuple[int, int, int, int]


def _by_length(spans: list[Span]) -> list[list[Span]]:
    """Requests whose numbers of keys have the same power of two: padding them costs at most twice the work."""
    buckets: dict[int, list[Span]] = {}
    for span in spans:
        length = max(span[3] - span[2], _SMALLEST_BUCKET)
        buckets.setdefault((length - 1).bit_length(), []).append(span)
    return list(buckets.values())


def _decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    spans: list[Span],
    scaling: float | None,
    grouped: bool,
) -> None:
    """One query each, all in one call."""
    rows = torch.tensor([span[0] for span in spans], device=query.device)
    starts = torch.tensor([span[2] for span in spans], device=query.device)
    lengths = torch.tensor([span[3] - span[2] for span in spans], device=query.device)
    steps = torch.arange(int(lengths.max()), device=query.device)
    inside = steps < lengths.unsqueeze(1)  # [requests, keys]
    index = (starts.unsqueeze(1) + steps).where(inside, starts.unsqueeze(1))
    keys = key[0][:, index].transpose(0, 1)  # [requests, heads, keys, size]
    values = value[0][:, index].transpose(0, 1)
    queries = query[0][:, rows].transpose(0, 1).unsqueeze(2)
    mask = inside[:, None, None, :]
    answer = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling, enable_gqa=grouped)
    output[0][:, rows] = answer.squeeze(2).transpose(0, 1)
