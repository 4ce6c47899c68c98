"""What is minimised: `objective(model, batch) -> loss, measured`; objectives wrap one another.

The loss is the MEAN over the targets of the (micro-)batch; the loop weights it by their number. `measured`
holds detached scalars by signal name; a mean over targets likewise.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stabviz.ops import cross_entropy

Objective = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a batch that a model is called with."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def cross_entropy_objective(label_smoothing: float = 0.0) -> Objective:
    """Make the objective of classification and of tagging: cross-entropy over the labels that are not -100.

    Shapes: the model's logits (B, C) with labels (B,), or (B, L, C) with labels (B, L)
    Units:  nats per label that counts
    Raises: ValueError if label_smoothing is outside [0, 1)
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"cross_entropy_objective: label_smoothing must be in [0, 1); got {label_smoothing!r}"
        )

    def objective(model, batch):
        output = model(**model_inputs(batch))
        labels_N = batch["labels"].reshape(-1)
        logits_NC = output.logits.reshape(labels_N.numel(), -1).float()
        loss, seen = cross_entropy(logits_NC, labels_N, label_smoothing=label_smoothing)
        with torch.no_grad():
            right = ((logits_NC.argmax(dim=-1) == labels_N) & (labels_N != -100)).sum()
        measured = {"log_z": seen.log_z, "accuracy": right / seen.kept}
        return loss, measured | dict(getattr(output, "measured", None) or {})

    return objective
