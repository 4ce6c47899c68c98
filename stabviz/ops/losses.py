"""Losses, each beside its gradient derived by hand (`..._grad`): what a lesson derives and a test compares.

Losses are in nats and averaged over tokens (or examples); a `..._grad` is the derivative of that average.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropyMeasures:
    """What cross-entropy saw, detached."""

    log_z: Tensor
    """Mean of log sum exp(logits) over the tokens that count; it drifts before a blow-up. nats"""
    kept: Tensor
    """How many tokens count (are not ignored). int64"""


def log_sum_exp(scores: Tensor, dim: int = -1) -> Tensor:
    """Return log(sum(exp(scores))), computed after the largest score was taken off.

    A row of nothing but -inf gives NaN here (torch.logsumexp gives -inf), and so does a row with +inf.

    Shapes: scores (...) -> (...) without dim
    Lesson: 02-cross-entropy

    >>> log_sum_exp(torch.tensor([1000.0, 1000.0]))
    tensor(1000.6932)
    """
    largest = scores.detach().amax(dim=dim, keepdim=True)  # a constant: it cancels in the derivative too
    return (largest + torch.log(torch.exp(scores - largest).sum(dim=dim, keepdim=True))).squeeze(dim)


def log_softmax(scores: Tensor, dim: int = -1) -> Tensor:
    """Return scores - log_sum_exp(scores): exact where the log of softmax has long become -inf.

    Shapes: scores (...) -> (...)
    Lesson: 02-cross-entropy

    >>> log_softmax(torch.tensor([0.0, 200.0]))
    tensor([-200.,    0.])
    """
    # The row maximum goes first: log Z of large scores would round away the digits of a small result.
    shifted = scores - scores.detach().amax(dim=dim, keepdim=True)
    return shifted - torch.log(torch.exp(shifted).sum(dim=dim, keepdim=True))


def _check_logits(function: str, logits_NV: Tensor, targets_N: Tensor) -> None:
    if logits_NV.ndim != 2:
        raise ValueError(
            f"{function}: logits_NV must have 2 axes (N, V); got {tuple(logits_NV.shape)!r}. "
            "Flatten (B, L, V) first: logits.flatten(0, 1)."
        )
    if targets_N.shape != logits_NV.shape[:1]:
        raise ValueError(
            f"{function}: targets_N must be ({logits_NV.shape[0]},), one per row of logits; "
            f"got {tuple(targets_N.shape)!r}"
        )
    if targets_N.is_floating_point() or targets_N.dtype == torch.bool:
        raise ValueError(f"{function}: targets_N must be integer class numbers; got {targets_N.dtype!r}")


def cross_entropy(
    logits_NV: Tensor,
    targets_N: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float | Tensor = 0.0,
    z_loss: float | Tensor = 0.0,
) -> tuple[Tensor, CrossEntropyMeasures]:
    """Return the mean of log Z - logit[target] over the tokens that are not ignored.

    label_smoothing e puts e/V of the target on every class; z_loss c adds c (log Z)^2. A batch that is all
    ignored gives NaN, as in torch (0/0 is what it is), with gradients 0. Second derivatives are exact.

    Shapes: logits_NV (N, V), targets_N (N,) integer in 0..V-1 or ignore_index -> loss_nats (), measures
    Units:  nats per token that is not ignored
    Raises: ValueError if the shapes do not fit or the targets are not integers; torch's own error for a
            target outside 0..V-1
    Source: label smoothing: Szegedy et al. 2015, arXiv:1512.00567; z-loss: Chowdhery et al. 2022,
            arXiv:2204.02311
    Lesson: 02-cross-entropy

    >>> loss_nats, measures = cross_entropy(torch.zeros(2, 4), torch.tensor([3, -100]))
    >>> loss_nats, measures.kept        # ln 4, one token
    (tensor(1.3863), tensor(1))
    """
    _check_logits("cross_entropy", logits_NV, targets_N)
    keep_N = targets_N != ignore_index
    target_N1 = torch.where(keep_N, targets_N, 0).unsqueeze(-1)  # an ignored target is no class number
    largest_N1 = logits_NV.detach().amax(dim=-1, keepdim=True)
    shifted_NV = logits_NV - largest_N1  # exp cannot overflow, and log Z rounds away no small loss
    log_sum_N = shifted_NV.exp().sum(dim=-1).log()
    log_z_N = largest_N1.squeeze(-1) + log_sum_N

    loss_N = log_sum_N - shifted_NV.gather(-1, target_N1).squeeze(-1)  # log Z - logit[target], both shifted
    if _is_on(label_smoothing):  # the target is (1 - e) one-hot + e/V
        loss_N = (1 - label_smoothing) * loss_N + label_smoothing * (log_sum_N - shifted_NV.mean(dim=-1))
    if _is_on(z_loss):
        loss_N = loss_N + z_loss * log_z_N.square()
    kept = keep_N.sum()
    # `where` and not loss_N[keep_N], which vmap cannot do. All ignored: 0/0 is NaN, as in torch.
    loss_nats = torch.where(keep_N, loss_N, 0.0).sum() / kept
    log_z = torch.where(keep_N, log_z_N.detach(), 0.0).sum() / kept
    return loss_nats, CrossEntropyMeasures(log_z=log_z, kept=kept)


def _is_on(knob: float | Tensor) -> bool:
    return isinstance(knob, Tensor) or knob != 0  # looking at a tensor's value would break vmap


def cross_entropy_grad(
    logits_NV: Tensor,
    targets_N: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float | Tensor = 0.0,
    z_loss: float | Tensor = 0.0,
) -> Tensor:
    """Return d cross_entropy / d logits by hand: (softmax - target) / kept, and 0 where ignored.

    With smoothing the target is (1 - e) one-hot + e/V; z-loss adds 2 c log Z softmax.

    Shapes: as cross_entropy -> (N, V)
    Raises: ValueError as cross_entropy
    Lesson: 02-cross-entropy

    >>> cross_entropy_grad(torch.zeros(1, 4), torch.tensor([3]))
    tensor([[ 0.2500,  0.2500,  0.2500, -0.7500]])
    """
    _check_logits("cross_entropy_grad", logits_NV, targets_N)
    keep_N1 = (targets_N != ignore_index).unsqueeze(-1)
    V = logits_NV.shape[-1]
    softmax_NV = torch.exp(log_softmax(logits_NV))
    one_hot_NV = (targets_N.unsqueeze(-1) == torch.arange(V, device=targets_N.device)).to(logits_NV.dtype)
    target_NV = (1 - label_smoothing) * one_hot_NV + label_smoothing / V
    log_z_N1 = log_sum_exp(logits_NV).unsqueeze(-1)
    grad_NV = softmax_NV * (1 + 2 * z_loss * log_z_N1) - target_NV
    # Not a product with 0: an ignored row may hold inf, and 0 times inf is NaN.
    return torch.where(keep_N1, grad_NV / keep_N1.sum(), 0.0)


def _check_same_shape(function: str, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
    if first[1].shape != second[1].shape:
        raise ValueError(
            f"{function}: {second[0]} must have the shape of {first[0]}, {tuple(first[1].shape)}; "
            f"got {tuple(second[1].shape)!r}"
        )


def binary_cross_entropy_with_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of log(1 + exp(z)) - y z: -y log s(z) - (1 - y) log(1 - s(z)), finite for any finite z.

    Shapes: logits (...), targets (...) in 0..1 -> ()
    Units:  nats per element
    Raises: ValueError if the shapes differ
    Lesson: 02-cross-entropy

    >>> binary_cross_entropy_with_logits(torch.tensor([0.0, -1000.0]), torch.tensor([1.0, 0.0]))
    tensor(0.3466)
    """
    _check_same_shape("binary_cross_entropy_with_logits", ("logits", logits), ("targets", targets))
    log_1_plus_exp = -F.logsigmoid(-logits)  # log(1 + exp(z)) overflows; -log s(-z) is the same
    return (log_1_plus_exp - targets * logits).mean()


