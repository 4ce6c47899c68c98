"""What is minimised: `objective(model, batch) -> loss, measured`; objectives wrap one another.

The loss is the MEAN over the targets of the (micro-)batch, weighted by class where it has class weights; the
loop weights it by their number, or their total weight. `measured` holds detached scalars by signal name, each
a plain mean over targets.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabviz.ops import cross_entropy

Objective = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a batch that a model is called with."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def cross_entropy_objective(label_smoothing: float = 0.0, class_weights_C: Tensor | None = None) -> Objective:
    """Make the objective of classification and of tagging: cross-entropy over the labels that are not -100.

    With class weights it is torch's weighted mean: the sum of the weighted losses over the sum of the weights
    of the targets.

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
        if class_weights_C is not None:
            weights_C, kept_N = class_weights_C.to(logits_NC), labels_N != -100
            loss_N = F.cross_entropy(
                logits_NC, labels_N, weights_C, label_smoothing=label_smoothing, reduction="none"
            )
            # `where`: with no target the mean is 0/0, and its NaN must not reach the gradient
            loss = torch.where(kept_N, loss_N, 0.0).sum() / weights_C[labels_N[kept_N]].sum()
        with torch.no_grad():
            right = ((logits_NC.argmax(dim=-1) == labels_N) & (labels_N != -100)).sum()
        measured = {"log_z": seen.log_z, "accuracy": right / seen.kept}
        return loss, measured | dict(getattr(output, "measured", None) or {})

    return objective


def binary_cross_entropy_objective(positive_weights_C: Tensor | None = None) -> Objective:
    """Make the objective of several classes a row: a yes or no for each class, mean over classes and rows.

    Shapes: the model's logits (B, C) with float labels (B, C) of 0 and 1; positive_weights_C: how much a 1
            counts over a 0, as torch's pos_weight
    Units:  nats per class and row
    """

    def objective(model, batch):
        output = model(**model_inputs(batch))
        logits_BC = output.logits.float()
        weights_C = None if positive_weights_C is None else positive_weights_C.to(logits_BC)
        loss = F.binary_cross_entropy_with_logits(logits_BC, batch["labels"], pos_weight=weights_C)
        return loss, dict(getattr(output, "measured", None) or {})

    return objective


def squared_error_objective() -> Objective:
    """Make the objective of regression: the mean over rows of the squared error.

    Shapes: the model's logits (B, 1) with float labels (B,)
    Units:  of the labels, squared
    """

    def objective(model, batch):
        output = model(**model_inputs(batch))
        loss = F.mse_loss(output.logits.float().squeeze(-1), batch["labels"])
        return loss, dict(getattr(output, "measured", None) or {})

    return objective
