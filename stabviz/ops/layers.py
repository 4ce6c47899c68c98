"""Layers: linear, embedding, layer norm, RMS norm, ReLU, GELU and the position-wise feed-forward pair.

Autograd differentiates them; a derivative worth deriving by hand stands beside its layer (`..._grad`).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Params = Mapping[str, Tensor]


def linear(x: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias; the weight is stored (out, in), as torch stores it.

    Leading axes are flattened to one before the product, so that vmap over runs gives one batched product.

    Shapes: x (..., D), weight_ED (E, D), bias_E (E,) -> (..., E)
    Raises: ValueError if the last axis of x is not D
    Lesson: 07-transformer

    >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([0.5, 0.0]))
    tensor([[11.5000,  2.0000]])
    """
    if x.shape[-1] != weight_ED.shape[1]:
        raise ValueError(
            f"linear: x must be (..., {weight_ED.shape[1]}) for a weight {tuple(weight_ED.shape)}; "
            f"got {tuple(x.shape)!r}. The weight is (out, in)."
        )
    flat_ND = x.reshape(-1, x.shape[-1])
    out_NE = flat_ND @ weight_ED.mT if bias_E is None else torch.addmm(bias_E, flat_ND, weight_ED.mT)
    return out_NE.reshape(*x.shape[:-1], weight_ED.shape[0])


def embedding(weight_VD: Tensor, tokens: Tensor) -> Tensor:
    """Look up one row of the weight per token.

    Shapes: weight_VD (V, D), tokens (...) integer, 0 <= token < V -> (..., D)
    Raises: ValueError if the tokens are not integers; torch's own IndexError for a token outside 0..V-1
    Lesson: 10-precision-and-memory

    >>> embedding(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0, 1]))
    tensor([[3., 4.],
            [1., 2.],
            [3., 4.]])
    """
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"embedding: tokens must be integers; got {tokens.dtype!r}. Use tokens.long().")
    rows_ND = weight_VD.index_select(0, tokens.reshape(-1))
    return rows_ND.reshape(*tokens.shape, weight_VD.shape[1])


def _check_width(function: str, x: Tensor, weight_D: Tensor) -> None:
    if weight_D.shape != x.shape[-1:]:
        raise ValueError(
            f"{function}: weight_D must be ({x.shape[-1]},), the last axis of x; "
            f"got {tuple(weight_D.shape)!r}"
        )


def layer_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float = 1e-5) -> Tensor:
    """Standardise the last axis (variance divided by D, not D - 1), then scale and shift it.

    Shapes: x (..., D), weight_D (D,), bias_D (D,) -> (..., D)
    Raises: ValueError if weight_D does not match the last axis
    Source: Ba et al. 2016, arXiv:1607.06450; eps stands inside the root, as in torch
    Lesson: 07-transformer

    >>> layer_norm(torch.tensor([1.0, 3.0]), torch.ones(2), torch.zeros(2), eps=0.0)
    tensor([-1.,  1.])
    """
    _check_width("layer_norm", x, weight_D)
    centred = x - x.mean(dim=-1, keepdim=True)
    # Of the centred values: E[x^2] - E[x]^2 cancels where the mean is large.
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(variance + eps) * weight_D + bias_D


def layer_norm_grad(x: Tensor, weight_D: Tensor, grad: Tensor, eps: float = 1e-5) -> Tensor:
    """Return d loss / d x of layer_norm by hand: (g - mean(g) - z mean(g z)) / std, with g = weight * grad.

    z is the standardised x. The two means take out what a normalisation cannot pass on: a shift of all of x,
    and a stretch of all of x.

    Shapes: x (..., D), weight_D (D,), grad (..., D), the gradient of what layer_norm returned -> (..., D)
    Raises: ValueError if weight_D does not match the last axis
    Source: Ba et al. 2016, arXiv:1607.06450

    >>> layer_norm_grad(torch.tensor([1.0, 3.0]), torch.ones(2), torch.tensor([5.0, 7.0]), eps=0.0)
    tensor([0., 0.])
    """
    _check_width("layer_norm_grad", x, weight_D)
    centred = x - x.mean(dim=-1, keepdim=True)
    inv_std = torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    z, g = centred * inv_std, grad * weight_D
    along_z = (g * z).mean(dim=-1, keepdim=True)
    return (g - g.mean(dim=-1, keepdim=True) - z * along_z) * inv_std


def rms_norm(x: Tensor, weight_D: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide the last axis by its root mean square, then scale it; no mean is taken out.

    Shapes: x (..., D), weight_D (D,) -> (..., D)
    Raises: ValueError if weight_D does not match the last axis
    Source: Zhang and Sennrich 2019, arXiv:1910.07467; eps stands inside the root

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), eps=0.0) * 12.5**0.5
    tensor([3., 4.])
    """
    _check_width("rms_norm", x, weight_D)
    mean_square = x.square().mean(dim=-1, keepdim=True)
    return x * torch.rsqrt(mean_square + eps) * weight_D


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0); NaN stays NaN, and the gradient at 0 is 0.

    Shapes: x (...) -> (...)

    >>> relu(torch.tensor([-1.0, 0.0, 2.0]))
    tensor([0., 0., 2.])
    """
    # NaN <= 0 is False, so that NaN passes; at 0 the constant is chosen, whose gradient is 0.
    return torch.where(x <= 0, 0.0, x)


def gelu(x: Tensor) -> Tensor:
    """Return x Phi(x), Phi the cumulative distribution of the normal: the exact form, not the tanh one.

    Shapes: x (...) -> (...)
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415

    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1587,  0.0000,  0.8413])
    """
    return x * (0.5 * (1 + torch.erf(x / math.sqrt(2))))


def gelu_grad(x: Tensor) -> Tensor:
    """Return d gelu / d x by hand: Phi(x) + x phi(x), phi the density of the normal.

    Shapes: x (...) -> (...)
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415

    >>> gelu_grad(torch.tensor([0.0, 10.0]))
    tensor([0.5000, 1.0000])
    """
    # Far from 0 this underflows to 0, as it should: the slope is 0 or 1 there.
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density


def feed_forward(params: Params, x: Tensor, activation: Callable[[Tensor], Tensor] = gelu) -> Tensor:
    """Apply linear, activation, linear to every position by itself.

    Shapes: params "up.weight" (F, D), "up.bias" (F,), "down.weight" (D, F), "down.bias" (D,);
            x (..., D) -> (..., D)
    Raises: ValueError from linear, if a width does not fit
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.3; ReLU there, GELU by default here
    Lesson: 07-transformer

    >>> params = {"up.weight": torch.ones(3, 1), "up.bias": torch.zeros(3),
    ...           "down.weight": torch.ones(1, 3), "down.bias": torch.ones(1)}
    >>> feed_forward(params, torch.tensor([[2.0], [-2.0]]), activation=relu)
    tensor([[7.],
            [1.]])
    """
    hidden = activation(linear(x, params["up.weight"], params.get("up.bias")))
    return linear(hidden, params["down.weight"], params.get("down.bias"))
