"""Embeddings: the mean of a text's last hidden states, scaled to length 1."""

from collections.abc import Iterator, Sequence

import torch

from inference.engines.transformers.loading import LoadedModel

_BATCH_TOKENS = 2048  # padding included; generation waits for at most this much


def batches(inputs: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Divides the inputs, in their order, into batches that are small enough to be computed at once."""
    batch: list[list[int]] = []
    longest = 0
    for tokens in inputs:
        longest = max(longest, len(tokens))
        if batch and longest * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch, longest = [], len(tokens)
        batch.append(tokens)
    if batch:
        yield batch


@torch.inference_mode()
def embed(loaded: LoadedModel, batch: list[list[int]]) -> list[bytes]:
    """The vectors of a batch; generation pauses between two steps meanwhile."""
    longest = max(map(len, batch))
    device = loaded.model.device
    tokens = torch.zeros(len(batch), longest, dtype=torch.long, device=device)
    inside = torch.zeros(len(batch), longest, 1, device=device)
    for row, ids in enumerate(batch):
        tokens[row, : len(ids)] = torch.tensor(ids, device=device)
        inside[row, : len(ids)] = 1
    with loaded.manager.pause():
        # Padding stands after the text, where a causal model never looks back from.
        states = loaded.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state.float()
    means = (states * inside).sum(dim=1) / inside.sum(dim=1)
    unit = torch.nn.functional.normalize(means, dim=-1).cpu().numpy().astype("<f4")
    return [row.tobytes() for row in unit]
