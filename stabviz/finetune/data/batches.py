"""From checked rows to batches: word pieces and their labels, the order of an epoch, padding, micro-batches,
packing.

What is random is keyed to (seed, epoch, row) alone: neither workers nor a resume change it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stabviz.finetune.pretrain.masking import IGNORED, row_generator

POOL = 50
"""Batches whose rows are sorted by length together."""
CHUNK = 1000
"""Rows handed to the tokenizer at once."""


class TokenRows(Dataset):
    """Rows as word pieces, tokenised once; item (epoch, index) is a dict of lists that `collate` takes.

    A tag stands on the first piece of its word; further pieces and special tokens have -100 and do not count.
    "row" of an item is its index here: the number that `plan_epoch` planned.

    Raises: ValueError if the tokenizer is not a fast one, or has no mask token where word_dropout needs it
    Lesson: 11-classification, 12-entities
    """

    def __init__(
        self,
        rows: Any,
        tokenizer: Any,
        *,
        kind: Literal["classes", "tags"],
        max_length: int,
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
        self.kind, self.seed, self.word_dropout, self.transform = kind, seed, word_dropout, transform
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
        self._ids, self._types = (_flat(row[i] for row in encoded) for i in (0, 1))
        if not self._types.any():
            self._types = None
        self._labels = (
            _flat(row[2] for row in encoded)
            if kind == "tags"
            else np.array([row[2] for row in encoded], dtype=np.int64)
        )

    def _encoded(self, rows: dict[str, list], tokenizer: Any, max_length: int) -> list[tuple]:
        """Return (pieces, token types, label or a label for each piece) of some rows."""
        texts = rows["words" if self.kind == "tags" else "text"]
        encodings = tokenizer(
            list(texts), truncation=True, max_length=max_length, is_split_into_words=self.kind == "tags"
        ).encodings
        self.truncated += sum(bool(encoding.overflowing) for encoding in encodings)
        if self.kind == "classes":
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
        row = {
            "input_ids": self._ids[span].tolist(),
            "labels": self._labels[span].tolist() if self.kind == "tags" else int(self._labels[index]),
            "row": index,
        }
        if self._types is not None:
            row["token_type_ids"] = self._types[span].tolist()
        if self.word_dropout or self.transform:
            generator = row_generator(self.seed, epoch, index)
            if self.word_dropout:
                row["input_ids"] = self._with_dropout(row["input_ids"], generator)
            if self.transform:
                row = self.transform(row, generator)
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


def plan_epoch(
    lengths: Sequence[int] | np.ndarray, *, batch: int, seed: int, epoch: int, bucket: bool
) -> list[list[int]]:
    """Return the batches of an epoch as lists of row indices: a function of its arguments alone.

    Each row comes at most once. Rows that do not fill a last batch are left out, others in each epoch, unless
    they are all there is. With `bucket`, rows of similar length share a batch, and the batches come in random
    order.
    """
    rng = np.random.default_rng([seed, epoch, 7])
    order = rng.permutation(len(lengths))
    if len(order) < batch:
        return [order.tolist()] if len(order) else []
    order = order[: len(order) // batch * batch]
    if not bucket:
        return order.reshape(-1, batch).tolist()
    lengths, pool = np.asarray(lengths), POOL * batch
    pools = (order[first : first + pool] for first in range(0, len(order), pool))
    ordered = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in pools])
    return rng.permutation(ordered.reshape(-1, batch)).tolist()


def collate(rows: list[dict[str, Any]], *, pad_id: int, fixed_length: int | None = None) -> dict[str, Tensor]:
    """Pad rows on the right to the longest of them, or to fixed_length; padding is masked and its label is
    -100.

    Shapes: input_ids, attention_mask, token_type_ids (B, L) int64; labels (B,) or (B, L); rows (B,); numbers
            of a row by another name (B,), lists by another name (B, L) padded with 0
    Raises: ValueError if a row is longer than fixed_length
    """
    longest = max(len(row["input_ids"]) for row in rows)
    if fixed_length is not None and longest > fixed_length:
        raise ValueError(
            f"collate: fixed_length must be at least {longest}, the longest row; got {fixed_length!r}"
        )
    length, fill = fixed_length or longest, {"input_ids": pad_id, "labels": IGNORED}
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], list):
            batch[name] = _padded(values, length, fill.get(name, 0))
        else:
            batch["rows" if name == "row" else name] = torch.tensor(values, dtype=torch.int64)
    batch["attention_mask"] = _padded([[1] * len(row["input_ids"]) for row in rows], length, 0)
    return batch


def _padded(lists: list[list[int]], length: int, fill: int) -> Tensor:
    padded_BL = np.full((len(lists), length), fill, dtype=np.int64)
    for row_L, values in zip(padded_BL, lists, strict=True):
        row_L[: len(values)] = values
    return torch.from_numpy(padded_BL)


def split_batch(
    batch: dict[str, Tensor], micro_batch: int | None, *, trim: bool = True
) -> list[dict[str, Tensor]]:
    """Cut a batch into micro-batches of rows; `trim` drops the columns that are padding in all their rows.

    The attention mask of packed rows (B, 1, L, L) is cut by rows and never trimmed.
    """
    size = len(batch["input_ids"])
    pieces = [
        {name: tensor[first : first + (micro_batch or size)] for name, tensor in batch.items()}
        for first in range(0, size, micro_batch or size)
    ]
    return [_trimmed(piece) for piece in pieces] if trim and batch["attention_mask"].ndim == 2 else pieces


def _trimmed(piece: dict[str, Tensor]) -> dict[str, Tensor]:
    shape = piece["input_ids"].shape
    used = int(piece["attention_mask"].any(dim=0).nonzero().max()) + 1
    return {name: tensor[:, :used] if tensor.shape == shape else tensor for name, tensor in piece.items()}


def count_targets(batch: dict[str, Tensor]) -> int:
    """Count the labels that the loss is a mean of: all but -100."""
    return int((batch["labels"] != IGNORED).sum())


def pack(rows: list[dict[str, Any]], *, max_length: int, pad_id: int) -> dict[str, Tensor]:
    """Put several rows with a label for each piece into one, each blind to the others; longest first, first
    fit.

    Shapes: input_ids, position_ids, labels (B, L) int64, positions restart with each row; attention_mask (B,
            1, L, L) bool, True = may attend, for attention that takes bool masks (sdpa); rows (B, N) ids,
            padded with -1
    Raises: ValueError if a row is longer than max_length, or has one label for all its pieces
    """
    bins: list[list[dict[str, Any]]] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        if not isinstance(row["labels"], list):
            raise ValueError(
                "pack: rows must have a label for each piece (tags, masked_lm); got one label for a row"
            )
        size = len(row["input_ids"])
        if size > max_length:
            raise ValueError(f"pack: max_length must be at least {size}, the longest row; got {max_length!r}")
        room = (held for held in bins if sum(len(other["input_ids"]) for other in held) + size <= max_length)
        held = next(room, None)
        if held is None:
            bins.append(held := [])
        held.append(row)
    ids, labels = (
        [[x for row in held for x in row[name]] for held in bins] for name in ("input_ids", "labels")
    )
    segments = [[i for i, row in enumerate(held) for _ in row["input_ids"]] for held in bins]
    positions = [[i for row in held for i in range(len(row["input_ids"]))] for held in bins]
    length = max(map(len, segments))
    segment_BL = _padded(segments, length, -1)
    # A padded piece may attend to padding: a row of a mask without any True would make the softmax NaN.
    mask_BLM = segment_BL[:, :, None] == segment_BL[:, None, :]
    return {
        "input_ids": _padded(ids, length, pad_id),
        "labels": _padded(labels, length, IGNORED),
        "position_ids": _padded(positions, length, 0),
        "attention_mask": mask_BLM[:, None],
        "rows": _padded([[row["row"] for row in held] for held in bins], max(map(len, bins)), -1),
    }
