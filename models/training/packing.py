"""Training batches: documents as tokens, packed end to end into rows, with the tokens to learn marked."""

import re
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerFast

from models.training.corpus.text import Conversation, Document, documents
from models.training.tokens import ASSISTANT, BEGIN, END, SYSTEM, USER

IGNORED = -100
"""The label of a token that is read but not learned."""


class Packer:
    """Turns the endless stream of documents of one seed into batches of whole rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._tokenizer = tokenizer
        self._documents = documents(seed)
        self._ids: list[int] = []
        self._labels: list[int] = []

    def batch(self, rows: int, row_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of shape (rows, row_tokens); a label is the token that follows its input."""
        size = rows * row_tokens
        while len(self._ids) <= size:
            for ids, learned in self._pieces(next(self._documents)):
                self._ids += ids
                self._labels += ids if learned else [IGNORED] * len(ids)
        inputs = torch.tensor(self._ids[:size]).view(rows, row_tokens)
        labels = torch.tensor(self._labels[1 : size + 1]).view(rows, row_tokens)
        self._ids, self._labels = self._ids[size:], self._labels[size:]
        return inputs, labels

    def _pieces(self, document: Document) -> Iterator[tuple[list[int], bool]]:
        for text, learned in pieces(document):
            yield self._tokenizer.encode(text, add_special_tokens=False), learned


def pieces(document: Document) -> Iterator[tuple[str, bool]]:
    """The text of the document as the chat template writes it, cut where learning starts and stops."""
    if isinstance(document, Conversation):
        yield BEGIN + (f"{SYSTEM}{document.system}{END}" if document.system else ""), False
        for exchange in document.exchanges:
            yield f"{USER}{exchange.question.strip()}{END}{ASSISTANT}", False
            yield f"{exchange.answer}{END}", True
    elif document.tail_only:
        yield BEGIN, False
        for text in re.findall(r"[^=]*=|[^=]*?\.|\s+", document.text):
            yield text, not text.endswith("=")
        yield END, True
    else:
        yield BEGIN, False
        yield document.text + END, True


def plain_text(document: Document) -> str:
    """The text that the vocabulary is trained on."""
    if isinstance(document, Conversation):
        return "\n".join(f"{exchange.question}\n{exchange.answer}" for exchange in document.exchanges)
    return document.text
