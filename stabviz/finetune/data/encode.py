"""Checked rows as word pieces and their labels, tokenised once.

What is random in a row is keyed to (seed, epoch, row) alone: neither workers nor a resume change it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stabviz.finetune.config import KindName
from stabviz.seeds import generator

IGNORED = -100
"""The label that does not count, as torch's cross-entropy has it: of padding, special tokens, ..."""
CHUNK = 1000
"""Rows handed to the tokenizer at once."""


class TokenRows(Dataset):
    """Rows as word pieces, tokenised once; item (epoch, index) is a dict of lists that `collate` takes.

    A tag stands on the first piece of its word; further pieces and special tokens have -100 and do not count.
    A class is a whole number; several classes are a float vector of 0 and 1; a number is a float with mean
    and deviation `scale` taken out.
    "row" of an item is its index here: the number that `plan_epoch` planned.

    Raises: ValueError if the tokenizer is not a fast one, or has no mask token where word_dropout needs it
    """

    def __init__(
        self,
        rows: Any,
        tokenizer: Any,
        *,
        kind: KindName,
        max_length: int,
        scale: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        word_dropout: float = 0.0,
        transform: Callable[[dict, torch.Generator], dict] | None = None,
    ):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"TokenRows: tokenizer must be a fast one, which knows the word of each piece; "
                f"got {type(tokenizer).__name__}"
            )
        if word_dropout and tokenizer.mask_token_id is None:
            raise ValueError(
                f"TokenRows: word_dropout must be 0 for a tokenizer without mask token; got {word_dropout!r}"
            )
        self.kind, self.scale, self.seed = kind, scale, seed
        self.word_dropout, self.transform = word_dropout, transform
        self.mask_id, self.special_ids = (
            tokenizer.mask_token_id,
            torch.tensor(sorted(tokenizer.all_special_ids)),
        )
        self.truncated = 0
        """Rows that were longer than max_length."""
        self.lost_tags = 0
        """Words without a piece of their own, cut off or empty: their tags are neither learnt nor scored."""
        self.tags: list[list[int]] = []
        """For kind "tags": the tag of every word, as the rows have it."""
        self.labelled_words: list[list[int]] = []
        """For kind "tags": the words that carry a label, in the order of their pieces."""
        encoded = [
            row
            for first in range(0, len(rows), CHUNK)
            for row in self._encoded(rows[first : first + CHUNK], tokenizer, max_length)
        ]
        self.lengths = np.array([len(ids) for ids, _, _ in encoded], dtype=np.int64)
        self._ends = np.cumsum(self.lengths)
        # Flat arrays: a tenth of the memory of lists, and shared with forked workers without copies.
        self._ids, types = (_flat(row[i] for row in encoded) for i in (0, 1))
        self._types = types if types.any() else None
        labels = [row[2] for row in encoded]
        if kind == "tags":
            self._labels = _flat(labels)
        elif kind == "classes":
            self._labels = np.array(labels, dtype=np.int64)
        else:
            self._labels = ((np.array(labels, dtype=np.float64) - scale[0]) / scale[1]).astype(np.float32)

    def _encoded(self, rows: dict[str, list], tokenizer: Any, max_length: int) -> list[tuple]:
        """Return (pieces, token types, label or a label for each piece) of some rows."""
        texts = [list(rows[name]) for name in ("words", "text", "text_pair") if name in rows]
        encodings = tokenizer(
            *texts, truncation=True, max_length=max_length, is_split_into_words=self.kind == "tags"
        ).encodings
        self.truncated += sum(bool(encoding.overflowing) for encoding in encodings)
        if self.kind != "tags":
            return [(e.ids, e.type_ids, label) for e, label in zip(encodings, rows["label"], strict=True)]
        found = []
        for encoding, tags in zip(encodings, rows["tags"], strict=True):
            labels = first_piece_labels(encoding.word_ids, tags)
            self.tags.append(list(tags))
            self.labelled_words.append(
                list(dict.fromkeys(word for word in encoding.word_ids if word is not None))
            )
            self.lost_tags += len(tags) - sum(label != IGNORED for label in labels)
            found.append((encoding.ids, encoding.type_ids, labels))
        return found

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, index = item
        end = self._ends[index]
        span = slice(end - self.lengths[index], end)
        # numpy's own for a number or a vector a row: `collate` pads lists
        labels = self._labels[span].tolist() if self.kind == "tags" else self._labels[index]
        row = {"input_ids": self._ids[span].tolist(), "labels": labels, "row": index}
        if self._types is not None:
            row["token_type_ids"] = self._types[span].tolist()
        if self.word_dropout or self.transform:
            row_generator = generator(self.seed, "row", epoch, index)
            if self.word_dropout:
                row["input_ids"] = self._with_dropout(row["input_ids"], row_generator)
            if self.transform:
                row = self.transform(row, row_generator)
        return row

    def _with_dropout(self, ids: list[int], generator: torch.Generator) -> list[int]:
        ids_L = torch.tensor(ids)
        dropped_L = torch.rand(len(ids), generator=generator) < self.word_dropout
        return ids_L.masked_fill(dropped_L & ~torch.isin(ids_L, self.special_ids), self.mask_id).tolist()


def first_piece_labels(word_ids: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """Give each word's tag to its first piece, and -100 to its further pieces and to special tokens.

    >>> first_piece_labels([None, 0, 1, 1, None], [0, 3])
    [-100, 0, 3, -100, -100]

    Lesson: 12-entities
    """
    before = [None, *word_ids]
    return [
        IGNORED if word is None or word == last else tags[word]
        for word, last in zip(word_ids, before, strict=False)
    ]


def _flat(lists) -> np.ndarray:
    parts = [np.asarray(part, dtype=np.int32) for part in lists]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)
