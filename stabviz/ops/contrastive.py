"""Contrastive losses (InfoNCE three ways, CPC's scores) and the two measures of a good embedding.

No function normalises its embeddings: pass unit vectors where cosine similarity is meant.
"""

import torch
from torch import Tensor

from stabviz.ops.losses import log_softmax, log_sum_exp


def _check_pair(function: str, name: str, query_BE: Tensor, other_BE: Tensor) -> None:
    if query_BE.ndim != 2 or query_BE.shape != other_BE.shape:
        raise ValueError(
            f"{function}: {name} must be (B, E) like its partner, {tuple(query_BE.shape)}; "
            f"got {tuple(other_BE.shape)!r}"
        )


def info_nce(
    query_BE: Tensor, positive_BE: Tensor, negatives_CE: Tensor, temperature: float | Tensor
) -> Tensor:
    """Return the cross-entropy of finding each query's positive among itself and C negatives that all share.

    Similarities are dot products over temperature; the positive counts once in the denominator.

    Shapes: query_BE (B, E), positive_BE (B, E), negatives_CE (C, E) -> ()
    Units:  nats per query; ln(1 + C) is chance
    Raises: ValueError if the shapes do not fit
    Source: van den Oord et al. 2018, arXiv:1807.03748; temperature as in Chen et al. 2020, arXiv:2002.05709
    Lesson: 06-infonce

    >>> info_nce(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(7, 3), temperature=0.1)      # ln 8
    tensor(2.0794)
    """
    _check_pair("info_nce", "positive_BE", query_BE, positive_BE)
    if negatives_CE.ndim != 2 or negatives_CE.shape[1] != query_BE.shape[1]:
        raise ValueError(
            f"info_nce: negatives_CE must be (C, {query_BE.shape[1]}); got {tuple(negatives_CE.shape)!r}"
        )
    positive_B1 = (query_BE * positive_BE).sum(dim=-1, keepdim=True) / temperature
    negatives_BC = query_BE @ negatives_CE.mT / temperature
    # The positive stands first in each row.
    return -log_softmax(torch.cat([positive_B1, negatives_BC], dim=1))[:, 0].mean()


def _diagonal_cross_entropy(scores_BB: Tensor) -> Tensor:
    return -log_softmax(scores_BB).diagonal().mean()


def info_nce_in_batch(query_BE: Tensor, key_BE: Tensor, temperature: float | Tensor) -> Tensor:
    """Return InfoNCE where query i's positive is key i and its negatives are the batch's other keys.

    Shapes: query_BE (B, E), key_BE (B, E) -> ()
    Units:  nats per query; ln B is chance
    Raises: ValueError if the shapes differ
    Source: van den Oord et al. 2018, arXiv:1807.03748; in-batch with temperature: SimCSE, arXiv:2104.08821
    Lesson: 06-infonce

    >>> info_nce_in_batch(torch.eye(3), torch.eye(3), temperature=1.0)      # ln(e + 2) - 1
    tensor(0.5514)
    """
    _check_pair("info_nce_in_batch", "key_BE", query_BE, key_BE)
    return _diagonal_cross_entropy(query_BE @ key_BE.mT / temperature)


def info_nce_symmetric(x_BE: Tensor, y_BE: Tensor, temperature: float | Tensor) -> Tensor:
    """Return the mean of in-batch InfoNCE both ways: y found from x, and x found from y.

    Shapes: x_BE (B, E), y_BE (B, E) -> ()
    Units:  nats per query; ln B is chance
    Raises: ValueError if the shapes differ
    Source: Radford et al. 2021 (CLIP), arXiv:2103.00020
    Lesson: 06-infonce

    >>> info_nce_symmetric(torch.eye(3), torch.eye(3), temperature=1.0)
    tensor(0.5514)
    """
    _check_pair("info_nce_symmetric", "y_BE", x_BE, y_BE)
    scores_BB = x_BE @ y_BE.mT / temperature
    return 0.5 * (_diagonal_cross_entropy(scores_BB) + _diagonal_cross_entropy(scores_BB.mT))


def cpc_scores(context_BD: Tensor, future_BE: Tensor, weight_DE: Tensor) -> Tensor:
    """Return CPC's bilinear score of every context with every future: the log of the paper's f_k.

    Row i, column j: context i with future j; the diagonal holds the pairs that belong together, so that
    minus the mean of log_softmax(scores) on the diagonal is InfoNCE.

    Shapes: context_BD (B, D), future_BE (B, E), weight_DE (D, E) -> scores_BB (B, B)
    Raises: ValueError if the shapes do not fit
    Source: van den Oord et al. 2018, arXiv:1807.03748: f_k = exp(z^T W_k c); our weight is W_k^T
    Lesson: 06-infonce

    >>> cpc_scores(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [5.0]]), torch.tensor([[10.0]]))
    tensor([[ 30.,  50.],
            [ 60., 100.]])
    """
    if context_BD.shape[0] != future_BE.shape[0]:
        raise ValueError(
            f"cpc_scores: future_BE must have the batch of context_BD, {context_BD.shape[0]}; "
            f"got {future_BE.shape[0]!r}"
        )
    if weight_DE.shape != (context_BD.shape[1], future_BE.shape[1]):
        raise ValueError(
            f"cpc_scores: weight_DE must be ({context_BD.shape[1]}, {future_BE.shape[1]}); "
            f"got {tuple(weight_DE.shape)!r}"
        )
    return context_BD @ weight_DE @ future_BE.mT


def alignment(x_BE: Tensor, y_BE: Tensor, alpha: float = 2.0) -> Tensor:
    """Return the mean distance of a pair to the power alpha; 0 is perfectly aligned. Unit vectors are meant.

    With alpha = 2 no root is taken: the gradient is finite (and 0) where a pair coincides.

    Shapes: x_BE (B, E), y_BE (B, E) -> ()
    Units:  distance^alpha
    Raises: ValueError if the shapes differ
    Source: Wang and Isola 2020, arXiv:2005.10242
    Lesson: 06-infonce

    >>> alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor(2.)
    """
    _check_pair("alignment", "y_BE", x_BE, y_BE)
    return (x_BE - y_BE).square().sum(dim=-1).pow(alpha / 2).mean()


def uniformity(x_BE: Tensor, t: float = 2.0) -> Tensor:
    """Return log mean exp(-t distance^2) over all pairs; low (spread out) is good, 0 is a single point.

    Shapes: x_BE (B, E), B >= 2 -> ()
    Raises: ValueError if there is no pair
    Source: Wang and Isola 2020, arXiv:2005.10242
    Lesson: 06-infonce

    >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))       # one pair, distance^2 = 4
    tensor(-8.)
    """
    if x_BE.ndim != 2 or x_BE.shape[0] < 2:
        raise ValueError(f"uniformity: x_BE must be (B, E) with B >= 2; got {tuple(x_BE.shape)!r}")
    # Each pair once and no point with itself, whose distance 0 would hide the others.
    first, second = torch.triu_indices(x_BE.shape[0], x_BE.shape[0], offset=1, device=x_BE.device)
    distance_squared = (x_BE[first] - x_BE[second]).square().sum(dim=-1)
    pairs = distance_squared.new_tensor(float(first.shape[0]))
    # log mean exp as log sum exp - log count: exp of far pairs would round to 0, and its log to -inf.
    return log_sum_exp(-t * distance_squared) - pairs.log()
