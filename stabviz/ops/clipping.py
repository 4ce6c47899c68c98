"""Gradient clipping for one model; the norm BEFORE clipping always comes back beside the clipped gradient.

`grad` is a tensor (a flat vector of all parameters, say), a list of tensors or a dict of them; what comes
back has the same form. The norm is then one number over all of them.
"""

import torch
from torch import Tensor

Grads = Tensor | list[Tensor] | dict[str, Tensor]

_CHUNK = 2**18


def global_norm(grad: Grads) -> Tensor:
    """Measure the L2 norm over all elements of all tensors; half precision is summed in float32.

    float32 squares overflow: a finite gradient with an element above about 1e19 has an infinite norm.

    Shapes: any -> ()
    Raises: ValueError if there is no tensor at all
    Lesson: 10-precision-and-memory

    >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    tensors = _tensors(grad, "global_norm")
    halves = (torch.float16, torch.bfloat16)
    # One float32 sum over millions of squares is off by 0.1 %: sum chunks, then the chunks' norms.
    chunks = [c for x in tensors for c in (x.flatten().split(_CHUNK) if x.numel() > _CHUNK else (x,))]
    norms = [torch.linalg.vector_norm(c, dtype=torch.float32 if c.dtype in halves else None) for c in chunks]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip_scale(norm_preclip: Tensor, max_norm: float | Tensor) -> Tensor:
    """Return min(1, max_norm / norm), exactly 1 at and below the threshold; NaN for a norm of NaN.

    Shapes: norm_preclip (), max_norm () > 0 -> ()
    Source: Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1; deviation: no epsilon (torch adds 1e-6)

    >>> clip_scale(torch.tensor(5.0), 1.0)
    tensor(0.2000)
    """
    # The clamp keeps this line's own gradient finite at norm 0; `where` answers inf / inf.
    return torch.where(norm_preclip <= max_norm, 1.0, max_norm / norm_preclip.clamp(min=max_norm))


def clip_by_global_norm(grad: Grads, max_norm: float | Tensor) -> tuple[Grads, Tensor]:
    """Scale the gradient to L2 norm <= max_norm: g * min(1, max_norm / norm); unchanged below the threshold.

    Non-finite stays non-finite: ONE NaN makes every element NaN, one inf makes itself NaN and the others 0.
    Clipping is no protection from NaN: test isfinite(norm_preclip) and skip the step. max_norm = inf turns
    clipping off. A large model's gradients are scaled in place by `clip_scale`.

    Shapes: grad any, max_norm () > 0 -> clipped like grad, norm_preclip ()
    Raises: ValueError if max_norm is a number <= 0 or NaN
    Source: Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1; deviation: no epsilon (torch adds 1e-6)
    Lesson: 04-gradient-clipping

    >>> clip_by_global_norm(torch.tensor([3.0, 4.0]), 1.0)
    (tensor([0.6000, 0.8000]), tensor(5.))
    """
    _positive("clip_by_global_norm", "max_norm", max_norm)
    norm_preclip = global_norm(grad)
    scale = clip_scale(norm_preclip, max_norm)
    return _each(grad, lambda x: x * _like(scale, x)), norm_preclip


def clip_by_value(grad: Grads, limit: float | Tensor) -> tuple[Grads, Tensor]:
    """Cut every element to [-limit, limit]; the direction changes, NaN stays NaN, but inf becomes `limit`.

    Shapes: grad any, limit () > 0 -> clipped like grad, norm_preclip ()
    Raises: ValueError if limit is a number <= 0 or NaN
    Lesson: 04-gradient-clipping

    >>> clip_by_value(torch.tensor([3.0, -4.0, 0.5]), 1.0)[0]
    tensor([ 1.0000, -1.0000,  0.5000])
    """
    _positive("clip_by_value", "limit", limit)
    return _each(grad, lambda x: x.clamp(-_like(limit, x), _like(limit, x))), global_norm(grad)


def clip_adaptive(
    grad: Grads, param: Grads, clip_factor: float | Tensor = 0.01, *, eps: float | Tensor = 1e-3
) -> tuple[Grads, Tensor]:
    """Scale each UNIT (row) of the gradient so that |grad_i| <= clip_factor * max(|param_i|, eps).

    A unit is one index of the first axis: a row of a weight in torch's (out, in) convention. A tensor with
    fewer than two axes (a bias, a gain) is one unit. Pass tensors in their own shapes, not a flat vector.

    Shapes: grad_OI (O, I, ...), param_OI the same -> clipped_OI, norm_preclip () over everything
    Raises: ValueError if shapes or forms differ, clip_factor <= 0 or eps <= 0
    Source: Brock et al. 2021, arXiv:2102.06171, Adaptive Gradient Clipping; deviation: no floor under
            |grad_i|
    Lesson: 04-gradient-clipping

    >>> clip_adaptive(torch.tensor([[3.0, 4.0], [0.0, 0.1]]), torch.ones(2, 2), 0.5)[0]
    tensor([[0.4243, 0.5657],
            [0.0000, 0.1000]])
    """
    _positive("clip_adaptive", "clip_factor", clip_factor)
    _positive("clip_adaptive", "eps", eps)
    norm_preclip = global_norm(grad)
    if isinstance(grad, Tensor):
        if not isinstance(param, Tensor):
            raise ValueError(f"clip_adaptive: param must be a tensor like grad; got {_names(param)!r}")
        return _clip_units(grad, param, clip_factor, eps), norm_preclip
    if isinstance(grad, dict):
        if not isinstance(param, dict) or grad.keys() != param.keys():
            raise ValueError(f"clip_adaptive: param must be a dict of {sorted(grad)}; got {_names(param)!r}")
        return {name: _clip_units(x, param[name], clip_factor, eps) for name, x in grad.items()}, norm_preclip
    if not isinstance(param, list) or len(param) != len(grad):
        raise ValueError(f"clip_adaptive: param must be a list of {len(grad)} tensors; got {_names(param)!r}")
    return [_clip_units(x, p, clip_factor, eps) for x, p in zip(grad, param, strict=True)], norm_preclip


def _clip_units(
    grad_OI: Tensor, param_OI: Tensor, clip_factor: float | Tensor, eps: float | Tensor
) -> Tensor:
    if grad_OI.shape != param_OI.shape:
        raise ValueError(
            f"clip_adaptive: param must be of grad's shape {tuple(grad_OI.shape)}; got "
            f"{tuple(param_OI.shape)!r}"
        )
    # None: over all of a bias or gain, which has no rows.
    axes = tuple(range(1, grad_OI.ndim)) if grad_OI.ndim >= 2 else None
    grad_norm = torch.linalg.vector_norm(grad_OI, dim=axes, keepdim=True)
    limit = torch.linalg.vector_norm(param_OI, dim=axes, keepdim=True).clamp(min=eps) * clip_factor
    # The divisor is never 0: a unit without gradient would put inf into the branch not taken, and NaN
    # into its gradient.
    scale = torch.where(grad_norm <= limit, 1.0, limit / torch.maximum(grad_norm, limit))
    return grad_OI * scale.to(grad_OI.dtype)


def _tensors(grad: Grads, function: str) -> list[Tensor]:
    tensors = [grad] if isinstance(grad, Tensor) else list(grad.values() if isinstance(grad, dict) else grad)
    if not tensors:
        raise ValueError(f"{function}: grad must be at least one tensor; got {grad!r}")
    return tensors


def _each(grad: Grads, function) -> Grads:
    if isinstance(grad, Tensor):
        return function(grad)
    if isinstance(grad, dict):
        return {name: function(x) for name, x in grad.items()}
    return [function(x) for x in grad]


def _positive(function: str, name: str, value: float | Tensor) -> None:
    # `not value > 0` refuses NaN too; `value <= 0` would let it through.
    if not isinstance(value, Tensor) and not value > 0:
        raise ValueError(f"{function}: {name} must be above 0; got {value!r}. math.inf turns clipping off.")


def _like(value: float | Tensor, other: Tensor) -> float | Tensor:
    return value.to(other.device, other.dtype) if isinstance(value, Tensor) else value


def _names(grads: Grads) -> object:
    return sorted(grads) if isinstance(grads, dict) else type(grads).__name__
