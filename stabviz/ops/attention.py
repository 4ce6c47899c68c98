"""Attention: softmax, masks, scaled dot-product attention, many heads. The tiled form has a file of its own.

Notation: S = Q K^T the scores (Q scaled), W = softmax(S) the weights, out = W V. Autograd differentiates the
formulas as they stand; the gradients derived by hand are functions beside them (`..._grad`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stabviz.ops.layers import linear, rms_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMeasures:
    """What attention saw, detached. Both fields are None where `measure=False` was asked."""

    max_logit_H: Tensor | None
    """Largest |logit| by head over all pairs that may attend, after scale and BEFORE any soft-cap. (H,)"""
    entropy_H: Tensor | None
    """Mean entropy of the weights by head, over all queries that may attend to something. nats, (H,)"""


def softmax(scores: Tensor, dim: int = -1) -> Tensor:
    """Return exp(scores) / sum(exp(scores)), computed after the largest score was taken off.

    A score of -inf gets weight 0; a row of nothing but -inf, and a row with NaN or +inf, gives NaN.

    Shapes: scores (...) -> weights (...), sum 1 along dim
    Raises: IndexError from torch if there is no such dim
    Source: Milakov and Gimelshein 2018, arXiv:1805.02867 (there called safe softmax)
    Lesson: 01-attention

    >>> softmax(torch.tensor([1000.0, 1000.0, -1000.0]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    largest = scores.detach().amax(dim=dim, keepdim=True)  # a constant: it cancels in the derivative too
    exponentials = torch.exp(scores - largest)
    return exponentials / exponentials.sum(dim=dim, keepdim=True)


def softmax_grad(weights: Tensor, grad: Tensor, dim: int = -1) -> Tensor:
    """Return d loss / d scores by hand, from weights = softmax(scores): w (g - sum(w g)).

    Shapes: weights (...), grad (...), the gradient of the weights -> (...), sum 0 along dim

    >>> softmax_grad(torch.tensor([0.25, 0.75]), torch.tensor([1.0, 0.0]))
    tensor([ 0.1875, -0.1875])
    """
    return weights * (grad - (weights * grad).sum(dim=dim, keepdim=True))


def causal_mask(L: int, M: int | None = None, device: torch.device | str | None = None) -> Tensor:
    """Return True where a query may attend: at its own position and before.

    With M > L keys the queries are the LAST L of M positions (as when earlier keys were cached).

    Shapes: -> (L, M) bool, True = may attend
    Raises: ValueError if M < L
    Lesson: 01-attention

    >>> causal_mask(2, 3)
    tensor([[ True,  True, False],
            [ True,  True,  True]])
    """
    M = L if M is None else M
    if M < L:
        raise ValueError(f"causal_mask: M must be at least L = {L}; got {M!r}. Queries stand last.")
    return torch.arange(M - L, M, device=device)[:, None] >= torch.arange(M, device=device)


def padding_mask(lengths_B: Tensor, M: int) -> Tensor:
    """Return True at the keys that are real, False at padding, ready to broadcast over heads and queries.

    Shapes: lengths_B (B,) integer -> (B, 1, 1, M) bool, True = may attend
    Raises: ValueError if lengths_B is not a vector
    Lesson: 01-attention

    >>> padding_mask(torch.tensor([1, 3]), 3)[:, 0, 0]
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    if lengths_B.ndim != 1:
        raise ValueError(f"padding_mask: lengths_B must be a vector; got shape {tuple(lengths_B.shape)!r}")
    return (torch.arange(M, device=lengths_B.device) < lengths_B[:, None])[:, None, None, :]


def soft_cap(logits: Tensor, cap: Tensor | float) -> Tensor:
    """Return cap tanh(logit / cap), or the logit where cap is inf; a non-finite logit gives NaN, not the cap.

    Shapes: logits (...), cap () -> (...)
    Source: Gemma 2, arXiv:2408.00118

    >>> soft_cap(torch.tensor([0.0, 1000.0]), 20.0)
    tensor([ 0., 20.])
    """
    cap = torch.as_tensor(cap, dtype=logits.dtype, device=logits.device)
    off = cap == torch.inf
    # Before the division: inf tanh(logit / inf) is inf * 0, and its NaN would reach the gradient.
    cap = torch.where(off, 1.0, cap)
    # logits - logits is 0, or NaN where they are not finite: tanh alone would report inf as the cap.
    return torch.where(off, logits, cap * torch.tanh(logits / cap) + (logits - logits))


def _joined(mask: Tensor | None, causal: bool, query: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return True where a query may attend, and True for queries that may attend to anything at all.

    None stands for True everywhere: a causal mask alone leaves no query without a key.
    """
    if mask is None:
        return causal_mask(query.shape[-2], device=query.device) if causal else None, None
    if causal:
        # Together they may leave a query without any key, which either alone need not do.
        mask = mask & causal_mask(query.shape[-2], device=query.device)
    return mask, mask.any(dim=-1, keepdim=True)


def _masked(scores: Tensor, allowed: Tensor | None, has_key: Tensor | None) -> Tensor:
    """Add 0 where a query may attend and -inf where not; NaN stays NaN under it."""
    if allowed is None:
        return scores
    if has_key is not None:
        allowed = allowed | ~has_key  # a row without any key would be NaN: it stays, and is zeroed afterwards
    return scores + torch.where(allowed, 0.0, -torch.inf).to(scores.dtype)


def _wide(scores: Tensor) -> Tensor:
    """float32 for half precision, which can hold neither the exponentials nor their sum."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _scaled_query(function, query, key, value, mask, causal, scale) -> Tensor:
    """Check shapes and return the scaled query: cheaper than to scale all scores."""
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(
            f"{function}: query, key and value must have 4 axes (B, H, length, K); "
            f"got {query.ndim}, {key.ndim}, {value.ndim}"
        )
    (B, H, L, K), M = query.shape, key.shape[2]
    if key.shape != (B, H, M, K):
        raise ValueError(f"{function}: key_BHMK must be ({B}, {H}, M, {K}); got {tuple(key.shape)!r}")
    if value.shape[:3] != (B, H, M):
        raise ValueError(f"{function}: value_BHMK must be ({B}, {H}, {M}, ...); got {tuple(value.shape)!r}")
    if causal and L != M:
        raise ValueError(
            f"{function}: causal must be False when L != M; got L={L}, M={M}. "
            "Pass mask=causal_mask(L, M) to say where the queries stand."
        )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"{function}: mask must be bool, True = may attend; got {mask.dtype!r}")
    return query * (1 / math.sqrt(K) if scale is None else scale)


def scaled_dot_product_attention(
    query_BHLK: Tensor,
    key_BHMK: Tensor,
    value_BHMK: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | Tensor | None = None,
    softcap: float | Tensor | None = None,
    weight_scale: Tensor | None = None,
    measure: bool = True,
) -> tuple[Tensor, AttentionMeasures]:
    """Mix the values by softmax(scale query key^T); a query that may attend to nothing gets zeros.

    A non-finite query or key gives NaN, even a masked one: nothing is hidden. `softcap` bounds the logits by
    cap tanh(logit / cap); None and inf are off, and a tensor holds one cap. `weight_scale` multiplies the
    weights after the softmax, for dropout: 0 and 1/(1-p), drawn by the caller. Measured are the logit before
    the cap and the entropy before dropout; `measure=False` saves these passes and leaves both None. Half
    precision is exponentiated and summed in float32.

    Shapes: query_BHLK (B, H, L, K), key_BHMK (B, H, M, K), value_BHMK (B, H, M, K), mask bool broadcastable
            to (B, H, L, M), True = may attend, weight_scale broadcastable to the same
            -> out_BHLK (B, H, L, K), measures by head
    Units:  scale defaults to 1/sqrt(K); entropy in nats
    Raises: ValueError if the axes do not fit, if mask is not bool, if L != M and causal=True
    Source: Vaswani et al. 2017, arXiv:1706.03762, Eq. 1; our K is their d_k.
            Soft-cap: Gemma 2, arXiv:2408.00118
    Lesson: 01-attention

    >>> query, key = torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3)
    >>> value = torch.tensor([[[[2.0], [4.0]]]])
    >>> out, measures = scaled_dot_product_attention(query, key, value, causal=True)
    >>> out.flatten(), measures.entropy_H
    (tensor([2., 3.]), tensor([0.3466]))
    """
    name = "scaled_dot_product_attention"
    query = _scaled_query(name, query_BHLK, key_BHMK, value_BHMK, mask, causal, scale)
    allowed, has_key = _joined(mask, causal, query)
    logits_BHLM = _wide(query @ key_BHMK.mT)
    scores_BHLM = logits_BHLM if softcap is None else soft_cap(logits_BHLM, softcap)
    scores_BHLM = _masked(scores_BHLM, allowed, has_key)  # -inf where a query may not attend
    weights_BHLM = softmax(scores_BHLM)
    if has_key is not None:
        weights_BHLM = weights_BHLM * has_key  # zeros for a query that may attend to nothing
    kept_BHLM = weights_BHLM if weight_scale is None else weights_BHLM * weight_scale  # dropout
    out_BHLK = kept_BHLM.to(value_BHMK.dtype) @ value_BHMK
    if not measure:
        return out_BHLK, AttentionMeasures(max_logit_H=None, entropy_H=None)
    measures = _measures(logits_BHLM.detach(), scores_BHLM.detach(), weights_BHLM.detach(), allowed, has_key)
    return out_BHLK, measures


def _measures(logits_BHLM, scores_BHLM, weights_BHLM, allowed, has_key) -> AttentionMeasures:
    if allowed is not None:  # a product, for it is far faster on a CPU than a choice
        logits_BHLM = logits_BHLM * allowed.to(logits_BHLM.dtype)
    max_logit_H = logits_BHLM.abs().amax(dim=(-4, -2, -1))

    # Entropy is -sum(w log w), where log w = log(largest w) - (largest score - score): no log of each weight.
    below_BHLM = scores_BHLM.amax(dim=-1, keepdim=True) - scores_BHLM
    # What is masked has weight 0 and lies inf below: 0 times inf is NaN, 0 times the largest number is 0.
    below_BHLM = below_BHLM.clamp(max=torch.finfo(scores_BHLM.dtype).max)
    entropy_BHL = (weights_BHLM * below_BHLM).sum(dim=-1) - weights_BHLM.amax(dim=-1).log()
    if has_key is None:
        return AttentionMeasures(max_logit_H=max_logit_H, entropy_H=entropy_BHL.mean(dim=(-3, -1)))
    has_key_BHL = has_key.squeeze(-1).expand(entropy_BHL.shape)
    total_H = torch.where(has_key_BHL, entropy_BHL, 0.0).sum(dim=(-3, -1))
    return AttentionMeasures(
        max_logit_H=max_logit_H, entropy_H=total_H / has_key_BHL.sum(dim=(-3, -1)).clamp(min=1)
    )


def scaled_dot_product_attention_grad(
    query_BHLK: Tensor,
    key_BHMK: Tensor,
    value_BHMK: Tensor,
    grad_BHLK: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return d loss / d query, key and value by hand, from the gradient of what attention returned.

    With W the weights, C the factors of `weight_scale` and dO the gradient of the output:
    dV = (C W)^T dO; dW = C (dO V^T); dS = W (dW - rowsum(W dW)); dQ = scale dS K; dK = scale dS^T Q.
    A soft-cap multiplies dS by 1 - tanh(logit / cap)^2.

    Shapes: as scaled_dot_product_attention, grad_BHLK (B, H, L, K) -> the shapes of query, key and value
    Raises: ValueError as scaled_dot_product_attention
    Source: Dao et al. 2022, arXiv:2205.14135, the backward pass

    >>> query, key = torch.zeros(1, 1, 1, 1), torch.tensor([[[[1.0], [3.0]]]])
    >>> dQ, dK, dV = scaled_dot_product_attention_grad(query, key, key, torch.ones(1, 1, 1, 1))
    >>> dQ.item(), dV.flatten()      # the variance of 1 and 3; the two weights
    (1.0, tensor([0.5000, 0.5000]))
    """
    scale = 1 / math.sqrt(query_BHLK.shape[-1]) if scale is None else scale
    weights_BHLM = attention_weights(
        query_BHLK, key_BHMK, mask=mask, causal=causal, scale=scale, softcap=softcap
    )
    factors = 1.0 if weight_scale is None else weight_scale
    grad_value_BHMK = (weights_BHLM * factors).mT @ grad_BHLK
    # The factors stand after the softmax: they multiply its gradient, not that of the scores.
    grad_weights_BHLM = factors * (grad_BHLK @ value_BHMK.mT)
    grad_scores_BHLM = softmax_grad(weights_BHLM, grad_weights_BHLM)
    if softcap is not None:
        logits_BHLM = scale * query_BHLK @ key_BHMK.mT
        grad_scores_BHLM = grad_scores_BHLM * (1 - torch.tanh(logits_BHLM / softcap).square())
    return scale * grad_scores_BHLM @ key_BHMK, scale * grad_scores_BHLM.mT @ query_BHLK, grad_value_BHMK


def attention_weights(
    query_BHLK: Tensor,
    key_BHMK: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | Tensor | None = None,
    softcap: float | Tensor | None = None,
) -> Tensor:
    """Return the weights that scaled_dot_product_attention mixes the values by (for heat maps).

    Shapes: query_BHLK (B, H, L, K), key_BHMK (B, H, M, K) -> weights_BHLM (B, H, L, M); a row sums to 1,
            or to 0 where the query may attend to nothing
    Raises: ValueError as scaled_dot_product_attention
    Source: Vaswani et al. 2017, arXiv:1706.03762, Eq. 1

    >>> attention_weights(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), causal=True)[0, 0]
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000]])
    """
    query = _scaled_query("attention_weights", query_BHLK, key_BHMK, key_BHMK, mask, causal, scale)
    allowed, has_key = _joined(mask, causal, query)
    scores_BHLM = _wide(query @ key_BHMK.mT)
    scores_BHLM = scores_BHLM if softcap is None else soft_cap(scores_BHLM, softcap)
    weights_BHLM = softmax(_masked(scores_BHLM, allowed, has_key))
    return weights_BHLM if has_key is None else weights_BHLM * has_key


def multi_head_attention(
    params: Mapping[str, Tensor],
    x_BLD: Tensor,
    *,
    heads: int,
    memory_BMD: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    softcap: float | Tensor | None = None,
    weight_scale: Tensor | None = None,
    measure: bool = True,
    attend: Callable = scaled_dot_product_attention,
) -> tuple[Tensor, AttentionMeasures]:
    """Project x to heads, attend (to memory_BMD if given, else to x itself), project back.

    QK-norm (RMS norm of each head's queries and keys) is on when params hold "query_norm.weight" and
    "key_norm.weight". `attend` mixes the values: another function, called as
    `scaled_dot_product_attention` is, may stand in its place.

    Shapes: params "query.weight", "key.weight", "value.weight" (H*K, D), "output.weight" (D, H*K), each
            with a ".bias" or without, "query_norm.weight" and "key_norm.weight" (K,); x_BLD (B, L, D),
            memory_BMD (B, M, D), mask bool broadcastable to (B, H, L, M), True = may attend, weight_scale
            broadcastable to the same -> out_BLD (B, L, D), measures by head
    Raises: ValueError if heads does not divide the projected width, or one of two QK-norm weights is missing
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2; QK-norm: Dehghani et al. 2023,
            arXiv:2302.05442 (layer norm there, RMS norm here)
    Lesson: 01-attention

    >>> eye = torch.eye(2)
    >>> params = {f"{name}.weight": eye for name in ("query", "key", "value", "output")}
    >>> out, measures = multi_head_attention(params, torch.ones(1, 3, 2), heads=2, causal=True)
    >>> out.shape, measures.max_logit_H
    (torch.Size([1, 3, 2]), tensor([1., 1.]))
    """
    memory = x_BLD if memory_BMD is None else memory_BMD
    inner = params["query.weight"].shape[0]
    if inner % heads:
        raise ValueError(f"multi_head_attention: heads must divide the width {inner}; got {heads!r}")
    # One of two would normalise one side alone and train silently.
    normed = [f"{name}_norm.weight" in params for name in ("query", "key")]
    if normed[0] != normed[1]:
        raise ValueError(
            "multi_head_attention: params must hold both query_norm.weight and key_norm.weight, or neither; "
            f"got only {'query_norm.weight' if normed[0] else 'key_norm.weight'!r}"
        )

    def project(name, x):
        projected = linear(x, params[f"{name}.weight"], params.get(f"{name}.bias"))
        return projected.unflatten(-1, (heads, -1)).transpose(1, 2)

    query, key, value = project("query", x_BLD), project("key", memory), project("value", memory)
    if normed[0]:
        query, key = rms_norm(query, params["query_norm.weight"]), rms_norm(key, params["key_norm.weight"])
    mixed, measures = attend(
        query,
        key,
        value,
        mask=mask,
        causal=causal,
        softcap=softcap,
        weight_scale=weight_scale,
        measure=measure,
    )
    out = linear(mixed.transpose(1, 2).flatten(2), params["output.weight"], params.get("output.bias"))
    return out, measures


def qk_clip(
    query_weight: Tensor, key_weight: Tensor, max_logit_H: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Scale each head's query and key weights so that a largest logit above the threshold comes down to it.

    A rule for AFTER the optimizer step: what the head saw in that step's forward pass decides. A logit is a
    product of a query and a key: each side takes the root of the factor. A head below the threshold, and one
    whose logit is NaN, stays as it is.

    Shapes: query_weight, key_weight (H*K, D), max_logit_H (H,) largest |logit|, scaled -> the same two shapes
    Raises: ValueError if threshold is a number <= 0
    Source: QK-Clip of Kimi K2, arXiv:2507.20534: factor min(1, tau / S_max), its root on either side; our
            threshold is their tau; deviation: the largest |logit|, where they take the largest
    Lesson: 08-attention-logits

    >>> qk_clip(torch.ones(2, 1), torch.ones(2, 1), torch.tensor([400.0, 50.0]), 100.0)[0].flatten()
    tensor([0.5000, 1.0000])
    """
    if not isinstance(threshold, Tensor) and not threshold > 0:
        raise ValueError(f"qk_clip: threshold must be > 0; got {threshold!r}")
    factor_H = torch.where(max_logit_H > threshold, threshold / max_logit_H, 1.0)
    # One factor a head, for each of its K rows.
    root_H11 = factor_H.sqrt()[:, None, None]
    scaled = [
        (weight.unflatten(0, (len(max_logit_H), -1)) * root_H11).flatten(0, 1)
        for weight in (query_weight, key_weight)
    ]
    return scaled[0], scaled[1]


def cosine_attention(
    query_BHLK: Tensor,
    key_BHMK: Tensor,
    value_BHMK: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float = 10.0,
) -> Tensor:
    """Mix the values by softmax(scale cosine(query, key)): no logit is larger than the scale.

    QK-norm without anything learned; a gain that is learned can grow, and bounds nothing. A query or key of
    length 0 gives NaN: nothing is hidden.

    Shapes: query_BHLK (B, H, L, K), key_BHMK (B, H, M, K), value_BHMK (B, H, M, K), mask bool broadcastable
            to (B, H, L, M), True = may attend, at least one key a query -> out_BHLK (B, H, L, K)
    Source: Henry et al. 2020, arXiv:2010.04245, whose scale is learned; deviation: ours is fixed
    Lesson: 08-attention-logits

    >>> query, key = torch.tensor([[[[9.0]]]]), torch.tensor([[[[5.0], [-2.0]]]])
    >>> cosine_attention(query, key, torch.tensor([[[[1.0], [0.0]]]]), scale=1.0)  # 1/(1 + e^-2)
    tensor([[[[0.8808]]]])
    """
    query = query_BHLK / query_BHLK.norm(dim=-1, keepdim=True)
    key = key_BHMK / key_BHMK.norm(dim=-1, keepdim=True)
    logits_BHLM = _wide(scale * query @ key.mT)
    weights_BHLM = softmax(_masked(logits_BHLM, mask, None))
    return weights_BHLM.to(value_BHMK.dtype) @ value_BHMK
