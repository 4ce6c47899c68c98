"""Attention: softmax, masks, scaled dot-product attention, many heads. The tiled form has a file of its own.

The derivative of attention is written by hand (`_Attention.backward`), so that the formula of the lesson is
the one that runs. Notation there: S = Q K^T the scores, P = exp(S - rowmax) and Z = rowsum(P), the weights
W = P / Z, C the factors of `weight_scale` (dropout's 0 and 1/(1-p); 1 without), out = (C W) V.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from stabviz.ops.layers import _Rowwise, _to_front, exp_floor, linear, rms_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMeasures:
    """What attention saw, detached. Both fields are None where `measure=False` was asked."""

    max_logit_H: Tensor | None
    """Largest |logit| by head over all pairs that may attend, after scale and soft-cap. (H,)"""
    entropy_H: Tensor | None
    """Mean entropy of the weights by head, over all queries that may attend to something. nats, (H,)"""


class _Softmax(_Rowwise):
    """exp(s - max) / sum over the last axis; ds = w (g - sum(w g))."""

    @staticmethod
    def forward(scores: Tensor) -> Tensor:
        # exp2 gives an exact 0 for -inf, and has no slow path for small results (see exp_floor).
        exponentials = (scores - scores.amax(dim=-1, keepdim=True)).mul_(1 / math.log(2.0)).exp2_()
        return exponentials.div_(exponentials.sum(dim=-1, keepdim=True))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        (weights,) = ctx.saved_tensors
        weighted = weights * grad
        return torch.addcmul(weighted, weights, weighted.sum(dim=-1, keepdim=True), value=-1)


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
    if dim in (-1, scores.ndim - 1):
        return _Softmax.apply(scores)
    return _Softmax.apply(scores.movedim(dim, -1)).movedim(-1, dim)


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


def _soft_cap(scores: Tensor, softcap: Tensor | float) -> Tensor:
    """cap tanh(score / cap), or the score where cap is inf; a non-finite score gives NaN, not the cap."""
    cap = torch.as_tensor(softcap, dtype=scores.dtype, device=scores.device)
    off = cap == torch.inf
    cap = torch.where(off, 1.0, cap)
    return torch.where(off, scores, torch.tanh(scores / cap) * cap + (scores - scores))


def _scores(query: Tensor, key: Tensor, softcap: Tensor | float | None) -> Tensor:
    scores = query @ key.mT
    return scores if softcap is None else _soft_cap(scores, softcap)


def _mask_terms(mask: Tensor | None, scores: Tensor):
    """From a bool mask: 1 and 0 to multiply by, 0 and -inf to add, and True for rows without any key."""
    if mask is None:
        return None, None, None
    keep = mask.to(scores.dtype)  # arithmetic with a float mask is far faster on a CPU than masked_fill
    bias = torch.where(mask, 0.0, -torch.inf).to(scores.dtype)
    return keep, bias, ~mask.any(dim=-1, keepdim=True)


def _times(weights: Tensor, weight_scale: Tensor | None) -> Tensor:
    return weights if weight_scale is None else weights * weight_scale


def _measured_entropy(
    shifted: Tensor, exponentials: Tensor, normaliser: Tensor, empty: Tensor | None
) -> Tensor:
    """Mean over rows of log Z - sum(w s), s less the row's maximum: exact for a sharp row; overwrites s."""
    expected = shifted.mul_(exponentials).sum(dim=-1, keepdim=True).div_(normaliser)
    entropy = normaliser.log().sub_(expected)
    if empty is None:
        return entropy.mean(dim=(-4, -2)).squeeze(-1)
    count = (~empty).expand(entropy.shape).sum(dim=(-4, -2)).clamp_min(1)
    return (entropy.masked_fill_(empty, 0.0).sum(dim=(-4, -2)) / count).squeeze(-1)


