"""Tiled attention: the online softmax, whose memory grows with the length and not with its square.

Same notation as in `attention`: S = Q K^T the scores, P = exp(S - rowmax), Z = rowsum(P), out = P V / Z.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from stabviz.ops.attention import _scaled_query, soft_cap


def _tile_mask(query, mask, causal, start, stop):
    """True where a query may attend to a key of start..stop-1; None if all may."""
    part = mask if mask is None or mask.shape[-1] == 1 else mask[..., start:stop]
    if not causal:
        return part
    positions = torch.arange(query.shape[-2], device=query.device)
    past = positions[:, None] >= positions[start:stop]
    return past if part is None else part & past


def _tile_scores(query, key, mask, softcap, causal, start, stop):
    """Scores of one tile of keys, -inf where masked, and True for rows without any key in it (or None)."""
    scores = query @ key[..., start:stop, :].mT
    if softcap is not None:
        scores = soft_cap(scores, softcap)
    allowed = _tile_mask(query, mask, causal, start, stop)
    if allowed is None:
        return scores, None
    bias = torch.where(allowed, 0.0, -torch.inf).to(scores.dtype)
    return scores + bias, ~allowed.any(dim=-1, keepdim=True)


class _TiledAttention(Function):
    """softmax(Q K^T) V over tiles of keys; keeps log Z by row, and makes weights anew going back.

    A Function, for autograd alone would keep every tile's weights: the square of the length again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(query, key, value, mask, softcap, causal, tile):
        row_max = torch.full_like(query[..., :1], -torch.inf)
        normaliser, weighted, empty = torch.zeros_like(row_max), 0.0, None
        for start in range(0, key.shape[-2], tile):
            stop = start + tile
            scores, tile_empty = _tile_scores(query, key, mask, softcap, causal, start, stop)
            if tile_empty is not None:
                empty = tile_empty if empty is None else empty & tile_empty
            new_max = torch.maximum(row_max, scores.amax(dim=-1, keepdim=True))
            # Until a row has met a key its maximum is the mask's -inf, and -inf - -inf would be NaN.
            shift = new_max if empty is None else torch.where(empty, 0.0, new_max)
            exponentials = torch.exp(scores - shift)
            rescale = torch.exp(row_max - shift)
            normaliser = normaliser * rescale + exponentials.sum(dim=-1, keepdim=True)
            weighted = weighted * rescale + exponentials @ value[..., start:stop, :]
            row_max = new_max
        if empty is not None:  # these alone may end with 0 / 1; a row of legitimate -inf stays NaN
            normaliser = torch.where(empty, 1.0, normaliser)
            row_max = torch.where(empty, 0.0, row_max)
        return weighted / normaliser, row_max + normaliser.log()

    @staticmethod
    def setup_context(ctx, inputs, output):
        query, key, value, mask, softcap, ctx.causal, ctx.tile = inputs
        ctx.softcap = None if isinstance(softcap, Tensor) else softcap
        softcap_tensor = softcap if isinstance(softcap, Tensor) else None
        ctx.save_for_backward(query, key, value, mask, softcap_tensor, *output)

    @staticmethod
    def backward(ctx, grad_out, grad_log_z):
        query, key, value, mask, softcap, out, log_z = ctx.saved_tensors
        softcap = ctx.softcap if softcap is None else softcap
        grad_row = (grad_out * out).sum(dim=-1, keepdim=True) - grad_log_z
        # Buffers, not lists of tiles: small results kept between large temporaries fragment the heap to 1
        # GiB. Made from grad_row, so that they carry the axis of whichever argument a vmap has batched.
        grad_query, grad_key, grad_value = (grad_row.new_zeros(x.shape) for x in (query, key, value))
        for start in range(0, key.shape[-2], ctx.tile):
            stop = start + ctx.tile
            scores, _ = _tile_scores(query, key, mask, softcap, ctx.causal, start, stop)
            weights = torch.exp(scores - log_z)
            grad_value[..., start:stop, :] = weights.mT @ grad_out
            grad_scores = weights * (grad_out @ value[..., start:stop, :].mT - grad_row)
            if softcap is not None:  # d(cap tanh(s / cap))/ds = 1 - tanh^2; recomputed, not stored
                logits = query @ key[..., start:stop, :].mT
                grad_scores = grad_scores * (1 - torch.tanh(logits / softcap).square())
            grad_query.add_(grad_scores @ key[..., start:stop, :])
            grad_key[..., start:stop, :] = grad_scores.mT @ query
        return grad_query, grad_key, grad_value, None, None, None, None


def tiled_attention(
    query_BHLK: Tensor,
    key_BHMK: Tensor,
    value_BHMK: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | Tensor | None = None,
    softcap: float | Tensor | None = None,
    tile: int = 128,
) -> Tensor:
    """Compute scaled_dot_product_attention in memory linear in the length, `tile` keys at a time.

    The softmax runs online: when a tile brings a larger score, what was summed so far is scaled down by
    exp(old maximum - new maximum). The backward pass makes each tile's weights anew from log Z.

    Shapes: as scaled_dot_product_attention -> out_BHLK (B, H, L, K)
    Raises: ValueError as scaled_dot_product_attention, and if tile < 1
    Source: Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135. Deviation:
            tiles over keys only, as there is no on-chip memory to fit the queries in
    Lesson: 01-attention

    >>> from stabviz.ops import scaled_dot_product_attention
    >>> query = torch.tensor([[[[1.0], [2.0], [3.0]]]])
    >>> plain, _ = scaled_dot_product_attention(query, query, query, causal=True)
    >>> torch.allclose(tiled_attention(query, query, query, causal=True, tile=2), plain)
    True
    """
    if tile < 1:
        raise ValueError(f"tiled_attention: tile must be at least 1; got {tile!r}")
    query = _scaled_query("tiled_attention", query_BHLK, key_BHMK, value_BHMK, mask, causal, scale)
    return _TiledAttention.apply(query, key_BHMK, value_BHMK, mask, softcap, causal, tile)[0]