def binary_cross_entropy_with_logits_grad(logits: Tensor, targets: Tensor) -> Tensor:
    """Return d binary_cross_entropy_with_logits / d logits by hand: (sigmoid(z) - y) / count.

    Shapes: logits (...), targets (...) -> (...)
    Raises: ValueError if the shapes differ

    >>> binary_cross_entropy_with_logits_grad(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor([-0.5000])
    """
    _check_same_shape("binary_cross_entropy_with_logits_grad", ("logits", logits), ("targets", targets))
    return (torch.sigmoid(logits) - targets) / logits.numel()


def kl_distillation(student_NV: Tensor, teacher_NV: Tensor, temperature: float | Tensor) -> Tensor:
    """Return T^2 mean KL(teacher || student) of the softmaxes at temperature T; T^2 keeps the gradient large.

    Shapes: student_NV (N, V) and teacher_NV (N, V) logits -> ()
    Units:  nats per row, times T^2
    Raises: ValueError if the shapes differ
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2

    >>> kl_distillation(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]), temperature=2.0)
    tensor(0.)
    """
    _check_same_shape("kl_distillation", ("student_NV", student_NV), ("teacher_NV", teacher_NV))
    log_student_NV = log_softmax(student_NV / temperature)
    # Logs of both, not log(softmax): what rounds to 0 there would be 0 times -inf, NaN.
    log_teacher_NV = log_softmax(teacher_NV / temperature)
    divergence_N = (log_teacher_NV.exp() * (log_teacher_NV - log_student_NV)).sum(dim=-1)
    return divergence_N.mean() * temperature**2


