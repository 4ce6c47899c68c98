"""Sharpness: the largest eigenvalue of the Hessian, followed from step to step by power iteration."""

from collections.abc import Mapping

import torch
from torch import Tensor

ITERATIONS = 4
"""Power iterations a step. The eigenvector of the last step is the start, so that a few are enough."""

MOST_ITERATIONS = 20
"""Power iterations where many steps lie between two measurements, and the eigenvector has turned."""


class Curvature:
    """Follows the top eigenvector of each run's Hessian, (R, P), along the training."""

    def __init__(self, params_RP: Tensor, every: int = 1):
        self.iterations = min(ITERATIONS * every, MOST_ITERATIONS)
        generator = torch.Generator().manual_seed(0)
        start_P = torch.randn(params_RP.shape[1], generator=generator)
        self.vector_RP = start_P.to(params_RP).expand_as(params_RP).clone()

    def measure(
        self,
        leaves: Mapping[str, Tensor],
        grads_RP: Tensor,
        optimizer,
        state: Mapping[str, Tensor],
        knob: Mapping,
    ) -> dict[str, Tensor]:
        """Return every run's sharpness; with a second moment, also the preconditioned one.

        Preconditioned: the largest eigenvalue of D^(-1/2) H D^(-1/2) with D = sqrt(v) + eps, v the
        bias-corrected second moment before this step.

        Shapes: leaves {name: (R, ...)}, grads_RP (R, P) with a graph -> {"sharpness": (R,)} or
                {"preconditioned_sharpness": (R,)}
        Source: Cohen et al. 2022, arXiv:2207.14484
        """
        weights_RP = self._inverse_root(optimizer, state, knob, grads_RP)
        for _ in range(self.iterations):
            length_R1 = self.vector_RP.norm(dim=1, keepdim=True)
            self.vector_RP = self.vector_RP / length_R1
            probe_RP = self.vector_RP if weights_RP is None else self.vector_RP * weights_RP
            product = torch.autograd.grad(
                (grads_RP * probe_RP).sum(), list(leaves.values()), retain_graph=True
            )
            product_RP = torch.cat([part.reshape(grads_RP.shape[0], -1) for part in product], dim=1)
            product_RP = product_RP if weights_RP is None else product_RP * weights_RP
            eigenvalue_R = (self.vector_RP * product_RP).sum(dim=1)
            # A run that stopped being finite must not spoil its own vector for good, nor that of a neighbour.
            usable_R1 = product_RP.isfinite().all(dim=1, keepdim=True)
            self.vector_RP = torch.where(usable_R1, product_RP, self.vector_RP)
        return {"sharpness" if weights_RP is None else "preconditioned_sharpness": eigenvalue_R}

    @staticmethod
    def _inverse_root(optimizer, state, knob, like_RP):
        """D^(-1/2), or None without a second moment. Before the first step D is the identity."""
        if "second_moment" not in state:
            return None
        beta2, eps = (
            knob[name][:, None] if isinstance(knob[name], Tensor) else knob[name] for name in ("beta2", "eps")
        )
        step_R1 = state["step"][:, None].to(like_RP.dtype)
        # At step 0 nothing is filled: 1 - beta^0 is 0, and 0 / 0 would be NaN.
        corrected_RP = state["second_moment"] / (1 - beta2**step_R1).clamp(
            min=torch.finfo(like_RP.dtype).tiny
        )
        return torch.where(step_R1 > 0, (corrected_RP.sqrt() + eps).rsqrt(), torch.ones_like(like_RP))
