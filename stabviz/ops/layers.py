"""Layers: linear, embedding, layer norm, RMS norm, ReLU, GELU and the position-wise feed-forward pair.

Where a derivative is worth deriving by hand it is written here by hand, as the `backward` of an
`autograd.Function`: the formula that a lesson derives is the one that runs. Each backward is made of
differentiable tensor operations, so that second derivatives exist; what it needs from the forward pass
is an input or an OUTPUT of the Function, never a hidden temporary, for the same reason.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.autograd import Function

Params = Mapping[str, Tensor]
_INV_SQRT_2 = 1 / math.sqrt(2.0)
_LOG_INV_SQRT_2PI = -0.5 * math.log(2.0 * math.pi)


def _to_front(x: Tensor, in_dim: int | None, size: int) -> Tensor:
    """Give a batched argument's vmap axis the first place, expanding an argument that has none."""
    return x.movedim(in_dim, 0) if in_dim is not None else x.expand(size, *x.shape)


def exp_floor(dtype: torch.dtype) -> float:
    """Return the score, below the row's maximum, under which exp(score) is lost beside 1 in every sum.

    On a CPU exp is 20 to 190 times slower where its result is below the smallest normal number (measured,
    MKL), and products with such numbers are slow too; so sharp softmaxes clamp there first. NaN passes a
    clamp, and a clamped weight changes no digit: exp(-60) < 1e-26. Half precision has no room for it.

    >>> exp_floor(torch.float32)
    -60.0
    """
    return {torch.float64: -300.0, torch.float16: -torch.inf}.get(dtype, -60.0)


class _Rowwise(Function):
    """A Function of one tensor that treats all leading axes alike: vmap is one call on a larger batch."""

    @classmethod
    def vmap(cls, info, in_dims, x, *options):
        outputs = cls.apply(x.movedim(in_dims[0], 0), *options)
        return outputs, 0 if isinstance(outputs, Tensor) else (0,) * len(outputs)


class _Gelu(_Rowwise):
    """x Phi(x); its derivative is Phi(x) + x phi(x), phi the normal density and phi' = -x phi."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        phi_cumulative = (x * _INV_SQRT_2).erf_().add_(1.0).mul_(0.5)
        return x * phi_cumulative, phi_cumulative

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx, grad, grad_cumulative):
        x, phi_cumulative = ctx.saved_tensors
        # exp(-x^2/2 - ln sqrt(2 pi)): the constant inside saves a pass over x
        density = torch.addcmul(x.new_full((), _LOG_INV_SQRT_2PI), x, x, value=-0.5).exp_()
        if grad is None:
            return None if grad_cumulative is None else grad_cumulative * density
        grad_x = torch.addcmul(phi_cumulative, x, density).mul_(grad)
        return grad_x if grad_cumulative is None else grad_x + grad_cumulative * density


class _Standardise(_Rowwise):
    """(x - mean) / sqrt(variance + eps) over the last axis; not `centre`: x / sqrt(mean square + eps)."""

    @staticmethod
    def forward(x: Tensor, eps: float, centre: bool) -> tuple[Tensor, Tensor]:
        if centre:
            x = x - x.mean(dim=-1, keepdim=True)
        inv_std = x.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        return x * inv_std, inv_std

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.centre = inputs[2]
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx, grad, grad_inv_std):
        # With z the output: dL/dx = (g - mean(g) - z mean(g z)) / std. The two means take out what a
        # normalisation cannot pass on: a shift of all of x, and a stretch of all of x.
        z, inv_std = ctx.saved_tensors
        if grad is None and grad_inv_std is None:
            return None, None, None
        grad = torch.zeros_like(z) if grad is None else grad
        along_z = (grad * z).mean(dim=-1, keepdim=True)
        if grad_inv_std is not None:  # second derivatives: d(1/std)/dx = -z / (std^2 width)
            along_z = along_z + grad_inv_std * inv_std / z.shape[-1]
        if ctx.centre:
            grad = grad - grad.mean(dim=-1, keepdim=True)
        return torch.addcmul(grad, z, along_z, value=-1).mul_(inv_std), None, None


def linear(x: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias; the weight is stored (out, in), as torch stores it.

    Leading axes are flattened to one before the product, so that vmap over runs gives one batched product.

    Shapes: x (..., D), weight_ED (E, D), bias_E (E,) -> (..., E)
    Raises: ValueError if the last axis of x is not D
    Lesson: 01-attention

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
    Lesson: 01-attention

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
    Lesson: 01-attention

    >>> layer_norm(torch.tensor([1.0, 3.0]), torch.ones(2), torch.zeros(2), eps=0.0)
    tensor([-1.,  1.])
    """
    _check_width("layer_norm", x, weight_D)
    standardised, _ = _Standardise.apply(x, eps, True)
    return torch.addcmul(bias_D, standardised, weight_D)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide the last axis by its root mean square, then scale it; no mean is taken out.

    Shapes: x (..., D), weight_D (D,) -> (..., D)
    Raises: ValueError if weight_D does not match the last axis
    Source: Zhang and Sennrich 2019, arXiv:1910.07467; eps stands inside the root
    Lesson: 01-attention

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), eps=0.0) * 12.5**0.5
    tensor([3., 4.])
    """
    _check_width("rms_norm", x, weight_D)
    scaled, _ = _Standardise.apply(x, eps, False)
    return scaled * weight_D


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0); NaN stays NaN, and the gradient at 0 is 0.

    Shapes: x (...) -> (...)
    Lesson: 01-attention

    >>> relu(torch.tensor([-1.0, 0.0, 2.0]))
    tensor([0., 0., 2.])
    """
    return torch.where(x <= 0, 0.0, x)


def gelu(x: Tensor) -> Tensor:
    """Return x Phi(x), Phi the cumulative distribution of the normal: the exact form, not the tanh one.

    Shapes: x (...) -> (...)
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415
    Lesson: 01-attention

    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1587,  0.0000,  0.8413])
    """
    return _Gelu.apply(x)[0]


def feed_forward(params: Params, x: Tensor, activation: Callable[[Tensor], Tensor] = gelu) -> Tensor:
    """Apply linear, activation, linear to every position by itself.

    Shapes: params "up.weight" (F, D), "up.bias" (F,), "down.weight" (D, F), "down.bias" (D,);
            x (..., D) -> (..., D)
    Raises: ValueError from linear, if a width does not fit
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.3; ReLU there, GELU by default here
    Lesson: 01-attention

    >>> params = {"up.weight": torch.ones(3, 1), "up.bias": torch.zeros(3),
    ...           "down.weight": torch.ones(1, 3), "down.bias": torch.ones(1)}
    >>> feed_forward(params, torch.tensor([[2.0], [-2.0]]), activation=relu)
    tensor([[7.],
            [1.]])
    """
    hidden = activation(linear(x, params["up.weight"], params.get("up.bias")))
    return linear(hidden, params["down.weight"], params.get("down.bias"))