def kl_distillation_grad(student_NV: Tensor, teacher_NV: Tensor, temperature: float | Tensor) -> Tensor:
    """Return d kl_distillation / d student by hand: T (softmax(student / T) - softmax(teacher / T)) / N.

    Shapes: as kl_distillation -> (N, V)
    Raises: ValueError if the shapes differ
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2

    >>> kl_distillation_grad(torch.zeros(1, 2), torch.zeros(1, 2), temperature=2.0)
    tensor([[0., 0.]])
    """
    _check_same_shape("kl_distillation_grad", ("student_NV", student_NV), ("teacher_NV", teacher_NV))
    student_weights_NV = log_softmax(student_NV / temperature).exp()
    teacher_weights_NV = log_softmax(teacher_NV / temperature).exp()
    return (student_weights_NV - teacher_weights_NV) * (temperature / student_NV.shape[0])


def mse_distillation(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Return the mean squared difference of two models' logits.

    Shapes: student_NV (N, V), teacher_NV (N, V) -> ()
    Units:  squared logits per element
    Raises: ValueError if the shapes differ

    >>> mse_distillation(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    tensor(2.)
    """
    _check_same_shape("mse_distillation", ("student_NV", student_NV), ("teacher_NV", teacher_NV))
    return (student_NV - teacher_NV).square().mean()


def mse_distillation_grad(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Return d mse_distillation / d student by hand: 2 (student - teacher) / (N V).

    Shapes: as mse_distillation -> (N, V)
    Raises: ValueError if the shapes differ

    >>> mse_distillation_grad(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([[0., 2.]])
    """
    _check_same_shape("mse_distillation_grad", ("student_NV", student_NV), ("teacher_NV", teacher_NV))
    return (student_NV - teacher_NV) * (2 / student_NV.numel())


def l1_penalty(param: Tensor, strength: float | Tensor) -> Tensor:
    """Return strength * sum(|param|).

    Shapes: param (...) -> ()

    >>> l1_penalty(torch.tensor([3.0, -4.0]), 0.1)
    tensor(0.7000)
    """
    return strength * param.abs().sum()


def l1_penalty_grad(param: Tensor, strength: float | Tensor) -> Tensor:
    """Return d l1_penalty / d param by hand: strength * sign(param), and 0 at 0.

    Shapes: param (...) -> (...)

    >>> l1_penalty_grad(torch.tensor([3.0, -4.0, 0.0]), 0.5)
    tensor([ 0.5000, -0.5000,  0.0000])
    """
    return strength * param.sign()


def l2_penalty(param: Tensor, strength: float | Tensor) -> Tensor:
    """Return strength / 2 * sum(param^2): the half makes the gradient strength * param.

    Shapes: param (...) -> ()

    >>> l2_penalty(torch.tensor([3.0, -4.0]), 0.1)
    tensor(1.2500)
    """
    return 0.5 * strength * param.square().sum()


def l2_penalty_grad(param: Tensor, strength: float | Tensor) -> Tensor:
    """Return d l2_penalty / d param by hand: strength * param.

    Shapes: param (...) -> (...)

    >>> l2_penalty_grad(torch.tensor([3.0, -4.0]), 0.5)
    tensor([ 1.5000, -2.0000])
    """
    return strength * param
