"""Rows to batches: the order of an epoch, padding, micro-batches, packing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabviz.finetune.data.encode import IGNORED
from stabviz.seeds import integer

POOL = 50
"""Batches whose rows are sorted by length together."""


def plan_epoch(
    lengths: Sequence[int] | np.ndarray, *, batch: int, seed: int, epoch: int, bucket: bool
) -> list[list[int]]:
    """Return the batches of an epoch as lists of row indices: a function of its arguments alone.

    Each row comes at most once. Rows that do not fill a last batch are left out, others in each epoch, unless
    they are all there is. With `bucket`, rows of similar length share a batch, and the batches come in random
    order.
    """
    rng = np.random.default_rng(integer(seed, "order", epoch))
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
    """Pad rows on the right to the longest, or to fixed_length; padding is masked and its label is -100.

    Shapes: input_ids, attention_mask, token_type_ids (B, L) int64; labels (B,) or (B, L), of vectors (B, C)
            float32; rows (B,); numbers of a row by another name (B,), lists by another name (B, L) padded
            with 0
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
            batch["rows" if name == "row" else name] = torch.from_numpy(np.asarray(values))
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
    micro_batches = [
        {name: tensor[first : first + (micro_batch or size)] for name, tensor in batch.items()}
        for first in range(0, size, micro_batch or size)
    ]
    trim = trim and batch["attention_mask"].ndim == 2
    return [_trimmed(micro) for micro in micro_batches] if trim else micro_batches


def _trimmed(micro_batch: dict[str, Tensor]) -> dict[str, Tensor]:
    shape = micro_batch["input_ids"].shape
    used = int(micro_batch["attention_mask"].any(dim=0).nonzero().max()) + 1
    # not by the shape alone: there may be as many classes (B, C) as word pieces (B, L)
    return {
        name: tensor[:, :used] if tensor.shape == shape and not tensor.is_floating_point() else tensor
        for name, tensor in micro_batch.items()
    }


def count_targets(batch: dict[str, Tensor]) -> int:
    """Count the labels that the loss is a mean of: all but -100; of float labels, the rows."""
    labels = batch["labels"]
    return len(labels) if labels.is_floating_point() else int((labels != IGNORED).sum())


def row_indices(rows: Tensor) -> list[int]:
    """Return the indices of a batch's rows; packed ones stand several in a line, filled up with -1."""
    return [index for index in rows.flatten().tolist() if index >= 0]


def pack(rows: list[dict[str, Any]], *, max_length: int, pad_id: int) -> dict[str, Tensor]:
    """Put several tagged rows into one, each blind to the others: longest first, first fit.

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
