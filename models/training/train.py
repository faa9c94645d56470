"""Trains the demo model from nothing but a seed: `python -m models.training.train --seed 7 --out models/demo`."""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.training.corpus.text import documents
from models.training.optimizer import Muon
from models.training.packing import IGNORED, Packer, plain_text
from models.training.tokens import train_tokenizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result; the duration is for 2 idle cores."""

    seed: int = 7
    steps: int = 1400
    batch_tokens: int = 4096
    row_tokens: int = 256
    long_row_tokens: int = 1024  # every eighth batch, so that far positions are learned too
    warmup_steps: int = 40
    learning_rate: float = 4e-3
    vocabulary_size: int = 1536
    context_tokens: int = 2048
    threads: int = 2


def tokenizer_for(recipe: Recipe) -> PreTrainedTokenizerFast:
    texts = (plain_text(document) for document in islice(documents(recipe.seed), 20_000))
    return train_tokenizer(texts, recipe.vocabulary_size, recipe.context_tokens)


def untrained_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=recipe.context_tokens,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean loss on the learned tokens; the head runs on those only, which saves a third of its time."""
    states = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    learned = labels != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(states[learned]), labels[learned])


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate: a short rise, then half a cosine down to a hundredth."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train(recipe: Recipe, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[float]:
    """Runs the steps one by one and yields the loss of each."""
    matrices = [parameter for name, parameter in model.named_parameters() if _is_matrix(name, parameter)]
    others = [parameter for name, parameter in model.named_parameters() if not _is_matrix(name, parameter)]
    muon, adam = Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    packer = Packer(tokenizer, recipe.seed)
    model.train()
    for step in range(recipe.steps):
        row_tokens = recipe.long_row_tokens if step % 8 == 7 else recipe.row_tokens
        inputs, labels = packer.batch(recipe.batch_tokens // row_tokens, row_tokens)
        loss = loss_of(model, inputs, labels)
        loss.backward()
        learning_rate = rate(recipe, step)
        muon.step(learning_rate)
        for group in adam.param_groups:
            group["lr"] = learning_rate
        adam.step()
        adam.zero_grad()
        yield loss.item()


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    return parameter.ndim == 2 and "embed" not in name


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the model folder, the weights as bfloat16."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    tokenizer.save_pretrained(folder, save_jinja_files=False)  # the template inside tokenizer_config.json


def main() -> None:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--out", type=Path, default=Path("models/demo"))
    parser.add_argument("--steps", type=int, default=defaults.steps)
    arguments = parser.parse_args()
    recipe = Recipe(seed=arguments.seed, steps=arguments.steps)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    tokenizer = tokenizer_for(recipe)
    model = untrained_model(recipe, tokenizer)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    columns = (
        TextColumn("loss {task.fields[loss]:.3f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=recipe.steps, loss=math.nan)
        mean = math.nan
        for step, loss in enumerate(train(recipe, model, tokenizer), 1):
            mean = loss if math.isnan(mean) else 0.95 * mean + 0.05 * loss
            progress.update(bar, advance=1, loss=mean)
            if step % 100 == 0:
                progress.console.print(f"step {step}: loss {mean:.4f}, {time.monotonic() - started:.0f} s")
    export(model, tokenizer, arguments.out)
    print(f"Trained in {(time.monotonic() - started) / 60:.1f} minutes, written to {arguments.out}")


if __name__ == "__main__":
    main()
