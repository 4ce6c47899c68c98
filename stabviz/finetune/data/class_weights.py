"""How much each class counts in the loss, and what a batch then weighs."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stabviz.files import loads
from stabviz.finetune.data.batches import count_targets
from stabviz.finetune.data.encode import IGNORED
from stabviz.finetune.data.splits import Splits


def class_weights(setting: str | None, splits: Splits) -> Tensor | None:
    """Return the weight of each class in the loss: "balanced", or from a JSON file of {class: weight}.

    Balanced weights are those of scikit-learn, rows / (classes x rows of the class); where a row has any
    number of classes, the weight of a 1 is the number of 0 over that of 1.

    Shapes: -> (C,) float32, or None without a setting
    Raises: ValueError for a file that cannot be read, a class that is not there, or a weight not above 0
    """
    if setting is None:
        return None
    labels, rows = splits.labels, splits.train
    if setting == "balanced":
        numbers = rows["tags" if splits.kind == "tags" else "label"][:]
        if splits.kind == "multi_label":
            ones_C = np.sum(numbers, axis=0)
            weights_C = (len(numbers) - ones_C) / np.maximum(ones_C, 1)
            weights_C[(ones_C == 0) | (weights_C == 0)] = 1.0  # always or never there: nothing to balance
        else:
            numbers = np.concatenate(numbers) if splits.kind == "tags" else np.array(numbers)
            counts_C = np.bincount(numbers, minlength=len(labels))
            weights_C = len(numbers) / (len(labels) * np.maximum(counts_C, 1))
        return torch.tensor(weights_C, dtype=torch.float32)
    try:
        by_name = loads(Path(setting).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f'finetune: class_weights must be "balanced" or a JSON file of {{class: weight}}; '
            f"got {setting!r} ({error})"
        ) from error
    for name, weight in by_name.items() if isinstance(by_name, dict) else [("", None)]:
        fits = isinstance(weight, int | float) and 0 < weight < math.inf
        if name not in labels or not fits:
            raise ValueError(
                f"finetune: class_weights must give classes ({', '.join(labels[:12])}) weights above 0; "
                f"{setting} has {name!r}: {weight!r}"
            )
    return torch.tensor([float(by_name.get(name, 1.0)) for name in labels])


def weigh_targets(batch: dict[str, Tensor], class_weights_C: Tensor | None) -> float:
    """Return the total weight of a batch's targets, which its loss is divided by: 1 each without weights."""
    if class_weights_C is None or batch["labels"].is_floating_point():  # of several classes each has a loss
        return count_targets(batch)
    labels_N = batch["labels"][batch["labels"] != IGNORED]
    return float(class_weights_C[labels_N].double().sum())
