"""Muon: momentum whose matrix updates are made orthogonal, which learns from fewer tokens than AdamW alone.

It is written out here, because PyTorch's own computes in bfloat16 and matrix by matrix, which is slow on a CPU.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch

_ROUNDS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315  # the quintic of Newton and Schulz that Muon uses


class Muon:
    """Updates weight matrices of equal shape together, in 32-bit floats."""

    def __init__(
        self, matrices: Iterable[torch.nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        self._momentum = momentum
        self._weight_decay = weight_decay
        shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            shapes[matrix.shape].append(matrix)
        self._groups = [(group, torch.zeros(len(group), *shape)) for shape, group in shapes.items()]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for group, velocity in self._groups:
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            velocity.lerp_(gradient, 1 - self._momentum)
            update = orthogonal(gradient.lerp(velocity, self._momentum))
            update *= 0.2 * max(update.shape[-2:]) ** 0.5  # the size that AdamW's updates would have
            for matrix, change in zip(group, update, strict=True):
                matrix.mul_(1 - learning_rate * self._weight_decay).sub_(change, alpha=learning_rate)
                matrix.grad = None


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest matrices with all singular values near one, for a stack of matrices."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x.mT if tall else x
