"""Messages of the support-desk corpus as word ids, two intents to tell apart: the task "intents"."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from stabviz.models import TransformerConfig, transformer_logits

INTENTS = ("cancellation", "how_to")
"""What a message asks for; half of the messages each."""

LONGEST = 64
"""Words that are kept of a message, the mark at its start among them."""

PADDING, START, UNKNOWN = 0, 1, 2
SEEN_AT_LEAST = 3
"""Messages of the training split in which a word must stand to have an id of its own."""

_FOLDER = Path(__file__).resolve().parent.parent.parent / "data" / "support-desk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """The messages of two intents, training and test split; no sentence of one stands in the other."""

    train_NL: Tensor
    """Word ids, (720, 64) int64: the first is START, what lacks at the end is PADDING."""
    train_N: Tensor
    """Which of INTENTS, (720,) int64."""
    test_NL: Tensor
    """The same of the test split, (120, 64)."""
    test_N: Tensor
    """(120,) int64."""
    words: tuple[str, ...]
    """What each id stands for; V of them."""


@cache
def desk_messages() -> Messages:
    """Return the messages of two intents of the corpus in data/support-desk, cut into words and marks.

    Small letters, digits one by one. A word that stands in fewer than three training messages is UNKNOWN.

    Shapes: -> train_NL (720, 64), test_NL (120, 64)
    Lesson: 11-classification
    """
    read = {split: _read(split) for split in ("train", "test")}
    counts = Counter(word for words, _ in read["train"] for word in set(words))
    known = sorted(word for word, count in counts.items() if count >= SEEN_AT_LEAST)
    ids = {word: token for token, word in enumerate(known, start=UNKNOWN + 1)}

    def encoded(split):
        rows_NL = torch.full((len(read[split]), LONGEST), PADDING)
        for row_L, (words, _) in zip(rows_NL, read[split], strict=True):
            tokens = [START, *(ids.get(word, UNKNOWN) for word in words)][:LONGEST]
            row_L[: len(tokens)] = torch.tensor(tokens)
        return rows_NL, torch.tensor([label for _, label in read[split]])

    (train_NL, train_N), (test_NL, test_N) = encoded("train"), encoded("test")
    return Messages(
        train_NL=train_NL,
        train_N=train_N,
        test_NL=test_NL,
        test_N=test_N,
        words=("[PAD]", "[CLS]", "[UNK]", *known),
    )


def _read(split: str) -> list[tuple[list[str], int]]:
    rows = map(json.loads, (_FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        (re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]", row["text"].lower()), INTENTS.index(row["intent"]))
        for row in rows
        if row["intent"] in INTENTS
    ]


def intent_logits(params: Mapping[str, Tensor], tokens_BL: Tensor, config: TransformerConfig, **how):
    """Say which intent each message has: the logits of the first position; and what was measured.

    Shapes: tokens_BL (B, L) integer, 0 is padding -> logits_BC (B, 2), measured as `transformer_logits` does
    Lesson: 11-classification
    """
    real_B11L = (tokens_BL != PADDING)[:, None, None, :]
    logits_BLC, measured = transformer_logits(params, tokens_BL, config, mask=real_B11L, **how)
    return logits_BLC[:, 0], measured