class _Attention(Function):
    """(C softmax(Q K^T)) V with its derivative; the query comes scaled. Axes (..., B, H, L, K)."""

    @staticmethod
    def forward(query, key, value, mask, softcap, weight_scale, measure):
        scores = _scores(query, key, softcap)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # itself, unless half precision
        keep, bias, empty = _mask_terms(mask, scores)
        if keep is not None:
            if measure:
                lowest = scores.mul_(keep).amin(dim=(-4, -2, -1))  # a 0 at what is masked changes no |logit|
            scores.add_(bias)
        elif measure:
            lowest = scores.amin(dim=(-4, -2, -1))
        row_max = scores.amax(dim=-1, keepdim=True)
        if empty is not None:  # only a row without any key may have its -inf replaced: NaN must stay
            row_max.masked_fill_(empty, 0.0)
        shifted = scores.sub_(row_max).clamp_min_(exp_floor(scores.dtype))
        exponentials = shifted.exp() if measure else shifted.exp_()
        if keep is not None:
            exponentials.mul_(keep)
        normaliser = exponentials.sum(dim=-1, keepdim=True)
        if empty is not None:
            normaliser.masked_fill_(empty, 1.0)
        kept = exponentials.to(value.dtype)
        out = (_times(kept, weight_scale) @ value).div_(normaliser)
        if not measure:
            return out, kept, normaliser, None, None
        largest = torch.maximum(lowest.abs_(), row_max.abs_().amax(dim=(-4, -2)).squeeze(-1))
        return out, kept, normaliser, largest, _measured_entropy(shifted, exponentials, normaliser, empty)

    @staticmethod
    def setup_context(ctx, inputs, output):
        query, key, value, _, softcap, weight_scale, measure = inputs
        out, exponentials, normaliser, max_logit, entropy = output
        ctx.set_materialize_grads(False)
        ctx.softcap = None if isinstance(softcap, Tensor) else softcap
        softcap_tensor = softcap if isinstance(softcap, Tensor) else None
        ctx.save_for_backward(query, key, value, out, exponentials, normaliser, softcap_tensor, weight_scale)
        if measure:
            ctx.mark_non_differentiable(max_logit, entropy)

    @staticmethod
    def backward(ctx, grad_out, grad_exponentials, grad_normaliser, _, __):
        """dV = (C W)^T dO; dS = W (C (dO V^T) - rowsum(dO O)); dQ = dS K; dK = dS^T Q.

        W = P / Z is never formed: dividing the (small) dO by Z does it. The other two gradients come with
        second derivatives only; the row maximum counts as a constant there: P / Z is free of it.
        """
        query, key, value, out, exponentials, normaliser, softcap, weight_scale = ctx.saved_tensors
        softcap = ctx.softcap if softcap is None else softcap
        grad_value, grad_scores = None, grad_normaliser
        if grad_out is not None:
            grad_scaled = (grad_out / normaliser).to(grad_out.dtype)
            grad_value = _times(exponentials, weight_scale).mT @ grad_scaled
            grad_row = (grad_scaled * out).sum(dim=-1, keepdim=True)
            if grad_normaliser is not None:
                grad_row = grad_row - grad_normaliser
            grad_scores = _times(grad_scaled @ value.mT, weight_scale).sub_(grad_row)
        if grad_exponentials is not None:
            grad_scores = grad_exponentials if grad_scores is None else grad_scores + grad_exponentials
        if grad_scores is None:
            return (None,) * 7
        grad_scores = grad_scores * exponentials
        if softcap is not None:  # d(cap tanh(s / cap))/ds = 1 - tanh^2; recomputed, not stored
            cap = torch.as_tensor(softcap, dtype=query.dtype, device=query.device)
            grad_scores = grad_scores * (1 - torch.tanh((query @ key.mT) / cap).square())
        return grad_scores @ key, grad_scores.mT @ query, grad_value, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, query, key, value, mask, softcap, weight_scale, measure):
        size = info.batch_size
        query, key, value = (
            _to_front(x, dim, size) for x, dim in zip((query, key, value), in_dims[:3], strict=True)
        )
        mask = _align(mask, in_dims[3], query.ndim)
        softcap = _align(softcap, in_dims[4], query.ndim)
        weight_scale = _align(weight_scale, in_dims[5], query.ndim)
        outputs = _Attention.apply(query, key, value, mask, softcap, weight_scale, measure)
        return outputs, tuple(None if x is None else 0 for x in outputs)


def _apply_attention(query, key, value, *options):
    """Apply _Attention with autocast off: a backward runs without autocast, so its forward must not have
    any."""
    device = query.device.type
    if not torch.is_autocast_enabled(device):
        return _Attention.apply(query, key, value, *options)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _Attention.apply(query.to(dtype), key.to(dtype), value.to(dtype), *options)


def _align(x, in_dim, ndim):
    """Put a batched argument's vmap axis first and pad it with 1s to ndim axes, so that it broadcasts."""
    if in_dim is None:
        return x
    x = x.movedim(in_dim, 0)
    return x.reshape(x.shape[0], *(1,) * (ndim - x.ndim), *x.shape[1:])


def _prepare(function, query, key, value, mask, causal, scale):
    """Check shapes, scale the query, and join the causal mask with the given one."""
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
    cap tanh(logit / cap); None and inf are off, and a tensor holds one cap (no gradient goes to it).
    `weight_scale` multiplies the weights after the softmax, for dropout: 0 and 1/(1-p), drawn by the caller
    (no gradient goes to it either); what is measured is measured before it. `measure=False` saves about four
    passes over the weights and leaves both measures None. Half precision is exponentiated and summed in
    float32.

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
    query = _prepare("scaled_dot_product_attention", query_BHLK, key_BHMK, value_BHMK, mask, causal, scale)
    mask = _joined_mask(mask, causal, query)
    out, _, _, max_logit_H, entropy_H = _apply_attention(
        query, key_BHMK, value_BHMK, mask, softcap, weight_scale, measure
    )
    return out, AttentionMeasures(max_logit_H=max_logit_H, entropy_H=entropy_H)


def _joined_mask(mask, causal, query):
    if not causal:
        return mask
    causal_LM = causal_mask(query.shape[2], device=query.device)
    return causal_LM if mask is None else mask & causal_LM


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
    Lesson: 01-attention

    >>> attention_weights(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), causal=True)[0, 0]
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000]])
    """
    query = _prepare("attention_weights", query_BHLK, key_BHMK, key_BHMK, mask, causal, scale)
    mask = _joined_mask(mask, causal, query)
    _, exponentials, normaliser, _, _ = _apply_attention(
        query, key_BHMK, key_BHMK, mask, softcap, None, False
    )
    return exponentials / normaliser


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
