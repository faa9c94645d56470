"""Loads a model and sets up the library's continuous batching manager for it, within a stated amount of memory."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from inference.engines.transformers import attention
from inference.engines.transformers.compute_time import ComputeClock, StepClock
from inference.engines.transformers.fast_import import fast_import
from inference.engines.transformers.library_types import CausalModel, FastTokenizer, TextConfig
from inference.engines.transformers.model_files import ModelFilesError
from inference.engines.transformers.sampler import Sampler

logger = logging.getLogger(__name__)

_PAGE_TOKENS = 16  # short, so that short prompts share their beginnings too
_PROMPT_TOKENS_PER_STEP = 256  # a longer prompt is read in parts, so that it does not hold up the others' tokens
_CPU_CACHE_BYTES = 256 * 1024 * 1024  # unless a setting says otherwise
_TOKENS_PER_SLOT = 128  # what a slot's share of the cache holds by default; more is taken from idle ones


@dataclass(frozen=True, slots=True)
class EngineResources:
    """What an engine may use, from the manifest and the settings."""

    slots: int  # requests at once
    context_tokens: int | None  # None: what the model was made for
    cache_bytes: int  # of the key-value cache on a CPU; 0: by the number of slots
    threads: int  # 0: one less than the CPUs
    device: str  # cpu, cuda or auto


@dataclass(slots=True)
class LoadedModel:
    """A model and all that its engine needs to generate."""

    model: CausalModel
    tokenizer: FastTokenizer
    manager: ContinuousBatchingManager
    sampler: Sampler
    clock: ComputeClock
    steps: StepClock
    context_tokens: int
    full_attention: bool  # of every layer: each token sees all before it
    vocabulary_size: int
    end_tokens: frozenset[int]


def load(folder: Path, resources: EngineResources) -> LoadedModel:
    """Reads weights and tokenizer, which takes seconds: call it in a thread. Raises ModelFilesError."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)
    device = _device(resources.device)
    threads = resources.threads or max(1, (os.cpu_count() or 2) - 1)
    torch.set_num_threads(threads)
    # Texts are tokenised in the thread that asks: in the library's pool a short one would wait for long ones.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with fast_import():
        tokenizer = _tokenizer(folder)
        model = _model(folder, device)
    config = model.config.get_text_config()
    end_tokens = _end_tokens(model, tokenizer)
    context_tokens = int(getattr(config, "max_position_embeddings", 0) or resources.context_tokens or 2048)
    if resources.context_tokens is not None:
        context_tokens = min(context_tokens, resources.context_tokens)
    clock = ComputeClock()
    steps = StepClock(clock)
    sampler = Sampler(steps)
    generation = GenerationConfig(do_sample=False, eos_token_id=sorted(end_tokens) or -1, pad_token_id=0)
    manager = model.init_continuous_batching(
        generation_config=generation,
        continuous_batching_config=_batching(config, resources, context_tokens, on_cpu=device == "cpu"),
    )
    manager.logit_processor = sampler
    full_attention = attention.suits(config)
    if device == "cpu" and full_attention:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    logger.info(
        "model loaded",
        extra={"folder": str(folder), "device": device, "threads": threads, "context_tokens": context_tokens},
    )
    return LoadedModel(
        model,
        tokenizer,
        manager,
        sampler,
        clock,
        steps,
        context_tokens,
        full_attention,
        int(config.vocab_size),
        end_tokens,
    )


def prepare(loaded: LoadedModel, router: OutputRouter) -> None:
    """Allocates the cache and everything else that a step needs; its outputs go to `router`."""
    loaded.manager.output_router = router
    with fast_import():
        loaded.manager.warmup()


def _model(folder: Path, device: str) -> CausalModel:
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (ValueError, OSError, RuntimeError) as problem:
        raise ModelFilesError(f"The model in {folder} cannot be loaded: {_first_line(problem)}") from problem
    loaded: CausalModel = model.to(device).eval()
    return loaded


def _batching(
    config: TextConfig, resources: EngineResources, context_tokens: int, *, on_cpu: bool
) -> ContinuousBatchingConfig:
    """On an accelerator the library sizes the cache by free memory; on a CPU that would be the whole machine's."""
    if not on_cpu:
        return ContinuousBatchingConfig(
            max_requests_per_batch=resources.slots, use_cuda_graph=False, use_async_batching=False
        )
    token_bytes = _cache_bytes_per_token(config)
    wanted_bytes = resources.cache_bytes or min(resources.slots * _TOKENS_PER_SLOT * token_bytes, _CPU_CACHE_BYTES)
    cache_tokens = max(wanted_bytes // token_bytes, context_tokens + _PAGE_TOKENS)
    return ContinuousBatchingConfig(
        page_size=_PAGE_TOKENS,
        num_blocks=-(-cache_tokens // _PAGE_TOKENS),
        max_batch_tokens=resources.slots + _PROMPT_TOKENS_PER_STEP,
        max_requests_per_batch=resources.slots,
        max_blocks_per_request=0,
        use_cuda_graph=False,
        use_async_batching=False,
        auto_switch_to_flash=False,
    )


def _cache_bytes_per_token(config: TextConfig) -> int:
    """Keys and values of one token in float32."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * 4)


def _tokenizer(folder: Path) -> FastTokenizer:
    """Reads tokenizer.json directly where there is one: AutoTokenizer imports the classes of every model."""
    try:
        if (folder / "tokenizer.json").exists():
            from transformers.tokenization_utils_tokenizers import TokenizersBackend

            fast: FastTokenizer = TokenizersBackend.from_pretrained(folder, local_files_only=True)
            return _whole(fast)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, ImportError) as problem:
        raise ModelFilesError(f"The tokenizer in {folder} cannot be loaded: {_first_line(problem)}") from problem
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelFilesError(f"The tokenizer in {folder} has no fast form (tokenizer.json).")
    return _whole(tokenizer)


def _whole(tokenizer: FastTokenizer) -> FastTokenizer:
    """Without what its file may say of training: a prompt is neither cut nor padded."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _end_tokens(model: CausalModel, tokenizer: FastTokenizer) -> frozenset[int]:
    stated = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = set(stated) if isinstance(stated, list) else {stated}
    return frozenset(int(token) for token in ends | {tokenizer.eos_token_id} if token is not None and token >= 0)


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def _first_line(problem: BaseException) -> str:
    return str(problem).strip().partition("\n")[0] or type(problem).__name__
