"""Types for what this engine uses of transformers' models and tokenizers; the library itself has none."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager


class TextConfig(Protocol):
    """The part of a model's config.json about text. Fields that not every model has are read with `getattr`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int


class Config(Protocol):
    """A model's config.json."""

    def get_text_config(self) -> TextConfig:
        """Itself, or its part about text where the model has other parts too."""


class HiddenStates(Protocol):
    """What a model computes before its vocabulary's scores."""

    last_hidden_state: torch.Tensor  # [rows, tokens, hidden size]


class EndOfText(Protocol):
    """A model's generation_config.json."""

    eos_token_id: int | list[int] | None


class CausalModel(Protocol):
    """A model that continues text."""

    config: Config
    device: torch.device
    generation_config: EndOfText | None
    base_model: Callable[..., HiddenStates]

    def init_continuous_batching(
        self, *, generation_config: GenerationConfig, continuous_batching_config: ContinuousBatchingConfig
    ) -> ContinuousBatchingManager:
        """The manager that generates for many requests at once."""

    def set_attn_implementation(self, name: str) -> None:
        """Computes attention with the function registered under this name."""


class FastTokenizer(Protocol):
    """A tokenizer with a tokenizer.json."""

    backend_tokenizer: Tokenizer
    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: str | dict[str, str] | None
    special_tokens_map: Mapping[str, object]

    def get_chat_template(self) -> str:
        """The one for plain chats."""


class PagedCache(Protocol):
    """The keys and values of all requests of a step."""

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: object, arguments: Mapping[str, object]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores this step's keys and values; returns all that `read_index` names."""
